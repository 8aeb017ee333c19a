#include <libdeflate.h>

#include <new>

#include "decode.h"
#include "inflate.h"

namespace vologan::depth {

struct Inflater::State {
  libdeflate_decompressor* decompressor = libdeflate_alloc_decompressor();
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
  size_t read = 0;
  switch (libdeflate_zlib_decompress_ex(state_->decompressor, in.data(), in.size(), out.data(), out.size(), &read,
                                        nullptr)) {
    case LIBDEFLATE_SUCCESS:
      return read == in.size() ? nullptr : "bytes behind the stream's end";
    case LIBDEFLATE_SHORT_OUTPUT:
      return "a stream that ends early";
    case LIBDEFLATE_INSUFFICIENT_SPACE:
      return "a stream that goes on";
    default:
      return "a corrupt stream";
  }
}

uint32_t crc32(std::span<const uint8_t> data) { return libdeflate_crc32(0, data.data(), data.size()); }

const char* inflate_backend() { return "libdeflate " LIBDEFLATE_VERSION_STRING; }

}  // namespace vologan::depth
