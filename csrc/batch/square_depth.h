// The bytes of a depth file to the normalised depth under the centre square of a colour image.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode.h"
#include "pixels.h"

namespace vologan::data {

class SquareDepth {
 public:
  // Memory of one thread, kept from image to image.
  struct Scratch {
    depth::Decoder decoder;
    std::vector<float> image;
    std::vector<int64_t> columns;
  };

  // `rule` needs no `invalid` values: they are given beside it. An empty channel is the one that names itself depth.
  SquareDepth(int64_t size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid);
  SquareDepth(const SquareDepth&) = delete;  // rule_ points at invalid_

  int64_t size() const { return size_; }

  struct Size {
    int64_t height, width;
  };

  // A depth file whose headers hold, and the size of the colour that it lies under.
  struct File {
    std::span<const uint8_t> data;
    std::string name;
    depth::Info info;
    Size color;
  };

  // Throws, naming the file, where it is broken or does not fit the colour.
  File open(std::span<const uint8_t> data, const std::string& name, Size color) const;

  // The file to (size, size) in pixels.h's terms. Throws, naming it, also where no depth is valid.
  void read(const File& file, Scratch& scratch, float* square) const;
  [[noreturn]] static void fail_without_depth(const File& file);

  // Whether the file's pixels are the square's, and none has to be looked for.
  bool is_square(const File& file) const;

  std::optional<std::string> channel() const { return channel_.empty() ? std::nullopt : std::optional(channel_); }
  const DepthRule& rule() const { return rule_; }

 private:
  static std::string to_string(Size size);
  static bool same_aspect(Size a, Size b);
  void gather(const float* image, Size size, Size color, std::vector<int64_t>& columns, float* square) const;

  const int64_t size_;
  const std::string channel_;
  const std::vector<float> invalid_;
  const DepthRule rule_;
};

}  // namespace vologan::data
