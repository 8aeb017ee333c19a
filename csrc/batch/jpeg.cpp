#include "jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it and does not include it
#include <stdexcept>
#include <vector>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "expected the headers of libjpeg-turbo, which knows partial images"
#endif

namespace vologan::data {

struct Jpeg::State {
  jpeg_decompress_struct image{};
  jpeg_error_mgr errors{};
  std::jmp_buf failed;
  std::vector<uint8_t> row;
  JDIMENSION left = 0;

  State() {
    image.err = jpeg_std_error(&errors);
    image.client_data = this;
    errors.error_exit = [](j_common_ptr image) { std::longjmp(static_cast<State*>(image->client_data)->failed, 1); };
    errors.output_message = [](j_common_ptr) {};
    if (setjmp(failed)) throw std::runtime_error("libjpeg is not the one that vologan_fast was built with");
    jpeg_create_decompress(&image);
  }
  ~State() { jpeg_destroy_decompress(&image); }

  // libjpeg warns when it makes up data to go on.
  bool sound() const { return errors.num_warnings == 0; }

  void read_row() {
    JSAMPROW row_at_left = row.data() + 3 * left;
    jpeg_read_scanlines(&image, &row_at_left, 1);
  }

  void skip(JDIMENSION rows) {
    if (rows) jpeg_skip_scanlines(&image, rows);
  }
};

namespace {

// Whether low frequencies of a progressive file lack their last bits. libjpeg then smooths the image, and each
// version does it in its own way. coef_bits shows this for the mean and 9 more coefficients: 0 means that all bits
// are there.
bool lacks_refinements(const jpeg_decompress_struct& image) {
  for (int c = 0; c < image.num_components; ++c) {
    if (std::any_of(image.coef_bits[c], image.coef_bits[c] + 10, [](int bits) { return bits != 0; })) return true;
  }
  return false;
}

}  // namespace

// The functions below that call libjpeg have no objects with destructors, because longjmp would not call them.

Jpeg::Jpeg() : state_(std::make_unique<State>()) {}
Jpeg::~Jpeg() = default;

bool Jpeg::open(std::span<const uint8_t> file) {
  jpeg_decompress_struct& image = state_->image;
  if (setjmp(state_->failed)) return false;
  // A decoder that is used again keeps the tables of the file before, and would decode a file without tables with them.
  jpeg_destroy_decompress(&image);
  jpeg_create_decompress(&image);
  jpeg_mem_src(&image, file.data(), file.size());
  jpeg_read_header(&image, TRUE);
  // jpeg_skip_scanlines of libjpeg-turbo 2.1 never returns for some progressive files whose colour planes have a
  // half and a quarter of the image's height.
  if (image.max_v_samp_factor > 2) return false;
  return image.jpeg_color_space == JCS_GRAYSCALE || image.jpeg_color_space == JCS_YCbCr ||
         image.jpeg_color_space == JCS_RGB;
}

int64_t Jpeg::height() const { return state_->image.image_height; }
int64_t Jpeg::width() const { return state_->image.image_width; }

bool Jpeg::start(const Box& box) {
  jpeg_decompress_struct& image = state_->image;
  state_->row.resize(3 * image.image_width + 1);
  if (setjmp(state_->failed)) return false;
  image.out_color_space = JCS_RGB;
  jpeg_start_decompress(&image);
  if (image.progressive_mode && lacks_refinements(image)) return false;
  // If the colour planes are half as wide as the image, a pixel is a mean with its neighbours. These must not be cut
  // off.
  constexpr int64_t neighbours = 2;
  const int64_t right = std::min<int64_t>(image.output_width, box.right + neighbours);
  state_->left = static_cast<JDIMENSION>(std::max<int64_t>(0, box.left - neighbours));
  JDIMENSION width = static_cast<JDIMENSION>(right) - state_->left;
  jpeg_crop_scanline(&image, &state_->left, &width);  // rounds to blocks: moves left, and the row becomes as much wider
  state_->skip(static_cast<JDIMENSION>(box.top));
  return state_->sound();
}

const uint8_t* Jpeg::row() {
  if (setjmp(state_->failed)) return nullptr;
  state_->read_row();
  return state_->sound() ? state_->row.data() : nullptr;
}

bool Jpeg::finish() {
  jpeg_decompress_struct& image = state_->image;
  if (setjmp(state_->failed)) return false;
  // The last row is read, because skipping it would leave the rest of the file unread.
  if (image.output_scanline < image.output_height) {
    state_->skip(image.output_height - 1 - image.output_scanline);
    state_->read_row();
  }
  jpeg_finish_decompress(&image);
  return state_->sound();
}

const char* jpeg_backend() {
#define VOLOGAN_STRING(x) #x
#define VOLOGAN_QUOTE(x) VOLOGAN_STRING(x)
  return "libjpeg-turbo " VOLOGAN_QUOTE(LIBJPEG_TURBO_VERSION);
#undef VOLOGAN_QUOTE
#undef VOLOGAN_STRING
}

}  // namespace vologan::data
