#include "pixel_rows.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define VOLOGAN_X86 1
#include <immintrin.h>
// The loop is compiled twice, and the dynamic linker chooses a version.
#define VOLOGAN_AVX2_CLONE __attribute__((target_clones("avx2", "default")))
#else
#define VOLOGAN_AVX2_CLONE
#endif

namespace vologan::data {

// Does the tests of normalize_depth in the opposite order: each result overrides the results before it. There is no
// branch, so the compiler can test eight values at once.
VOLOGAN_AVX2_CLONE bool normalize_row(float* depth, int64_t count, const DepthRule& rule) {
  const float gain = rule.gain, offset = rule.offset, background = rule.background, floor = rule.floor;
  constexpr int64_t block = 128;
  float normalized[block];
  int any_valid = 0;
  for (int64_t first = 0; first < count; first += block) {
    float* const d = depth + first;
    const int64_t n = count - first < block ? count - first : block;
    int other = 0;  // whether a value is not background, which comes in large areas
    for (int64_t i = 0; i < n; ++i) other |= d[i] != background;
    if (!other) {
      std::fill_n(d, n, kBackground);
      continue;
    }
    for (int64_t i = 0; i < n; ++i) {
      const float scaled = d[i] * gain;
      float z = scaled + offset;
      z = z < kNearest ? kNearest : z;
      z = z > 1.0f ? 1.0f : z;
      z = scaled <= floor ? kMissing : z;
      normalized[i] = std::fabs(d[i]) <= std::numeric_limits<float>::max() ? z : kMissing;
    }
    for (int k = 0; k < rule.invalid_count; ++k) {
      const float invalid = rule.invalid[k];
      for (int64_t i = 0; i < n; ++i) normalized[i] = d[i] == invalid ? kMissing : normalized[i];
    }
    for (int64_t i = 0; i < n; ++i) normalized[i] = d[i] == background ? kBackground : normalized[i];
    for (int64_t i = 0; i < n; ++i) {
      d[i] = normalized[i];
      any_valid |= normalized[i] > 0.0f;
    }
  }
  return any_valid;
}

VOLOGAN_AVX2_CLONE bool all_background(const float* depth, int64_t count) {
  int other = 0;
  for (int64_t i = 0; i < count; ++i) other |= depth[i] != kBackground;
  return !other;
}

// Codes of background and of missing depth lie in runs. A block of equal codes needs one lookup.
VOLOGAN_AVX2_CLONE void look_up_row(const uint16_t* codes, const float* levels, int64_t count, float* depth) {
  constexpr int64_t block = 64;
  int64_t x = 0;
  for (; x + block <= count; x += block) {
    const uint16_t first = codes[x];
    uint16_t other = 0;
    for (int64_t i = 0; i < block; ++i) other |= codes[x + i] ^ first;
    if (other) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < block; ++i) depth[x + i] = levels[codes[x + i]];
    } else {
      std::fill_n(depth + x, block, levels[first]);
    }
  }
  for (; x < count; ++x) depth[x] = levels[codes[x]];
}

namespace {

// The 256 levels of a colour channel, each correctly rounded. A product with 1/255 would not be.
const std::array<float, 256> kLevels = [] {
  std::array<float, 256> levels{};
  for (int i = 0; i < 256; ++i) levels[i] = static_cast<float>(i) / 255.0f;
  return levels;
}();

// Stores a pixel past the caches if the processor can. All stores to a batch are of this kind: a cache line that is
// written in both ways is fetched for one and thrown out for the other.
void store_pixel(const float (&pixel)[4], float* rgbd) {
#ifdef VOLOGAN_X86
  _mm_stream_ps(rgbd, _mm_loadu_ps(pixel));
#else
  std::copy_n(pixel, 4, rgbd);
#endif
}

void pack_row_scalar(const uint8_t* color, int64_t, const float* depth, int64_t count, int step, float* rgbd) {
  for (int64_t x = 0; x < count; ++x) {
    const uint8_t* c = color + 3 * step * x;
    float pixel[4];
    pack_pixel(kLevels[c[0]], kLevels[c[1]], kLevels[c[2]], depth[step * x], pixel);
    store_pixel(pixel, rgbd + 4 * x);
  }
}

}  // namespace

#ifdef VOLOGAN_X86

namespace {

// Replaces _mm_loadu_si32, which is wrong in GCC 11.1 and 11.2 (bug 99754).
inline __m128i load_four(const uint8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return _mm_cvtsi32_si128(word);
}

// Packs two pixels. `color` holds the bytes R G B 0 R G B 0. `depth` holds the depth of each pixel four times, once
// for each lane of the pixel.
__attribute__((target("avx2,fma"))) inline void pack_two(__m128i color, __m256 depth, float* rgbd) {
  // This gives exactly the bits of c / 255 for all 256 values of c. 1/255 is the sum of two floats: the second corrects
  // the rounding of the first.
  const __m256 high = _mm256_set1_ps(static_cast<float>(1 / 255.0));
  const __m256 low = _mm256_set1_ps(static_cast<float>(1 / 255.0 - static_cast<float>(1 / 255.0)));
  const __m256 levels = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(color));
  const __m256 scaled = _mm256_fmadd_ps(levels, high, _mm256_mul_ps(levels, low));
  const __m256 seen = _mm256_cmp_ps(depth, _mm256_set1_ps(kBackground), _CMP_NEQ_UQ);
  _mm256_stream_ps(rgbd, _mm256_and_ps(_mm256_blend_ps(scaled, depth, 0x88), seen));
}

// Packs four pixels at a time. On a walk to the left, pixels are loaded forwards and reversed by the shuffles.
__attribute__((target("avx2,fma"))) void pack_row_avx2(const uint8_t* color, int64_t below, const float* depth,
                                                       int64_t count, int step, float* rgbd) {
  // Streaming stores need pairs of pixels, aligned to 32 bytes.
  const int64_t before = reinterpret_cast<uintptr_t>(rgbd) & 16 && count ? 1 : 0;
  pack_row_scalar(color, below, depth, before, step, rgbd);
  const bool left = step < 0;
  const __m128i spread = left ? _mm_setr_epi8(9, 10, 11, -1, 6, 7, 8, -1, 3, 4, 5, -1, 0, 1, 2, -1)
                              : _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
  const __m256i first = left ? _mm256_setr_epi32(3, 3, 3, 3, 2, 2, 2, 2) : _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const __m256i second = left ? _mm256_setr_epi32(1, 1, 1, 1, 0, 0, 0, 0) : _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
  int64_t x = before;
  for (; x + 4 <= count; x += 4) {
    const int64_t from = left ? -x - 3 : x;
    const uint8_t* c = color + 3 * from;
    const __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(c)), load_four(c + 8));
    const __m128i pixels = _mm_shuffle_epi8(bytes, spread);
    const __m128 four = _mm_loadu_ps(depth + from);
    if (_mm_movemask_ps(_mm_cmpneq_ps(four, _mm_set1_ps(kBackground))) == 0) {
      _mm256_stream_ps(rgbd + 4 * x, _mm256_setzero_ps());
      _mm256_stream_ps(rgbd + 4 * x + 8, _mm256_setzero_ps());
      continue;
    }
    prefetch(c, below);
    const __m256 z = _mm256_castps128_ps256(four);
    pack_two(pixels, _mm256_permutevar8x32_ps(z, first), rgbd + 4 * x);
    pack_two(_mm_srli_si128(pixels, 8), _mm256_permutevar8x32_ps(z, second), rgbd + 4 * x + 8);
  }
  pack_row_scalar(color + 3 * step * x, below, depth + step * x, count - x, step, rgbd + 4 * x);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // a fault of GCC 12's own header (bug 105593)

// Packs sixteen pixels at a time. If all are background, their colours are not read.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))) void pack_row_avx512(
    const uint8_t* color, int64_t below, const float* depth, int64_t count, int step, float* rgbd) {
  // Streaming stores need whole cache lines of 4 pixels.
  const int64_t before = std::min<int64_t>((64 - (reinterpret_cast<uintptr_t>(rgbd) & 63)) % 64 / 16, count);
  pack_row_scalar(color, below, depth, before, step, rgbd);
  const bool left = step < 0;
  const __m128i spread = left ? _mm_setr_epi8(9, 10, 11, -1, 6, 7, 8, -1, 3, 4, 5, -1, 0, 1, 2, -1)
                              : _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
  const __m512i lanes = left ? _mm512_setr_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
                             : _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512 high = _mm512_set1_ps(static_cast<float>(1 / 255.0));  // as in pack_two
  const __m512 low = _mm512_set1_ps(static_cast<float>(1 / 255.0 - static_cast<float>(1 / 255.0)));
  const __m512 background = _mm512_set1_ps(kBackground);
  int64_t x = before;
  for (; x + 16 <= count; x += 16) {
    float* out = rgbd + 4 * x;
    const __m512 z16 = _mm512_loadu_ps(depth + (left ? -x - 15 : x));
    if (_mm512_cmp_ps_mask(z16, background, _CMP_NEQ_UQ) == 0) {
      for (int k = 0; k < 4; ++k) _mm512_stream_ps(out + 16 * k, _mm512_setzero_ps());
      continue;
    }
    prefetch(color + 3 * (left ? -x - 15 : x), below);  // 48 bytes, mostly in one cache line
    for (int k = 0; k < 4; ++k) {
      const int64_t from = left ? -x - 4 * k - 3 : x + 4 * k;
      const uint8_t* c = color + 3 * from;
      const __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(c)), load_four(c + 8));
      const __m512 levels = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_shuffle_epi8(bytes, spread)));
      const __m512 scaled = _mm512_fmadd_ps(levels, high, _mm512_mul_ps(levels, low));
      const __m512 z = _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_loadu_ps(depth + from)));
      const __mmask16 seen = _mm512_cmp_ps_mask(z, background, _CMP_NEQ_UQ);
      _mm512_stream_ps(out + 16 * k, _mm512_maskz_mov_ps(seen, _mm512_mask_blend_ps(0x8888, scaled, z)));
    }
  }
  pack_row_scalar(color + 3 * step * x, below, depth + step * x, count - x, step, rgbd + 4 * x);
}

#pragma GCC diagnostic pop

}  // namespace

std::span<const PackRow> pack_row_levels() {
  static constexpr PackRow levels[] = {pack_row_avx512, pack_row_avx2, pack_row_scalar};
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return std::span(levels).subspan(!avx2 ? 2 : !avx512 ? 1 : 0);
}

void finish_rows() { _mm_sfence(); }

#else

std::span<const PackRow> pack_row_levels() {
  static constexpr PackRow levels[] = {pack_row_scalar};
  return levels;
}

void finish_rows() {}

#endif

const char* pack_row_level() {
  static constexpr const char* names[] = {"scalar", "avx2", "avx512"};
  return names[pack_row_levels().size() - 1];
}

void pack_row(const uint8_t* color, int64_t below, const float* depth, int64_t count, int step, float* rgbd) {
  static const PackRow best = pack_row_levels().front();
  best(color, below, depth, count, step, rgbd);
}

namespace {

// Pillow's arithmetic: 299/1000, 587/1000 and 114/1000 in 16 bits after the point, rounded half up.
int luma(const uint8_t* c) { return (c[0] * 19595 + c[1] * 38470 + c[2] * 7471 + 0x8000) >> 16; }

}  // namespace

void pack_row_of(Channels channels, const uint8_t* color, const float* depth, int64_t count, int step, float* out) {
  for (int64_t x = 0; x < count; ++x, out += channels.count()) {
    const bool seen = !channels.depth || depth[step * x] != kBackground;
    const uint8_t* c = channels.color ? color + 3 * step * x : nullptr;
    if (channels.color == 1) out[0] = seen ? kLevels[luma(c)] : 0.0f;
    for (int i = 0; channels.color == 3 && i < 3; ++i) out[i] = seen ? kLevels[c[i]] : 0.0f;
    if (channels.depth) out[channels.color] = seen ? depth[step * x] : 0.0f;
  }
}

void clear_row(int64_t count, float* rgbd) {
  for (int64_t x = 0; x < count; ++x) store_pixel({}, rgbd + 4 * x);
}

}  // namespace vologan::data
