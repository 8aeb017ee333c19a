// The forward: moments of each part, mean and deviation of each channel, then the output.

#pragma once

#include "activations.h"
#include "cut.h"
#include "parameters.h"
#include "scratch.h"

namespace vologan::VOLOGAN_LEVEL {

// Moments of a part, for each slot: a mean, the rest that its rounding leaves, and the sum of squared deviations.
template <class A>
struct Moments {
  A *mean, *rest, *squares;
};

template <class T, class A = Accumulator<T>>
void moments(const Cut& cut, const Image<const T>& x, int64_t part, const Moments<A>& found) {
  using V = Vector<A>;
  const int64_t count = cut.pixels_of(part);
  const T* start = x.at(part * cut.part_pixels);
  const int64_t stride = x.pixel;
  each_column(cut, [&](int64_t slot, auto column) {
    const T* from = start + slot;
    V sum[4]{};
    each_vector(cut, count, column, [&](int k, int64_t p, auto used) VOLOGAN_INLINE {
      sum[k] += load(from + p * stride, used);
    });
    V share;
    for (int64_t i = 0; i < kLanes<A>; ++i) share[i] = static_cast<A>(larger(cut.share(slot + i, count), 1));
    const V mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / share;
    V rest[4]{}, squares[4]{};
    each_vector(cut, count, column, [&](int k, int64_t p, auto used) VOLOGAN_INLINE {
      const V deviation = used_lanes<A>(load(from + p * stride, used) - mean, used);
      rest[k] += deviation;
      squares[k] += deviation * deviation;
    });
    store(found.mean + slot, mean, All{});
    store(found.rest + slot, ((rest[0] + rest[1]) + (rest[2] + rest[3])) / share, All{});
    store(found.squares + slot, (squares[0] + squares[1]) + (squares[2] + squares[3]), All{});
  });
}

// Mean and variance of each channel of an image from the moments of all slots of all parts (Chan, Golub and LeVeque,
// "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
template <class A>
void merge(const Cut& cut, const A* parts, double* mean, double* variance) {
  const int64_t pixels = cut.pixels(), used = cut.used_slots();
  for (int64_t c = 0; c < cut.channels; ++c) mean[c] = variance[c] = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    const A *means = parts + 3 * part * cut.slots, *rests = means + cut.slots;
    const int64_t count = cut.pixels_of(part);
    for (int64_t s = 0; s < used; ++s) {
      mean[cut.channel(s)] += static_cast<double>(cut.share(s, count)) * (double{means[s]} + double{rests[s]});
    }
  }
  for (int64_t c = 0; c < cut.channels; ++c) mean[c] /= static_cast<double>(pixels);
  for (int64_t part = 0; part < cut.parts; ++part) {
    const A *means = parts + 3 * part * cut.slots, *rests = means + cut.slots, *squares = rests + cut.slots;
    const int64_t count = cut.pixels_of(part);
    for (int64_t s = 0; s < used; ++s) {
      const double shift = double{means[s]} + double{rests[s]} - mean[cut.channel(s)];
      variance[cut.channel(s)] += double{squares[s]} + static_cast<double>(cut.share(s, count)) * shift * shift;
    }
  }
  for (int64_t c = 0; c < cut.channels; ++c) variance[c] /= static_cast<double>(pixels);
}

// What makes the output of each slot: u = (x - mean) · scale + shift + residual, y = f(u).
template <class A>
struct Affine {
  A *mean, *scale, *shift, *slope;
};

template <class T>
struct ForwardRow {
  const T *x, *residual;
  T* y;
  int64_t x_pixel, residual_pixel, y_pixel;
};

// The output of positions that follow each other.
template <class T, class Activation>
void output_row(const Cut& cut, int64_t count, const ForwardRow<T>& row, const Affine<Accumulator<T>>& affine) {
  using V = Vector<Accumulator<T>>;
  each_column(cut, [&](int64_t slot, auto column) {
    const V mean = load(affine.mean + slot, All{}), scale = load(affine.scale + slot, All{}),
            shift = load(affine.shift + slot, All{}), slope = load(affine.slope + slot, All{});
    each_vector(cut, count, column, [&](int, int64_t p, auto used) VOLOGAN_INLINE {
      V u = (load(row.x + slot + p * row.x_pixel, used) - mean) * scale + shift;
      if (row.residual != nullptr) u += load(row.residual + slot + p * row.residual_pixel, used);
      store(row.y + slot + p * row.y_pixel, Activation::value(u, slope), used);
    });
  });
}

// Copy the ends of a row of y to its left and right border. The row starts at its first pixel behind the border.
template <class T>
void reflect_ends(T* row, int64_t width, int64_t pad, int64_t channels) {
  for (int64_t i = 1; i <= pad; ++i) {
    std::memcpy(row - i * channels, row + i * channels, channels * sizeof(T));
    std::memcpy(row + (width - 1 + i) * channels, row + (width - 1 - i) * channels, channels * sizeof(T));
  }
}

template <class T>
class Forward {
 public:
  using A = Accumulator<T>;

  explicit Forward(const VologanForward& call) : call_(call), norm_(call.norm) {
    const bool dense = call.x.p == (norm_.channels_last ? norm_.c : 1) &&
                       (call.residual.data == nullptr || call.residual.p == call.x.p);
    cut_ = cut_of(norm_, kLanes<A>, dense, norm_.pad > 0);
    output_row_ = with_activation(norm_.activation, [](auto f) { return &output_row<T, decltype(f)>; });
  }

  const Cut& cut() const { return cut_; }

  int64_t scratch_numbers() const { return (3 * cut_.parts + 4) * cut_.slots; }

  // `each(count, f)` calls f for all numbers below count, perhaps on several threads.
  template <class Each>
  void image(int64_t image, const Scratch<A>& scratch, const Each& each) const {
    const auto x = image_of<const T>(call_.x, norm_, image);
    A* parts = scratch.numbers;
    each(cut_.parts, [&](int64_t part) {
      A* mean = parts + 3 * part * cut_.slots;
      moments<T>(cut_, x, part, {mean, mean + cut_.slots, mean + 2 * cut_.slots});
    });
    double *mean = scratch.sums, *variance = mean + cut_.channels;
    merge(cut_, parts, mean, variance);
    A* rest = parts + 3 * cut_.parts * cut_.slots;
    const Affine<A> affine{rest, rest + cut_.slots, rest + 2 * cut_.slots, rest + 3 * cut_.slots};
    prepare(image, mean, variance, affine);
    // Backwards, because the caches hold what was read last.
    each(cut_.parts, [&](int64_t part) { output(image, x, cut_.parts - 1 - part, affine); });
  }

 private:
  void prepare(int64_t image, const double* mean, const double* variance, const Affine<A>& affine) const {
    const Parameters<A> parameters(norm_);
    for (int64_t s = 0; s < cut_.slots; ++s) {
      const bool used = s < cut_.used_slots();
      const int64_t c = used ? cut_.channel(s) : 0;
      const int64_t plane = image * cut_.channels + c, channel = plane % norm_.c;
      const double rstd = 1 / std::sqrt(variance[c] + norm_.eps);
      const double scale = rstd * double{parameters.gamma(channel)};
      affine.mean[s] = static_cast<A>(mean[c]);
      affine.scale[s] = static_cast<A>(scale);
      affine.shift[s] =
          static_cast<A>(double{parameters.beta(channel)} - (mean[c] - double{affine.mean[s]}) * scale);
      affine.slope[s] = parameters.slope(channel);
      if (used) {
        static_cast<A*>(norm_.mean)[plane] = affine.mean[s];
        static_cast<A*>(norm_.rstd)[plane] = static_cast<A>(rstd);
      }
    }
  }

  void output(int64_t image, const Image<const T>& x, int64_t part, const Affine<A>& affine) const {
    const auto residual = image_of<const T>(call_.residual, norm_, image);
    const auto y = image_of<T>(call_.y, norm_, image);
    const int64_t first = part * cut_.part_pixels, count = cut_.pixels_of(part), pad = norm_.pad;
    const auto row_from = [&](int64_t position, T* to) -> ForwardRow<T> {
      return {x.at(position), residual.at(position), to, x.pixel, residual.pixel, y.pixel};
    };
    if (pad == 0) {
      output_row_(cut_, count, row_from(first, y.at(first)), affine);
      return;
    }
    const int64_t padded_width = norm_.w + 2 * pad, row_bytes = padded_width * y.pixel * sizeof(T);
    for (int64_t position = first; position < first + count; position += norm_.w) {
      const int64_t i = position / norm_.w;
      T* row = y.at((i + pad) * padded_width);
      output_row_(cut_, norm_.w, row_from(position, row + pad * y.pixel), affine);
      reflect_ends(row + pad * y.pixel, norm_.w, pad, y.pixel);
      each_reflection(i, norm_.h, pad, [&](int64_t to) {
        if (to != i + pad) std::memcpy(y.at(to * padded_width), row, row_bytes);
      });
    }
  }

  const VologanForward& call_;
  const VologanNorm& norm_;
  Cut cut_;
  void (*output_row_)(const Cut&, int64_t, const ForwardRow<T>&, const Affine<A>&);
};

}  // namespace vologan::VOLOGAN_LEVEL
