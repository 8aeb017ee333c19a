// What one RGB-D pixel becomes on its way from two files into a batch. Each function is the definition that
// vologan_fast/data/pixels.py repeats in NumPy; both give the same bits (this code is compiled without contraction of
// a · b + c, so that it rounds twice as NumPy does; for a GPU that is spelt out).
#pragma once

#include <cmath>
#include <cstdint>

#include "transforms.h"

namespace vologan::data {

constexpr float kMissing = 0.0f;            // depth was not measured, or makes no sense: colour stays
constexpr float kBackground = -1.0f;        // nothing there: colour becomes 0 too
constexpr float kNearest = 1.0f / 1024.0f;  // the least valid depth, so that near is never taken for missing

// DepthSpec, resolved. A valid value d becomes d · gain + offset, which is 0 at near and 1 at far.
struct DepthRule {
  float gain, offset;
  float background;      // NaN: none
  const float* invalid;  // invalid_count values that mean "not measured"
  int invalid_count;
};

// A file's depth value to kMissing, kBackground or [kNearest, 1]. What is named background is background even where
// it is infinite or also invalid.
VOLOGAN_HD inline float normalize_depth(float d, const DepthRule& rule) {
  if (d == rule.background) return kBackground;
  if (!std::isfinite(d)) return kMissing;
  for (int i = 0; i < rule.invalid_count; ++i) {
    if (d == rule.invalid[i]) return kMissing;
  }
#ifdef __CUDA_ARCH__
  const float z = __fadd_rn(__fmul_rn(d, rule.gain), rule.offset);
#else
  const float z = d * rule.gain + rule.offset;
#endif
  return z < kNearest ? kNearest : z > 1.0f ? 1.0f : z;
}

// The depth index that lies under output pixel i of `size`, along one axis. The square is the middle `side` of the
// colour's `color_length` pixels, seen at `size` pixels; depth has `depth_length` pixels along the same field of view.
// In integers: no platform rounds a pixel to another place. Lengths up to 2^20.
VOLOGAN_HD inline int64_t depth_index(int64_t i, int64_t size, int64_t side, int64_t color_length,
                                      int64_t depth_length) {
  return ((2 * i + 1) * side + (color_length - side) * size) * depth_length / (2 * color_length * size);
}

// Colour levels (already divided by 255) and normalised depth to one RGBD pixel.
VOLOGAN_HD inline void pack_pixel(float red, float green, float blue, float depth, float* rgbd) {
  const bool background = depth == kBackground;
  rgbd[0] = background ? 0.0f : red;
  rgbd[1] = background ? 0.0f : green;
  rgbd[2] = background ? 0.0f : blue;
  rgbd[3] = background ? 0.0f : depth;
}

}  // namespace vologan::data
