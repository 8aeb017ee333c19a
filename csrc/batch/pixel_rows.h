// Rows of pixels by the definitions of pixels.h: the hot loops of both loaders. They use SIMD if the processor has
// it (chosen at run time), and results never depend on it.
#pragma once

#include <cstdint>
#include <span>

#include "channels.h"
#include "pixels.h"

namespace vologan::data {

// Applies normalize_depth to each value in place. Returns whether any value is valid depth.
bool normalize_row(float* depth, int64_t count, const DepthRule& rule);

// Returns whether all values of normalised depth are background.
bool all_background(const float* depth, int64_t count);

// Sets depth[i] = levels[codes[i]]. There are 65536 levels.
void look_up_row(const uint16_t* codes, const float* levels, int64_t count, float* depth);

// Packs `count` pixels that are adjacent in colour (3 bytes a pixel) and in normalised depth. `step` is 1, or −1 to
// walk from `color` and `depth` to the left. rgbd is aligned to 16 bytes.
//
// `below` is the distance in bytes from the colour of a pixel to the colour of the pixel below it. That colour is
// prefetched for pixels that are not background. Processors cannot foresee it, because background is skipped. 0
// means no prefetch.
void pack_row(const uint8_t* color, int64_t below, const float* depth, int64_t count, int step, float* rgbd);

// Packs `count` pixels of other channels than RGBD. `color` or `depth` may be null, if the channels lack it. Grey is
// the luma of Rec. 601, rounded to 8 bits as Pillow rounds it.
void pack_row_of(Channels channels, const uint8_t* color, const float* depth, int64_t count, int step, float* out);

// Returns the levels of pack_row that the processor can run, the best first. pack_row calls the first one. The last
// one is the definition.
using PackRow = decltype(&pack_row);
std::span<const PackRow> pack_row_levels();

// Returns the name of the first one: "avx512", "avx2" or "scalar".
const char* pack_row_level();

// Fills `count` pixels with background.
void clear_row(int64_t count, float* rgbd);

// Makes packed rows visible to other threads. The rows of a batch are memory that nobody reads soon, so pack_row and
// clear_row may write past the caches.
void finish_rows();

// Prefetches `bytes` bytes that begin `ahead` bytes from `data`. They may lie past the end of the memory. Beside
// streaming stores, processors read too little ahead by themselves.
inline void prefetch(const void* data, int64_t ahead, int64_t bytes = 1) {
#ifdef __GNUC__
  const uintptr_t first = reinterpret_cast<uintptr_t>(data) + ahead;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(first + i));
#endif
}

}  // namespace vologan::data
