// Loads two files as one RGB-D image of a batch. One thread does all steps of an image, one after the other, so that
// the data stay in its caches between the steps.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "channels.h"
#include "cropped_color.h"
#include "cropped_depth.h"
#include "file_part.h"
#include "pack_image.h"

namespace vologan::data {

// Bytes in memory or, if there are none, a part of a file. Size −1 means all bytes from the offset on. `crc` is the
// CRC-32 of the part, or −1 if it is unknown.
struct ImageFile {
  std::string path;
  int64_t offset, size;
  std::optional<std::span<const uint8_t>> bytes;
  int64_t crc = -1;
};

// A loader of images. Any number of threads may use it at the same time.
class ImageLoader {
 public:
  // The arguments are those of CroppedDepth. `channels` are those of the images.
  ImageLoader(Shape size, const std::string& channel, const DepthRule& rule, std::vector<float> invalid, int types,
              Channels channels, int64_t max_pixels, double max_nan);

  Shape size() const { return depth_.size(); }
  Channels channels() const { return channels_; }

  // Fills `out` (height, width, channels) with the augmented image. RGBD pixels are aligned to 16 bytes. A file that
  // the channels do not need is not read. Returns false if a file is broken, if the files do not fit each other, or if
  // this class does not read a file of this kind. The contents of out are then unspecified. The reason is not returned:
  // the caller tries the reader in Python, which finds it.
  bool load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, float* out);

  // Fills rgb (height, width, 3) with the colour alone. Returns false as load() does.
  bool load_color(const ImageFile& color, uint8_t* rgb);

 private:
  // The memory of one thread, kept from image to image.
  struct Scratch {
    explicit Scratch(Shape size) : color(size), cropped(size.pixels()) {}
    std::vector<uint8_t> color_file, depth_file;
    CroppedColor color;
    CroppedDepth::Scratch depth;
    std::vector<float> cropped;
  };

  // Calls `use` with the memory of one thread. Returns its result, or false if it throws.
  template <typename Use>
  bool with_scratch(Use use);

  bool load(const ImageFile& color, const ImageFile& depth, Augmentation augmentation, Scratch& scratch, float* out);
  bool load_color(const ImageFile& color, Scratch& scratch, uint8_t* rgb);

  const CroppedDepth depth_;
  const Channels channels_;
  const int64_t max_pixels_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> spare_;
};

}  // namespace vologan::data
