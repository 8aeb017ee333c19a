// Parsers and decoders of the file formats. A function parse_* turns the headers into a plain description. All
// sizes in it have been checked against the file and the limits. A function decode_* reads the samples according to
// that description.
#pragma once

#include <string_view>
#include <vector>

#include "file.h"
#include "inflate.h"

namespace vologan::depth {

constexpr std::string_view npy_magic = "\x93NUMPY";

struct Chunk {
  int64_t offset;  // where its bytes begin in the file
  int64_t size;
};

struct Exr {
  struct Channel {
    std::string_view name;  // points into the file
    SampleType type;
    int32_t x_sampling, y_sampling;
    int64_t pixel_offset;  // bytes of a pixel's samples in the channels before this one
  };
  struct Attribute {
    std::string_view name, type;
    int64_t offset, size;  // where its value is in the file
  };
  // So that the choice need not be made again for an image like the one before, which needs no allocation.
  bool chosen = false;
  std::optional<std::string> wanted;  // the argument of choose_channel() that info.choice belongs to

  // Sizes, windows and compression; with several parts, those of the part of the chosen channel. The channels and the
  // choice are those of the whole file. If there is one part, info.channels has the order of `channels`.
  Info info;
  // These describe the part that is read natively, or the last one.
  std::vector<Attribute> attributes;  // sorted by name
  std::vector<Channel> channels;      // sorted by name, which is their order in each line
  int64_t pixel_bytes = 0;
  bool subsampled = false;  // whether a channel has no sample for some pixels
  int compression = 0;
  int64_t x_first = 0, x_last = 0, y_first = 0, y_last = 0;
  int64_t lines_per_chunk = 1;
  int64_t offset_table = 0;  // where the offset table begins in the file
};

// One chunk of an EXR: its bytes in the file, the number of bytes that they decode to, and the lines that it holds,
// both ends included.
struct ExrChunk {
  std::span<const uint8_t> stored;
  int64_t bytes;
  int64_t first_line, last_line;

  // Whether the bytes are stored as they are. A file does so if the compression would not shrink them. The predictor
  // is then not applied either.
  bool is_plain() const { return static_cast<int64_t>(stored.size()) == bytes; }
};

struct Png {
  Info info;
  std::vector<Chunk> idat;
  int samples = 1;  // of a pixel: grey, grey and alpha, RGB, or RGB and alpha
  bool interlaced = false;
};

// Samples without compression, row by row from `offset` (NPY in Fortran order: column by column).
struct Raw {
  Info info;
  int64_t offset = 0;
  int samples = 1;  // of a pixel; they are equal if there are several
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
  std::vector<Chunk> chunks;         // EXR: where each chunk lies in the file
  std::vector<Chunk> sorted_chunks;  // EXR: the same, sorted by offset, if the file has them in another order
  std::vector<uint8_t> packed;       // PNG: the joined IDAT chunks
  std::vector<uint8_t> inflated[2];  // PNG: filtered lines; EXR: two chunks before the predictor is undone
  std::vector<uint8_t> lines;        // EXR: a decoded chunk; PNG: the zeros above the first line
  std::vector<uint8_t> grey;         // PNG and PFM: a row of the first samples of pixels with several
  std::vector<uint8_t> alpha;        // PNG: the alpha of all pixels
  std::vector<float> row;            // for planes whose columns are not adjacent
  std::vector<float> equal[2];       // EXR: a line of the chosen channel, and of one that must hold the same
};

// Parse the headers. Each function replaces the whole contents of its last argument and reuses its memory. Throws
// Error. parse_exr() also chooses the channel; `channel` is the argument `wanted` of choose_channel().
void parse_exr(const File& file, const std::optional<std::string>& channel, const Limits& limits, Exr& exr);
void parse_png(const File& file, const Limits& limits, Png& png);
void parse_npy(const File& file, const Limits& limits, Raw& npy);
void parse_pfm(const File& file, const Limits& limits, Raw& pfm);

// Sets the names of the channels of an EXR from their own names and those of their parts.
void name_channels(std::vector<Channel>& channels);

// Parses an EXR of the given size that decode_exr() reads. Returns the index of the channel that choose_channel()
// selects. Throws NotNative if the file is no EXR or one that decode_exr() does not read. Throws Error if it is
// broken, has another size, or is subsampled in this channel.
size_t open_exr(const File& file, const std::optional<std::string>& channel, int64_t height, int64_t width,
                const Limits& limits, Exr& exr);

// The steps of decode_exr(). chunk_batch.cpp uses them to decode chunks in another way.
//
// Returns the number of chunks.
int64_t chunk_count(const Exr& exr);
// Fills scratch.chunks. Afterwards, scratch.chunks[i] lies inside the file, holds the lines that it should, and
// overlaps no other chunk. The file may hold the chunks in any order. Throws Error.
void locate_chunks(const File& file, const Exr& exr, Scratch& scratch);
// Returns chunk i after locate_chunks(). Throws Error if its stored size cannot be right.
ExrChunk exr_chunk(const File& file, const Exr& exr, int64_t i, const Scratch& scratch);
// Throws Error for chunk i: `problem` was found instead of compressed data of `bytes` bytes.
[[noreturn]] void fail_chunk(const File& file, const Exr& exr, int64_t i, int64_t bytes, const char* problem);
// Returns the number of bytes that the first `count` channels take in line y.
int64_t line_bytes(const Exr& exr, int64_t y, size_t count);

// Decode the samples of one image to `out`, which must have the size of the image. Throws Error.
void decode_exr(const File& file, const Exr& exr, size_t channel, const Plane& out, Scratch& scratch);
void decode_png(const File& file, const Png& png, const Plane& out, Scratch& scratch);
void decode_raw(const File& file, const Raw& raw, const Plane& out, Scratch& scratch);

}  // namespace vologan::depth
