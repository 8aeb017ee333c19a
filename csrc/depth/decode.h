// Depth images in memory (EXR, grey PNG, NPY, PFM) to float32 planes.
//
//   Info info = probe(bytes, "a.exr");                   // what the file holds; headers only
//   Decoder decoder;                                     // one per thread; keeps its scratch memory
//   decoder.decode(bytes, "a.exr", std::nullopt, Plane::packed(data, info.height, info.width));
//
// The bytes are never trusted: every size is checked in 64 bits before it is used, and whatever does not hold is an
// Error that names the file, the part of it, what was expected and what was found. A plane whose decode threw holds
// an unspecified mixture of old and decoded values. Nothing here knows Python or DALI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace vologan::depth {

// The file is broken, is no depth image, or is larger than the limits. "FILE: part: expected …, found …"
struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

// The file is a sound kind of EXR that this decoder leaves to the OpenEXR library (PIZ, DWA, tiled, multi-part, …).
struct NotNative : Error {
  using Error::Error;
};

enum class SampleType { Float16, Float32, Float64, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64 };

int64_t sample_bytes(SampleType type);
const char* sample_name(SampleType type);  // as NumPy spells it: "float16"
bool is_integer(SampleType type);

struct Channel {
  std::string name;  // "Z", "ViewLayer.Depth.V"; "Y" for formats that have one nameless channel
  SampleType type;
};

// What the headers say. width and height are of the data window, which is what decode() writes.
struct Info {
  std::string format;       // "exr", "png", "npy", "pfm"
  std::string compression;  // "none", "rle", "zips", "zip", "piz", …; "deflate" for PNG
  int64_t width = 0;
  int64_t height = 0;
  int32_t x = 0, y = 0;           // EXR: top-left corner of the data window
  std::vector<Channel> channels;  // in the order of the file; an EXR of several parts: those of the first
  std::string not_native;         // empty: decode() reads it; else why it does not ("piz compression")

  // For formats that have one nameless channel.
  void set_channel(SampleType type) {
    channels.resize(1);
    channels[0].name = "Y";
    channels[0].type = type;
  }
};

// Caps that hold before anything is allocated.
struct Limits {
  int64_t max_pixels = int64_t{1} << 28;  // 16,384 × 16,384
  int64_t max_bytes = int64_t{1} << 32;   // of the file, and of all its channels decoded
};

// Reads the headers. `name` stands for the file in error messages. Throws Error; not NotNative.
Info probe(std::span<const uint8_t> data, const std::string& name, const Limits& limits = {});

// Which channel holds the depth: the one `wanted`, else the only one, else the first of Z, Y, V, R that is there, bare
// or behind a layer ("ViewLayer.Depth.Z"). Throws Error listing the channels. The one place where this rule lives.
size_t choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted,
                      const std::string& name);

// Where a decoded image goes: element (row, column) is data[row * row_stride + column * column_stride].
struct Plane {
  float* data;
  int64_t height, width;
  int64_t row_stride, column_stride;  // in elements, any sign

  static Plane packed(float* data, int64_t height, int64_t width) { return {data, height, width, width, 1}; }
};

struct Scratch;

// Decodes one image at a time; its scratch memory grows to the largest image seen and is reused. Not thread-safe:
// one per thread.
class Decoder {
 public:
  Decoder();
  ~Decoder();
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;

  // Writes one channel in the file's own units. Throws Error, also where the plane has another size than the image.
  void decode(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
              const Plane& out, const Limits& limits = {});

 private:
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace vologan::depth
