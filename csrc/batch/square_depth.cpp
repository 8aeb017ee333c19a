#include "square_depth.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "pixel_rows.h"

namespace vologan::data {

SquareDepth::SquareDepth(int64_t size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid)
    : size_(size),
      channel_(channel),
      invalid_(std::move(invalid)),
      rule_{rule.gain, rule.offset, rule.background, rule.floor, invalid_.data(), static_cast<int>(invalid_.size())} {}

SquareDepth::File SquareDepth::open(std::span<const uint8_t> data, const std::string& name, Size color) const {
  const File file{data, name, depth::probe(data, name), color};
  const Size size{file.info.height, file.info.width};
  if (!same_aspect(file.color, size)) {
    throw std::runtime_error(name + ": depth of " + to_string(size) + " pixels does not fit the colour of " +
                             to_string(file.color));
  }
  return file;
}

void SquareDepth::read(const File& file, Scratch& scratch, float* square) const {
  const Size size{file.info.height, file.info.width};
  const bool in_place = is_square(file);
  if (!in_place) scratch.image.resize(size.height * size.width);
  float* image = in_place ? square : scratch.image.data();
  scratch.decoder.decode(file.data, file.name, channel(), depth::Plane::packed(image, size.height, size.width));
  if (!in_place) gather(image, size, file.color, scratch.columns, square);
  if (!normalize_row(square, size_ * size_, rule_)) fail_without_depth(file);
}

void SquareDepth::fail_without_depth(const File& file) { throw std::runtime_error(file.name + ": no valid depth"); }

bool SquareDepth::is_square(const File& file) const {
  return file.info.height == size_ && file.info.width == size_ && file.color.height == file.color.width;
}

std::string SquareDepth::to_string(Size size) {
  return std::to_string(size.width) + " × " + std::to_string(size.height);
}

// Whether both have the same field of view, within the 2 % that the rounded sizes of small depth images need.
bool SquareDepth::same_aspect(Size a, Size b) {
  const int64_t across = a.width * b.height, along = a.height * b.width;
  return std::abs(across - along) * 50 <= std::max(across, along);
}

// Takes, for each pixel of the square, the nearest pixel of the file.
void SquareDepth::gather(const float* image, Size size, Size color, std::vector<int64_t>& columns,
                         float* square) const {
  const int64_t side = std::min(color.height, color.width);
  columns.resize(size_);
  for (int64_t x = 0; x < size_; ++x) columns[x] = depth_index(x, size_, side, color.width, size.width);
  for (int64_t y = 0; y < size_; ++y) {
    const float* from = image + depth_index(y, size_, side, color.height, size.height) * size.width;
    float* to = square + y * size_;
    for (int64_t x = 0; x < size_; ++x) to[x] = from[columns[x]];
  }
}

}  // namespace vologan::data
