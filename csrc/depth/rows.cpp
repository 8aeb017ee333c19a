#include "rows.h"

#include "file.h"
#include "transforms.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define VOLOGAN_X86 1
#include <immintrin.h>
#endif

namespace vologan::depth {

namespace {

// Bytes [2 first, 2 (first + count)) of a chunk of 2·half bytes; low and high are the running sums before them.
void reconstruct_from(const uint8_t* in, int64_t half, int64_t first, uint8_t low, uint8_t high, uint8_t* out) {
  for (int64_t k = first; k < half; ++k) {
    low = static_cast<uint8_t>(low + in[k]);
    high = static_cast<uint8_t>(high + in[half + k]);
    out[2 * k] = undo_predictor(low, k);
    out[2 * k + 1] = undo_predictor(high, half + k);
  }
}

uint8_t sum_bytes(const uint8_t* in, int64_t n) {
  uint8_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum = static_cast<uint8_t>(sum + in[i]);
  return sum;
}

}  // namespace

void reconstruct_scalar(const uint8_t* in, int64_t n, uint8_t* out) {
  reconstruct_from(in, n / 2, 0, 0, sum_bytes(in, n / 2), out);
}

void halves_to_floats_scalar(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(load_le<uint16_t>(in + 2 * i));
}

#ifdef VOLOGAN_X86

namespace {

// Sixteen bytes of each half at a time, the low half in the lower lane and the high half in the upper: both prefix
// sums run in one register, and interleaving the lanes gives the samples. The high half starts from the sum of the
// low one, which costs one more read of it from L1.
__attribute__((target("avx2"))) void reconstruct_avx2(const uint8_t* in, int64_t n, uint8_t* out) {
  const int64_t half = n / 2;
  const uint8_t low_sum = sum_bytes(in, half);
  // undo_predictor: 128 at odd i; the parity of i = half + k in the upper lane depends on half.
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

__attribute__((target("avx,f16c"))) void halves_to_floats_f16c(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  halves_to_floats_scalar(in + 2 * i, count - i, out + i);
}

// GCC's __builtin_cpu_supports knows "f16c" since version 11, Clang's does not; AVX2 came with or after it everywhere.
const bool has_avx2 = __builtin_cpu_supports("avx2");

}  // namespace

void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) {
  return has_avx2 ? reconstruct_avx2(in, n, out) : reconstruct_scalar(in, n, out);
}

void halves_to_floats(const uint8_t* in, int64_t count, float* out) {
  return has_avx2 ? halves_to_floats_f16c(in, count, out) : halves_to_floats_scalar(in, count, out);
}

#else

void reconstruct(const uint8_t* in, int64_t n, uint8_t* out) { reconstruct_scalar(in, n, out); }

void halves_to_floats(const uint8_t* in, int64_t count, float* out) { halves_to_floats_scalar(in, count, out); }

#endif

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
      if (!big_endian) return halves_to_floats(in, count, out);
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
