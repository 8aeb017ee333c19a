#include "cropped_color.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__) && !defined(__clang__)
#define VOLOGAN_CLONES __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define VOLOGAN_CLONES
#endif

namespace vologan::data {

namespace {

// Weights are integers with this many bits after the point, as in Pillow. So sums are exact and do not depend on
// their order.
constexpr int kPrecision = 22;
constexpr int32_t kHalf = int32_t{1} << (kPrecision - 1);

uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::min(sum >> kPrecision, 255)); }

#ifdef __GNUC__
using Pixel = int32_t __attribute__((vector_size(16)));
using Bytes = uint8_t __attribute__((vector_size(4)));
#endif

// Computes output pixels [begin, end) of one row. Reads one byte beyond the last input pixel.
VOLOGAN_CLONES void resize_across(const uint8_t* in, const int64_t* first, const int32_t* weights, int64_t taps,
                                  int64_t begin, int64_t end, uint8_t* out) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* pixel = in + 3 * first[x];
    const int32_t* weight = weights + x * taps;
#ifdef __GNUC__
    Pixel sum = {kHalf, kHalf, kHalf, kHalf};
    for (int64_t t = 0; t < taps; ++t) {
      Bytes rgb;
      std::memcpy(&rgb, pixel + 3 * t, 4);
      sum += __builtin_convertvector(rgb, Pixel) * weight[t];
    }
#else
    int32_t sum[] = {kHalf, kHalf, kHalf};
    for (int64_t t = 0; t < taps; ++t) {
      for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * t + c] * weight[t];
    }
#endif
    for (int c = 0; c < 3; ++c) out[3 * x + c] = to_byte(sum[c]);
  }
}

// sums[i] += row[i] · weight.
VOLOGAN_CLONES void add_row(const uint8_t* row, int32_t weight, int64_t count, int32_t* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += row[i] * weight;
}

VOLOGAN_CLONES void to_bytes(const int32_t* sums, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_byte(sums[i]);
}

}  // namespace

bool CroppedColor::open(std::span<const uint8_t> file) { return jpeg_.open(file); }

void CroppedColor::start(const Box& box) {
  box_ = box;
  if (is_whole()) {
    sound_ = jpeg_.start(box);
    return;
  }
  const Shape image = shape(), crop = crop_shape(image, size_);
  across_.set(image.width, crop.width, size_.width);
  down_.set(image.height, crop.height, size_.height);
  next_ = down_.first[box.top];
  const Box wanted{next_, across_.first[box.left], down_.first[box.bottom - 1] + down_.taps,
                   across_.first[box.right - 1] + across_.taps};
  rows_.resize(down_.taps * 3 * size_.width);
  sums_.resize(3 * (box.right - box.left));
  sound_ = jpeg_.start(wanted);
}

const uint8_t* CroppedColor::row(int64_t y) {
  if (!sound_ || y < box_.top || y >= box_.bottom) return row_.data();
  return is_whole() ? next_row() : resize_row(y);
}

// Returns the next row of the image, or any row if there is none.
const uint8_t* CroppedColor::next_row() {
  const uint8_t* row = jpeg_.row();
  sound_ = row != nullptr;
  return row ? row : row_.data();
}

const uint8_t* CroppedColor::resize_row(int64_t y) {
  const auto kept = [&](int64_t i) { return rows_.data() + i % down_.taps * 3 * size_.width; };
  for (; next_ < down_.first[y] + down_.taps; ++next_) {
    const uint8_t* row = next_row();
    if (!sound_) return row_.data();
    resize_across(row, across_.first.data(), across_.weights.data(), across_.taps, box_.left, box_.right, kept(next_));
  }
  const int64_t begin = 3 * box_.left, count = static_cast<int64_t>(sums_.size());
  std::fill(sums_.begin(), sums_.end(), kHalf);
  for (int64_t t = 0; t < down_.taps; ++t) {
    add_row(kept(down_.first[y] + t) + begin, down_.weights[y * down_.taps + t], count, sums_.data());
  }
  to_bytes(sums_.data(), count, row_.data() + begin);
  return row_.data();
}

// The positions and sums are computed as Pillow computes them for an image with a border of `margin` pixels. In
// floating point they would differ without the border. A tap on the border adds its weight to the pixel that the
// border repeats.
void CroppedColor::Axis::set(int64_t new_length, int64_t new_side, int64_t size) {
  if (new_length == length && new_side == side) return;
  length = side = 0;  // until the rest is set, since allocating it may throw
  const int64_t margin = (new_side + size - 1) / size + 1;
  const double start = static_cast<double>(margin) + static_cast<double>(new_length - new_side) / 2;
  const double scale = static_cast<double>(new_side) / static_cast<double>(size);
  const double reach = std::max(scale, 1.0);
  taps = std::min(static_cast<int64_t>(std::ceil(reach)) * 2 + 1, new_length);
  first.assign(size, 0);
  weights.assign(size * taps, 0);
  std::vector<double> triangle;
  for (int64_t i = 0; i < size; ++i) {
    const double center = start + (static_cast<double>(i) + 0.5) * scale;
    const int64_t begin = std::max<int64_t>(static_cast<int64_t>(center - reach + 0.5), 0);
    const int64_t end = std::min(static_cast<int64_t>(center + reach + 0.5), new_length + 2 * margin);
    triangle.clear();
    double sum = 0;
    for (int64_t k = begin; k < end; ++k) {
      const double distance = std::abs((static_cast<double>(k) - center + 0.5) * (1.0 / reach));
      triangle.push_back(distance < 1 ? 1 - distance : 0);
      sum += triangle.back();
    }
    first[i] = std::clamp<int64_t>(begin - margin, 0, new_length - taps);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t pixel = std::clamp<int64_t>(k - margin, 0, new_length - 1);
      weights[i * taps + pixel - first[i]] += static_cast<int32_t>(0.5 + triangle[k - begin] / sum * (1 << kPrecision));
    }
  }
  length = new_length;
  side = new_side;
}

}  // namespace vologan::data
