// PNG, grey, 8 or 16 bits, not interlaced: https://www.w3.org/TR/png-3/
//
//   signature | chunks: length type data CRC-32
//
// The joined IDAT chunks are one zlib stream of lines. Each line is a filter number and the bytes of the line,
// stored as differences to their neighbours at the left and above. The depth values are the samples: gamma, sBIT and
// tRNS are not applied.
#include <algorithm>
#include <string_view>

#include "checksums.h"
#include "filters.h"
#include "formats.h"
#include "rows.h"

namespace vologan::depth {

namespace {

constexpr int64_t signature_bytes = 8;

struct PngChunk {
  std::string_view type;
  Chunk data;
};

PngChunk read_chunk(const File& file, int64_t position) {
  const uint8_t* header = file.at(position, 8, "chunk");
  const std::string_view type(reinterpret_cast<const char*>(header) + 4, 4);
  const int64_t size = load_be<uint32_t>(header);
  file.at(position + 8, size + 4, {"chunk", type});
  return {type, {position + 8, size}};
}

void check_crc(const File& file, const Chunk& chunk, const Part& part) {
  const uint8_t* data = file.data.data() + chunk.offset;
  const uint32_t stored = load_be<uint32_t>(data + chunk.size);
  const uint32_t computed = crc32({data - 4, static_cast<size_t>(chunk.size) + 4});  // of the chunk's type and data
  if (stored != computed) file.fail(part, text("CRC ", stored), text(computed));
}

std::string describe_kind(int bits, int colour, int interlace) {
  static const char* const kinds[] = {"grey", "1", "RGB", "palette", "grey with alpha", "5", "RGB with alpha"};
  return text(bits, "-bit ", colour < 7 ? kinds[colour] : "unknown", interlace ? ", interlaced" : "");
}

void parse_ihdr(const File& file, const Chunk& chunk, const Limits& limits, Info& info) {
  if (chunk.size != 13) file.fail("IHDR", "13 bytes", text(chunk.size));
  check_crc(file, chunk, "IHDR");
  const uint8_t* data = file.data.data() + chunk.offset;
  const int bits = data[8], colour = data[9], method = data[10], filter = data[11], interlace = data[12];
  if (colour != 0 || (bits != 8 && bits != 16) || interlace != 0) {
    file.fail("IHDR", "a grey PNG of 8 or 16 bits, not interlaced", describe_kind(bits, colour, interlace));
  }
  if (method != 0 || filter != 0) {
    file.fail("IHDR", "compression method 0 and filter method 0", text(method, " and ", filter));
  }
  info.format = "png";
  info.compression = "deflate";
  info.width = load_be<uint32_t>(data);
  info.height = load_be<uint32_t>(data + 4);
  info.set_channel(bits == 8 ? SampleType::Uint8 : SampleType::Uint16);
  file.check_size("IHDR", info.width, info.height, bits / 8, limits);
}

// Undoes the filter of line `row`, or of four lines from `row` on if that is faster. Returns the number of lines.
// `lines` are the inflated lines from `row` on, each behind the number of its filter. `above` is the line above,
// already undone.
template <int pixel_bytes>
int64_t undo_filter(const File& file, const Png& png, int64_t row, uint8_t* lines, const uint8_t* above) {
  constexpr bool simd = pixel_bytes == 2;  // 8-bit depth is too rare to need it
  const int64_t n = png.info.width * pixel_bytes, stride = 1 + n;
  uint8_t* const line = lines + 1;
  const int filter = lines[0];
  const bool four = simd && row + 4 <= png.info.height && lines[stride] == filter && lines[2 * stride] == filter &&
                    lines[3 * stride] == filter;
  switch (filter) {
    case 0:
      return 1;
    case 1:
      simd ? row_kernels().undo_sub(line, n) : undo_sub<pixel_bytes>(line, n);
      return 1;
    case 2:
      undo_up(line, above, n);
      return 1;
    case 3:
      four ? row_kernels().undo_average_4(line, stride, above, n) : undo_average<pixel_bytes>(line, above, n, 0);
      return four ? 4 : 1;
    case 4:
      four ? row_kernels().undo_paeth_4(line, stride, above, n) : undo_paeth<pixel_bytes>(line, above, n, 0);
      return four ? 4 : 1;
    default:
      file.fail(text("IDAT, line ", row), "a filter from 0 to 4", text(filter));
  }
}

// Checks the CRCs of the IDAT chunks and returns the zlib stream. If there is one IDAT chunk, the stream stays in
// the file. Otherwise the chunks are joined in scratch.packed.
std::span<const uint8_t> join_idat(const File& file, const Png& png, Scratch& scratch) {
  for (const Chunk& chunk : png.idat) check_crc(file, chunk, "IDAT");
  if (png.idat.size() == 1) return file.data.subspan(png.idat[0].offset, png.idat[0].size);
  scratch.packed.clear();
  for (const Chunk& chunk : png.idat) {
    const uint8_t* data = file.data.data() + chunk.offset;
    scratch.packed.insert(scratch.packed.end(), data, data + chunk.size);
  }
  return scratch.packed;
}

}  // namespace

void parse_png(const File& file, const Limits& limits, Png& png) {
  png.idat.clear();
  PngChunk chunk = read_chunk(file, signature_bytes);
  if (chunk.type != "IHDR") file.fail("first chunk", "IHDR", quoted(chunk.type));
  parse_ihdr(file, chunk.data, limits, png.info);
  std::string_view before;
  int64_t packed = 0;
  while (chunk.type != "IEND") {
    before = chunk.type;
    chunk = read_chunk(file, chunk.data.offset + chunk.data.size + 4);
    if (chunk.type == "IDAT") {
      if (!png.idat.empty() && before != "IDAT") file.fail("IDAT", "chunks in a row", text(quoted(before), " between"));
      png.idat.push_back(chunk.data);
      packed += chunk.data.size;
    } else if (chunk.type != "IEND") {
      const bool critical = (chunk.type[0] & 0x20) == 0;
      if (critical) file.fail("chunks", "IDAT, IEND and optional ones", quoted(chunk.type));
      check_crc(file, chunk.data, {"chunk", chunk.type});
    }
  }
  check_crc(file, chunk.data, "IEND");
  const int64_t bytes = (1 + png.info.width * sample_bytes(png.info.channels[0].type)) * png.info.height;
  if (bytes / 1032 > packed) {  // deflate codes at most 258 bytes in two bits
    file.fail("IDAT", text("at least ", bytes / 1032, " bytes for ", png.info.width, " × ", png.info.height),
              text(packed));
  }
}

void decode_png(const File& file, const Png& png, const Plane& out, Scratch& scratch) {
  const SampleType type = png.info.channels[0].type;
  const size_t line_bytes = static_cast<size_t>(png.info.width * sample_bytes(type));
  const size_t bytes = (1 + line_bytes) * static_cast<size_t>(png.info.height);
  std::vector<uint8_t>& inflated = scratch.inflated[0];
  if (inflated.size() < bytes + output_tail) inflated.resize(bytes + output_tail);
  const std::span<const uint8_t> packed = join_idat(file, png, scratch);
  if (const char* problem = scratch.inflater.inflate({packed, {inflated.data(), bytes}})) {
    file.fail("IDAT", text("zlib data of ", bytes, " bytes"), problem);
  }
  scratch.lines.assign(line_bytes, 0);
  const auto undo = type == SampleType::Uint8 ? undo_filter<1> : undo_filter<2>;
  const uint8_t* above = scratch.lines.data();
  uint8_t* lines = inflated.data();
  for (int64_t row = 0; row < png.info.height;) {
    const int64_t end = row + undo(file, png, row, lines, above);
    for (; row < end; ++row, lines += 1 + line_bytes) {
      store_row(out, row, type, true, lines + 1, scratch.row);
      above = lines + 1;
    }
  }
}

}  // namespace vologan::depth
