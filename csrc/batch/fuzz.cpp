// A mutation fuzzer for the image loader and its JPEG decoder, under address and undefined-behaviour sanitisers:
//
//   make fuzz                                                # builds and runs it, as CI does
//   build/fuzz/csrc/batch/image_fuzz 60 1 DEPTH JPEG…        # seconds, seed, a sound depth file, files to begin from
//
// Each round changes, inserts or drops some bytes of one JPEG, and loads it. The size of the result, the part that is
// seen and the file that was read before are random. If it is loaded, then:
//
// - a second time, into memory of other content and after another file, gives the same bits;
// - the judge accepts the file without a warning, and has the same pixels, to the bit. It is a fresh libjpeg that
//   decodes the whole image in the plainest way, as Pillow does. Our decoder crops, skips rows and keeps its memory;
// - a part of a resized image has the pixels of the whole resized image;
// - the colours beside depth are those of the colour alone, where depth is seen.
//
// libjpeg-turbo itself is the system's library and has no sanitisers in it. They see our code, all memory that is
// allocated, and what libjpeg copies by the C library.
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <jpeglib.h>

#include "color_kind.h"
#include "cropped_color.h"
#include "fuzzing.h"
#include "image_loader.h"

using namespace vologan::data;
using namespace vologan::fuzzing;

namespace {

constexpr int64_t max_pixels = 1 << 16;
constexpr Shape sizes[] = {{16, 16}, {40, 24}, {9, 31}};

struct Image {
  Shape shape;
  Bytes rgb;
};

// What libjpeg makes of the whole file, or nothing if it refuses it or warns.
class Judge {
 public:
  std::optional<Image> decode(const Bytes& file) {
    jpeg_decompress_struct image{};
    jpeg_error_mgr errors{};
    image.err = jpeg_std_error(&errors);
    image.client_data = this;
    errors.error_exit = [](j_common_ptr image) { std::longjmp(static_cast<Judge*>(image->client_data)->failed_, 1); };
    errors.output_message = [](j_common_ptr) {};
    jpeg_create_decompress(&image);
    bool sound = false;
    if (setjmp(failed_) == 0) {
      jpeg_mem_src(&image, file.data(), file.size());
      jpeg_read_header(&image, TRUE);
      shape_ = {image.image_height, image.image_width};
      if (shape_.pixels() <= max_pixels) {
        image.out_color_space = JCS_RGB;
        jpeg_start_decompress(&image);
        rgb_.resize(static_cast<size_t>(3 * shape_.pixels()));
        while (image.output_scanline < image.output_height) {
          JSAMPROW row = rgb_.data() + 3 * shape_.width * image.output_scanline;
          jpeg_read_scanlines(&image, &row, 1);
        }
        jpeg_finish_decompress(&image);
        sound = errors.num_warnings == 0;
      }
    }
    jpeg_destroy_decompress(&image);
    if (!sound) return std::nullopt;
    return Image{shape_, rgb_};
  }

 private:
  std::jmp_buf failed_;
  Shape shape_;
  Bytes rgb_;
};

// The rows of a box, packed, or nothing if the file is refused.
std::optional<Bytes> part(CroppedColor& color, const Bytes& file, const Box& box) {
  if (!color.open(file)) return std::nullopt;
  if (color.shape().width > max_pixels / color.shape().height) return std::nullopt;
  color.start(box);
  Bytes rgb;
  for (int64_t y = box.top; y < box.bottom; ++y) {
    const uint8_t* row = color.row(y);
    rgb.insert(rgb.end(), row + 3 * box.left, row + 3 * box.right);
  }
  if (!color.finish()) return std::nullopt;
  return rgb;
}

// The same rows of an image.
Bytes part_of(const uint8_t* rgb, int64_t width, const Box& box) {
  Bytes found;
  for (int64_t y = box.top; y < box.bottom; ++y) {
    found.insert(found.end(), rgb + 3 * (y * width + box.left), rgb + 3 * (y * width + box.right));
  }
  return found;
}

Box random_box(Shape shape, Random& random) {
  const auto ends = [&](int64_t length) {
    const auto a = static_cast<int64_t>(random() % static_cast<uint64_t>(length));
    const auto b = static_cast<int64_t>(random() % static_cast<uint64_t>(length));
    return std::pair(std::min(a, b), std::max(a, b));
  };
  const auto [top, bottom] = ends(shape.height);
  const auto [left, right] = ends(shape.width);
  return {top, left, bottom + 1, right + 1};
}

// A loader of images of one size, and what it keeps from file to file.
struct Sized {
  explicit Sized(Shape size)
      : shape(size),
        images(size, "", {0.5f, 0.5f, -1.0f, std::nanf(""), nullptr, 0}, {}, 7, {}, max_pixels, 2.0),
        cropped(size) {}

  Shape shape;
  ImageLoader images;
  CroppedColor cropped;
};

class Fuzzer {
 public:
  Fuzzer(std::vector<Bytes> files, Bytes depth) : files_(std::move(files)), depth_(std::move(depth)) {
    for (const Shape size : sizes) sized_.push_back(std::make_unique<Sized>(size));
  }

  // Whether the file was loaded. Ends the program where two ways to load it differ.
  bool run(const Bytes& file, Random& random) {
    watch(file);
    refused_color(file, max_pixels);
    Sized& loader = *sized_[random() % sized_.size()];
    const auto count = static_cast<size_t>(3 * loader.shape.pixels());
    Bytes first(count, 1), second(count, 2);
    const bool loaded = loader.images.load_color({"fuzz", 0, -1, file}, first.data());
    judge(file, random, loaded);
    loader.images.load_color({"other", 0, -1, files_[random() % files_.size()]}, second.data());
    std::fill(second.begin(), second.end(), 3);
    if (loader.images.load_color({"fuzz", 0, -1, file}, second.data()) != loaded) fail("it is loaded only once");
    if (!loaded) return false;
    if (first != second) fail("the second time is different");
    const Box box = random_box(loader.shape, random);
    if (part(loader.cropped, file, box) != part_of(first.data(), loader.shape.width, box)) {
      fail("a part of the resized image is different");
    }
    with_depth(file, loader, first);
    return true;
  }

  // A pair whose depth file is mutated. The colour is sound.
  bool run_depth(const Bytes& depth, Random& random) {
    watch(depth);
    Sized& loader = *sized_[random() % sized_.size()];
    const Bytes& color = files_[random() % files_.size()];
    return load_twice(loader, color, depth).has_value();
  }

  long judged() const { return judged_; }
  long left() const { return left_; }

 private:
  // The judge decodes the image of the file's own size, and so do we, in part.
  void judge(const Bytes& file, Random& random, bool loaded) {
    const std::optional<Image> expected = judge_.decode(file);
    if (!expected) {
      if (loaded) fail("libjpeg refuses the file, and it is loaded");
      return;
    }
    if (!loaded) {
      ++left_;  // kinds that Pillow reads
      return;
    }
    CroppedColor whole(expected->shape);
    const Box box = random_box(expected->shape, random);
    if (part(whole, file, box) != part_of(expected->rgb.data(), expected->shape.width, box)) {
      fail("libjpeg has other pixels");
    }
    ++judged_;
  }

  std::optional<std::vector<float>> load_twice(Sized& loader, const Bytes& color, const Bytes& depth) {
    const auto count = static_cast<size_t>(4 * loader.shape.pixels());
    std::vector<float> first(count, 123.0f), second(count, -456.0f);
    const auto load = [&](std::vector<float>& out) {
      return loader.images.load({"color", 0, -1, color}, {"depth", 0, -1, depth}, {false, 0, 0}, out.data());
    };
    const bool loaded = load(first);
    if (load(second) != loaded) fail("a pair is loaded only once");
    if (!loaded) return std::nullopt;
    if (std::memcmp(first.data(), second.data(), count * sizeof(float)) != 0) fail("two loads of a pair differ");
    return first;
  }

  void with_depth(const Bytes& file, Sized& loader, const Bytes& rgb) {
    const auto rgbd = load_twice(loader, file, depth_);
    if (!rgbd) return;  // depth of another aspect ratio
    for (size_t pixel = 0; pixel < rgb.size() / 3; ++pixel) {
      for (size_t c = 0; c < 3; ++c) {
        const float expected = static_cast<float>(rgb[3 * pixel + c]) / 255.0f;
        const float found = (*rgbd)[4 * pixel + c];
        if (found != expected && found != 0.0f) fail("the colour beside depth is different");
      }
    }
  }

  std::vector<Bytes> files_;
  Bytes depth_;
  std::vector<std::unique_ptr<Sized>> sized_;
  Judge judge_;
  long judged_ = 0, left_ = 0;
};

Bytes read_whole(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "usage: image_fuzz SECONDS SEED DEPTH JPEG...\n");
    return 2;
  }
  const Bytes depth = read_whole(arguments[3]);
  std::vector<Bytes> files;
  for (int i = 4; i < count; ++i) files.push_back(read_whole(arguments[i]));
  std::printf("fuzz: judge: %s\n", jpeg_backend());
  std::fflush(stdout);
  Random random(std::strtoull(arguments[2], nullptr, 10));
  save_when_it_fails();
  Fuzzer fuzzer(files, depth);
  for (const Bytes& file : files) {  // unchanged: with 0 seconds this repeats a crash
    for (int turn = 0; turn < 100; ++turn) fuzzer.run(file, random), fuzzer.run_depth(file, random);
  }
  long loaded = 0, pairs = 0;
  const long rounds = repeat(std::atoi(arguments[1]), [&](long number) {
    const bool color = number % 8 != 0;
    Bytes bytes = color ? files[random() % files.size()] : depth;
    mutate(bytes, random);
    (color ? loaded : pairs) += color ? fuzzer.run(bytes, random) : fuzzer.run_depth(bytes, random);
  });
  std::printf("%ld rounds; %ld colour files and %ld pairs loaded\n", rounds, loaded, pairs);
  std::printf("JPEGs: %ld the same by libjpeg, %ld left to Pillow\n", fuzzer.judged(), fuzzer.left());
  if (fuzzer.judged() == 0) fail("libjpeg has judged nothing");
}
