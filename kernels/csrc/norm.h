// Instance norm + residual + activation + reflection padding on the CPU. `vologan_kernels/instance_norm/native.py`
// calls it by ctypes. All fields have 8 bytes, so the structures have no gaps.

#pragma once

#include <cstdint>

#include "library.h"

#pragma GCC visibility push(default)

extern "C" {

// An image (N, C, H, W) as the kernels address it: strides in elements, with position = row · W + column.
// No image: data is null.
struct VologanView {
  void* data;
  int64_t n, p, c;
};

enum VologanActivation : int64_t { kIdentity, kRelu, kLeakyRelu, kPrelu, kSilu, kGelu, kElu, kTanh };

// What both directions need. Parameters and statistics are float64 for float64 images, else float32.
struct VologanNorm {
  int64_t type;  // VologanType of all images
  int64_t
      channels_last;   // 1: the channels of a position lie side by side (c = 1); 0: the positions of a channel (p = 1)
  int64_t n, c, h, w;  // sizes of x
  int64_t pad;         // reflection padding of y on each side, less than h and w
  int64_t activation;  // VologanActivation
  int64_t threads;     // at most so many threads work
  double eps, negative_slope, min_scale;
  const void *weight, *bias, *slope;  // (C,) each; null: 1, 0 and negative_slope
  void *mean, *rstd;                  // (N, C); written by the forward, read by the backward
};

struct VologanForward {
  VologanNorm norm;
  VologanView x, residual, y;
};

struct VologanBackward {
  VologanNorm norm;
  int64_t from_output;                // 1: `saved` is y, 0: it is x
  VologanView grad, saved, residual;  // grad is ∂L/∂y
  VologanView dx, d_residual;         // d_residual may be no image
  void *d_weight, *d_bias, *d_slope;  // (C,) each; d_slope may be null
};

// Each returns 0, or 1 if there is no memory for its sums. `addresses` replaces all pointers of the call, so that calls
// which differ in nothing else share one structure. Null: the pointers are those of the structure.
// The forward takes x, residual, y, weight, bias, slope, mean, rstd.
int vologan_norm_forward(const VologanForward* call, void* const* addresses);
// The backward takes grad, saved, residual, dx, d_residual, weight, bias, slope, mean, rstd, d_weight, d_bias, d_slope.
int vologan_norm_backward(const VologanBackward* call, void* const* addresses);
}

#pragma GCC visibility pop
