// Undoes PNG's filters byte by byte. This is the readable definition that the SIMD rows (rows.cpp) must equal.
//
// In each filter, `a` is the byte one pixel to the left, `b` is the byte above, and `c` is the byte above `a`. They
// are 0 outside the image. a and c stay in registers: loading a byte that was just stored would take several times
// as long as the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vologan::depth {

template <int pixel_bytes>
void undo_sub(uint8_t* line, int64_t n) {
  uint8_t a[pixel_bytes] = {};
  for (int64_t i = 0; i < n; i += pixel_bytes) {
    for (int j = 0; j < pixel_bytes; ++j) line[i + j] = a[j] = static_cast<uint8_t>(line[i + j] + a[j]);
  }
}

inline void undo_up(uint8_t* line, const uint8_t* above, int64_t n) {
  for (int64_t i = 0; i < n; ++i) line[i] = static_cast<uint8_t>(line[i] + above[i]);
}

// Undoes bytes [first, n) of a line whose bytes before `first` are already undone.
template <int pixel_bytes>
void undo_average(uint8_t* line, const uint8_t* above, int64_t n, int64_t first) {
  uint8_t a[pixel_bytes] = {};
  for (int j = 0; first && j < pixel_bytes; ++j) a[j] = line[first - pixel_bytes + j];
  for (int64_t i = first; i < n; i += pixel_bytes) {
    for (int j = 0; j < pixel_bytes; ++j) {
      line[i + j] = a[j] = static_cast<uint8_t>(line[i + j] + (a[j] + above[i + j]) / 2);
    }
  }
}

// Returns the one of a, b and c that is nearest to a + b − c, and of equally near ones the first in this order. This
// is Fabian Giesen's form. It has no branch. It also needs few steps from a, the byte that was computed last, to the
// result.
inline int paeth(int a, int b, int c) {
  const int threshold = 3 * c - (a + b);
  const int low = std::min(a, b), high = std::max(a, b);
  const int low_or_c = high <= threshold ? low : c;
  return threshold <= low ? high : low_or_c;
}

template <int pixel_bytes>
void undo_paeth(uint8_t* line, const uint8_t* above, int64_t n, int64_t first) {
  int a[pixel_bytes] = {}, c[pixel_bytes] = {};
  for (int j = 0; first && j < pixel_bytes; ++j) {
    a[j] = line[first - pixel_bytes + j];
    c[j] = above[first - pixel_bytes + j];
  }
  for (int64_t i = first; i < n; i += pixel_bytes) {
    for (int j = 0; j < pixel_bytes; ++j) {
      const int b = above[i + j];
      a[j] = line[i + j] = static_cast<uint8_t>(line[i + j] + paeth(a[j], b, c[j]));
      c[j] = b;
    }
  }
}

}  // namespace vologan::depth
