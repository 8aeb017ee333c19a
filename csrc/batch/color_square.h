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
  explicit ColorSquare(int64_t size) : size_(size) {}

  // Reads the headers of a file, which has to stay where it is. False where it is broken or nothing for Jpeg.
  bool open(std::span<const uint8_t> file);
  int64_t height() const { return jpeg_.height(); }
  int64_t width() const { return jpeg_.width(); }

  // Fills a box of (size, size, 3), which has some pixels. False where the file is broken, within the box or elsewhere.
  bool read(const Box& box, uint8_t* square);

 private:
  // How output pixels of one axis are made: pixel i is the sum of weights[i * taps + t] times pixel first[i] + t.
  struct Axis {
    int64_t length = 0, side = 0;  // of the image and the square
    int64_t taps = 0;
    std::vector<int64_t> first;
    std::vector<int32_t> weights;

    void set(int64_t new_length, int64_t new_side, int64_t size);
  };

  bool copy(const Box& box, uint8_t* square);
  bool resize(const Box& box, uint8_t* square);

  const int64_t size_;
  Jpeg jpeg_;
  Axis across_, down_;
  std::vector<uint8_t> rows_;   // the last ones, resized across: as many as an output row is made of
  std::vector<int32_t> sums_;
};

}  // namespace vologan::data
