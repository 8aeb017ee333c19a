// Rows of pixels by the definitions of pixels.h: the hot loops of both loaders, with SIMD where the processor has it
// (chosen at run time) and results that never depend on it.
#pragma once

#include <cstdint>
#include <span>

#include "pixels.h"

namespace vologan::data {

// normalize_depth of each value, in place. Returns whether any is valid.
bool normalize_row(float* depth, int64_t count, const DepthRule& rule);

// Of normalised depth.
bool all_background(const float* depth, int64_t count);

// depth[i] = levels[codes[i]], of 65536 levels.
void look_up_row(const uint16_t* codes, const float* levels, int64_t count, float* depth);

// Packs `count` pixels that lie side by side in colour (3 bytes a pixel) and normalised depth. `step` is 1, or -1 to
// walk from `color` and `depth` to the left. `below` is the way in bytes from a pixel's colour to that of the one below
// it, which is asked for from memory where this one is seen, or 0 if it is not to be: background is skipped, so no
// processor foresees what is read next. rgbd is aligned to 16 bytes.
void pack_row(const uint8_t* color, int64_t below, const float* depth, int64_t count, int step, float* rgbd);

// Those that the processor can run, which pack_row takes the first of. The last is the definition.
using PackRow = decltype(&pack_row);
std::span<const PackRow> pack_row_levels();

// `count` pixels of background.
void clear_row(int64_t count, float* rgbd);

// The rows of a batch are memory that nobody reads soon, so pack_row and clear_row may write past the caches. This
// makes them visible to other threads.
void finish_rows();

// Asks for `bytes` that lie `ahead` bytes from `data`, perhaps past the end of what there is. In the shadow of
// streaming stores, processors read too little ahead by themselves.
inline void prefetch(const void* data, int64_t ahead, int64_t bytes = 1) {
#ifdef __GNUC__
  const uintptr_t first = reinterpret_cast<uintptr_t>(data) + ahead;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(first + i));
#endif
}

}  // namespace vologan::data
