// Decodes one chunk of an EXR by a team of threads, from its bytes in the file to depth in an image. The same code
// runs on a warp of a GPU and on one thread of a CPU. The tests and the fuzzer run it on the CPU.
//
//   expand (stored, RLE, ZIP) → undo the predictor, in place → the wanted channel's samples to float32
//   → normalise (pixels.h) → float32, float16 or bfloat16, in a plane or in the fourth channel of RGBD pixels
#pragma once

#include "pixels.h"
#include "team_inflate.h"

namespace vologan::depth {

enum class Packing : uint8_t { Plain, Runs, Zlib };
enum class ExrSample : uint8_t { Uint32, Float16, Float32 };
enum class PixelType : uint8_t { Float32, Float16, Bfloat16 };

// The memory for the depth of an image. Pixel (row, column) begins at element row · row_stride + column ·
// column_stride of data. A pixel is depth alone. With `rgbd` it is four elements, and the last one is depth.
struct ImageTarget {
  void* data;
  int64_t height, width;
  int64_t row_stride, column_stride;
  PixelType type = PixelType::Float32;
  bool rgbd = false;
  // Whether to write normalised depth (see pixels.h) instead of the file's values. Background in an RGBD pixel then
  // becomes depth 0, and the colour that is already there becomes 0, too.
  bool normalize = false;
  data::DepthRule rule{};
};

// The most lines of a chunk.
constexpr int kMostLines = 16;

// A chunk that the host has checked. Bytes [packed, packed + packed_bytes), which begin at a multiple of 4, decode
// to `bytes` bytes. These hold the samples of rows [first_row, first_row + rows). The wanted samples of the k-th of
// these rows begin at line_offsets[k].
struct ChunkJob {
  int64_t packed;
  int64_t bytes;
  int64_t scratch;  // where its scratch in global memory begins, or −1 if it fits into the team's own memory
  int64_t first_row;
  int64_t line_offsets[kMostLines];
  uint32_t packed_bytes;
  int32_t image;
  int32_t rows;
  Packing packing;
  ExrSample sample;
};

struct ChunkResult {
  Problem problem;
  bool any_valid;  // whether any normalised depth is neither missing nor background
};

// Expands runs. A count n ≥ 0 stands before one byte, which is repeated n + 1 times. A count n < 0 stands before −n
// bytes, which are copied.
template <class Team>
VOLOGAN_HD Problem expand_runs(const Team& team, const uint8_t* in, int64_t in_size, uint8_t* out, int64_t size) {
  int64_t read = 0, written = 0;
  while (read < in_size) {
    const int count = static_cast<int8_t>(in[read++]);
    const int length = count < 0 ? -count : count + 1;
    const int stored = count < 0 ? length : 1;
    if (stored > in_size - read) return Problem::RunEndsEarly;
    if (length > size - written) return Problem::RunsGoOn;
    for (int i = team.rank(); i < length; i += team.size()) out[written + i] = in[read + (count < 0 ? i : 0)];
    read += stored;
    written += length;
  }
  team.sync();
  return written == size ? Problem::None : Problem::RunsEndEarly;
}

// Adds the four bytes of a to the four bytes of b, each modulo 256.
VOLOGAN_HD inline uint32_t add_bytes(uint32_t a, uint32_t b) {
  return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}

// Undoes the predictor of `size` bytes in place: from `stored` to `split` in the terms of transforms.h. The bytes
// are in sync before and after the call. Bytes that fill up the last word change, too. `sums` has an element for
// each thread.
template <class Team>
VOLOGAN_HD void undo_predictors(const Team& team, uint32_t* words, int64_t size, uint32_t* sums) {
  constexpr uint32_t each = 0x01010101u;
  const TeamRange own = team_range(team, team.rank(), size);
  const int64_t begin = (own.begin + 3) / 4, end = (own.end + 3) / 4;
  uint32_t sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t pairs = (words[i] & 0x00ff00ffu) + (words[i] >> 8 & 0x00ff00ffu);
    sum += pairs + (pairs >> 16);  // only the lowest byte of the sum counts
  }
  sums[team.rank()] = sum;
  team.sync();
  uint32_t before = 0;
  for (int k = 0; k < team.rank(); ++k) before += sums[k];
  before = (before & 0xff) * each;
  for (int64_t i = begin; i < end; ++i) {
    uint32_t word = words[i];
    word = add_bytes(word, word << 8);
    word = add_bytes(word, word << 16);
    word = add_bytes(word, before);
    before = (word >> 24) * each;
    words[i] = word ^ 0x80008000u;  // undo_predictor's 128 at every odd byte
  }
  team.sync();
}

// The bytes of the decoded lines. An index counts in the order of the file's lines, whether the bytes are split or
// not.
struct ChunkBytes {
  const uint8_t* data;
  int64_t size;
  bool split;

  VOLOGAN_HD uint32_t operator[](int64_t i) const { return data[split ? split_index(i, size) : i]; }
  VOLOGAN_HD uint32_t pair(int64_t i) const { return (*this)[i] | (*this)[i + 1] << 8; }
};

VOLOGAN_HD inline float load_sample(const ChunkBytes& bytes, int64_t at, ExrSample type) {
  if (type == ExrSample::Float16) return half_to_float(static_cast<uint16_t>(bytes.pair(at)));
  const uint32_t bits = bytes.pair(at) | bytes.pair(at + 2) << 16;
  if (type == ExrSample::Uint32) return static_cast<float>(bits);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

VOLOGAN_HD inline void store_element(void* data, int64_t at, PixelType type, float value) {
  if (type == PixelType::Float32) {
    static_cast<float*>(data)[at] = value;
  } else {
    static_cast<uint16_t*>(data)[at] = type == PixelType::Float16 ? float_to_half(value) : float_to_bfloat16(value);
  }
}

// Writes a pixel. Returns whether its value is a valid depth.
VOLOGAN_HD inline bool store_pixel(const ImageTarget& image, int64_t row, int64_t column, float value) {
  const int64_t at = row * image.row_stride + column * image.column_stride;
  if (image.normalize) value = data::normalize_depth(value, image.rule);
  const bool valid = value > 0.0f;
  if (!image.rgbd) {
    store_element(image.data, at, image.type, value);
    return valid;
  }
  if (image.normalize && value == data::kBackground) {
    for (int channel = 0; channel < 3; ++channel) store_element(image.data, at + channel, image.type, 0.0f);
    value = 0.0f;
  }
  store_element(image.data, at + 3, image.type, value);
  return valid;
}

// Decodes a chunk into its rows of the image. job.packed counts from `packed`. `own` has room for job.bytes bytes,
// rounded up to whole words. A chunk with a problem leaves its rows as they were. Other rows are never touched.
template <class Team>
VOLOGAN_HD ChunkResult decode_chunk(const Team& team, const ChunkJob& job, const ImageTarget image,
                                    const uint8_t* packed, uint32_t* own, InflateTables& tables) {
  const uint8_t* const stored = packed + job.packed;
  uint8_t* const lines = reinterpret_cast<uint8_t*>(own);
  ChunkBytes bytes{stored, job.bytes, false};
  if (job.packing != Packing::Plain) {
    const Problem problem = job.packing == Packing::Runs ? expand_runs(team, stored, job.packed_bytes, lines, job.bytes)
                                                         : team_inflate(team, reinterpret_cast<const uint32_t*>(stored),
                                                                        job.packed_bytes, lines, job.bytes, tables);
    if (problem != Problem::None) return {problem, false};
    undo_predictors(team, own, job.bytes, tables.sums[0]);
    bytes = {lines, job.bytes, true};
  }
  // Copies for this thread alone: the compiler must assume that a pixel may be stored over `job`.
  const ExrSample sample = job.sample;
  const int64_t sample_bytes = sample == ExrSample::Float16 ? 2 : 4;
  const int rows = job.rows;
  bool any_valid = false;
  for (int row = 0; row < rows; ++row) {
    const int64_t line = job.line_offsets[row], y = job.first_row + row;
    for (int64_t column = team.rank(); column < image.width; column += team.size()) {
      any_valid |= store_pixel(image, y, column, load_sample(bytes, line + column * sample_bytes, sample));
    }
  }
  return {Problem::None, team.any(any_valid)};
}

}  // namespace vologan::depth
