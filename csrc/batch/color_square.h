// The bytes of a colour file to 8-bit RGB of the centre square, resized as square_color of vologan_fast/data/pixels.py
// does it by Pillow, to the bit: an antialiased triangle filter along the rows and then the columns, rounded to 8 bits
// after each, which repeats the border.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "jpeg.h"

namespace vologan::data {

class ColorSquare {
 public:
  explicit ColorSquare(int64_t size) : size_(size), row_(3 * size) {}

  // Reads the headers of a file, which has to stay where it is. False where it is broken or nothing for Jpeg.
  bool open(std::span<const uint8_t> file);
  int64_t height() const { return jpeg_.height(); }
  int64_t width() const { return jpeg_.width(); }

  // Only pixels of a box of (size, size), which has some, will be looked at, and its rows be asked for one by one.
  void start(const Box& box);

  // The pixels of row y, until the next call: of a row outside of the box any.
  const uint8_t* row(int64_t y);

  // After the last row of the box: whether the file was sound, within the box and elsewhere.
  bool finish() { return sound_ && jpeg_.finish(); }

 private:
  // How output pixels of one axis are made: pixel i is the sum of weights[i * taps + t] times pixel first[i] + t.
  struct Axis {
    int64_t length = 0, side = 0;  // of the image and the square
    int64_t taps = 0;
    std::vector<int64_t> first;
    std::vector<int32_t> weights;

    void set(int64_t new_length, int64_t new_side, int64_t size);
  };

  bool is_square() const { return height() == size_ && width() == size_; }
  const uint8_t* next_row();
  const uint8_t* resize_row(int64_t y);

  const int64_t size_;
  Jpeg jpeg_;
  Box box_;
  bool sound_;
  std::vector<uint8_t> row_;  // of the square
  Axis across_, down_;
  int64_t next_;               // row of the image
  std::vector<uint8_t> rows_;  // the last ones, resized across: as many as an output row is made of
  std::vector<int32_t> sums_;
};

}  // namespace vologan::data
