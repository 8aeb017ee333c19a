// Packs a whole image, augmented, by the rows of pixel_rows.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "channels.h"
#include "pixel_rows.h"
#include "shape.h"

namespace vologan::data {

// The augmentation of an image: whether to flip it, and the pixel that becomes the top-left one.
struct Augmentation {
  bool flip;
  int64_t top, left;
};

// Fills `out` (height, width, channels) with an augmented image. The image is flipped left-right if a.flip is set. Then
// output pixel (y, x) is its pixel (y + a.top, x + a.left), or background if that lies outside.
//
// RGBD pixels are aligned to 16 bytes. color_row(y) returns the pixels of row y of the image. depth_row(pixel, count)
// returns normalised depth of `count` pixels, beginning at index `pixel` of the image. Both are called in the order of
// rows, and each result is used only until the next call. The one that the channels lack is not called. `below` is
// described at pack_row.
template <class ColorRow, class DepthRow>
void pack_image(ColorRow color_row, int64_t below, DepthRow depth_row, Shape size, Augmentation a, Channels channels,
                float* out) {
  const auto [height, width] = size;
  const int64_t rows = std::clamp<int64_t>(height - a.top, 0, height);
  const int64_t columns = std::clamp<int64_t>(width - a.left, 0, width);
  const int64_t left = a.flip ? 0 : a.left;  // the first column that is seen
  const int64_t first = a.flip ? columns - 1 : 0;
  const auto clear = [channels](int64_t count, float* pixels) {
    if (channels.is_rgbd()) {
      clear_row(count, pixels);
    } else {
      std::fill_n(pixels, count * channels.count(), 0.0f);
    }
  };
  for (int64_t y = 0; y < rows; ++y) {
    const uint8_t* color = channels.color ? color_row(y + a.top) + (left + first) * 3 : nullptr;
    const float* depth = channels.depth ? depth_row((y + a.top) * width + left, columns) + first : nullptr;
    float* row = out + y * width * channels.count();
    if (channels.is_rgbd()) {
      pack_row(color, below, depth, columns, a.flip ? -1 : 1, row);
    } else {
      pack_row_of(channels, color, depth, columns, a.flip ? -1 : 1, row);
    }
    clear(width - columns, row + columns * channels.count());
  }
  clear((height - rows) * width, out + rows * width * channels.count());
  finish_rows();
}

}  // namespace vologan::data
