// Rows of samples to float32, and chunks of bytes out of the EXR predictor: the hot loops, with SIMD where the
// processor has it (chosen at run time) and results that never depend on it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "decode.h"

namespace vologan::depth {

// Undoes the predictor and the split of a whole inflated chunk (see transforms.h). in and out: n bytes, n even.
void reconstruct(const uint8_t* in, int64_t n, uint8_t* out);
void reconstruct_scalar(const uint8_t* in, int64_t n, uint8_t* out);

// Little-endian halves, at any alignment.
void halves_to_floats(const uint8_t* in, int64_t count, float* out);
void halves_to_floats_scalar(const uint8_t* in, int64_t count, float* out);

// Converts the samples at `in` to out's row; integers beyond 2²⁴ and doubles are rounded to the nearest float.
// `row` is scratch for planes whose columns do not lie side by side.
void store_row(const Plane& out, int64_t row_index, SampleType type, bool big_endian, const uint8_t* in,
               std::vector<float>& row);

}  // namespace vologan::depth
