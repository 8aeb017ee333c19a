#include "image_loader.h"

#include <algorithm>
#include <exception>
#include <utility>

namespace vologan::data {

namespace {

std::span<const uint8_t> bytes_of(const ImageFile& file, std::vector<uint8_t>& memory) {
  if (file.bytes) return *file.bytes;
  FilePart part;
  part.open(file.path, file.offset, file.size, file.crc);
  memory.resize(part.size());
  part.read(memory.data());
  return memory;
}

// Returns a box that holds all pixels that have a colour and will be in the batch. It may be some columns too wide,
// because JPEG is decoded in blocks anyway. If there are no such pixels, the box has one pixel: the file must be
// read in any case.
Box seen_box(const float* depth, Shape size, Augmentation a) {
  constexpr int64_t block = 32;
  const int64_t width = size.width;
  int64_t top = a.top, bottom = size.height, left = width, right = 0;
  while (top < bottom && all_background(depth + top * width, width)) ++top;
  while (top < bottom && all_background(depth + (bottom - 1) * width, width)) --bottom;
  for (int64_t y = top; y < bottom; ++y) {
    const float* row = depth + y * width;
    int64_t x = 0;
    while (x < left && all_background(row + x, std::min(block, left - x))) x += block;
    left = std::min(left, x);
    for (x = width; x > right && all_background(row + std::max(x - block, right), std::min(block, x - right));)
      x -= block;
    right = std::max(right, x);
  }
  if (!a.flip) left = std::max(left, a.left);
  if (a.flip) right = std::min(right, width - a.left);
  return top < bottom && left < right ? Box{top, left, bottom, right} : Box{0, 0, 1, 1};
}

}  // namespace

ImageLoader::ImageLoader(Shape size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid,
                         int types, Channels channels, int64_t max_pixels, double max_nan)
    : depth_(size, channel, rule, std::move(invalid), types, max_pixels, max_nan),
      channels_(channels),
      max_pixels_(max_pixels) {
  channels_.check();
}

bool ImageLoader::load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, float* out) {
  return with_scratch([&](Scratch& scratch) { return load(color, depth, augmentation, scratch, out); });
}

bool ImageLoader::load_color(const ImageFile& color, uint8_t* rgb) {
  return with_scratch([&](Scratch& scratch) { return load_color(color, scratch, rgb); });
}

template <typename Use>
bool ImageLoader::with_scratch(Use use) {
  std::unique_ptr<Scratch> scratch;
  {
    const std::lock_guard lock(mutex_);
    if (!spare_.empty()) {
      scratch = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  if (!scratch) scratch = std::make_unique<Scratch>(depth_.size());
  bool loaded = false;
  try {
    loaded = use(*scratch);
  } catch (const std::exception&) {
    // the reader that is tried next will report the error
  }
  const std::lock_guard lock(mutex_);
  spare_.push_back(std::move(scratch));
  return loaded;
}

bool ImageLoader::load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, Scratch& scratch,
                       float* out) {
  std::optional<Shape> image;
  if (channels_.color) {
    if (!scratch.color.open(bytes_of(color, scratch.color_file))) return false;
    image = scratch.color.shape();
    if (image->width > max_pixels_ / image->height) return false;
  }
  // Depth comes first: it determines which colours are visible.
  float* const cropped = scratch.cropped.data();
  const Shape size = depth_.size();
  if (channels_.depth) {
    const CroppedDepth::File file = depth_.open(bytes_of(depth, scratch.depth_file), depth.path, image);
    depth_.read(file, scratch.depth, cropped);
  }
  if (channels_.color) {
    scratch.color.start(channels_.depth ? seen_box(cropped, size, augmentation) : Box{0, 0, size.height, size.width});
  }
  pack_image([&](int64_t y) { return scratch.color.row(y); }, 0,
             [&](int64_t pixel, int64_t) { return cropped + pixel; }, size, augmentation, channels_, out);
  return !channels_.color || scratch.color.finish();
}

bool ImageLoader::load_color(const ImageFile& color, Scratch& scratch, uint8_t* rgb) {
  if (!scratch.color.open(bytes_of(color, scratch.color_file))) return false;
  const Shape image = scratch.color.shape();
  if (image.width > max_pixels_ / image.height) return false;
  const auto [height, width] = depth_.size();
  scratch.color.start(Box{0, 0, height, width});
  for (int64_t y = 0; y < height; ++y) std::copy_n(scratch.color.row(y), 3 * width, rgb + 3 * width * y);
  return scratch.color.finish();
}

}  // namespace vologan::data
