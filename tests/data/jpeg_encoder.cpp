// Encodes a JPEG of any kind, from the samples of its pixels on stdin to stdout. The arguments are width, height, the
// kind of the samples, the kind of the file, flags, the restart interval, and the factors h and v of each component.
// A kind is grey, rgb, ycc, cmyk or ycck. The flags are letters: p (progressive), a (arithmetic coding), J (a JFIF
// marker), A (an Adobe marker).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include <jpeglib.h>

namespace {

J_COLOR_SPACE space(std::string_view name) {
  if (name == "grey") return JCS_GRAYSCALE;
  if (name == "rgb") return JCS_RGB;
  if (name == "ycc") return JCS_YCbCr;
  return name == "cmyk" ? JCS_CMYK : JCS_YCCK;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  const auto number = [argv](int i) { return std::atoi(argv[i]); };
  const auto flag = [argv](char letter) { return std::strchr(argv[5], letter) != nullptr; };
  jpeg_compress_struct image;
  jpeg_error_mgr errors;
  image.err = jpeg_std_error(&errors);
  jpeg_create_compress(&image);
  jpeg_stdio_dest(&image, stdout);
  image.image_width = number(1);
  image.image_height = number(2);
  image.in_color_space = space(argv[3]);
  image.input_components = image.in_color_space == JCS_GRAYSCALE ? 1 : image.in_color_space == JCS_CMYK ? 4 : 3;
  jpeg_set_defaults(&image);
  jpeg_set_colorspace(&image, space(argv[4]));
  jpeg_set_quality(&image, 90, TRUE);
  image.arith_code = flag('a');
  image.write_JFIF_header = flag('J');
  image.write_Adobe_marker = flag('A');
  image.restart_interval = number(6);
  if (flag('p')) jpeg_simple_progression(&image);
  for (int c = 0; c < image.num_components && 8 + 2 * c < argc; ++c) {
    image.comp_info[c].h_samp_factor = number(7 + 2 * c);
    image.comp_info[c].v_samp_factor = number(8 + 2 * c);
  }
  jpeg_start_compress(&image, TRUE);
  std::vector<unsigned char> row(static_cast<size_t>(image.input_components) * image.image_width);
  for (JDIMENSION y = 0; y < image.image_height; ++y) {
    if (std::fread(row.data(), 1, row.size(), stdin) != row.size()) return 1;
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&image, &pointer, 1);
  }
  jpeg_finish_compress(&image);
  jpeg_destroy_compress(&image);
}
