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

Info probe(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
           const Limits& limits) {
  const File file{data, name};
  Exr exr;
  Png png;
  Raw raw;
  Info info;
  switch (detect(file, limits)) {
    case Format::Exr:
      parse_exr(file, channel, limits, exr);
      return std::move(exr.info);
    case Format::Png:
      parse_png(file, limits, png);
      info = std::move(png.info);
      break;
    case Format::Npy:
      parse_npy(file, limits, raw);
      info = std::move(raw.info);
      break;
    case Format::Pfm:
      parse_pfm(file, limits, raw);
      info = std::move(raw.info);
      break;
    case Format::Tiff:
      return described_in_python("tiff", "TIFF");
    case Format::Npz:
      return described_in_python("npz", "NPZ");
  }
  info.display = {0, 0, info.width, info.height};
  info.choice = choose_channel(info.channels, channel);
  return info;
}

namespace {

size_t need_channel(const File& file, const Choice& choice) {
  if (!choice.channel) throw Error(text(file.name, ": channels: ", choice.why));
  return *choice.channel;
}

// For a format with one channel, which is chosen unless another one is wanted.
void check_channel(const File& file, const Info& info, const std::optional<std::string>& wanted) {
  if (wanted && *wanted != info.channels[0].name) need_channel(file, choose_channel(info.channels, wanted));
}

}  // namespace

size_t open_exr(const File& file, const std::optional<std::string>& channel, int64_t height, int64_t width,
                const Limits& limits, Exr& exr) {
  if (detect(file, limits) != Format::Exr) {
    throw NotNative(text(file.name, ": file: expected an EXR image, found another format"));
  }
  parse_exr(file, channel, limits, exr);
  const size_t index = need_channel(file, exr.info.choice);
  if (!exr.info.not_native.empty()) {
    throw NotNative(text(file.name, ": compression: expected scan lines of one part, none, rle, zips or zip, found ",
                         exr.info.not_native));
  }
  check_size(file, exr.info, height, width);
  const auto check_sampling = [&](size_t i) {
    const Exr::Channel& found = exr.channels[i];
    if (found.x_sampling == 1 && found.y_sampling == 1) return;
    file.fail({"channel", found.name}, "a sample for each pixel",
              text("one for ", found.x_sampling, " × ", found.y_sampling, " pixels"));
  };
  check_sampling(index);
  for (const size_t i : exr.info.choice.equal) check_sampling(i);
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
    check_channel(file, scratch.raw.info, channel);
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
      check_channel(file, scratch.png.info, channel);
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
