#include "translated_rows.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
// The loops are compiled twice, and the dynamic linker chooses a version.
#define VOLOGAN_AVX2_CLONE __attribute__((target_clones("avx2", "default")))
#else
#define VOLOGAN_AVX2_CLONE
#endif
#define VOLOGAN_INLINE __attribute__((always_inline)) inline

namespace vologan::data {

namespace {

constexpr int64_t kBlock = 128;  // pixels whose intermediate values stay in the first cache

// Returns a where the condition holds, else b. Compilers cannot always make vectors of the operator ?:.
template <class T>
VOLOGAN_INLINE T pick(bool condition, T a, T b) {
  return static_cast<T>(b ^ ((a ^ b) & -static_cast<T>(condition)));
}

VOLOGAN_INLINE float pick(bool condition, float a, float b) {
  return std::bit_cast<float>(pick(condition, std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b)));
}

// Rounds to the nearest value of the type, and half-way to the even one.
template <class T>
T round_to(float value) = delete;

template <>
VOLOGAN_INLINE float round_to(float value) {
  return value;
}

template <>
VOLOGAN_INLINE uint16_t round_to(float value) {
  const float inside = pick(value > 0.0f, pick(value < 65535.0f, value, 65535.0f), 0.0f);
  constexpr float whole = 1 << 23;  // floats from here on are whole numbers, so the sum is rounded to one
  return static_cast<uint16_t>(static_cast<int32_t>((inside + whole) - whole));
}

template <>
VOLOGAN_INLINE Half round_to(float value) {
  constexpr uint32_t infinity = 0x7f800000, least_normal = 113u << 23, overflow = 143u << 23;
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  // A small number is a multiple of 2⁻²⁴. The last bit of a float in [0.5, 1) has this value.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  // Others lose 13 bits. A carry into the exponent is right, too.
  const uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
  const uint32_t large = pick(size > infinity, 0x7e00 | (size >> 13 & 0x3ff), 0x7c00u);
  return static_cast<Half>(sign | pick(size >= overflow, large, pick(size < least_normal, small, normal)));
}

VOLOGAN_INLINE uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
VOLOGAN_INLINE uint32_t bits_of(Half value) { return static_cast<uint32_t>(value); }
VOLOGAN_INLINE uint32_t bits_of(uint16_t value) { return value; }

template <class T>
VOLOGAN_INLINE T from_bits(uint32_t bits) {
  if constexpr (std::is_same_v<T, float>) {
    return std::bit_cast<float>(bits);
  } else {
    return static_cast<T>(bits);
  }
}

VOLOGAN_INLINE bool is_finite(float value) { return (std::bit_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u; }

// Returns a pixel of the bytes red, green, blue and 255. Machines here are little-endian.
VOLOGAN_INLINE uint32_t pixel(uint8_t red, uint8_t green, uint8_t blue) {
  return 0xff000000u | static_cast<uint32_t>(blue) << 16 | static_cast<uint32_t>(green) << 8 | red;
}

VOLOGAN_INLINE uint8_t to_level(float value) {
  return static_cast<uint8_t>(static_cast<int32_t>(value * 255.0f + 0.5f));
}

template <class T>
VOLOGAN_INLINE void restore(const float* __restrict z, const float* __restrict file, const float* __restrict before,
                            int64_t count, const FileRule<T>& rule, T* __restrict restored) {
  const float gain = rule.gain, offset = rule.offset;
  const uint32_t missing = bits_of(rule.missing);
  T values[kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t n = std::min(kBlock, count - first);
    const float *const z_here = z + first, *const file_here = file + first, *const before_here = before + first;
    T* const out = restored + first;
    for (int64_t i = 0; i < n; ++i) values[i] = round_to<T>(z_here[i] * gain + offset);
    for (const typename FileRule<T>::Code& code : rule.codes) {
      const T value = code.value, beside = code.beside;
      for (int64_t i = 0; i < n; ++i) values[i] = values[i] == value ? beside : values[i];
    }
    for (int64_t i = 0; i < n; ++i) {
      const float old = before_here[i], now = z_here[i], from = file_here[i];
      const bool hole = now < kNearest / 2;
      const bool unchanged = ((old == kMissing) & hole) | ((old == kNearest) & !hole & !(now > kNearest)) |
                             ((old == 1.0f) & (now >= 1.0f));
      const uint32_t value = pick(hole, missing, bits_of(values[i]));
      out[i] = from_bits<T>(pick((old == kBackground) | unchanged, bits_of(round_to<T>(from)), value));
    }
  }
}

}  // namespace

VOLOGAN_AVX2_CLONE void split_row(const uint8_t* color, const float* depth, int64_t count, float* const (&planes)[4]) {
  uint8_t levels[3][kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t n = std::min(kBlock, count - first);
    const uint8_t* const c = color + 3 * first;
    const float* const z = depth + first;
    for (int64_t i = 0; i < n; ++i) {
      levels[0][i] = c[3 * i];
      levels[1][i] = c[3 * i + 1];
      levels[2][i] = c[3 * i + 2];
    }
    for (int k = 0; k < 3; ++k) {
      float* const plane = planes[k] + first;
      for (int64_t i = 0; i < n; ++i) {
        plane[i] = pick(z[i] == kBackground, 0.0f, static_cast<float>(levels[k][i]) / 255.0f);
      }
    }
    float* const plane = planes[3] + first;
    for (int64_t i = 0; i < n; ++i) plane[i] = pick(z[i] == kBackground, 0.0f, z[i]);
  }
}

VOLOGAN_AVX2_CLONE bool join_row(const float* const (&planes)[4], const uint8_t* color, const float* depth,
                                 int64_t count, uint32_t* __restrict joined) {
  uint8_t levels[3][kBlock];
  uint32_t not_finite = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t n = std::min(kBlock, count - first);
    for (int k = 0; k < 3; ++k) {
      const float* const plane = planes[k] + first;
      for (int64_t i = 0; i < n; ++i) {
        const bool finite = is_finite(plane[i]);
        not_finite |= static_cast<uint32_t>(!finite);
        levels[k][i] = to_level(pick(finite, plane[i], 0.0f));
      }
    }
    const uint8_t* const old = color + 3 * first;
    for (int64_t i = 0; i < n; ++i) {
      const bool background = depth[first + i] == kBackground;
      not_finite |= static_cast<uint32_t>(!is_finite(planes[3][first + i]));
      const uint32_t now = pixel(levels[0][i], levels[1][i], levels[2][i]);
      joined[first + i] = pick(background, pixel(old[3 * i], old[3 * i + 1], old[3 * i + 2]), now);
    }
  }
  return not_finite == 0;
}

VOLOGAN_AVX2_CLONE void restore_row(const float* z, const float* file, const float* before, int64_t count,
                                    const FileRule<float>& rule, float* restored) {
  restore(z, file, before, count, rule, restored);
}

VOLOGAN_AVX2_CLONE void restore_row(const float* z, const float* file, const float* before, int64_t count,
                                    const FileRule<Half>& rule, Half* restored) {
  restore(z, file, before, count, rule, restored);
}

VOLOGAN_AVX2_CLONE void restore_row(const float* z, const float* file, const float* before, int64_t count,
                                    const FileRule<uint16_t>& rule, uint16_t* restored) {
  restore(z, file, before, count, rule, restored);
}

}  // namespace vologan::data
