// Vectors of accumulators, and how images of each type are read into them and written from them.
//
// They are the vector types of GCC and Clang. So the kernels are written once, and a level is a set of compiler flags.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define VOLOGAN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VOLOGAN_VECTOR_BYTES 32
#else
#define VOLOGAN_VECTOR_BYTES 16
#endif

namespace vologan::VOLOGAN_LEVEL {

struct Bfloat16 {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<Bfloat16> {
  using type = float;
};
// float32 for bfloat16 and float32 images, float64 for float64 images.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

typedef float Floats __attribute__((vector_size(VOLOGAN_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(VOLOGAN_VECTOR_BYTES)));
typedef uint32_t UnsignedWords __attribute__((vector_size(VOLOGAN_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VOLOGAN_VECTOR_BYTES / 2)));

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
};
template <class A>
using Vector = typename VectorOf<A>::type;

template <class A>
constexpr int64_t kLanes = VOLOGAN_VECTOR_BYTES / sizeof(A);

// Which lanes of a vector are used: all of them, or the first ones. The others read as 0 and are not written.
struct All {};
struct First {
  int64_t count;
};

// ---- float32 and float64 --------------------------------------------------------------------------------------------

template <class A>
inline Vector<A> broadcast(A value) {
  return Vector<A>{} + value;
}

template <class T>
inline Vector<T> load(const T* from, All) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, const Vector<T>& v, All) {
  std::memcpy(to, &v, sizeof v);
}

template <class T>
inline Vector<T> load(const T* from, First used) {
#if defined(__AVX512F__)
  const auto mask = (uint64_t{1} << used.count) - 1;
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  } else {
    return (Vector<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
  }
#else
  Vector<T> v{};
  std::memcpy(&v, from, used.count * sizeof(T));
  return v;
#endif
}

template <class T>
inline void store(T* to, const Vector<T>& v, First used) {
#if defined(__AVX512F__)
  const auto mask = (uint64_t{1} << used.count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)v);
  }
#else
  std::memcpy(to, &v, used.count * sizeof(T));
#endif
}

// √v, rounded to the nearest. Written out, because GCC does not make one instruction of a loop over the lanes.
inline Floats root(const Floats& v) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)v);
#else
  Floats r;
  for (int64_t i = 0; i < kLanes<float>; ++i) r[i] = std::sqrt(v[i]);
  return r;
#endif
}

inline Doubles root(const Doubles& v) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (Doubles)_mm256_sqrt_pd((__m256d)v);
#else
  Doubles r;
  for (int64_t i = 0; i < kLanes<double>; ++i) r[i] = std::sqrt(v[i]);
  return r;
#endif
}

// ---- bfloat16: the upper half of a float32 --------------------------------------------------------------------------

// Written out, because GCC makes two halves of the conversion to 16 words. The masked form spares a false warning.
inline Floats widened(const Halves& bits) {
#if defined(__AVX512F__)
  return (Floats)((UnsignedWords)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits) << 16);
#else
  return (Floats)(__builtin_convertvector(bits, UnsignedWords) << 16);
#endif
}

// Rounded to the nearest, ties to even. With AVX512-BF16, numbers below 2^-126 become 0.
inline Halves narrowed(const Floats& v) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  const UnsignedWords bits = (UnsignedWords)v;
  const UnsignedWords rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UnsignedWords nan = (bits >> 16) | 0x40u;  // a sum could turn it into an infinity
  return __builtin_convertvector(v == v ? rounded : nan, Halves);
#endif
}

inline Floats load(const Bfloat16* from, All) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return widened(bits);
}

inline void store(Bfloat16* to, const Floats& v, All) {
  const Halves bits = narrowed(v);
  std::memcpy(to, &bits, sizeof bits);
}

inline Floats load(const Bfloat16* from, First used) {
#if defined(__AVX512F__)
  return widened((Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((uint32_t{1} << used.count) - 1), from));
#else
  Halves bits{};
  std::memcpy(&bits, from, used.count * sizeof(Bfloat16));
  return widened(bits);
#endif
}

inline void store(Bfloat16* to, const Floats& v, First used) {
  const Halves bits = narrowed(v);
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((uint32_t{1} << used.count) - 1), (__m256i)bits);
#else
  std::memcpy(to, &bits, used.count * sizeof(Bfloat16));
#endif
}

inline float number(Bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float number(float x) { return x; }
inline double number(double x) { return x; }

// ---- lanes ----------------------------------------------------------------------------------------------------------

template <class A>
inline Vector<A> used_lanes(const Vector<A>& v, All) {
  return v;
}

// The vector with 0 in the lanes that are not used.
template <class A>
inline Vector<A> used_lanes(const Vector<A>& v, First used) {
  Vector<A> lane;
  for (int64_t i = 0; i < kLanes<A>; ++i) lane[i] = static_cast<A>(i);
  return lane < static_cast<A>(used.count) ? v : Vector<A>{};
}

}  // namespace vologan::VOLOGAN_LEVEL
