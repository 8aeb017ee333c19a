// zlib streams (RFC 1950, 1951) in one go, one of them or two side by side.
//
// Each code of a stream can be read only when the one before it has been, so a processor spends most of its time
// waiting for the table entry that says how long that was. Two streams have two such chains, and hardly take longer
// than one: the chunks of an EXR are read so. docs/depth-decoder.md compares this with libdeflate.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace vologan::depth {

// Room behind the output that is written to.
constexpr size_t output_tail = 320;

struct InflateJob {
  std::span<const uint8_t> in;  // the zlib stream, all of it
  std::span<uint8_t> out;       // what it must give, to the byte; output_tail bytes more lie behind it
};

class Inflater {
 public:
  Inflater();
  ~Inflater();
  Inflater(Inflater&&) noexcept;
  Inflater& operator=(Inflater&&) noexcept;

  // Inflates a stream to exactly out.size() bytes with the right Adler-32. Returns nullptr, or what was found instead;
  // then `out` holds nothing useful. Accepts what team_inflate.h does.
  const char* inflate(const InflateJob& job);

  // The same for two, into memory of their own each.
  std::array<const char*, 2> inflate(const InflateJob& a, const InflateJob& b);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vologan::depth
