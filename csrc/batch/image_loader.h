// Two files to one RGB-D image of a batch, in one go on one thread, whose caches then hold all that lies between.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "color_square.h"
#include "file_part.h"
#include "pack_image.h"
#include "square_depth.h"

namespace vologan::data {

// Bytes in memory or, without them, a part of a file; size -1: all from the offset on.
struct ImageFile {
  std::string path;
  int64_t offset, size;
  std::optional<std::span<const uint8_t>> bytes;
};

// For any number of threads.
class ImageLoader {
 public:
  // The arguments of SquareDepth.
  ImageLoader(int64_t size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid);

  int64_t size() const { return depth_.size(); }

  // Fills (size, size, 4) with the augmented image. Returns false, with whatever in it, where anything is wrong with a
  // file or with both together, or a file is sound but of a kind for another reader: this one gives no reasons.
  bool load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, float* rgbd);

  // Fills (size, size, 3) with the colour alone. Returns false as `load` does.
  bool load_color(const ImageFile& color, uint8_t* rgb);

 private:
  // Memory of one thread, kept from image to image.
  struct Scratch {
    explicit Scratch(int64_t size) : color(size), square(size * size) {}
    std::vector<uint8_t> color_file, depth_file;
    ColorSquare color;
    SquareDepth::Scratch depth;
    std::vector<float> square;
  };

  // What `use` returns, which gets the memory of one thread; false where it throws.
  template <typename Use>
  bool with_scratch(Use use);

  bool load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, Scratch& scratch, float* rgbd);
  bool load_color(const ImageFile& color, Scratch& scratch, uint8_t* rgb);

  const SquareDepth depth_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> spare_;
};

}  // namespace vologan::data
