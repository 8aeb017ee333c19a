// The hot loops: rows of samples to float32, chunks of bytes out of the EXR predictor, lines out of PNG's filters. With
// SIMD where the processor has it, chosen once at run time; results never depend on it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "decode.h"

namespace vologan::depth {

struct RowKernels {
  const char* level;  // "avx2", "sse4.1", "neon", "scalar"

  // Undoes the predictor and the split of a whole inflated chunk (see transforms.h). in and out: n bytes, n even.
  void (*reconstruct)(const uint8_t* in, int64_t n, uint8_t* out);

  // `count` little-endian halves, at any alignment.
  void (*halves_to_floats)(const uint8_t* in, int64_t count, float* out);

  // PNG's filters (see filters.h) of 16-bit grey, in place: n bytes a line, n even, at any alignment.
  void (*undo_sub)(uint8_t* line, int64_t n);
  // Of four lines below each other, which begin `stride` bytes apart; `above` is the line above the first, undone.
  void (*undo_average_4)(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n);
  void (*undo_paeth_4)(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n);
};

// Those that the processor can run: the best first, last the scalar definitions that all must equal.
std::span<const RowKernels> row_kernel_levels();

// The best.
const RowKernels& row_kernels();

// Converts the samples at `in` to out's row; integers beyond 2²⁴ and doubles are rounded to the nearest float.
// `row` is scratch for planes whose columns do not lie side by side.
void store_row(const Plane& out, int64_t row_index, SampleType type, bool big_endian, const uint8_t* in,
               std::vector<float>& row);

}  // namespace vologan::depth
