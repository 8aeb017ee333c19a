// The bytes of a depth file to the normalised depth under the centre square of a colour image.
#pragma once

#include <cstdint>
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

  // With the arguments of vologan.depth. The three inputs that read() wants are the operator's first.
  explicit SquareDepth(const dali::OpSpec& spec);

  int64_t size() const { return size_; }

  // Throws unless the third input holds shapes of images.
  static void check_inputs(const dali::Workspace& ws);

  // Sample i of the inputs to (size, size) in pixels.h's terms. Throws, naming the file, also where no depth is valid.
  void read(const dali::Workspace& ws, int i, Scratch& scratch, float* square) const;

 private:
  struct Size {
    int64_t height, width;
  };

  static std::string to_string(Size size);
  static bool same_aspect(Size a, Size b);
  void gather(const float* image, Size size, Size color, std::vector<int64_t>& columns, float* square) const;

  const int64_t size_;
  const std::string channel_;
  const std::vector<float> invalid_;
  const DepthRule rule_;
};

}  // namespace vologan::data
