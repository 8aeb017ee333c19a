// zlib streams in one go, by libdeflate or by zlib: CMake chooses which of inflate_*.cpp is compiled.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace vologan::depth {

// Room behind the output that inflate() may write to.
constexpr size_t output_tail = 320;

class Inflater {
 public:
  Inflater();
  ~Inflater();
  Inflater(Inflater&&) noexcept;
  Inflater& operator=(Inflater&&) noexcept;

  // Inflates the zlib stream `in`, all of it, to exactly out.size() bytes with the right Adler-32. Returns nullptr, or
  // what was found instead; then `out` holds nothing useful. Behind `out` there are output_tail bytes more.
  const char* inflate(std::span<const uint8_t> in, std::span<uint8_t> out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// CRC-32 of PNG.
uint32_t crc32(std::span<const uint8_t> data);

}  // namespace vologan::depth
