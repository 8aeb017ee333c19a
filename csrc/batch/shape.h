// The size of an image, and the part of a larger image that is shown at this size.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vologan::data {

struct Shape {
  int64_t height, width;

  int64_t pixels() const { return height * width; }
  bool operator==(const Shape&) const = default;
};

// Returns the size of the largest rectangle in `image` that has the aspect ratio of `shown`. The side that is cut is
// rounded to whole pixels, half up. The rectangle lies in the centre. crop_shape of vologan_fast/data/pixels.py is the
// definition.
inline Shape crop_shape(Shape image, Shape shown) {
  const auto rounded = [](int64_t product, int64_t by) { return std::max<int64_t>((2 * product + by) / (2 * by), 1); };
  const int64_t across = image.width * shown.height, along = image.height * shown.width;
  if (across > along) return {image.height, rounded(along, shown.height)};
  return {rounded(across, shown.width), image.width};
}

}  // namespace vologan::data
