#include "cropped_depth.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <utility>

#include "pixel_rows.h"

namespace vologan::data {

CroppedDepth::CroppedDepth(Shape size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid,
                           int types, int64_t max_pixels, double max_nan)
    : size_(size),
      channel_(channel),
      types_(types),
      invalid_(std::move(invalid)),
      rule_{rule.gain, rule.offset, rule.background, rule.floor, invalid_.data(), static_cast<int>(invalid_.size())},
      limits_{.max_pixels = max_pixels},
      max_nan_(max_nan) {}

namespace {

std::string to_string(int64_t width, int64_t height) { return std::to_string(width) + " × " + std::to_string(height); }

// Whether both have the same field of view, within the 2 % that the rounded sizes of small depth images need.
bool same_aspect(const depth::Window& a, Shape b) {
  const int64_t across = a.width * b.height, along = a.height * b.width;
  return std::abs(across - along) * 50 <= std::max(across, along);
}

// Whether the display window shows so little of the data window that the file may hold a library's default instead.
bool is_doubtful(const depth::Window& display, const depth::Window& data) {
  return display.width <= data.width && display.height <= data.height &&
         4 * display.width * display.height < data.width * data.height;
}

// Returns the size of the picture that the file shows: its display window, unless that is in doubt.
Shape picture_shape(const depth::Info& info) {
  if (is_doubtful(info.display, {0, 0, info.width, info.height})) return {info.height, info.width};
  return {info.display.height, info.display.width};
}

depth::Window find_frame(const depth::Info& info, const std::string& name, Shape color) {
  const depth::Window& display = info.display;
  const depth::Window whole{0, 0, info.width, info.height};
  const depth::Window placed{display.x - info.x, display.y - info.y, display.width, display.height};
  for (const depth::Window& frame : {placed, whole}) {
    if (frame.width == color.width && frame.height == color.height) return frame;
  }
  const bool doubtful = same_aspect(placed, color) && is_doubtful(placed, whole);
  for (const depth::Window& frame : {placed, whole}) {
    if (!doubtful && same_aspect(frame, color)) return frame;
  }
  throw std::runtime_error(name + ": depth of " + to_string(whole.width, whole.height) +
                           " pixels does not fit the colour of " + to_string(color.width, color.height));
}

}  // namespace

CroppedDepth::File CroppedDepth::open(std::span<const uint8_t> data, const std::string& name,
                                      std::optional<Shape> color) const {
  File file{data, name, depth::probe(data, name, channel(), limits_), {}, {}};
  file.color = color ? *color : picture_shape(file.info);
  if (const auto& channel = file.info.choice.channel) {
    const depth::SampleType type = file.info.channels[*channel].type;
    const int kind = !depth::is_integer(type) ? 1 : depth::sample_bytes(type) > 1 ? 2 : 4;
    if (!(types_ & kind)) {
      throw std::runtime_error(name + ": depth of type " + depth::sample_name(type) + ", unlike the other files");
    }
  }
  file.frame = find_frame(file.info, name, file.color);
  return file;
}

void CroppedDepth::read(const File& file, Scratch& scratch, float* cropped) const {
  const int64_t height = file.info.height, width = file.info.width;
  const bool in_place = is_result(file);
  if (!in_place) scratch.image.resize(height * width);
  float* image = in_place ? cropped : scratch.image.data();
  scratch.decoder.decode(file.data, file.name, channel(), depth::Plane::packed(image, height, width), limits_);
  if (max_nan_ <= 1 && !is_plausible(image, height * width)) {
    throw std::runtime_error(file.name + ": depth that is not plausible");
  }
  if (!in_place) gather(image, file, scratch.columns, cropped);
  if (!normalize_row(cropped, size_.pixels(), rule_)) fail_without_depth(file);
}

void CroppedDepth::fail_without_depth(const File& file) { throw std::runtime_error(file.name + ": no valid depth"); }

bool CroppedDepth::is_plausible(const float* image, int64_t count) const {
  constexpr float absurd = 1e20f;  // ABSURD of pixels.py
  int64_t not_finite = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float d = image[i];
    if (std::abs(d) < absurd || d == rule_.background) continue;
    if (std::find(invalid_.begin(), invalid_.end(), d) != invalid_.end()) continue;
    if (std::isfinite(d)) return false;
    ++not_finite;
  }
  return static_cast<double>(not_finite) < max_nan_ * static_cast<double>(count);
}

bool CroppedDepth::is_result(const File& file) const {
  return is_whole(file) && Shape{file.info.height, file.info.width} == size_ &&
         crop_shape(file.color, size_) == file.color;
}

bool CroppedDepth::is_whole(const File& file) {
  const depth::Window& frame = file.frame;
  return frame.x == 0 && frame.y == 0 && frame.width == file.info.width && frame.height == file.info.height;
}

// Takes, for each pixel of the result, the nearest pixel of the frame. It is NaN outside the data window.
void CroppedDepth::gather(const float* image, const File& file, std::vector<int64_t>& columns, float* cropped) const {
  constexpr float missing = std::numeric_limits<float>::quiet_NaN();
  const auto& [height, width] = file.color;
  const depth::Window& frame = file.frame;
  const Shape crop = crop_shape(file.color, size_);
  columns.resize(size_.width);
  for (int64_t x = 0; x < size_.width; ++x) {
    columns[x] = frame.x + depth_index(x, size_.width, crop.width, width, frame.width);
  }
  const bool whole = is_whole(file);
  for (int64_t y = 0; y < size_.height; ++y) {
    const int64_t row = frame.y + depth_index(y, size_.height, crop.height, height, frame.height);
    float* to = cropped + y * size_.width;
    if (row < 0 || row >= file.info.height) {
      std::fill_n(to, size_.width, missing);
      continue;
    }
    const float* from = image + row * file.info.width;
    if (whole) {
      for (int64_t x = 0; x < size_.width; ++x) to[x] = from[columns[x]];
    } else {
      for (int64_t x = 0; x < size_.width; ++x) {
        to[x] = columns[x] >= 0 && columns[x] < file.info.width ? from[columns[x]] : missing;
      }
    }
  }
}

}  // namespace vologan::data
