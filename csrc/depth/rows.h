// The hot loops. They convert rows of samples to float32, undo the EXR predictor of chunks, and undo PNG's filters
// of lines. They use SIMD if the processor has it. The level is chosen once, at run time, and results never depend
// on it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "decode.h"

namespace vologan::depth {

// The hot loops at one level of SIMD.
struct RowKernels {
  const char* level;  // "avx2", "sse4.1", "neon", "scalar"

  // Undoes the predictor and the split of a whole inflated chunk (see transforms.h). in and out have n bytes each; n
  // is even.
  void (*reconstruct)(const uint8_t* in, int64_t n, uint8_t* out);

  // Converts `count` little-endian halves, at any alignment.
  void (*halves_to_floats)(const uint8_t* in, int64_t count, float* out);

  // Undo PNG's filters (see filters.h) of 16-bit grey in place. A line has n bytes, at any alignment; n is even.
  void (*undo_sub)(uint8_t* line, int64_t n);
  // These undo four consecutive lines, which begin `stride` bytes apart. `above` is the line above the first one,
  // already undone.
  void (*undo_average_4)(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n);
  void (*undo_paeth_4)(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n);
};

// Returns the levels that the processor can run, the best first. The last one is the scalar definition, which all
// must equal.
std::span<const RowKernels> row_kernel_levels();

// Returns the best level.
const RowKernels& row_kernels();

// Converts the samples at `in` to row `row_index` of `out`. Integers beyond 2²⁴ and doubles are rounded to the
// nearest float. `row` is scratch memory for planes whose columns are not adjacent.
void store_row(const Plane& out, int64_t row_index, SampleType type, bool big_endian, const uint8_t* in,
               std::vector<float>& row);

}  // namespace vologan::depth
