// PNG of 8 or 16 bits: grey, or RGB whose three samples are equal in every pixel: https://www.w3.org/TR/png-3/
//
//   signature | chunks: length type data CRC-32
//
// The joined IDAT chunks are one zlib stream of lines. Each line is a filter number and the bytes of the line,
// stored as differences to their neighbours at the left and above. An interlaced image has the lines of seven smaller
// images, one after the other. The depth values are the samples: gamma, sBIT and tRNS are not applied. Alpha must be
// the same everywhere.
//
// As in libpng, bytes behind the zlib stream are ignored, and so are optional chunks, whatever their CRC is.
#include <algorithm>
#include <array>
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

// Returns the number of samples of a pixel. Throws Error if the file holds no depth of 8 or 16 bits.
int samples_of(const File& file, int bits, int colour) {
  const auto refuse = [&](const std::string& found) {
    file.fail("IHDR", "a grey PNG of 8 or 16 bits", text(bits, "-bit ", found));
  };
  if (colour == 3) refuse("palette, which holds colours: a picture of the depth? Save the depth as 16-bit grey");
  if (colour == 0 && (bits == 1 || bits == 2 || bits == 4)) {
    refuse(text("grey, which has only ", 1 << bits, " levels: a mask, or a picture of the depth?"));
  }
  static constexpr int samples[] = {1, 0, 3, 0, 2, 0, 4};
  if (colour > 6 || samples[colour] == 0) refuse(text("unknown colour type ", colour));
  if (bits != 8 && bits != 16) refuse("samples, which PNG does not have");
  return samples[colour];
}

void parse_ihdr(const File& file, const Chunk& chunk, const Limits& limits, Png& png) {
  if (chunk.size != 13) file.fail("IHDR", "13 bytes", text(chunk.size));
  check_crc(file, chunk, "IHDR");
  const uint8_t* data = file.data.data() + chunk.offset;
  const int bits = data[8], colour = data[9], method = data[10], filter = data[11], interlace = data[12];
  png.samples = samples_of(file, bits, colour);
  if (interlace > 1) file.fail("IHDR", "interlace method 0 or 1", text(interlace));
  png.interlaced = interlace == 1;
  if (method != 0 || filter != 0) {
    file.fail("IHDR", "compression method 0 and filter method 0", text(method, " and ", filter));
  }
  Info& info = png.info;
  info.format = "png";
  info.compression = "deflate";
  info.width = load_be<uint32_t>(data);
  info.height = load_be<uint32_t>(data + 4);
  info.set_channel(bits == 8 ? SampleType::Uint8 : SampleType::Uint16);
  file.check_size("IHDR", info.width, info.height, png.samples * bits / 8, limits);
}

// The pixels whose lines stand together: all pixels, or those of one of the seven passes of an interlaced image. Pixel
// (column, row) of the pass is pixel (x + dx column, y + dy row) of the image.
struct Pass {
  int64_t x, y, dx, dy, width, height;
};

// Returns the passes in their order. Passes without pixels have no lines.
std::array<Pass, 7> passes_of(const Png& png) {
  const int64_t width = png.info.width, height = png.info.height;
  if (!png.interlaced) return {{{0, 0, 1, 1, width, height}}};
  std::array<Pass, 7> passes{{{0, 0, 8, 8, 0, 0},
                              {4, 0, 8, 8, 0, 0},
                              {0, 4, 4, 8, 0, 0},
                              {2, 0, 4, 4, 0, 0},
                              {0, 2, 2, 4, 0, 0},
                              {1, 0, 2, 2, 0, 0},
                              {0, 1, 1, 2, 0, 0}}};
  for (Pass& pass : passes) {
    if (pass.x >= width || pass.y >= height) continue;
    pass.width = (width - pass.x - 1) / pass.dx + 1;
    pass.height = (height - pass.y - 1) / pass.dy + 1;
  }
  return passes;
}

int64_t pixel_bytes_of(const Png& png) { return png.samples * sample_bytes(png.info.channels[0].type); }

// Returns the number of bytes of all lines, each with the number of its filter.
int64_t inflated_bytes(const Png& png) {
  int64_t bytes = 0;
  for (const Pass& pass : passes_of(png)) bytes += (1 + pass.width * pixel_bytes_of(png)) * pass.height;
  return bytes;
}

// Undoes the filter of line `row`, or of four lines from `row` on if that is faster. Returns the number of lines.
// `lines` are the inflated lines from `row` on, each behind the number of its filter. `above` is the line above,
// already undone.
template <int pixel_bytes>
int64_t undo_filter(const File& file, const Pass& pass, int64_t row, uint8_t* lines, const uint8_t* above) {
  constexpr bool simd = pixel_bytes == 2;  // other depth is too rare to need it
  const int64_t n = pass.width * pixel_bytes, stride = 1 + n;
  uint8_t* const line = lines + 1;
  const int filter = lines[0];
  const bool four = simd && row + 4 <= pass.height && lines[stride] == filter && lines[2 * stride] == filter &&
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

using UndoFilter = int64_t (*)(const File&, const Pass&, int64_t, uint8_t*, const uint8_t*);

UndoFilter undo_filter_of(int64_t pixel_bytes) {
  switch (pixel_bytes) {
    case 1:
      return undo_filter<1>;
    case 2:
      return undo_filter<2>;
    case 3:
      return undo_filter<3>;
    case 4:
      return undo_filter<4>;
    case 6:
      return undo_filter<6>;
    default:
      return undo_filter<8>;
  }
}

// Returns the first samples of a line of pixels with several samples. Throws Error unless the colours of each pixel are
// equal, and alpha is the same in all pixels; scratch.alpha is the alpha of the pixels so far.
const uint8_t* grey_line(const File& file, const Png& png, const uint8_t* line, int64_t width, Scratch& scratch) {
  const int64_t bytes = sample_bytes(png.info.channels[0].type), colours = png.samples < 3 ? 1 : 3;
  const auto refuse = [&](const char* found) {
    file.fail("IDAT", "a grey PNG of 8 or 16 bits, or RGB with equal samples", found);
  };
  scratch.grey.resize(static_cast<size_t>(width * bytes));
  for (int64_t x = 0; x < width; ++x, line += png.samples * bytes) {
    for (int64_t c = 1; c < colours; ++c) {
      if (std::memcmp(line, line + c * bytes, static_cast<size_t>(bytes)) != 0) {
        refuse("red, green and blue that differ: a picture of the depth, or depth packed into bytes; convert it first");
      }
    }
    if (png.samples > colours) {
      const uint8_t* alpha = line + colours * bytes;
      if (scratch.alpha.empty()) scratch.alpha.assign(alpha, alpha + bytes);
      if (!std::equal(scratch.alpha.begin(), scratch.alpha.end(), alpha)) {
        refuse("alpha that differs between pixels: does it mark missing depth? Save the depth without alpha");
      }
    }
    std::memcpy(scratch.grey.data() + x * bytes, line, static_cast<size_t>(bytes));
  }
  return scratch.grey.data();
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
  if (chunk.type != "IHDR") {
    const bool apple = chunk.type == "CgBI";
    file.fail("first chunk", "IHDR", quoted(chunk.type) + (apple ? ", Apple's own kind of PNG: save it as PNG" : ""));
  }
  parse_ihdr(file, chunk.data, limits, png);
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
      if (critical && chunk.type != "PLTE") file.fail("chunks", "IDAT, IEND and optional ones", quoted(chunk.type));
    }
  }
  check_crc(file, chunk.data, "IEND");
  const int64_t bytes = inflated_bytes(png);
  if (bytes / 1032 > packed) {  // deflate codes at most 258 bytes in two bits
    file.fail("IDAT", text("at least ", bytes / 1032, " bytes for ", png.info.width, " × ", png.info.height),
              text(packed));
  }
}

void decode_png(const File& file, const Png& png, const Plane& out, Scratch& scratch) {
  const SampleType type = png.info.channels[0].type;
  const int64_t pixel_bytes = pixel_bytes_of(png);
  const size_t bytes = static_cast<size_t>(inflated_bytes(png));
  std::vector<uint8_t>& inflated = scratch.inflated[0];
  if (inflated.size() < bytes + output_tail) inflated.resize(bytes + output_tail);
  const std::span<const uint8_t> packed = join_idat(file, png, scratch);
  if (const char* problem = scratch.inflater.inflate({packed, {inflated.data(), bytes}, true})) {
    file.fail("IDAT", text("zlib data of ", bytes, " bytes"), problem);
  }
  const UndoFilter undo = undo_filter_of(pixel_bytes);
  uint8_t* lines = inflated.data();
  scratch.alpha.clear();
  for (const Pass& pass : passes_of(png)) {
    const Plane plane{out.data + pass.y * out.row_stride + pass.x * out.column_stride, pass.height, pass.width,
                      pass.dy * out.row_stride, pass.dx * out.column_stride};
    scratch.lines.assign(static_cast<size_t>(pass.width * pixel_bytes), 0);
    const uint8_t* above = scratch.lines.data();
    for (int64_t row = 0; row < pass.height;) {
      const int64_t end = row + undo(file, pass, row, lines, above);
      for (; row < end; ++row, lines += 1 + pass.width * pixel_bytes) {
        above = lines + 1;
        const uint8_t* grey = png.samples == 1 ? above : grey_line(file, png, above, pass.width, scratch);
        store_row(plane, row, type, true, grey, scratch.row);
      }
    }
  }
}

}  // namespace vologan::depth
