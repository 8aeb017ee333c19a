#include "judges.h"

#include <libdeflate.h>
#include <openexr.h>

#include <algorithm>
#include <cstring>

namespace vologan::depth {

std::string judges() {
  int major, minor, patch;
  const char* extra;
  exr_get_library_version(&major, &minor, &patch, &extra);
  return "libdeflate " LIBDEFLATE_VERSION_STRING ", OpenEXR " + std::to_string(major) + "." + std::to_string(minor) +
         "." + std::to_string(patch);
}

bool inflate_by_libdeflate(std::span<const uint8_t> stream, std::span<uint8_t> out) {
  static libdeflate_decompressor* decompressor = libdeflate_alloc_decompressor();
  size_t read = 0;
  return libdeflate_zlib_decompress_ex(decompressor, stream.data(), stream.size(), out.data(), out.size(), &read,
                                       nullptr) == LIBDEFLATE_SUCCESS &&
         read == stream.size();
}

namespace {

using Bytes = std::span<const uint8_t>;

const Bytes& bytes_of(void* user) { return *static_cast<const Bytes*>(user); }

int64_t size_of(exr_const_context_t, void* user) { return static_cast<int64_t>(bytes_of(user).size()); }

int64_t read_bytes(exr_const_context_t, void* user, void* to, uint64_t count, uint64_t offset,
                   exr_stream_error_func_ptr_t) {
  const Bytes& file = bytes_of(user);
  if (offset >= file.size()) return 0;
  const size_t found = std::min<size_t>(count, file.size() - offset);
  std::memcpy(to, file.data() + offset, found);
  return static_cast<int64_t>(found);
}

// A file that OpenEXR reads from memory, and the decoder of its chunks.
struct OpenExr {
  explicit OpenExr(Bytes& file) {
    exr_context_initializer_t setup = EXR_DEFAULT_CONTEXT_INITIALIZER;
    setup.user_data = &file;
    setup.size_fn = size_of;
    setup.read_fn = read_bytes;
    setup.error_handler_fn = [](exr_const_context_t, exr_result_t, const char*) {};  // silent
    sound = exr_start_read(&context, "fuzz", &setup) == EXR_ERR_SUCCESS;
  }
  ~OpenExr() {
    if (decoding) exr_decoding_destroy(context, &decoder);
    exr_finish(&context);
  }
  OpenExr(const OpenExr&) = delete;
  OpenExr& operator=(const OpenExr&) = delete;

  // The chunk that holds line y; `out` is where line `top` of the channel goes.
  bool decode(int y, int top, int64_t width, const char* channel, float* out, exr_chunk_info_t& chunk) {
    if (exr_read_scanline_chunk_info(context, 0, y, &chunk) != EXR_ERR_SUCCESS) return false;
    const exr_result_t started = decoding ? exr_decoding_update(context, 0, &chunk, &decoder)
                                          : exr_decoding_initialize(context, 0, &chunk, &decoder);
    decoding = true;
    if (started != EXR_ERR_SUCCESS) return false;
    unwanted.resize(static_cast<size_t>(width * chunk.height));
    for (int i = 0; i < decoder.channel_count; ++i) {
      exr_coding_channel_info_t& found = decoder.channels[i];
      const bool wanted = std::strcmp(found.channel_name, channel) == 0;
      // OpenEXR 3.1 has a fast path for three and four halves, which writes all of them.
      found.decode_to_ptr = reinterpret_cast<uint8_t*>(wanted ? out + (chunk.start_y - top) * width : unwanted.data());
      found.user_data_type = EXR_PIXEL_FLOAT;
      found.user_bytes_per_element = sizeof(float);
      found.user_pixel_stride = sizeof(float);
      found.user_line_stride = static_cast<int32_t>(width * sizeof(float));
    }
    return exr_decoding_choose_default_routines(context, 0, &decoder) == EXR_ERR_SUCCESS &&
           exr_decoding_run(context, 0, &decoder) == EXR_ERR_SUCCESS;
  }

  exr_context_t context = nullptr;
  exr_decode_pipeline_t decoder = EXR_DECODE_PIPELINE_INITIALIZER;
  bool sound, decoding = false;
  std::vector<float> unwanted;  // takes the samples of the other channels
};

}  // namespace

bool decode_by_openexr(Bytes file, const Info& info, const Channel& channel, float* out) {
  OpenExr exr(file);
  if (!exr.sound) return false;
  const int64_t bottom = info.y + info.height;
  exr_chunk_info_t chunk;
  for (int64_t y = info.y; y < bottom; y += chunk.height) {
    if (!exr.decode(static_cast<int>(y), info.y, info.width, channel.name.c_str(), out, chunk)) return false;
  }
  return true;
}

}  // namespace vologan::depth
