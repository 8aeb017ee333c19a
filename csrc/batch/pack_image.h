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
// background where that lies outside. depth_row(pixel, count) points at normalised depth of `count` pixels from the
// square's `pixel` on, and need do so only until it is called again.
template <class DepthRow>
void pack_image(const uint8_t* color, int64_t size, Augmentation a, DepthRow depth_row, float* rgbd) {
  const int64_t rows = std::clamp<int64_t>(size - a.top, 0, size);
  const int64_t columns = std::clamp<int64_t>(size - a.left, 0, size);
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t left = (y + a.top) * size + (a.flip ? 0 : a.left);  // of the pixels that are seen
    const int64_t first = a.flip ? columns - 1 : 0;
    float* out = rgbd + y * size * 4;
    pack_row(color + (left + first) * 3, depth_row(left, columns) + first, columns, a.flip ? -1 : 1, out);
    std::fill(out + columns * 4, out + size * 4, 0.0f);
  }
  std::fill(rgbd + rows * size * 4, rgbd + size * size * 4, 0.0f);
  finish_rows();
}

}  // namespace vologan::data
