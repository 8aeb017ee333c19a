// The forward: moments of each part, mean and deviation of each channel, then the output.

#pragma once

#include "activations.h"
#include "cut.h"
#include "parameters.h"
#include "scratch.h"

namespace vologan::VOLOGAN_LEVEL {

// Moments of a part, for each slot: the mean is centre + rest, and then the sum of squared deviations from the mean.
template <class A>
struct Moments {
  A *centre, *rest, *squares;
};

template <class T, class A = Accumulator<T>>
void moments(const Cut& cut, const Image<const T>& x, int64_t part, const Moments<A>& found) {
  using V = Vector<A>;
  const int64_t count = cut.pixels_of(part);
  const T* start = x.at(part * cut.part_pixels);
  const int64_t stride = x.pixel;
  const Share shares(cut, count);
  each_column<A>(cut, [&](int64_t slot, auto lanes, auto columns) VOLOGAN_INLINE {
    constexpr int kColumns = decltype(columns)::count, kChains = decltype(columns)::chains;
    const T* from = start + slot;
    V share[kColumns], centre[kColumns];
    for (int j = 0; j < kColumns; ++j) {
      for (int64_t i = 0; i < kLanes<A>; ++i) {
        share[j][i] = static_cast<A>(larger(shares[slot + j * kLanes<A> + i], 1));
      }
    }
    // Deviations from any number near the mean will do. A slot's first one is near it: its square is at most the sum of
    // all squared deviations. That costs digits of the variance, which bfloat16 numbers cannot notice if a slot has few
    // of them. Otherwise it is the mean, which takes another pass over the first cache.
    if constexpr (sizeof(T) < sizeof(A) && kLanes<A> == 16) {
      for (int j = 0; j < kColumns; ++j) {
        const int64_t first = slot + j * kLanes<A>;
        centre[j] = load(start + first, First{smaller(kLanes<A>, count * cut.channels - first)});
      }
    } else {
      V sum[kChains]{};
      each_vector(cut, count, lanes, columns, [&](int k, int j, int64_t p, auto used) VOLOGAN_INLINE {
        sum[k] += load(from + j * kLanes<A> + p * stride, used);
      });
      for (int j = 0; j < kColumns; ++j) centre[j] = total(sum, columns, j) / share[j];
    }
    V rest[kChains]{}, squares[kChains]{};
    each_vector(cut, count, lanes, columns, [&](int k, int j, int64_t p, auto used) VOLOGAN_INLINE {
      const V deviation = used_lanes<A>(load(from + j * kLanes<A> + p * stride, used) - centre[j], used);
      rest[k] += deviation;
      squares[k] += deviation * deviation;
    });
    for (int j = 0; j < kColumns; ++j) {
      const int64_t first = slot + j * kLanes<A>;
      const V all_rest = total(rest, columns, j), mean_rest = all_rest / share[j];
      const V all_squares = total(squares, columns, j) - all_rest * mean_rest;
      store(found.centre + first, centre[j], All{});
      store(found.rest + first, mean_rest, All{});
      store(found.squares + first, all_squares < 0 ? V{} : all_squares, All{});  // a NaN stays one
    }
  });
}

// Mean and variance of each channel of an image from the moments of all slots of all parts (Chan, Golub and LeVeque,
// "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979). The parts of each slot come
// first, a column at a time, and then the slots of each channel. All differences are from the first of them, so the
// mean of equal numbers is that number.
template <class A>
void merge(const Cut& cut, const A* parts, double* mean, double* variance) {
  constexpr int64_t kSlots = kLanes<A>;
  const double pixels = static_cast<double>(cut.pixels());
  for (int64_t column = 0; column < cut.used_slots(); column += kSlots) {
    const ColumnShares<A> shares(cut, column);
    double first[kSlots], moved[kSlots]{}, count[kSlots]{}, means[kSlots], squares[kSlots]{};
    const auto each_part = [&](const auto& f) VOLOGAN_INLINE {
      for (int64_t part = 0; part < cut.parts; ++part) {
        const A* centres = parts + 3 * part * cut.slots + column;
        f(centres, centres + cut.slots, centres + 2 * cut.slots, part + 1 < cut.parts ? shares.whole : shares.last);
      }
    };
    for (int64_t i = 0; i < kSlots; ++i) first[i] = double{parts[column + i]} + double{parts[cut.slots + column + i]};
    each_part([&](const A* centres, const A* rests, const A*, const double* share) VOLOGAN_INLINE {
      for (int64_t i = 0; i < kSlots; ++i) {
        moved[i] += share[i] * (double{centres[i]} + double{rests[i]} - first[i]);
        count[i] += share[i];
      }
    });
    for (int64_t i = 0; i < kSlots; ++i) means[i] = first[i] + moved[i] / (count[i] > 0 ? count[i] : 1);
    each_part([&](const A* centres, const A* rests, const A* deviations, const double* share) VOLOGAN_INLINE {
      for (int64_t i = 0; i < kSlots; ++i) {
        const double shift = double{centres[i]} + double{rests[i]} - means[i];
        squares[i] += double{deviations[i]} + share[i] * shift * shift;
      }
    });
    const int64_t used = smaller(kSlots, cut.used_slots() - column);
    for (int64_t c = 0; c < smaller(kSlots, cut.channels - column); ++c) {
      double away = 0, sum = 0;
      for (int64_t i = c; i < used; i += cut.channels) away += count[i] * (means[i] - means[c]);
      const double center = means[c] + away / pixels;
      for (int64_t i = c; i < used; i += cut.channels) {
        sum += squares[i] + count[i] * (means[i] - center) * (means[i] - center);
      }
      mean[column + c] = center;
      variance[column + c] = sum / pixels;
    }
  }
}

// What makes the output of each slot: u = (x - mean) · scale + shift + residual, y = f(u).
template <class A>
struct Affine {
  A *mean, *scale, *shift, *slope;
};

// Rows of positions that follow each other. Without padding, a part is one row.
template <class T>
struct ForwardRows {
  int64_t rows, width;
  const T *x, *residual;
  T* y;
  int64_t x_pixel, residual_pixel, y_pixel, y_row;  // distances of positions, and of the rows of y
};

template <class T, class Activation, class A = Accumulator<T>>
void output(const Cut& cut, ForwardRows<T> at, const Affine<A>& affine) {
  each_column<A>(cut, [&](int64_t slot, auto lanes, auto columns) VOLOGAN_INLINE {
    const OfColumns<A, decltype(columns)> mean(affine.mean + slot, columns), scale(affine.scale + slot, columns),
        shift(affine.shift + slot, columns), slope(affine.slope + slot, columns);
    for (int64_t row = 0; row < at.rows; ++row) {
      const T *x = at.x + slot + row * at.width * at.x_pixel,
              *residual = at.residual == nullptr ? nullptr : at.residual + slot + row * at.width * at.residual_pixel;
      T* y = at.y + slot + row * at.y_row;
      each_vector(cut, at.width, lanes, columns, [&](int, int j, int64_t p, auto used) VOLOGAN_INLINE {
        const int64_t lane = j * kLanes<A>;
        Vector<A> u = (load(x + lane + p * at.x_pixel, used) - mean[j]) * scale[j] + shift[j];
        if (residual != nullptr) u += load(residual + lane + p * at.residual_pixel, used);
        store(y + lane + p * at.y_pixel, Activation::value(u, slope[j]), used);
      });
    }
  });
}

// Copy the ends of a row of y to its left and right border. The row starts at its first pixel behind the border.
template <class T>
void reflect_ends(T* row, int64_t width, int64_t pad, int64_t channels) {
  T* end = row + (width - 1) * channels;
  for (int64_t i = 1; i <= pad; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      row[c - i * channels] = row[c + i * channels];
      end[c + i * channels] = end[c - i * channels];
    }
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
    output_ = with_activation(norm_.activation, [](auto f) { return &output<T, decltype(f)>; });
  }

  const Cut& cut() const { return cut_; }

  int64_t scratch_numbers(int64_t) const { return (3 * cut_.parts + 4) * cut_.slots; }

  // `each(count, f)` calls f(k, thread) for all k below count.
  template <class Each>
  void image(int64_t image, const Scratch<A>& scratch, const Each& each) const {
    const auto x = image_of<const T>(call_.x, norm_, image);
    A* parts = scratch.numbers;
    each(cut_.parts, [&](int64_t part, int64_t) {
      A* centre = parts + 3 * part * cut_.slots;
      moments<T>(cut_, x, part, {centre, centre + cut_.slots, centre + 2 * cut_.slots});
    });
    double *mean = scratch.sums, *variance = mean + cut_.channels;
    merge(cut_, parts, mean, variance);
    A* rest = parts + 3 * cut_.parts * cut_.slots;
    const Affine<A> affine{rest, rest + cut_.slots, rest + 2 * cut_.slots, rest + 3 * cut_.slots};
    prepare(image, mean, variance, affine);
    // Backwards, because the caches hold what was read last.
    each(cut_.parts, [&](int64_t part, int64_t) { write(image, x, cut_.parts - 1 - part, affine); });
  }

 private:
  void prepare(int64_t image, const double* mean, double* variance, const Affine<A>& affine) const {
    const Parameters<A> parameters(norm_, image);
    A *means = static_cast<A*>(norm_.mean) + image * cut_.channels,
      *rstds = static_cast<A*>(norm_.rstd) + image * cut_.channels;
    double* scale = variance;
    for (int64_t c = 0; c < cut_.channels; ++c) {
      const double rstd = 1 / std::sqrt(variance[c] + norm_.eps);
      means[c] = static_cast<A>(mean[c]);
      rstds[c] = static_cast<A>(rstd);
      scale[c] = rstd * double{parameters.gamma(c)};
    }
    for (int64_t s = 0; s < 4 * cut_.slots; ++s) affine.mean[s] = 0;
    each_slot(cut_, [&](int64_t s, int64_t c) {
      affine.mean[s] = means[c];
      affine.scale[s] = static_cast<A>(scale[c]);
      affine.shift[s] = static_cast<A>(double{parameters.beta(c)} - (mean[c] - double{means[c]}) * scale[c]);
      affine.slope[s] = parameters.slope(c);
    });
  }

  void write(int64_t image, const Image<const T>& x, int64_t part, const Affine<A>& affine) const {
    const auto residual = image_of<const T>(call_.residual, norm_, image);
    const auto y = image_of<T>(call_.y, norm_, image);
    const int64_t first = part * cut_.part_pixels, count = cut_.pixels_of(part), pad = norm_.pad;
    ForwardRows<T> at{1, count, x.at(first), residual.at(first), y.at(first), x.pixel, residual.pixel, y.pixel, 0};
    if (pad == 0) {
      output_(cut_, at, affine);
      return;
    }
    const int64_t padded_width = norm_.w + 2 * pad, row = first / norm_.w;
    at.rows = count / norm_.w;
    at.width = norm_.w;
    at.y_row = padded_width * y.pixel;
    at.y = y.at((row + pad) * padded_width + pad);
    output_(cut_, at, affine);
    for (int64_t i = 0; i < at.rows; ++i) {
      reflect_ends(at.y + i * at.y_row, norm_.w, pad, y.pixel);
      const T* whole = at.y + i * at.y_row - pad * y.pixel;
      each_reflection(row + i, norm_.h, pad, [&](int64_t to) {
        if (to != row + i + pad) std::memcpy(y.at(to * padded_width), whole, at.y_row * sizeof(T));
      });
    }
  }

  const VologanForward& call_;
  const VologanNorm& norm_;
  Cut cut_;
  void (*output_)(const Cut&, ForwardRows<T>, const Affine<A>&);
};

}  // namespace vologan::VOLOGAN_LEVEL
