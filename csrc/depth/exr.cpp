// OpenEXR, single-part scan lines: https://openexr.com/en/latest/OpenEXRFileLayout.html
//
//   magic, version and flags | attributes: name\0 type\0 size value … \0 | offset of each chunk | chunks: y size bytes
//
// A chunk holds 1 or 16 lines. A line holds the samples of the first channel, then the samples of the second
// channel, and so on. If the compression does not shrink a chunk, the chunk is stored as it is.
#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <utility>

#include "formats.h"
#include "rows.h"

namespace vologan::depth {

namespace {

constexpr uint32_t magic = 20000630;
constexpr int64_t longest_name = 255;      // also of a file without flag_long_names, as some writers forget it
constexpr int64_t longest_side = 1 << 28;  // of the display window, so that products of lengths fit into 64 bits
constexpr size_t most_channels = 1 << 13;  // of all parts; each takes more memory than it has bytes in the file
constexpr uint32_t flag_tiled = 0x200, flag_long_names = 0x400, flag_deep = 0x800, flag_multipart = 0x1000;
constexpr uint32_t known_flags = flag_tiled | flag_long_names | flag_deep | flag_multipart;

constexpr int none = 0, rle = 1;  // the numbers of two compressions

// A compression. Its number in the file is its index in `compressions`. lines_per_chunk and most_ratio are given
// only for the compressions that are decoded here.
struct CompressionKind {
  const char* name;
  int64_t lines_per_chunk = 0;
  int64_t most_ratio = 0;  // the most decoded bytes that one stored byte can stand for
};
// clang-format off
constexpr CompressionKind compressions[] = {
    {"none", 1, 1},
    {"rle", 1, 64},     // a run of 128 bytes takes two bytes
    {"zips", 1, 1032},  // deflate codes at most 258 bytes in two bits
    {"zip", 16, 1032},
    {"piz"},
    {"pxr24"},
    {"b44"},
    {"b44a"},
    {"dwaa"},
    {"dwab"},
    {"htj2k256"},
    {"htj2k32"},
    {"lj2k"},
    {"zstd"},
};
// clang-format on
constexpr int compression_count = std::size(compressions);

// A position in the header, which moves on with each field that is taken.
struct Cursor {
  const File& file;
  int64_t position;

  const uint8_t* take(int64_t count, const Part& part) {
    const uint8_t* bytes = file.at(position, count, part);
    position += count;
    return bytes;
  }

  std::string_view take_name(int64_t longest, const Part& part) {
    const int64_t room = std::min(longest + 1, file.size() - position);
    const uint8_t* begin = file.at(position, room, part);
    const void* end = room ? std::memchr(begin, 0, static_cast<size_t>(room)) : nullptr;
    if (!end) file.fail(part, text("a name of at most ", longest, " bytes"), "no end");
    const int64_t length = static_cast<const uint8_t*>(end) - begin;
    position += length + 1;
    return {reinterpret_cast<const char*>(begin), static_cast<size_t>(length)};
  }
};

using Attributes = std::vector<Exr::Attribute>;

constexpr auto by_name = [](const auto& a, const auto& b) { return a.name < b.name; };
constexpr auto same_name = [](const auto& a, const auto& b) { return a.name == b.name; };

// Reads the attributes of one part, including the empty name that ends them.
void read_attributes(Cursor& cursor, Attributes& attributes) {
  attributes.clear();
  for (;;) {
    const std::string_view name = cursor.take_name(longest_name, "header");
    if (name.empty()) break;
    const Part part("attribute", name);
    const std::string_view type = cursor.take_name(longest_name, part);
    const int64_t size = load_le<int32_t>(cursor.take(4, part));
    if (size < 0) cursor.file.fail(part, "a size of at least 0 bytes", text(size));
    const int64_t offset = cursor.position;
    cursor.take(size, part);
    attributes.push_back({name, type, offset, size});
  }
  std::sort(attributes.begin(), attributes.end(),
            [](const auto& a, const auto& b) { return std::tie(a.name, a.offset) < std::tie(b.name, b.offset); });
}

// Throws Error if an attribute that is used here is there twice with different contents. Others do not matter.
void check_once(const File& file, const Attributes& attributes) {
  static constexpr std::string_view used[] = {"channels", "compression", "dataWindow", "displayWindow", "name", "type"};
  const auto value = [&](const Exr::Attribute& a) { return file.data.subspan(a.offset, a.size); };
  for (size_t i = 1; i < attributes.size(); ++i) {
    const Exr::Attribute &a = attributes[i - 1], &b = attributes[i];
    if (a.name != b.name || std::ranges::find(used, a.name) == std::end(used)) continue;
    if (a.type != b.type || !std::ranges::equal(value(a), value(b))) {
      file.fail({"attribute", a.name}, "it once", "it twice, with different contents");
    }
  }
}

const Exr::Attribute* find_attribute(const Attributes& attributes, std::string_view name) {
  const auto found = std::find_if(attributes.begin(), attributes.end(), [&](const auto& a) { return a.name == name; });
  return found == attributes.end() ? nullptr : &*found;
}

const Exr::Attribute& need_attribute(const File& file, const Attributes& attributes, std::string_view name,
                                     std::string_view type) {
  const Part part("attribute", name);
  const Exr::Attribute* found = find_attribute(attributes, name);
  if (!found) file.fail("header", part.to_string(), "none");
  if (found->type != type) file.fail(part, text("type ", type), text("type ", quoted(found->type)));
  return *found;
}

const uint8_t* attribute_value(const File& file, const Attributes& attributes, std::string_view name,
                               std::string_view type, int64_t size) {
  const Exr::Attribute& attribute = need_attribute(file, attributes, name, type);
  if (attribute.size != size) {
    file.fail({"attribute", name}, text(size, " bytes"), text(attribute.size, " bytes"));
  }
  return file.data.data() + attribute.offset;
}

// Returns the text of an attribute, or "" if there is none of this name and type.
std::string_view attribute_text(const File& file, const Attributes& attributes, std::string_view name) {
  const Exr::Attribute* found = find_attribute(attributes, name);
  if (!found || found->type != "string") return "";
  return {reinterpret_cast<const char*>(file.data.data()) + found->offset, static_cast<size_t>(found->size)};
}

Window read_window(const uint8_t* box) {
  const int64_t x = load_le<int32_t>(box), y = load_le<int32_t>(box + 4);
  return {x, y, load_le<int32_t>(box + 8) - x + 1, load_le<int32_t>(box + 12) - y + 1};
}

void read_channels(const File& file, const Attributes& attributes, std::vector<Exr::Channel>& channels) {
  const Exr::Attribute& list = need_attribute(file, attributes, "channels", "chlist");
  const File value{file.data.subspan(list.offset, list.size), file.name};
  Cursor cursor{value, 0};
  channels.clear();
  for (;;) {
    const std::string_view name = cursor.take_name(longest_name, "channel list");
    if (name.empty()) break;
    const Part part("channel", name);
    const uint8_t* fields = cursor.take(16, part);
    const int32_t type = load_le<int32_t>(fields);
    if (type < 0 || type > 2) file.fail(part, "type 0 (uint), 1 (half) or 2 (float)", text(type));
    constexpr SampleType types[] = {SampleType::Uint32, SampleType::Float16, SampleType::Float32};
    const int32_t x_sampling = load_le<int32_t>(fields + 8), y_sampling = load_le<int32_t>(fields + 12);
    if (x_sampling < 1 || y_sampling < 1) {
      file.fail(part, "a sampling of at least 1", text(x_sampling, " × ", y_sampling));
    }
    channels.push_back({name, types[type], x_sampling, y_sampling, 0});
  }
  if (cursor.position != value.size()) {
    file.fail("channel list", text("its end at byte ", value.size()), text("it at byte ", cursor.position));
  }
  if (channels.empty()) file.fail("channel list", "a channel", "none");
  std::sort(channels.begin(), channels.end(), by_name);
  const auto twice = std::adjacent_find(channels.begin(), channels.end(), same_name);
  if (twice != channels.end()) file.fail("channel list", text("one channel ", quoted(twice->name)), "two");
}

// Writes the channels of a file over those of the file before, and remembers whether they differ.
struct ChannelWriter {
  std::vector<Channel>& list;
  size_t count = 0;
  bool differ = false;

  void add(const Exr::Channel& channel, size_t part, std::string_view part_name) {
    if (count == list.size()) list.emplace_back();
    Channel& to = list[count++];
    if (to.own_name == channel.name && to.type == channel.type && to.part == part && to.part_name == part_name) return;
    to.own_name = channel.name, to.type = channel.type, to.part = part, to.part_name = part_name;
    differ = true;
  }

  void finish() {
    differ |= count != list.size();
    list.resize(count);
  }
};

// Fills in the sizes, the channels and the compression of the part whose attributes are in exr.attributes. Appends the
// channels to `channels` as those of part number `part`.
void describe(const File& file, const Limits& limits, size_t part, Exr& exr, ChannelWriter& channels) {
  const Attributes& attributes = exr.attributes;
  check_once(file, attributes);
  read_channels(file, attributes, exr.channels);
  exr.compression = *attribute_value(file, attributes, "compression", "compression", 1);
  const Window data = read_window(attribute_value(file, attributes, "dataWindow", "box2i", 16));
  exr.x_first = data.x, exr.y_first = data.y;
  exr.x_last = data.x + data.width - 1, exr.y_last = data.y + data.height - 1;

  exr.pixel_bytes = 0;
  exr.subsampled = false;
  for (Exr::Channel& channel : exr.channels) {
    channel.pixel_offset = exr.pixel_bytes;
    exr.pixel_bytes += sample_bytes(channel.type);
    exr.subsampled |= channel.x_sampling != 1 || channel.y_sampling != 1;
  }
  Info& info = exr.info;
  info.format = "exr";
  info.width = data.width;
  info.height = data.height;
  file.check_size("data window", info.width, info.height, exr.pixel_bytes, limits);
  info.x = static_cast<int32_t>(data.x), info.y = static_cast<int32_t>(data.y);
  info.display = data;
  if (find_attribute(attributes, "displayWindow")) {
    info.display = read_window(attribute_value(file, attributes, "displayWindow", "box2i", 16));
    const auto [x, y, width, height] = info.display;
    if (std::min(width, height) < 1 || std::max(width, height) > longest_side) {
      file.fail("display window", text("1 to ", longest_side, " pixels a side"), text(width, " × ", height));
    }
  }
  const bool known = exr.compression < compression_count;
  const CompressionKind kind = known ? compressions[exr.compression] : CompressionKind{"unknown"};
  info.compression = kind.name;
  exr.lines_per_chunk = kind.lines_per_chunk;
  info.not_native = !known                 ? text("compression number ", exr.compression)
                    : kind.most_ratio == 0 ? text(kind.name, " compression")
                                           : "";

  const std::string_view name = attribute_text(file, attributes, "name").substr(0, longest_name);
  if (channels.count + exr.channels.size() > most_channels) {
    file.fail("channel list", text("at most ", most_channels, " channels"), "more");
  }
  for (const Exr::Channel& channel : exr.channels) channels.add(channel, part, name);
}

// Returns the number of multiples of `sampling` in [first, last].
int64_t samples(int64_t sampling, int64_t first, int64_t last) {
  const auto floor_divided = [sampling](int64_t x) { return x >= 0 ? x / sampling : -((sampling - 1 - x) / sampling); };
  return floor_divided(last) - floor_divided(first - 1);
}

}  // namespace

int64_t line_bytes(const Exr& exr, int64_t y, size_t count) {
  if (!exr.subsampled) {
    return exr.info.width * (count < exr.channels.size() ? exr.channels[count].pixel_offset : exr.pixel_bytes);
  }
  int64_t bytes = 0;
  for (size_t c = 0; c < count; ++c) {
    const Exr::Channel& channel = exr.channels[c];
    if (y % channel.y_sampling != 0) continue;
    bytes += samples(channel.x_sampling, exr.x_first, exr.x_last) * sample_bytes(channel.type);
  }
  return bytes;
}

int64_t chunk_count(const Exr& exr) { return (exr.info.height + exr.lines_per_chunk - 1) / exr.lines_per_chunk; }

namespace {

// Returns the number of bytes of the lines from first to last, both included.
int64_t lines_bytes(const Exr& exr, int64_t first, int64_t last) {
  if (!exr.subsampled) return (last - first + 1) * exr.info.width * exr.pixel_bytes;
  int64_t bytes = 0;
  for (int64_t y = first; y <= last; ++y) bytes += line_bytes(exr, y, exr.channels.size());
  return bytes;
}

int64_t chunk_first_line(const Exr& exr, int64_t index) { return exr.y_first + index * exr.lines_per_chunk; }

int64_t chunk_last_line(const Exr& exr, int64_t index) {
  return std::min(chunk_first_line(exr, index) + exr.lines_per_chunk - 1, exr.y_last);
}

std::string chunk_name(const Exr& exr, int64_t index) {
  return text("chunk ", index, " (lines ", chunk_first_line(exr, index), " to ", chunk_last_line(exr, index), ")");
}

// Throws Error if the file cannot hold the offset table and, at the best possible ratio, the samples. The file is
// thus refused before the caller allocates the size that its header claims.
void check_file_holds(const File& file, const Exr& exr) {
  const int64_t chunk_headers = chunk_count(exr) * 16;  // each has an offset, a line number and a size
  file.at(exr.offset_table, chunk_headers, "offset table");
  const int64_t bytes = lines_bytes(exr, exr.y_first, exr.y_last);
  const int64_t rest = file.size() - exr.offset_table - chunk_headers;
  const int64_t ratio = compressions[exr.compression].most_ratio;
  if (bytes / ratio > rest) {
    file.fail("chunks", text("at least ", bytes / ratio, " bytes for ", exr.info.width, " × ", exr.info.height),
              text(rest));
  }
}

}  // namespace

void locate_chunks(const File& file, const Exr& exr, Scratch& scratch) {
  const int64_t count = chunk_count(exr);
  const int64_t begin = exr.offset_table + 8 * count;
  const uint8_t* table = file.at(exr.offset_table, 8 * count, "offset table");
  std::vector<Chunk>& chunks = scratch.chunks;
  chunks.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t offset = load_le<uint64_t>(table + 8 * i);
    if (offset < static_cast<uint64_t>(begin) || offset > static_cast<uint64_t>(file.size() - 8)) {
      file.fail(chunk_name(exr, i), text("an offset from ", begin, " to ", file.size() - 8),
                text(offset, offset == 0 ? " (the file was not written to its end)" : ""));
    }
    const uint8_t* header = file.data.data() + offset;
    const int64_t y = load_le<int32_t>(header), size = load_le<int32_t>(header + 4);
    if (y != chunk_first_line(exr, i)) {
      file.fail(chunk_name(exr, i), text("line number ", chunk_first_line(exr, i)), text(y));
    }
    if (size < 1) file.fail(chunk_name(exr, i), "at least one byte", text(size));
    chunks[i] = {static_cast<int64_t>(offset) + 8, size};
    if (size > file.size() - chunks[i].offset) {
      file.fail(chunk_name(exr, i), text(size, " bytes"), text(file.size() - chunks[i].offset, " to the file's end"));
    }
  }
  const auto before = [](const Chunk& a, const Chunk& b) { return a.offset < b.offset; };
  const std::vector<Chunk>* by_offset = &chunks;
  if (!std::is_sorted(chunks.begin(), chunks.end(), before)) {
    scratch.sorted_chunks = chunks;
    std::sort(scratch.sorted_chunks.begin(), scratch.sorted_chunks.end(), before);
    by_offset = &scratch.sorted_chunks;
  }
  for (size_t i = 1; i < by_offset->size(); ++i) {
    const Chunk& a = (*by_offset)[i - 1];
    const Chunk& b = (*by_offset)[i];
    if (b.offset - 8 < a.offset + a.size) {
      file.fail("offset table", text("a chunk at ", a.offset + a.size, " or later"), text("one at ", b.offset - 8));
    }
  }
}

ExrChunk exr_chunk(const File& file, const Exr& exr, int64_t i, const Scratch& scratch) {
  const Chunk& chunk = scratch.chunks[i];
  const int64_t first = chunk_first_line(exr, i), last = chunk_last_line(exr, i);
  const int64_t bytes = lines_bytes(exr, first, last);
  if (chunk.size > bytes || (chunk.size < bytes && exr.compression == none)) {
    file.fail(chunk_name(exr, i), text(exr.compression == none ? "" : "at most ", bytes, " bytes"), text(chunk.size));
  }
  return {file.data.subspan(chunk.offset, chunk.size), bytes, first, last};
}

void fail_chunk(const File& file, const Exr& exr, int64_t i, int64_t bytes, const char* problem) {
  file.fail(chunk_name(exr, i), text(exr.info.compression, " data of ", bytes, " bytes"), problem);
}

namespace {

// Expands runs. A count n ≥ 0 stands before one byte, which is repeated n + 1 times. A count n < 0 stands before −n
// bytes, which are copied. Returns nullptr if this gives exactly out.size() bytes, and otherwise the problem.
const char* expand_runs(std::span<const uint8_t> in, std::span<uint8_t> out) {
  size_t read = 0, written = 0;
  while (read < in.size()) {
    const int count = static_cast<int8_t>(in[read++]);
    const size_t length = static_cast<size_t>(count < 0 ? -count : count + 1);
    const size_t stored = count < 0 ? length : 1;
    if (stored > in.size() - read) return "a run that ends early";
    if (length > out.size() - written) return "runs that go on";
    if (count < 0) {
      std::memcpy(out.data() + written, in.data() + read, length);
    } else {
      std::memset(out.data() + written, in[read], length);
    }
    read += stored;
    written += length;
  }
  return written == out.size() ? nullptr : "runs that end early";
}

// Unpacks chunk i and, if `chunks` holds two, chunk i + 1 into scratch.inflated. Plain chunks are skipped.
void unpack(const File& file, const Exr& exr, int64_t i, std::span<const ExrChunk> chunks, Scratch& scratch) {
  InflateJob jobs[2];
  for (size_t k = 0; k < chunks.size(); ++k) {
    const size_t n = static_cast<size_t>(chunks[k].bytes);
    std::vector<uint8_t>& inflated = scratch.inflated[k];
    if (!chunks[k].is_plain() && inflated.size() < n + output_tail) inflated.resize(n + output_tail);
    jobs[k] = {chunks[k].stored, {inflated.data(), n}};
  }
  std::array<const char*, 2> problems{};
  if (exr.compression != rle && chunks.size() == 2 && !chunks[0].is_plain() && !chunks[1].is_plain()) {
    problems = scratch.inflater.inflate(jobs[0], jobs[1]);
  } else {
    for (size_t k = 0; k < chunks.size(); ++k) {
      if (chunks[k].is_plain()) continue;
      problems[k] = exr.compression == rle ? expand_runs(jobs[k].in, jobs[k].out) : scratch.inflater.inflate(jobs[k]);
    }
  }
  for (size_t k = 0; k < chunks.size(); ++k) {
    if (problems[k]) fail_chunk(file, exr, i + static_cast<int64_t>(k), chunks[k].bytes, problems[k]);
  }
}

}  // namespace

void parse_exr(const File& file, const std::optional<std::string>& channel, const Limits& limits, Exr& exr) {
  Cursor cursor{file, 0};
  const uint8_t* begin = cursor.take(8, "header");
  if (load_le<uint32_t>(begin) != magic) file.fail("header", "the magic number of EXR", "another");
  const uint32_t version = load_le<uint32_t>(begin + 4);
  if ((version & 0xff) != 2) file.fail("version", "2", text(version & 0xff));
  if (version & ~(known_flags | 0xff)) file.fail("version flags", "none above 0x1000", text("0x", std::hex, version));
  if (version & flag_deep) file.fail("version flags", "one sample for each pixel", "deep samples");

  Info& info = exr.info;
  const bool chosen = std::exchange(exr.chosen, false);
  ChannelWriter channels{info.channels};
  read_attributes(cursor, exr.attributes);
  describe(file, limits, 0, exr, channels);
  std::vector<Info> parts;
  if (version & flag_multipart) {
    // A reader of this file reads all parts, so together they must keep the limits.
    const auto bytes = [](const Exr& part) { return part.info.width * part.info.height * part.pixel_bytes; };
    Limits left = limits;
    left.max_bytes -= bytes(exr);
    for (Exr next;;) {
      read_attributes(cursor, next.attributes);
      if (next.attributes.empty()) break;
      describe(file, left, parts.size() + 1, next, channels);
      left.max_bytes -= bytes(next);
      parts.push_back(next.info);
    }
  }
  channels.finish();
  if (!chosen || channels.differ || exr.wanted != channel) {
    name_channels(info.channels);
    info.choice = choose_channel(info.channels, channel);
    exr.wanted = channel;
  }
  exr.chosen = true;
  if (const size_t part = info.choice.channel ? info.channels[*info.choice.channel].part : 0; part > 0) {
    const Info& found = parts[part - 1];
    info.compression = found.compression;
    info.width = found.width, info.height = found.height, info.x = found.x, info.y = found.y;
    info.display = found.display;
  }
  if (version & flag_multipart) {
    info.not_native = "several parts";
  } else if (version & flag_tiled) {
    info.not_native = "tiles";
  } else if (const auto type = attribute_text(file, exr.attributes, "type"); !type.empty() && type != "scanlineimage") {
    info.not_native = text("the type ", quoted(type));
  }
  if (info.not_native.empty()) {
    exr.offset_table = cursor.position;
    check_file_holds(file, exr);
  }
}

namespace {

// Throws Error unless the samples at `line` (line y) of the chosen channel and of the channels that must equal it are
// the same bits as floats.
void check_equal(const File& file, const Exr& exr, const uint8_t* line, int64_t y, size_t chosen, Scratch& scratch) {
  const auto load = [&](size_t channel, std::vector<float>& row) {
    row.resize(exr.info.width);
    store_row(Plane::packed(row.data(), 1, exr.info.width), 0, exr.channels[channel].type, false,
              line + line_bytes(exr, y, channel), scratch.row);
  };
  load(chosen, scratch.equal[0]);
  for (const size_t other : exr.info.choice.equal) {
    load(other, scratch.equal[1]);
    if (std::memcmp(scratch.equal[0].data(), scratch.equal[1].data(), exr.info.width * sizeof(float)) != 0) {
      file.fail(
          "channels", "depth, or a grey picture",
          text("colour: ", quoted(exr.channels[chosen].name), " and ", quoted(exr.channels[other].name),
               " differ in line ", y, "; name the one that is depth by the option channel (--data.DOMAIN.channel)"));
    }
  }
}

}  // namespace

void decode_exr(const File& file, const Exr& exr, size_t channel, const Plane& out, Scratch& scratch) {
  locate_chunks(file, exr, scratch);
  const int64_t count = chunk_count(exr);
  ExrChunk pair[2];
  for (int64_t i = 0; i < count; i += 2) {
    const std::span<ExrChunk> chunks(pair, static_cast<size_t>(std::min<int64_t>(2, count - i)));
    for (size_t k = 0; k < chunks.size(); ++k) chunks[k] = exr_chunk(file, exr, i + static_cast<int64_t>(k), scratch);
    unpack(file, exr, i, chunks, scratch);
    for (size_t k = 0; k < chunks.size(); ++k) {
      const ExrChunk& chunk = chunks[k];
      const uint8_t* line = chunk.stored.data();
      if (!chunk.is_plain()) {
        if (scratch.lines.size() < static_cast<size_t>(chunk.bytes))
          scratch.lines.resize(static_cast<size_t>(chunk.bytes));
        row_kernels().reconstruct(scratch.inflated[k].data(), chunk.bytes, scratch.lines.data());
        line = scratch.lines.data();
      }
      for (int64_t y = chunk.first_line; y <= chunk.last_line; ++y) {
        if (!exr.info.choice.equal.empty()) check_equal(file, exr, line, y, channel, scratch);
        store_row(out, y - exr.y_first, exr.channels[channel].type, false, line + line_bytes(exr, y, channel),
                  scratch.row);
        line += line_bytes(exr, y, exr.channels.size());
      }
    }
  }
}

}  // namespace vologan::depth
