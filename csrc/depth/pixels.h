// The arithmetic for one RGB-D pixel on its way from two files into a batch. Each function is the definition, and
// vologan_fast/data/pixels.py repeats it in NumPy. Both give the same bits. NumPy rounds a · b + c twice, so this
// code is compiled without contraction. Code for GPUs does the same by intrinsics.
#pragma once

#include <cmath>
#include <cstdint>

#include "transforms.h"

namespace vologan::data {

constexpr float kMissing = 0.0f;            // depth was not measured, or cannot be depth; colour stays
constexpr float kBackground = -1.0f;        // nothing is there; colour becomes 0, too
constexpr float kNearest = 1.0f / 1024.0f;  // the least valid depth, so that near depth is never taken for missing

// A resolved DepthSpec. A valid value d becomes d · gain + offset, which is 0 at near and 1 at far.
struct DepthRule {
  float gain, offset;
  float background;      // NaN: no background
  float floor;           // 0 in a metric unit: no camera measures d · gain ≤ 0. NaN: any value can be depth
  const float* invalid;  // invalid_count values that mean "not measured"
  int invalid_count;
};

// Converts a depth value of a file to kMissing, kBackground or [kNearest, 1]. The background value stays background,
// even if it is infinite, negative or also listed as invalid.
VOLOGAN_HD inline float normalize_depth(float d, const DepthRule& rule) {
  if (d == rule.background) return kBackground;
  if (!std::isfinite(d)) return kMissing;
  for (int i = 0; i < rule.invalid_count; ++i) {
    if (d == rule.invalid[i]) return kMissing;
  }
#ifdef __CUDA_ARCH__
  const float scaled = __fmul_rn(d, rule.gain);
  const float z = __fadd_rn(scaled, rule.offset);
#else
  const float scaled = d * rule.gain;
  const float z = scaled + rule.offset;
#endif
  if (scaled <= rule.floor) return kMissing;
  return z < kNearest ? kNearest : z > 1.0f ? 1.0f : z;
}

// Returns the index of the depth pixel under output pixel i of `size`, along one axis. The middle `side`
// of the colour image's `color_length` pixels are shown at `size` pixels. Depth has `depth_length` pixels along
// the same field of view. The arithmetic uses integers, so that every platform picks the same pixel. Lengths may be
// up to 2^20.
VOLOGAN_HD inline int64_t depth_index(int64_t i, int64_t size, int64_t side, int64_t color_length,
                                      int64_t depth_length) {
  return ((2 * i + 1) * side + (color_length - side) * size) * depth_length / (2 * color_length * size);
}

// Writes one RGBD pixel from colour levels (already divided by 255) and normalised depth.
VOLOGAN_HD inline void pack_pixel(float red, float green, float blue, float depth, float* rgbd) {
  const bool background = depth == kBackground;
  rgbd[0] = background ? 0.0f : red;
  rgbd[1] = background ? 0.0f : green;
  rgbd[2] = background ? 0.0f : blue;
  rgbd[3] = background ? 0.0f : depth;
}

}  // namespace vologan::data
