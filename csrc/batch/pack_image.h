// Packs a whole image, augmented, by the rows of pixel_rows.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pixel_rows.h"
#include "shape.h"

namespace vologan::data {

// The augmentation of an image: whether to flip it, and the pixel that becomes the top-left one.
struct Augmentation {
  bool flip;
  int64_t top, left;
};

// Fills rgbd (height, width, 4) with an augmented image. The image is flipped left-right if a.flip is set. Then output
// pixel (y, x) is its pixel (y + a.top, x + a.left), or background if that lies outside.
//
// color_row(y) returns the pixels of row y of the image. depth_row(pixel, count) returns normalised depth of
// `count` pixels, beginning at index `pixel` of the image. Both are called in the order of rows, and each result is
// used only until the next call. `below` is described at pack_row.
template <class ColorRow, class DepthRow>
void pack_image(ColorRow color_row, int64_t below, DepthRow depth_row, Shape size, Augmentation a, float* rgbd) {
  const auto [height, width] = size;
  const int64_t rows = std::clamp<int64_t>(height - a.top, 0, height);
  const int64_t columns = std::clamp<int64_t>(width - a.left, 0, width);
  const int64_t left = a.flip ? 0 : a.left;  // the first column that is seen
  const int64_t first = a.flip ? columns - 1 : 0;
  for (int64_t y = 0; y < rows; ++y) {
    const uint8_t* color = color_row(y + a.top) + left * 3;
    const float* depth = depth_row((y + a.top) * width + left, columns);
    float* out = rgbd + y * width * 4;
    pack_row(color + first * 3, below, depth + first, columns, a.flip ? -1 : 1, out);
    clear_row(width - columns, out + columns * 4);
  }
  clear_row((height - rows) * width, rgbd + rows * width * 4);
  finish_rows();
}

}  // namespace vologan::data
