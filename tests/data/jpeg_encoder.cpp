// Encodes a JPEG with any sampling factors, from RGB on stdin to stdout. The arguments are width, height,
// progressive (0 or 1), and the factors h and v of Y, Cb and Cr.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <jpeglib.h>

int main(int argc, char** argv) {
  if (argc != 10) return 2;
  const auto number = [argv](int i) { return std::atoi(argv[i]); };
  jpeg_compress_struct image;
  jpeg_error_mgr errors;
  image.err = jpeg_std_error(&errors);
  jpeg_create_compress(&image);
  jpeg_stdio_dest(&image, stdout);
  image.image_width = number(1);
  image.image_height = number(2);
  image.input_components = 3;
  image.in_color_space = JCS_RGB;
  jpeg_set_defaults(&image);
  jpeg_set_quality(&image, 90, TRUE);
  if (number(3)) jpeg_simple_progression(&image);
  for (int c = 0; c < 3; ++c) {
    image.comp_info[c].h_samp_factor = number(4 + 2 * c);
    image.comp_info[c].v_samp_factor = number(5 + 2 * c);
  }
  jpeg_start_compress(&image, TRUE);
  std::vector<unsigned char> row(3 * image.image_width);
  for (JDIMENSION y = 0; y < image.image_height; ++y) {
    if (std::fread(row.data(), 1, row.size(), stdin) != row.size()) return 1;
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&image, &pointer, 1);
  }
  jpeg_finish_compress(&image);
  jpeg_destroy_compress(&image);
}
