// The bytes of a depth file to the normalised depth under the centre square of a colour image.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dali/pipeline/operator/operator.h"
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

  // With the arguments of vologan.depth. The three inputs that open() wants are the operator's first.
  explicit SquareDepth(const dali::OpSpec& spec);

  int64_t size() const { return size_; }

  // Throws unless the third input holds shapes of images.
  static void check_inputs(const dali::Workspace& ws);

  struct Size {
    int64_t height, width;
  };

  // Sample i of the inputs: a depth file whose headers hold, and the colour that it lies under.
  struct File {
    std::span<const uint8_t> data;
    std::string name;
    depth::Info info;
    Size color;
  };

  // Throws, naming the file, where it is broken or does not fit the colour.
  File open(const dali::Workspace& ws, int i) const;

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
