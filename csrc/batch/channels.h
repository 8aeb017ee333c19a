// The channels of the images in a batch.
#pragma once

#include <stdexcept>

namespace vologan::data {

// Colour has 3 channels (red, green, blue), 1 (grey) or 0, and comes before depth. Without depth, there is no
// background.
struct Channels {
  int color = 3;
  bool depth = true;

  int count() const { return color + depth; }
  bool is_rgbd() const { return color == 3 && depth; }

  void check() const {
    if ((color != 0 && color != 1 && color != 3) || count() == 0) throw std::invalid_argument("no such channels");
  }
};

}  // namespace vologan::data
