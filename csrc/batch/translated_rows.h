// Rows of an image that a network translates: from the files' pixels to the network's planes, and back.
// vologan_fast/translation/images.py says what the values mean, and has the definitions in NumPy. Both give the same
// bits. The loops have no branches, so the compiler can handle several pixels at once.
#pragma once

#include <cstdint>
#include <span>

#include "pixels.h"

namespace vologan::data {

// Splits pixels (3 bytes each) and normalised depth into the planes red, green, blue and depth, as pack_pixel does.
void split_row(const uint8_t* color, const float* depth, int64_t count, float* const (&planes)[4]);

// Joins the planes red, green and blue, which are in [0, 1], to pixels of 4 bytes, the last of which is 255. A
// background pixel keeps its `color`, of 3 bytes. Returns whether all four planes are finite. Values that are not
// become 0.
bool join_row(const float* const (&planes)[4], const uint8_t* color, const float* depth, int64_t count,
              uint32_t* joined);

// A value of IEEE binary16.
enum class Half : uint16_t {};

// From normalised depth to the values of a file: z · gain + offset, rounded to T. If the result is then one of the
// codes, it becomes the value beside it. This is done for one code after the other.
template <class T>
struct FileRule {
  struct Code {
    T value, beside;
  };
  float gain, offset;
  T missing;
  std::span<const Code> codes;
};

// Fills `restored` with the file values of translated depth z. Its holes become missing. `file` and `before` are the
// depth that came in, in file units and normalised. Its value is kept where it is background. It is also kept where z
// has stayed the same, if different values of a file become this one: missing, and both ends of the range.
void restore_row(const float* z, const float* file, const float* before, int64_t count, const FileRule<float>& rule,
                 float* restored);
void restore_row(const float* z, const float* file, const float* before, int64_t count, const FileRule<Half>& rule,
                 Half* restored);
void restore_row(const float* z, const float* file, const float* before, int64_t count, const FileRule<uint16_t>& rule,
                 uint16_t* restored);

}  // namespace vologan::data
