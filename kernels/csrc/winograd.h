// Convolutions with kernels of 3 × 3 by Winograd's minimal filtering, F(4 × 4, 3 × 3): the transforms.
// `vologan_kernels/winograd.py` calls them by ctypes, and states the mathematics. All fields have 8 bytes.

#pragma once

#include <cstdint>

#include "library.h"

#pragma GCC visibility push(default)

extern "C" {

// What is cut into patches: an image into 6 × 6 that overlap, a result into 4 × 4, a kernel into one of 3 × 3.
enum VologanPatches : int64_t { kImage, kResult, kKernel };

// Patches of float32 images, of which all channels of a pixel lie side by side, and their transforms. A kernel
// (O, I, 3, 3) is O images of I channels.
struct VologanWinograd {
  int64_t patches;  // VologanPatches
  int64_t threads;  // at most so many threads work
  float* image;
  int64_t h, w, c;                   // sizes of an image
  int64_t image_stride, row_stride;  // in elements; that of a column is c
  int64_t padding_rows,
      padding_columns;    // of zeros, above the first row of patches and to the left of the first column
  int64_t rows, columns;  // of patches in an image
  int64_t first, count;   // the rows of patches, of all images, that a call works on
  float* transformed;     // (36, count · columns, c)
  int64_t plane_stride;   // between the 36
  const float* bias;      // (c,), which a scatter adds to each pixel; null: nothing
};

// Write the transforms of the patches. Outside the image are zeros.
void vologan_winograd_gather(const VologanWinograd* call);
// The transposed function. It writes the patches, except what is outside. Those of a kImage are added to the image.
void vologan_winograd_scatter(const VologanWinograd* call);
}

#pragma GCC visibility pop
