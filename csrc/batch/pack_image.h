// A whole image, augmented, by the rows of pixel_rows.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pixel_rows.h"

namespace vologan::data {

struct Augmentation {
  bool flip;
  int64_t top, left;
};

// Flips the image left-right where a.flip is set; then output (y, x) is its pixel (y + a.top, x + a.left), and
// background where that lies outside. color_row(y) points at the pixels of the square's row y; depth_row(pixel, count)
// at normalised depth of `count` pixels from the square's `pixel` on. They need do so only until they are called again,
// and are called in the order of rows. `below`: see pack_row.
template <class ColorRow, class DepthRow>
void pack_image(ColorRow color_row, int64_t below, DepthRow depth_row, int64_t size, Augmentation a, float* rgbd) {
  const int64_t rows = std::clamp<int64_t>(size - a.top, 0, size);
  const int64_t columns = std::clamp<int64_t>(size - a.left, 0, size);
  const int64_t left = a.flip ? 0 : a.left;  // of the pixels that are seen
  const int64_t first = a.flip ? columns - 1 : 0;
  for (int64_t y = 0; y < rows; ++y) {
    const uint8_t* color = color_row(y + a.top) + left * 3;
    const float* depth = depth_row((y + a.top) * size + left, columns);
    float* out = rgbd + y * size * 4;
    pack_row(color + first * 3, below, depth + first, columns, a.flip ? -1 : 1, out);
    clear_row(size - columns, out + columns * 4);
  }
  clear_row((size - rows) * size, rgbd + rows * size * 4);
  finish_rows();
}

}  // namespace vologan::data
