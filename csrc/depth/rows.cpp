#include "rows.h"

#include "file.h"
#include "filters.h"
#include "transforms.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define VOLOGAN_X86 1
#include <immintrin.h>

#include "vectors.h"
#elif defined(__aarch64__) && defined(__GNUC__)
#define VOLOGAN_NEON 1
#include "vectors.h"
#endif

namespace vologan::depth {

namespace {

namespace scalar {

void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) {
  reconstruct_from(in, n / 2, 0, 0, sum_of(in, n / 2), out);
}

void halves_to_floats(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(load_le<uint16_t>(in + 2 * i));
}

template <void (*undo)(uint8_t* line, const uint8_t* above, int64_t n, int64_t first)>
void undo_4(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n) {
  for (int k = 0; k < 4; ++k, above = lines, lines += stride) undo(lines, above, n, 0);
}

constexpr RowKernels kernels = {
    "scalar", reconstruct, halves_to_floats, undo_sub<2>, undo_4<undo_average<2>>, undo_4<undo_paeth<2>>};

}  // namespace scalar

// The kernels of vectors.h, compiled for the processor that `attribute` names.
#define VOLOGAN_CONVERSIONS(attribute)                                                                         \
  attribute void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) { vectors::reconstruct(in, n, out); } \
  attribute void halves_to_floats(const uint8_t* in, int64_t count, float* out) {                              \
    vectors::halves_to_floats(in, count, out);                                                                 \
  }
#define VOLOGAN_FILTERS(attribute)                                                                 \
  attribute void undo_sub(uint8_t* line, int64_t n) { vectors::undo_sub(line, n); }                \
  attribute void undo_average_4(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n) { \
    vectors::undo_4<vectors::Average>(lines, stride, above, n);                                    \
  }                                                                                                \
  attribute void undo_paeth_4(uint8_t* lines, int64_t stride, const uint8_t* above, int64_t n) {   \
    vectors::undo_4<vectors::Paeth>(lines, stride, above, n);                                      \
  }
#define VOLOGAN_KERNELS(level) {level, reconstruct, halves_to_floats, undo_sub, undo_average_4, undo_paeth_4}

#if defined(VOLOGAN_X86)

namespace sse4_1 {

#define VOLOGAN_SSE4_1 __attribute__((target("sse4.1")))
VOLOGAN_CONVERSIONS(VOLOGAN_SSE4_1)
VOLOGAN_FILTERS(VOLOGAN_SSE4_1)
constexpr RowKernels kernels = VOLOGAN_KERNELS("sse4.1");

}  // namespace sse4_1

namespace avx2 {

#define VOLOGAN_AVX2 __attribute__((target("avx2,f16c")))
VOLOGAN_FILTERS(VOLOGAN_AVX2)

// Works on sixteen bytes of each half at a time, the low half in the lower lane and the high half in the upper lane.
// So both prefix sums run in one register, and interleaving the lanes gives the samples. The high half starts from
// the sum of the low half, which costs one more read of the low half from L1.
VOLOGAN_AVX2 void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) {
  const int64_t half = n / 2;
  const uint8_t low_sum = sum_of(in, half);
  // undo_predictor adds 128 at odd i. In the upper lane i is half + k, so its parity depends on half.
  const __m128i odd = _mm_set1_epi16(static_cast<int16_t>(0x8000));
  const __m256i parity = _mm256_set_m128i(half & 1 ? _mm_set1_epi16(0x0080) : odd, odd);
  const __m256i last = _mm256_set1_epi8(15);
  __m256i carry = _mm256_set_m128i(_mm_set1_epi8(static_cast<char>(low_sum)), _mm_setzero_si128());
  int64_t k = 0;
  for (; k + 16 <= half; k += 16) {
    const __m128i* low = reinterpret_cast<const __m128i*>(in + k);
    const __m128i* high = reinterpret_cast<const __m128i*>(in + half + k);
    __m256i sum = _mm256_set_m128i(_mm_loadu_si128(high), _mm_loadu_si128(low));
    sum = _mm256_add_epi8(sum, _mm256_slli_si256(sum, 1));
    sum = _mm256_add_epi8(sum, _mm256_slli_si256(sum, 2));
    sum = _mm256_add_epi8(sum, _mm256_slli_si256(sum, 4));
    sum = _mm256_add_epi8(sum, _mm256_slli_si256(sum, 8));
    sum = _mm256_add_epi8(sum, carry);
    carry = _mm256_shuffle_epi8(sum, last);
    const __m256i split = _mm256_xor_si256(sum, parity);
    const __m128i even = _mm256_castsi256_si128(split);
    const __m128i uneven = _mm256_extracti128_si256(split, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * k), _mm_unpacklo_epi8(even, uneven));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * k + 16), _mm_unpackhi_epi8(even, uneven));
  }
  reconstruct_from(in, half, k, static_cast<uint8_t>(_mm256_extract_epi8(carry, 0)),
                   static_cast<uint8_t>(_mm256_extract_epi8(carry, 16)), out);
}

VOLOGAN_AVX2 void halves_to_floats(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  scalar::halves_to_floats(in + 2 * i, count - i, out + i);
}

constexpr RowKernels kernels = VOLOGAN_KERNELS("avx2");

}  // namespace avx2

#elif defined(VOLOGAN_NEON)

namespace neon {

VOLOGAN_CONVERSIONS()
VOLOGAN_FILTERS()
constexpr RowKernels kernels = VOLOGAN_KERNELS("neon");

}  // namespace neon

#endif

}  // namespace

std::span<const RowKernels> row_kernel_levels() {
#if defined(VOLOGAN_X86)
  static constexpr RowKernels levels[] = {avx2::kernels, sse4_1::kernels, scalar::kernels};
  // GCC's __builtin_cpu_supports has "f16c" only since version 11, and Clang's does not have it. All processors with
  // AVX2 have F16C, too.
  const int lacking = __builtin_cpu_supports("avx2") ? 0 : __builtin_cpu_supports("sse4.1") ? 1 : 2;
  return std::span(levels).subspan(lacking);
#elif defined(VOLOGAN_NEON)
  static constexpr RowKernels levels[] = {neon::kernels, scalar::kernels};
  return levels;
#else
  return {&scalar::kernels, 1};
#endif
}

const RowKernels& row_kernels() {
  static const RowKernels& best = row_kernel_levels().front();
  return best;
}

namespace {

template <class T>
void convert(bool big_endian, const uint8_t* in, int64_t count, float* out) {
  if (big_endian) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(load_be<T>(in + i * sizeof(T)));
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(load_le<T>(in + i * sizeof(T)));
  }
}

void convert_row(SampleType type, bool big_endian, const uint8_t* in, int64_t count, float* out) {
  switch (type) {
    case SampleType::Float16:
      if (!big_endian) return row_kernels().halves_to_floats(in, count, out);
      for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(load_be<uint16_t>(in + 2 * i));
      return;
    case SampleType::Float32:
      return convert<float>(big_endian, in, count, out);
    case SampleType::Float64:
      return convert<double>(big_endian, in, count, out);
    case SampleType::Uint8:
      return convert<uint8_t>(big_endian, in, count, out);
    case SampleType::Uint16:
      return convert<uint16_t>(big_endian, in, count, out);
    case SampleType::Uint32:
      return convert<uint32_t>(big_endian, in, count, out);
    case SampleType::Uint64:
      return convert<uint64_t>(big_endian, in, count, out);
    case SampleType::Int8:
      return convert<int8_t>(big_endian, in, count, out);
    case SampleType::Int16:
      return convert<int16_t>(big_endian, in, count, out);
    case SampleType::Int32:
      return convert<int32_t>(big_endian, in, count, out);
    case SampleType::Int64:
      return convert<int64_t>(big_endian, in, count, out);
  }
}

}  // namespace

void store_row(const Plane& out, int64_t row_index, SampleType type, bool big_endian, const uint8_t* in,
               std::vector<float>& row) {
  float* const target = out.data + row_index * out.row_stride;
  if (out.column_stride == 1) return convert_row(type, big_endian, in, out.width, target);
  row.resize(static_cast<size_t>(out.width));
  convert_row(type, big_endian, in, out.width, row.data());
  for (int64_t column = 0; column < out.width; ++column) target[column * out.column_stride] = row[column];
}

}  // namespace vologan::depth
