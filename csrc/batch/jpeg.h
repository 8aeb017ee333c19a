// Decodes the rows of a box of a JPEG to 8-bit RGB. Outside the box only the entropy codes are decoded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace vologan::data {

struct Box {
  int64_t top, left, bottom, right;  // bottom and right are excluded
};

// A decoder of one image at a time. For each image, call open(), start(), row() for each row of the box, and
// finish(). Nothing of an image is kept for the next one. If a file turns out to be broken or is of a kind for another
// reader, the call returns false or nullptr without a reason. The reader that is tried next finds the reason.
class Jpeg {
 public:
  Jpeg();
  ~Jpeg();

  // Reads the headers of a file of 8-bit grey, YCbCr or RGB. The bytes of the file must stay valid until finish().
  bool open(std::span<const uint8_t> file);
  int64_t height() const;
  int64_t width() const;

  // Begins to decode. Only pixels of the box will be requested. The box lies inside the image and has at least one
  // pixel.
  bool start(const Box& box);

  // Returns the next row of the box: pixel x of the image is at 3 x. The pointer is valid until the next call. One
  // byte beyond the row may be read.
  const uint8_t* row();

  // Reads the rest of the file. Returns whether it was there. Call it after all rows of the box.
  bool finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Returns the name and version of the JPEG decoder: "libjpeg-turbo 2.1.5".
const char* jpeg_backend();

}  // namespace vologan::data
