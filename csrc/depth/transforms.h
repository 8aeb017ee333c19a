// The steps for single values between an inflated EXR chunk and a float32 plane. Each function is the readable
// definition that the SIMD rows (rows.cpp) must equal. Device code may call it.
//
// ZIP and RLE chunks hold the bytes of the samples after two transforms. The first puts all bytes of even index
// before all bytes of odd index. This separates the low byte from the high byte of each half:
//     split[k] = bytes[2 k],  split[n/2 + k] = bytes[2 k + 1]
// The second replaces each byte by its difference to the byte before it, plus 128:
//     stored[0] = split[0],  stored[i] = split[i] − split[i − 1] + 128   (mod 256)
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define VOLOGAN_HD __host__ __device__
#else
#define VOLOGAN_HD
#endif

namespace vologan::depth {

// Returns split[i], given sum = stored[0] + … + stored[i] (mod 256). The 128s cancel in pairs.
VOLOGAN_HD inline uint8_t undo_predictor(uint8_t sum, int64_t i) { return static_cast<uint8_t>(sum + ((i & 1) << 7)); }

// Returns the sum of n bytes (mod 256).
VOLOGAN_HD inline uint8_t sum_of(const uint8_t* in, int64_t n) {
  uint8_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum = static_cast<uint8_t>(sum + in[i]);
  return sum;
}

// Reconstructs bytes [2 first, 2 half) of a chunk of 2·half bytes. low and high are the sums (mod 256) of the two
// halves up to `first`. The sum of the high half continues the sum of the whole low half.
VOLOGAN_HD inline void reconstruct_from(const uint8_t* in, int64_t half, int64_t first, uint8_t low, uint8_t high,
                                        uint8_t* out) {
  for (int64_t k = first; k < half; ++k) {
    low = static_cast<uint8_t>(low + in[k]);
    high = static_cast<uint8_t>(high + in[half + k]);
    out[2 * k] = undo_predictor(low, k);
    out[2 * k + 1] = undo_predictor(high, half + k);
  }
}

// Returns the index of bytes[i] in split for a chunk of n bytes. n is even, because samples have 2 or 4 bytes.
VOLOGAN_HD inline int64_t split_index(int64_t i, int64_t n) { return i / 2 + (i & 1) * (n / 2); }

// Converts IEEE binary16 to binary32 as F16C does: exactly, and a signalling NaN becomes quiet.
VOLOGAN_HD inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0) {  // zero or denormal: mantissa · 2⁻²⁴ is exact in binary32
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  } else if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u);
  } else {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// float_to_half and float_to_bfloat16 convert binary32 to binary16 and to bfloat16, rounded to nearest, ties to
// even. A NaN stays a NaN and becomes quiet.
VOLOGAN_HD inline uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and more, infinity
  uint32_t mantissa = magnitude, shift = 13;
  if (magnitude < 0x38800000u) {  // denormal: multiples of 2⁻²⁴
    if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);
    mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    shift = 126 - (magnitude >> 23);
  } else {
    mantissa -= 112u << 23;
  }
  const uint32_t rest = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
  uint32_t half = mantissa >> shift;
  half += rest > tie || (rest == tie && half % 2);  // may carry into the exponent, up to infinity
  return static_cast<uint16_t>(sign | half);
}

VOLOGAN_HD inline uint16_t float_to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace vologan::depth
