// Compares every level of pack_row with pack_pixel, pixel by pixel: at every length around the vector widths, in
// both directions, and at every place of a cache line. The arrays end where the row does. Prints how many levels
// this processor has.
#include "pixel_rows.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

using namespace vologan::data;

constexpr int64_t kLongest = 80, kPad = 4;  // in pixels; kPad pixels on either side must stay as they are
constexpr float kUntouched = 7;

struct Row {
  std::vector<uint8_t> color;
  std::vector<float> depth;
};

// Returns colours of all values, and depth in runs of background (which the loops skip), missing and valid values.
Row random_row(int64_t count) {
  static std::mt19937 random(1);
  Row row{std::vector<uint8_t>(3 * count), std::vector<float>(count)};
  for (uint8_t& value : row.color) value = static_cast<uint8_t>(random());
  float (*const pick[])() = {[] { return kBackground; }, [] { return kMissing; },
                             [] { return static_cast<float>(random() % 1023 + 1) / 1024; }};
  for (int64_t x = 0; x < count;) {
    const uint32_t kind = random() % 3;
    for (int64_t run = random() % 20; run >= 0 && x < count; --run) row.depth[x++] = pick[kind]();
  }
  return row;
}

bool equals_definition(PackRow pack, const Row& row, int64_t count, int step, float* batch) {
  std::vector<float> expected((count + 2 * kPad) * 4, kUntouched);
  for (int64_t x = 0; x < count; ++x) {
    const int64_t from = step > 0 ? x : count - 1 - x;
    const uint8_t* c = row.color.data() + 3 * from;
    pack_pixel(c[0] / 255.0f, c[1] / 255.0f, c[2] / 255.0f, row.depth[from], expected.data() + (kPad + x) * 4);
  }
  std::fill_n(batch, expected.size(), kUntouched);
  const int64_t first = step > 0 ? 0 : count - 1;
  // `below` is only a hint. A hint of any size reads nothing.
  pack(row.color.data() + 3 * first, 1'000'000, row.depth.data() + first, count, step, batch + kPad * 4);
  finish_rows();
  return std::memcmp(batch, expected.data(), expected.size() * sizeof(float)) == 0;
}

bool clears(int64_t count, float* batch) {
  std::vector<float> expected((count + 2 * kPad) * 4, kUntouched);
  std::fill_n(expected.begin() + kPad * 4, count * 4, 0.0f);
  std::fill_n(batch, expected.size(), kUntouched);
  clear_row(count, batch + kPad * 4);
  finish_rows();
  return std::memcmp(batch, expected.data(), expected.size() * sizeof(float)) == 0;
}

int main() {
  int failures = 0;
  struct alignas(64) Line {
    float pixels[16];
  };
  std::vector<Line> lines(kLongest / 4 + 4);
  const auto levels = pack_row_levels();
  std::printf("%zu\n", levels.size());
  for (int64_t count = 1; count <= kLongest; ++count) {
    for (int64_t place = 0; place < 4; ++place) {
      float* const batch = lines[0].pixels + place * 4;
      for (size_t level = 0; level < levels.size(); ++level) {
        for (const int step : {1, -1}) {
          const Row row = random_row(count);
          if (equals_definition(levels[level], row, count, step, batch)) continue;
          ++failures;
          std::printf("level %zu of %zu: differs at %lld pixels, step %d, pixel %lld of a cache line\n", level,
                      levels.size(), static_cast<long long>(count), step, static_cast<long long>(place));
        }
      }
      if (clears(count, batch)) continue;
      ++failures;
      std::printf("clear_row: differs at %lld pixels\n", static_cast<long long>(count));
    }
  }
  return failures != 0;
}
