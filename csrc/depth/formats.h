// The four file formats. parse_* turns the headers into a plain description whose sizes have all been checked against
// the file and the limits; decode_* reads the samples with that description.
#pragma once

#include <string_view>
#include <vector>

#include "file.h"
#include "inflate.h"

namespace vologan::depth {

struct Chunk {
  int64_t offset;  // of its bytes in the file
  int64_t size;
};

struct Exr {
  struct Channel {
    std::string_view name;  // in the file
    SampleType type;
    int32_t x_sampling, y_sampling;
    int64_t pixel_offset;  // bytes of a pixel's samples in the channels before
  };
  struct Attribute {
    std::string_view name, type;
    int64_t offset, size;  // of its value
  };
  Info info;
  std::vector<Attribute> attributes;  // sorted by name
  std::vector<Channel> channels;      // sorted by name, which is their order in each line
  int64_t pixel_bytes = 0;
  bool subsampled = false;  // some channel has no sample for some pixels
  int compression = 0;
  int64_t x_first = 0, x_last = 0, y_first = 0, y_last = 0;
  int64_t lines_per_chunk = 1;
  int64_t offset_table = 0;  // where it begins
};

// One chunk of an EXR: its bytes in the file, how many they decode to, and the lines that these are.
struct ExrChunk {
  std::span<const uint8_t> stored;
  int64_t bytes;
  int64_t first_line, last_line;

  // Stored as it is, since its compression would not shrink it: not even the predictor was applied.
  bool is_plain() const { return static_cast<int64_t>(stored.size()) == bytes; }
};

struct Png {
  Info info;
  std::vector<Chunk> idat;
};

// Samples without compression, row by row from `offset` (NPY in Fortran order: column by column).
struct Raw {
  Info info;
  int64_t offset = 0;
  bool big_endian = false;
  bool fortran_order = false;
  bool bottom_up = false;
};

// Memory that a Decoder keeps from image to image.
struct Scratch {
  Exr exr;
  Png png;
  Raw raw;
  Inflater inflater;
  std::vector<Chunk> chunks;         // EXR: where each group of lines lies
  std::vector<Chunk> sorted_chunks;  // EXR: the same by offset, where the file has them in another order
  std::vector<uint8_t> packed;       // PNG: the IDAT chunks joined
  std::vector<uint8_t> inflated[2];  // PNG: filtered lines; EXR: two chunks before the predictor is undone
  std::vector<uint8_t> lines;        // EXR: a chunk; PNG: the zeros above the first line
  std::vector<float> row;            // for planes whose columns do not lie side by side
};

// Each replaces all of what its last argument describes, and reuses its memory.
void parse_exr(const File& file, const Limits& limits, Exr& exr);
void parse_png(const File& file, const Limits& limits, Png& png);
void parse_npy(const File& file, const Limits& limits, Raw& npy);
void parse_pfm(const File& file, const Limits& limits, Raw& pfm);

// Parses a file that must be an EXR that decode_exr() reads, of the given size. Returns which of its channels is meant;
// throws Error and NotNative.
size_t open_exr(const File& file, const std::optional<std::string>& channel, int64_t height, int64_t width,
                const Limits& limits, Exr& exr);

// The steps of decode_exr, for whoever decodes chunks in another way (chunk_batch.cpp). After locate_chunks(),
// scratch.chunks[i] is inside the file, holds the lines that it should, and overlaps no other chunk; the order of
// chunks in the file is free. exr_chunk() refuses one of a size that cannot be right; fail_chunk() says what its bytes
// hold instead of `bytes` bytes. line_bytes() is what the first `count` channels take in line y.
int64_t chunk_count(const Exr& exr);
void locate_chunks(const File& file, const Exr& exr, Scratch& scratch);
ExrChunk exr_chunk(const File& file, const Exr& exr, int64_t i, const Scratch& scratch);
[[noreturn]] void fail_chunk(const File& file, const Exr& exr, int64_t i, int64_t bytes, const char* problem);
int64_t line_bytes(const Exr& exr, int64_t y, size_t count);

void decode_exr(const File& file, const Exr& exr, size_t channel, const Plane& out, Scratch& scratch);
void decode_png(const File& file, const Png& png, const Plane& out, Scratch& scratch);
void decode_raw(const File& file, const Raw& raw, const Plane& out, Scratch& scratch);

}  // namespace vologan::depth
