// Decodes the bytes of a depth file to normalised depth under a rectangle in the centre of a colour image.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode.h"
#include "pixels.h"
#include "shape.h"

namespace vologan::data {

// A decoder of depth files to images of one size. Any number of threads may use it at the same time, each with a
// Scratch of its own.
class CroppedDepth {
 public:
  // The memory of one thread, kept from image to image.
  struct Scratch {
    depth::Decoder decoder;
    std::vector<float> image;
    std::vector<int64_t> columns;
  };

  // If `channel` is empty, choose_channel() finds the channel. `rule`
  // needs no `invalid` values, because they are given separately.
  // `types` is a sum of the kinds of values that files may hold: 1 for floats, 2 for integers of more than 8 bits, 4
  // for integers of 8 bits. Files with more than `max_pixels` are refused. So are files of which the fraction `max_nan`
  // or more is not finite, or in which a value is absurd; `max_nan` above 1 allows both (check_plausible of pixels.py).
  CroppedDepth(Shape size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid, int types,
               int64_t max_pixels, double max_nan);
  CroppedDepth(const CroppedDepth&) = delete;  // rule_ points at invalid_

  Shape size() const { return size_; }

  // A depth file with sound headers, and the size of the colour image that it lies under, or of its own picture.
  // `frame` holds the pixels of the file that show what the colour image shows. Its corner is counted from the first
  // pixel of the data window, and pixels outside the data window are missing. pixels.py states the rule by which it is
  // found (find_frame).
  struct File {
    std::span<const uint8_t> data;
    std::string name;
    depth::Info info;
    Shape color;
    depth::Window frame;
  };

  // Reads the headers. `data` must stay valid as long as the File. Without a colour image, the file's own picture takes
  // its place (picture_shape of pixels.py). Throws an exception that names the file if it is broken or does not fit the
  // colour image.
  File open(std::span<const uint8_t> data, const std::string& name, std::optional<Shape> color) const;

  // Fills `cropped` (height, width) with normalised depth (see pixels.h). Throws an exception that names the file if it
  // is broken or has no valid depth.
  void read(const File& file, Scratch& scratch, float* cropped) const;
  [[noreturn]] static void fail_without_depth(const File& file);

  // Whether the decoded pixels are those of the result, so that none has to be looked up.
  bool is_result(const File& file) const;

  std::optional<std::string> channel() const { return channel_.empty() ? std::nullopt : std::optional(channel_); }
  const DepthRule& rule() const { return rule_; }

 private:
  static bool is_whole(const File& file);
  bool is_plausible(const float* image, int64_t count) const;
  void gather(const float* image, const File& file, std::vector<int64_t>& columns, float* cropped) const;

  const Shape size_;
  const std::string channel_;
  const int types_;
  const std::vector<float> invalid_;
  const DepthRule rule_;
  const depth::Limits limits_;
  const double max_nan_;
};

}  // namespace vologan::data
