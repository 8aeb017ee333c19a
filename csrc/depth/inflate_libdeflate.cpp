#include <libdeflate.h>

#include <new>
#include <vector>

#include "decode.h"
#include "inflate.h"

namespace vologan::depth {

// libdeflate copies matches byte by byte as soon as fewer than about 40 bytes of input or 300 bytes of output are left.
// The background of a depth image packs a whole chunk into those last bytes, and half of the time goes there; so the
// input is given with a tail that must stay unread, and the output with one that must stay unused.
constexpr size_t input_tail = 64;

struct Inflater::State {
  libdeflate_decompressor* decompressor = libdeflate_alloc_decompressor();
  std::vector<uint8_t> input;
  State() {
    if (!decompressor) throw std::bad_alloc();
  }
  ~State() { libdeflate_free_decompressor(decompressor); }
};

Inflater::Inflater() : state_(std::make_unique<State>()) {}
Inflater::~Inflater() = default;
Inflater::Inflater(Inflater&&) noexcept = default;
Inflater& Inflater::operator=(Inflater&&) noexcept = default;

const char* Inflater::inflate(std::span<const uint8_t> in, std::span<uint8_t> out) {
  std::vector<uint8_t>& input = state_->input;
  input.assign(in.begin(), in.end());
  input.resize(in.size() + input_tail);
  size_t read = 0, written = 0;
  switch (libdeflate_zlib_decompress_ex(state_->decompressor, input.data(), input.size(), out.data(),
                                        out.size() + output_tail, &read, &written)) {
    case LIBDEFLATE_SUCCESS:
      if (read > in.size() || written < out.size()) return "a stream that ends early";
      if (written > out.size()) return "a stream that goes on";
      return read == in.size() ? nullptr : "bytes behind the stream's end";
    case LIBDEFLATE_INSUFFICIENT_SPACE:
      return "a stream that goes on";
    default:
      return "a corrupt stream";
  }
}

uint32_t crc32(std::span<const uint8_t> data) { return libdeflate_crc32(0, data.data(), data.size()); }

const char* inflate_backend() { return "libdeflate " LIBDEFLATE_VERSION_STRING; }

}  // namespace vologan::depth
