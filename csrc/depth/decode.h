// Decodes depth images in memory (EXR, PNG, NPY, PFM) to float32 planes.
//
//   Info info = probe(bytes, "a.exr");                   // reads the headers only
//   Decoder decoder;                                     // one per thread; keeps its scratch memory
//   decoder.decode(bytes, "a.exr", std::nullopt, Plane::packed(data, info.height, info.width));
//
// The bytes are never trusted. Every size is checked in 64 bits before it is used. Anything that breaks the format
// is reported as an Error. The message names the file, the part of the file, the expected value and the value found.
// If decode() throws, the plane holds an unspecified mixture of old and decoded values. The decoder does not depend
// on Python or DALI.
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

// The file is broken, is not a depth image, is larger than the limits, or lacks the requested channel or size. The
// message reads "FILE: part: expected …, found …".
struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

// The file is an EXR of a kind that this decoder leaves to the OpenEXR library (PIZ, DWA, tiled, multi-part, …), or it
// is TIFF or NPZ, which Python reads through other libraries. ChunkBatch::add() also throws it for a file that is no
// EXR.
struct NotNative : Error {
  using Error::Error;
};

enum class SampleType { Float16, Float32, Float64, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64 };

// The size of one sample in bytes, its name, and whether it is an integer.
int64_t sample_bytes(SampleType type);
const char* sample_name(SampleType type);  // in NumPy's spelling: "float16"
bool is_integer(SampleType type);

struct Channel {
  std::string name;  // "Z", "ViewLayer.Depth.V"; "Y" in formats whose only channel has no name
  SampleType type;
};

// The contents of the headers. width and height are the size of the data window, the pixels that decode() writes.
struct Info {
  std::string format;       // "exr", "png", "npy", "pfm"; of "tiff" and "npz", only format and not_native are set
  std::string compression;  // "none", "rle", "zips", "zip", "piz", …; "deflate" for PNG
  int64_t width = 0;
  int64_t height = 0;
  int32_t x = 0, y = 0;           // EXR: top-left corner of the data window
  std::vector<Channel> channels;  // in the order of their samples; of several parts of an EXR, only the first
  std::string not_native;         // the reason why decode() does not read it ("piz compression"), or empty

  // Sets the channel of a format whose only channel has no name.
  void set_channel(SampleType type) {
    channels.resize(1);
    channels[0].name = "Y";
    channels[0].type = type;
  }
};

// Limits that are checked before anything is allocated.
struct Limits {
  int64_t max_pixels = int64_t{1} << 28;  // 16,384 × 16,384
  int64_t max_bytes = int64_t{1} << 32;   // for the file, and for all its channels after decoding
};

// Reads the headers. Error messages use `name` for the file. Throws Error, but never NotNative.
Info probe(std::span<const uint8_t> data, const std::string& name, const Limits& limits = {});

// Returns the index of the channel that holds the depth. If `wanted` is given, this is the channel with that name.
// Otherwise, if there is only one channel, it is this one. Otherwise it is the first of Z, Y, V and R that exists. The
// name may stand alone ("Z") or after the name of a layer ("ViewLayer.Depth.Z"); a Z alone is preferred. Throws Error,
// which lists the channels, if no channel fits. No other code implements this rule.
size_t choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted,
                      const std::string& name);

// The memory for a decoded image. Element (row, column) is data[row * row_stride + column * column_stride].
struct Plane {
  float* data;
  int64_t height, width;
  int64_t row_stride, column_stride;  // in elements, of any sign

  static Plane packed(float* data, int64_t height, int64_t width) { return {data, height, width, width, 1}; }
};

struct Scratch;

// A decoder of one image at a time. Its scratch memory grows to the largest image so far and is reused. It is not
// thread-safe: use one per thread.
class Decoder {
 public:
  Decoder();
  ~Decoder();
  Decoder(Decoder&&) noexcept;
  Decoder& operator=(Decoder&&) noexcept;

  // Writes one channel to `out` in the file's own units. choose_channel() chooses the channel; `channel` is its
  // argument `wanted`. Throws Error, also if the plane and the image differ in size. Throws NotNative if
  // Info::not_native is not empty.
  void decode(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
              const Plane& out, const Limits& limits = {});

 private:
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace vologan::depth
