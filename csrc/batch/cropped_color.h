// Decodes the bytes of a colour file to 8-bit RGB of a rectangle in its centre, resized to a given size.
//
// The result equals crop_color of vologan_fast/data/pixels.py, which uses Pillow, to the bit. An antialiased
// triangle filter runs along the rows and then along the columns. After each of the two, values are rounded to 8
// bits. Beyond the border of the image, the filter repeats the border.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "jpeg.h"
#include "shape.h"

namespace vologan::data {

// A decoder of one image at a time. Call open(), start(), row() for each row of the box, and finish(). If the file
// is broken, row() returns arbitrary pixels and finish() returns false.
class CroppedColor {
 public:
  explicit CroppedColor(Shape size) : size_(size), row_(3 * size.width) {}

  // Reads the headers of a file. Returns false if the file is broken or is of a kind that Jpeg does not read. The
  // bytes of the file must stay valid until finish().
  bool open(std::span<const uint8_t> file);
  Shape shape() const { return {jpeg_.height(), jpeg_.width()}; }

  // Begins to decode. Only the pixels of `box` will be requested, row by row from top to bottom. The box lies inside
  // the image of `size` and has at least one pixel.
  void start(const Box& box);

  // Returns row y of the image of `size`: pixel x is at 3 x. The pointer is valid until the next call. Only the pixels
  // in the box are defined. A row outside the box may hold any pixels.
  const uint8_t* row(int64_t y);

  // Returns whether the file was sound, inside the box and elsewhere. Call it after the last row of the box.
  bool finish() { return sound_ && jpeg_.finish(); }

 private:
  // The filter along one axis. Output pixel i is the sum of weights[i * taps + t] times input pixel first[i] + t.
  struct Axis {
    int64_t length = 0, side = 0;  // of the image, and of the rectangle in it
    int64_t taps = 0;
    std::vector<int64_t> first;
    std::vector<int32_t> weights;

    void set(int64_t new_length, int64_t new_side, int64_t size);
  };

  bool is_whole() const { return shape() == size_; }
  const uint8_t* next_row();
  const uint8_t* resize_row(int64_t y);

  const Shape size_;
  Jpeg jpeg_;
  Box box_;
  bool sound_;
  std::vector<uint8_t> row_;  // a row of the result
  Axis across_, down_;
  int64_t next_;               // the next row of the image
  std::vector<uint8_t> rows_;  // the last rows, resized across: as many as an output row is made of
  std::vector<int32_t> sums_;
};

}  // namespace vologan::data
