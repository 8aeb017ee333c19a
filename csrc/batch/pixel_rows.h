// Rows of pixels by the definitions of pixels.h: the hot loops of both operators, with SIMD where the processor has it
// (chosen at run time) and results that never depend on it.
#pragma once

#include <cstdint>

#include "pixels.h"

namespace vologan::data {

// normalize_depth of each value, in place. Returns whether any is valid.
bool normalize_row(float* depth, int64_t count, const DepthRule& rule);

// Of normalised depth.
bool all_background(const float* depth, int64_t count);

// depth[i] = levels[codes[i]], of 65536 levels.
void look_up_row(const uint16_t* codes, const float* levels, int64_t count, float* depth);

// Packs `count` pixels that lie side by side in colour (3 bytes a pixel) and normalised depth. `step` is 1, or -1 to
// walk from `color` and `depth` to the left. The row of a batch is memory that nobody reads soon, so it may be written
// past the caches; finish_rows() makes it visible to other threads.
void pack_row(const uint8_t* color, const float* depth, int64_t count, int step, float* rgbd);
void finish_rows();

}  // namespace vologan::data
