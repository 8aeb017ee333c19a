#include <zlib.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string>

#include "decode.h"
#include "inflate.h"

namespace vologan::depth {

struct Inflater::State {
  z_stream stream{};
  State() {
    if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
  }
  ~State() { inflateEnd(&stream); }
};

Inflater::Inflater() : state_(std::make_unique<State>()) {}
Inflater::~Inflater() = default;
Inflater::Inflater(Inflater&&) noexcept = default;
Inflater& Inflater::operator=(Inflater&&) noexcept = default;

const char* Inflater::inflate(std::span<const uint8_t> in, std::span<uint8_t> out) {
  constexpr size_t most = std::numeric_limits<uInt>::max();  // zlib counts in 32 bits
  z_stream& stream = state_->stream;
  inflateReset(&stream);
  // zlib wants room for one byte to notice a stream that goes on behind a full output.
  uint8_t beyond = 0;
  size_t read = 0, written = 0;
  for (;;) {
    const size_t give = std::min(in.size() - read, most);
    const size_t room = std::min(out.size() - written, most);
    stream.next_in = const_cast<Bytef*>(in.data() + read);
    stream.avail_in = static_cast<uInt>(give);
    stream.next_out = room ? out.data() + written : &beyond;
    stream.avail_out = room ? static_cast<uInt>(room) : 1;
    const uInt had = stream.avail_out;
    const int status = ::inflate(&stream, Z_NO_FLUSH);
    read += give - stream.avail_in;
    const size_t made = had - stream.avail_out;
    if (!room && made) return "a stream that goes on";
    written += made;
    if (status == Z_STREAM_END) {
      if (written < out.size()) return "a stream that ends early";
      return read == in.size() ? nullptr : "bytes behind the stream's end";
    }
    if (status != Z_OK || (read == in.size() && stream.avail_out)) return "a corrupt stream";
  }
}

uint32_t crc32(std::span<const uint8_t> data) {
  return static_cast<uint32_t>(::crc32_z(0, data.data(), data.size()));
}

const char* inflate_backend() {
  static const std::string name = std::string("zlib ") + zlibVersion();
  return name.c_str();
}

}  // namespace vologan::depth
