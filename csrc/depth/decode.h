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
  // For EXR. `name` is own_name, with part_name and a dot before it if several parts have a channel of this name.
  size_t part = 0;
  std::string part_name = {};
  std::string own_name = {};
};

// The channel that holds the depth, or the reason why none could be chosen.
struct Choice {
  std::optional<size_t> channel;
  std::string why;              // "its name says depth"; without a channel "expected …, found …"
  std::vector<size_t> equal{};  // channels that must hold the same bits, or else the file is a colour picture
};

// A rectangle of pixels. x and y are its top-left corner.
struct Window {
  int64_t x = 0, y = 0, width = 0, height = 0;
};

// The contents of the headers. width and height are the size of the data window, the pixels that decode() writes. Of
// several parts of an EXR, compression and windows are those of the part with the chosen channel (without one: the
// first).
struct Info {
  std::string format;       // "exr", "png", "npy", "pfm"; of "tiff" and "npz", only format and not_native are set
  std::string compression;  // "none", "rle", "zips", "zip", "piz", …; "deflate" for PNG
  int64_t width = 0;
  int64_t height = 0;
  int32_t x = 0, y = 0;           // EXR: top-left corner of the data window
  Window display;                 // EXR: the picture, of which the data window is a part; else the whole image
  std::vector<Channel> channels;  // in the order of their samples, part after part
  Choice choice;                  // what choose_channel() returns
  std::string not_native;         // the reason why decode() does not read it ("piz compression"), or empty

  // Sets the channel of a format whose only channel has no name.
  void set_channel(SampleType type) {
    channels.resize(1);
    channels[0].name = "Y";
    channels[0].own_name = channels[0].name;
    channels[0].type = type;
  }
};

// Limits that are checked before anything is allocated.
struct Limits {
  int64_t max_pixels = int64_t{1} << 28;  // 16,384 × 16,384
  int64_t max_bytes = int64_t{1} << 32;   // for the file, and for all its channels after decoding
};

// Reads the headers. Error messages use `name` for the file. `channel` is the argument `wanted` of choose_channel().
// Throws Error, but never NotNative, and not because no channel can be chosen.
Info probe(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel = {},
           const Limits& limits = {});

// Chooses the channel that holds the depth. If `wanted` is given, this is the channel of that name, which may have its
// part's name before it. Otherwise the names of part, layer and channel decide (channel.cpp). No other code implements
// this rule.
Choice choose_channel(const std::vector<Channel>& channels, const std::optional<std::string>& wanted);

// Chooses the array of an NPZ that holds the depth, by the same rule. In names of arrays, letters are no channels: "a"
// is not alpha, and "q_z" is not z.
Choice choose_array(const std::vector<std::string>& names, const std::optional<std::string>& wanted);

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
  // argument `wanted`. Throws Error, also if no channel can be chosen, if Choice::equal are not equal, or if the plane
  // and the image differ in size. Throws NotNative if Info::not_native is not empty.
  void decode(std::span<const uint8_t> data, const std::string& name, const std::optional<std::string>& channel,
              const Plane& out, const Limits& limits = {});

 private:
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace vologan::depth
