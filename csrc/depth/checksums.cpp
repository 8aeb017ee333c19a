#include "checksums.h"

#include <algorithm>
#include <array>

#include "file.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define VOLOGAN_X86 1
#include <immintrin.h>
#endif

namespace vologan::depth {

namespace {

// Adler-32 consists of two sums modulo 65521: a, the sum of all bytes, and b, the sum of all values of a. a begins
// at 1 and b at 0. When n bytes are added, the first of them is counted n times in b.
struct Sums {
  uint32_t a, b;
};
constexpr uint32_t kModulus = 65521;
constexpr size_t kStrip = 5536;  // bytes whose sums fit 32 bits; a multiple of 32

// Adds n bytes in 16 lanes. A lane takes every 16th byte, so that a compiler can use vectors.
Sums add_strip(Sums sums, const uint8_t* data, size_t n) {
  uint32_t bytes[16] = {}, earlier[16] = {};  // per lane: the sum of its bytes, the sum of all former such sums
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < 16; ++k) earlier[k] += bytes[k];
    for (int k = 0; k < 16; ++k) bytes[k] += data[i + k];
  }
  sums.b += static_cast<uint32_t>(i) * sums.a;
  for (uint32_t k = 0; k < 16; ++k) {
    sums.a += bytes[k];
    sums.b += 16 * earlier[k] + (16 - k) * bytes[k];
  }
  for (; i < n; ++i) sums.b += sums.a += data[i];
  return sums;
}

// A CRC is the remainder of a division of polynomials. The coefficients of the dividend are the data. The lower
// coefficients of the divisor stand here. Both are reflected, and the remainder is inverted.
constexpr uint32_t kPolynomial = 0xedb88320;

// kRemainders[k][i] is the remainder that byte i contributes when k bytes follow it.
constexpr auto kRemainders = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t remainder = i;
    for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? kPolynomial : 0);
    tables[0][i] = remainder;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (uint32_t i = 0; i < 256; ++i) tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 255];
  }
  return tables;
}();

uint32_t add_bytes(uint32_t remainder, std::span<const uint8_t> data) {
  while (data.size() >= 8) {
    const uint64_t word = load_le<uint64_t>(data.data()) ^ remainder;
    remainder = 0;
    for (int k = 0; k < 8; ++k) remainder ^= kRemainders[7 - k][word >> 8 * k & 255];
    data = data.subspan(8);
  }
  for (const uint8_t byte : data) remainder = remainder >> 8 ^ kRemainders[0][(remainder ^ byte) & 255];
  return remainder;
}

#ifdef VOLOGAN_X86

__attribute__((target("avx2"))) Sums add_strip_avx2(Sums sums, const uint8_t* data, size_t n) {
  const __m256i weights = _mm256_setr_epi8(32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14,
                                           13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1);
  const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
  __m256i bytes = zero, earlier = zero, weighted = zero;
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i));
    earlier = _mm256_add_epi32(earlier, bytes);
    bytes = _mm256_add_epi32(bytes, _mm256_sad_epu8(v, zero));
    weighted = _mm256_add_epi32(weighted, _mm256_madd_epi16(_mm256_maddubs_epi16(v, weights), ones));
  }
  alignas(32) uint32_t lanes[3][8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes[0]), bytes);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes[1]), earlier);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes[2]), weighted);
  sums.b += static_cast<uint32_t>(i) * sums.a;
  for (int k = 0; k < 8; ++k) {
    sums.a += lanes[0][k];
    sums.b += 32 * lanes[1][k] + lanes[2][k];
  }
  for (; i < n; ++i) sums.b += sums.a += data[i];
  return sums;
}

// Returns x^n modulo the polynomial, times x, reflected to 33 bits. The factors of _mm_clmulepi64_si128 must have
// this form.
constexpr uint64_t power(int n) {
  uint32_t remainder = 0x80000000;  // x^0
  for (int i = 0; i < n; ++i) remainder = remainder >> 1 ^ (remainder & 1 ? kPolynomial : 0);
  return uint64_t{remainder} << 1;
}

// Multiplies sixteen bytes by x^distance, modulo the polynomial. The lower half comes 64 bits before the upper half,
// so its factor is higher by x^64.
template <int distance>
__attribute__((target("pclmul,sse4.1"))) inline __m128i moved(__m128i bytes) {
  const __m128i factors = _mm_set_epi64x(power(distance - 32), power(distance + 32));
  return _mm_xor_si128(_mm_clmulepi64_si128(bytes, factors, 0x00), _mm_clmulepi64_si128(bytes, factors, 0x11));
}

// Carry-less multiplications fold four words of 16 bytes into the four that follow. This is the method of Intel's
// white paper "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ". At the end, 16 bytes with the same
// remainder are left.
__attribute__((target("pclmul,sse4.1"))) uint32_t add_bytes_pclmul(uint32_t remainder, std::span<const uint8_t> data) {
  if (data.size() < 128) return add_bytes(remainder, data);
  const auto load = [&](size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data.data()) + i); };
  __m128i x0 = _mm_xor_si128(load(0), _mm_cvtsi32_si128(static_cast<int>(remainder))), x1 = load(1), x2 = load(2),
          x3 = load(3);
  for (data = data.subspan(64); data.size() >= 64; data = data.subspan(64)) {
    x0 = _mm_xor_si128(moved<512>(x0), load(0));
    x1 = _mm_xor_si128(moved<512>(x1), load(1));
    x2 = _mm_xor_si128(moved<512>(x2), load(2));
    x3 = _mm_xor_si128(moved<512>(x3), load(3));
  }
  x1 = _mm_xor_si128(x1, moved<128>(x0));
  x2 = _mm_xor_si128(x2, moved<128>(x1));
  x3 = _mm_xor_si128(x3, moved<128>(x2));
  uint8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), x3);
  return add_bytes(add_bytes(0, bytes), data);
}

#endif

}  // namespace

uint32_t adler32(std::span<const uint8_t> data) {
  auto add = add_strip;
#ifdef VOLOGAN_X86
  if (__builtin_cpu_supports("avx2")) add = add_strip_avx2;
#endif
  Sums sums{1, 0};
  while (!data.empty()) {
    const size_t n = std::min(data.size(), kStrip);
    sums = add(sums, data.data(), n);
    sums = {sums.a % kModulus, sums.b % kModulus};
    data = data.subspan(n);
  }
  return sums.b << 16 | sums.a;
}

uint32_t crc32(std::span<const uint8_t> data) {
#ifdef VOLOGAN_X86
  if (__builtin_cpu_supports("pclmul")) return ~add_bytes_pclmul(~0u, data);
#endif
  return ~add_bytes(~0u, data);
}

}  // namespace vologan::depth
