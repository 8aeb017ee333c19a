// JPEG to rows of 8-bit RGB, those of a box only: the others cost no more than their codes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace vologan::data {

struct Box {
  int64_t top, left, bottom, right;  // the last two are outside
};

// One image at a time, which its calls get in this order; its memory is kept from image to image. Wherever a file turns
// out to be broken, or is of a kind that wants another reader, the call says so by false or null, without a reason: who
// reads it then will find one.
class Jpeg {
 public:
  Jpeg();
  ~Jpeg();

  // Reads the headers of a file, which has to stay where it is: of 8-bit grey, YCbCr or RGB.
  bool open(std::span<const uint8_t> file);
  int64_t height() const;
  int64_t width() const;

  // Only pixels of the box, which lies inside the image and has some, will be asked for.
  bool start(const Box& box);

  // The next row of the box: pixel x of the image is at 3 x. Valid until the next call; a byte beyond may be read.
  const uint8_t* row();

  // After all rows of the box: whether the rest of the file was there, too.
  bool finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Who decodes: "libjpeg-turbo 2.1.5".
const char* jpeg_backend();

}  // namespace vologan::data
