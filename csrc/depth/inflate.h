// Inflates zlib streams (RFC 1950, RFC 1951) in one call: one stream, or two side by side.
//
// A Huffman code can be read only when the length of the code before it is known. The length is in a table entry, and
// a processor spends most of its time waiting for this entry. If two streams are read in turns, their waits overlap,
// and the two take hardly longer than one. So the EXR decoder inflates its chunks in pairs. docs/depth-decoder.md
// compares this inflater with libdeflate.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace vologan::depth {

// The number of bytes behind the output that inflate() may overwrite.
constexpr size_t output_tail = 320;

// A stream and the memory for its output.
struct InflateJob {
  std::span<const uint8_t> in;  // the whole zlib stream
  std::span<uint8_t> out;       // the expected output has exactly this size; output_tail bytes of memory must follow it
  bool more = false;            // whether other bytes may stand behind the stream in `in`; they are not read
};

// An inflater that keeps its tables from call to call. It is not thread-safe: use one per thread.
class Inflater {
 public:
  Inflater();
  ~Inflater();
  Inflater(Inflater&&) noexcept;
  Inflater& operator=(Inflater&&) noexcept;

  // Inflates a stream to exactly out.size() bytes and checks its Adler-32. Returns nullptr on success. Otherwise
  // returns a description of the problem ("a stream that ends early"), and the contents of `out` are unspecified.
  // Accepts the same streams as the inflater in team_inflate.h.
  const char* inflate(const InflateJob& job);

  // Does the same for two streams. Each needs output memory of its own. Returns the results of a and of b.
  std::array<const char*, 2> inflate(const InflateJob& a, const InflateJob& b);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vologan::depth
