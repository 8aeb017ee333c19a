// The row kernels in vectors of 16 bytes. They use the vector types of GCC and Clang, so that one text is compiled
// for SSE4.1, AVX2 and NEON. rows.cpp wraps each of them in a function that is compiled for one kind of processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "filters.h"
#include "transforms.h"

#define VOLOGAN_INLINE __attribute__((always_inline)) inline

namespace vologan::depth::vectors {

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(16)));
typedef uint16_t Words __attribute__((vector_size(16)));
typedef uint16_t FourWords __attribute__((vector_size(8)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint64_t Longs __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

template <class T>
VOLOGAN_INLINE T load(const void* from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
VOLOGAN_INLINE void store(void* to, T v) {
  std::memcpy(to, &v, sizeof v);
}

// Returns the lanes i of a and b. The lanes of b are counted after the lanes of a. GCC has Clang's builtin only since
// version 12.
template <int... i, class Vector>
VOLOGAN_INLINE Vector shuffle(Vector a, Vector b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i...);
#else
  return __builtin_shuffle(a, b, Vector{i...});
#endif
}

// Adds to each byte every second byte before it: those at distance 2, 4, 6, ….
VOLOGAN_INLINE Bytes sum_pixels(Bytes v) {
  const Bytes zero = {};
  v += shuffle<14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29>(zero, v);
  v += shuffle<12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27>(zero, v);
  v += shuffle<8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23>(zero, v);
  return v;
}
// Adds to each byte all bytes before it.
VOLOGAN_INLINE Bytes sum_bytes(Bytes v) {
  const Bytes zero = {};
  return sum_pixels(v + shuffle<15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30>(zero, v));
}

VOLOGAN_INLINE Bytes last_byte(Bytes v) {
  return shuffle<15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15>(v, v);
}

// Works on both halves of the chunk at a time. Their bytes interleaved are the samples.
VOLOGAN_INLINE void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) {
  const int64_t half = n / 2;
  const Bytes odd = {0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128, 0, 128};  // undo_predictor
  const Bytes uneven = half & 1 ? odd ^ 128 : odd;
  Bytes low = {}, high = Bytes{} + sum_of(in, half);
  int64_t k = 0;
  for (; k + 16 <= half; k += 16) {
    low += sum_bytes(load<Bytes>(in + k));
    high += sum_bytes(load<Bytes>(in + half + k));
    const Bytes x = low ^ odd, y = high ^ uneven;
    store(out + 2 * k, shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(x, y));
    store(out + 2 * k + 16, shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(x, y));
    low = last_byte(low), high = last_byte(high);
  }
  reconstruct_from(in, half, k, low[0], high[0], out);
}

// Applies half_to_float to four halves at a time.
VOLOGAN_INLINE void halves_to_floats(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const Ints half = __builtin_convertvector(load<FourWords>(in + 2 * i), Ints);
    const Ints magnitude = half & 0x7fff, shifted = magnitude << 13;
    const Ints denormal = reinterpret_cast<Ints>(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
    const Ints quiet = magnitude > 0x7c00 ? Ints{} + 0x400000 : Ints{};
    const Ints special = (shifted + (224 << 23)) | quiet;
    const Ints finite = magnitude < 0x400 ? denormal : shifted + (112 << 23);
    store(out + i, (magnitude < 0x7c00 ? finite : special) | (half & 0x8000) << 16);
  }
  for (; i < count; ++i) out[i] = half_to_float(load<uint16_t>(in + 2 * i));
}

VOLOGAN_INLINE void undo_sub(uint8_t* line, int64_t n) {
  Bytes carry = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Bytes v = sum_pixels(load<Bytes>(line + i)) + carry;
    store(line + i, v);
    carry = shuffle<14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15>(v, v);
  }
  uint8_t a[2] = {carry[0], carry[1]};
  for (; i < n; ++i) line[i] = a[i & 1] = static_cast<uint8_t>(line[i] + a[i & 1]);
}

// The values that the filters of filters.h add, for 8 bytes at a time, in lanes of 16 bits.
struct Average {
  static constexpr auto definition = depth::undo_average<2>;
  VOLOGAN_INLINE static Shorts predict(Shorts a, Shorts b, Shorts) { return (a + b) >> 1; }
};
struct Paeth {
  static constexpr auto definition = depth::undo_paeth<2>;
  VOLOGAN_INLINE static Shorts predict(Shorts a, Shorts b, Shorts c) {
    const Shorts threshold = c + c + c - (a + b);
    const Shorts low = a < b ? a : b, high = a < b ? b : a;
    const Shorts low_or_c = high > threshold ? c : low;
    return threshold > low ? low_or_c : high;
  }
};

VOLOGAN_INLINE uint64_t pixel_at(const uint8_t* line, int64_t i) { return load<uint16_t>(line + i); }

// Returns four pixels, with one byte in each lane.
VOLOGAN_INLINE Shorts spread(uint64_t p0, uint64_t p1 = 0, uint64_t p2 = 0, uint64_t p3 = 0) {
  const Bytes bytes = reinterpret_cast<Bytes>(Longs{p0 | p1 << 16 | p2 << 32 | p3 << 48, 0});
  return reinterpret_cast<Shorts>(shuffle<0, 16, 1, 16, 2, 16, 3, 16, 4, 16, 5, 16, 6, 16, 7, 16>(bytes, Bytes{}));
}

// Undoes four lines side by side. A pixel needs its left neighbour and the pixel above. So each line stays one pixel
// behind the line above it: the pixel above is then the one that the upper line has just produced. The lanes hold
// pixels of lines 3, 2, 1, 0. This leaves a triangle of pixels at both ends, which is undone line by line.
template <class Filter>
VOLOGAN_INLINE void undo_4(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n) {
  uint8_t* const line[4] = {lines, lines + stride, lines + 2 * stride, lines + 3 * stride};
  const uint8_t* const over[4] = {above, line[0], line[1], line[2]};
  // Line k is at byte i + ahead(k) when line 3 is at byte i.
  const auto ahead = [](int k) { return 2 * (3 - k); };
  if (n <= ahead(0)) {
    for (int k = 0; k < 4; ++k) Filter::definition(line[k], over[k], n, 0);
    return;
  }
  for (int k = 0; k < 3; ++k) Filter::definition(line[k], over[k], ahead(k), 0);
  Shorts a = spread(0, pixel_at(line[2], 0), pixel_at(line[1], 2), pixel_at(line[0], 4));
  Shorts c = spread(0, pixel_at(line[1], 0), pixel_at(line[0], 2), pixel_at(above, 4));
  for (int64_t i = 0; i < n - ahead(0); i += 2) {
    const Shorts x =
        spread(pixel_at(line[3], i), pixel_at(line[2], i + 2), pixel_at(line[1], i + 4), pixel_at(line[0], i + 6));
    const Shorts b = shuffle<2, 3, 4, 5, 6, 7, 8, 9>(a, spread(pixel_at(above, i + 6)));
    const Bytes undone = reinterpret_cast<Bytes>(x) + reinterpret_cast<Bytes>(Filter::predict(a, b, c));
    const Words pixels =
        reinterpret_cast<Words>(shuffle<0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14>(undone, undone));
    for (int k = 0; k < 4; ++k) store<uint16_t>(line[k] + i + ahead(k), pixels[3 - k]);
    a = reinterpret_cast<Shorts>(undone);
    c = b;
  }
  for (int k = 1; k < 4; ++k) Filter::definition(line[k], over[k], n, n - 2 * k);
}

}  // namespace vologan::depth::vectors
