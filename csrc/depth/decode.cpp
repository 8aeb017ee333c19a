#include "decode.h"

#include <string_view>

#include "formats.h"

namespace vologan::depth {

using namespace std::literals;

namespace {

struct SampleTraits {
  const char* name;
  int64_t bytes;
  bool integer;
};

const SampleTraits& traits(SampleType type) {
  static constexpr SampleTraits table[] = {{"float16", 2, false}, {"float32", 4, false}, {"float64", 8, false},
                                           {"uint8", 1, true},    {"uint16", 2, true},   {"uint32", 4, true},
                                           {"uint64", 8, true},   {"int8", 1, true},     {"int16", 2, true},
                                           {"int32", 4, true},    {"int64", 8, true}};
  return table[static_cast<int>(type)];
}

enum class Format { Exr, Png, Npy, Pfm, Tiff, Npz };

bool begins(const File& file, std::string_view magic) {
  const std::string_view all(reinterpret_cast<const char*>(file.data.data()), file.data.size());
  return all.starts_with(magic);
}

std::string looks_like(const File& file) {
  static constexpr std::pair<std::string_view, const char*> others[] = {
      {"\xff\xd8\xff", "a JPEG image"},
      {{"\0\0\0\x0cjP", 6}, "a JPEG 2000 image"},
      {"GIF8", "a GIF image"},
      {"BM", "a BMP image"},
      {"RIFF", "a RIFF file (WebP?)"},
      {"#?", "a Radiance HDR image"},
      {"\x89HDF", "an HDF5 file"},
      {"\x1f\x8b", "a gzip file"},
      {"PF4", "a PFM image of four channels"},
      {"Pf4", "a PFM image of four channels"},
      {"PH", "a PFM image of halves"},
      {"Ph", "a PFM image of halves"},
      {"P2", "a PGM image"},
      {"P5", "a PGM image"},
      {"<", "an HTML or XML text"},
      {"version https://git-lfs", "a Git LFS pointer (run git lfs pull)"}};
  if (file.data.empty()) return "an empty file";
  for (const auto& [magic, name] : others) {
    if (begins(file, magic)) return name;
  }
  const size_t shown = std::min<size_t>(file.data.size(), 8);
  return text("a file that begins with ", quoted({reinterpret_cast<const char*>(file.data.data()), shown}));
}

Format detect(const File& file, const Limits& limits) {
  if (file.size() > limits.max_bytes) {
    file.fail("file", text("at most ", limits.max_bytes, " bytes"), text(file.size()));
  }
  if (begins(file, {"\x76\x2f\x31\x01", 4})) return Format::Exr;
  if (begins(file, "\x89PNG\r\n\x1a\n")) return Format::Png;
  if (begins(file, npy_magic)) return Format::Npy;
  for (const char* magic : {"Pf ", "Pf\n", "Pf\r", "Pf\t", "PF ", "PF\n", "PF\r", "PF\t"}) {
    if (begins(file, magic)) return Format::Pfm;
  }
  for (const std::string_view magic : {"II*\0"sv, "MM\0*"sv, "II+\0"sv, "MM\0+"sv}) {
    if (begins(file, magic)) return Format::Tiff;
  }
  if (begins(file, "PK\x03\x04")) return Format::Npz;
  file.fail("file", "an EXR, PNG, NPY, PFM, TIFF or NPZ image", looks_like(file));
}

void check_size(const File& file, const Info& info, int64_t height, int64_t width) {
  if (info.width != width || info.height != height) {
    file.fail("image", text("width × height ", width, " × ", height), text(info.width, " × ", info.height));
  }
}

// Returns the description of a file that vologan_fast/depth.py reads through a library.
Info described_in_python(const char* format, const char* reason) {
  Info info;
  info.format = format;
  info.not_native = reason;
  return info;
}

}  // namespace

int64_t sample_bytes(SampleType type) { return traits(type).bytes; }
const char* sample_name(SampleType type) { return traits(type).name; }
bool is_integer(SampleType type) { return traits(type).integer; }

size_t choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted,
                      const std::string& name) {
  const auto list = [&] {
    std::string names;
    for (size_t i = 0; i < channels.size() && i < 32; ++i) names += text(i ? ", " : "", quoted(channels[i].name));
    return names + (channels.size() > 32 ? ", …" : "");
  };
  if (wanted) {
    for (size_t i = 0; i < channels.size(); ++i) {
      if (channels[i].name == *wanted) return i;
    }
    throw Error(text(name, ": channels: expected ", quoted(*wanted), ", found ", list()));
  }
  if (channels.size() == 1) return 0;
  for (const std::string_view depth : {"Z", "Y", "V", "R"}) {
    std::optional<size_t> found;
    for (size_t i = 0; i < channels.size(); ++i) {
      const std::string_view full = channels[i].name;
      if (full == depth) return i;
      if (!found && full.substr(full.rfind('.') + 1) == depth) found = i;
    }
    if (found) return *found;
  }
  throw Error(text(name, ": channels: expected one, or one called Z, Y, V or R, found ", list()));
}

Info probe(std::span<const uint8_t> data, const std::string& name, const Limits& limits) {
  const File file{data, name};
  Exr exr;
  Png png;
  Raw raw;
  switch (detect(file, limits)) {
    case Format::Exr:
      parse_exr(file, limits, exr);
      return std::move(exr.info);
    case Format::Png:
      parse_png(file, limits, png);
      return std::move(png.info);
    case Format::Npy:
      parse_npy(file, limits, raw);
      break;
    case Format::Pfm:
      parse_pfm(file, limits, raw);
      break;
    case Format::Tiff:
      return described_in_python("tiff", "TIFF");
    case Format::Npz:
      return described_in_python("npz", "NPZ");
  }
  return std::move(raw.info);
}

size_t open_exr(const File& file, const std::optional<std::string>& channel, int64_t height, int64_t width,
                const Limits& limits, Exr& exr) {
  if (detect(file, limits) != Format::Exr) {
    throw NotNative(text(file.name, ": file: expected an EXR image, found another format"));
  }
  parse_exr(file, limits, exr);
  if (!exr.info.not_native.empty()) {
    throw NotNative(text(file.name, ": compression: expected scan lines of one part, none, rle, zips or zip, found ",
                         exr.info.not_native));
  }
  check_size(file, exr.info, height, width);
  const size_t index = choose_channel(exr.info.channels, channel, file.name);
  const Exr::Channel& chosen = exr.channels[index];
  if (chosen.x_sampling != 1 || chosen.y_sampling != 1) {
    file.fail({"channel", chosen.name}, "a sample for each pixel",
              text("one for ", chosen.x_sampling, " × ", chosen.y_sampling, " pixels"));
  }
  return index;
}

Decoder::Decoder() : scratch_(std::make_unique<Scratch>()) {}
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;

void Decoder::decode(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
                     const Plane& out, const Limits& limits) {
  const File file{data, name};
  Scratch& scratch = *scratch_;
  const auto decode_samples = [&] {
    check_size(file, scratch.raw.info, out.height, out.width);
    choose_channel(scratch.raw.info.channels, channel, name);
    decode_raw(file, scratch.raw, out, scratch);
  };
  switch (detect(file, limits)) {
    case Format::Exr: {
      const size_t index = open_exr(file, channel, out.height, out.width, limits, scratch.exr);
      return decode_exr(file, scratch.exr, index, out, scratch);
    }
    case Format::Png:
      parse_png(file, limits, scratch.png);
      check_size(file, scratch.png.info, out.height, out.width);
      choose_channel(scratch.png.info.channels, channel, name);
      return decode_png(file, scratch.png, out, scratch);
    case Format::Npy:
      parse_npy(file, limits, scratch.raw);
      return decode_samples();
    case Format::Pfm:
      parse_pfm(file, limits, scratch.raw);
      return decode_samples();
    case Format::Tiff:
    case Format::Npz:
      throw NotNative(text(name, ": file: expected an EXR, PNG, NPY or PFM image, found TIFF or NPZ"));
  }
}

}  // namespace vologan::depth
