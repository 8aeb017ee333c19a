// The backward: sums of each part, then the gradients.
//
// With z = x, or z = u - residual for a saved output: x̂ = (z - centre) · factor, u = γ · x̂ + β + residual, and
// g = f'(u) · ∂L/∂y.
// The gradient of x is (g - mean(g) - x̂ · mean(g · x̂)) · γ · rstd.

#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "cut.h"
#include "parameters.h"
#include "scratch.h"

namespace vologan::VOLOGAN_LEVEL {

// What both passes need, for each slot.
template <class A>
struct Normalised {
  A *centre, *factor, *gamma, *beta, *slope, *inverse_slope;
  bool from_output;
};

// The sums of a part, for each slot: of g, of g · x̂, and of u · ∂L/∂y where u <= 0, which is the gradient of the slope.
template <class A>
struct Sums {
  A *g, *g_x_hat, *slope;
};

// dx = (g - mean - x̂ · through) · scale, for each slot. The difference comes first: it is 0 where g is the mean.
template <class A>
struct Gradient {
  A *scale, *through, *mean;
};

// Rows of positions that follow each other. Without padding, a part is one row. G is the type of ∂L/∂y: T, or
// accumulators where the borders have been added.
template <class T, class G>
struct BackwardRows {
  int64_t rows, width;
  const G* grad;
  const T *saved, *residual;
  T *dx, *d_residual;
  int64_t grad_pixel, saved_pixel, residual_pixel, dx_pixel;  // distances of positions
  int64_t saved_row;                                          // distance of the rows of `saved`
};

template <class V>
struct Point {
  V x_hat, u, grad;
};

// Reads the vectors of some columns.
template <class T, class Activation, class C>
class Reader {
 public:
  using A = Accumulator<T>;
  using V = Vector<A>;

  Reader(const Normalised<A>& norm, int64_t slot, C columns)
      : from_output_(norm.from_output),
        centre_(norm.centre + slot, columns),
        factor_(norm.factor + slot, columns),
        gamma_(norm.gamma + slot, columns),
        beta_(norm.beta + slot, columns),
        slope_(norm.slope + slot, columns),
        inverse_slope_(norm.inverse_slope + slot, columns) {}

  template <class G, class Used>
  VOLOGAN_INLINE Point<V> point(int j, const G* grad, const T* saved, const T* residual, Used used) const {
    Point<V> at;
    at.grad = load(grad, used);
    const V z = load(saved, used);
    if constexpr (Activation::kInvertible) {
      if (from_output_) {
        at.u = Activation::inverse(z, inverse_slope_[j]);
        const V without = residual == nullptr ? at.u : at.u - load(residual, used);
        at.x_hat = (without - centre_[j]) * factor_[j];
        return at;
      }
    }
    at.x_hat = (z - centre_[j]) * factor_[j];
    at.u = at.x_hat * gamma_[j] + beta_[j];
    if (residual != nullptr) at.u += load(residual, used);
    return at;
  }

  VOLOGAN_INLINE V through_activation(int j, const Point<V>& at) const {
    return Activation::gradient(at.grad, at.u, slope_[j]);
  }

 private:
  const bool from_output_;
  const OfColumns<A, C> centre_, factor_, gamma_, beta_, slope_, inverse_slope_;
};

// Call f(k, column, point, offset in dx, used lanes) for all vectors of some columns of the rows.
template <class T, class G, class Activation, class Used, class C, class F>
VOLOGAN_INLINE inline void each_point(const Cut& cut, const BackwardRows<T, G>& at,
                                      const Reader<T, Activation, C>& reader, int64_t slot, Used lanes, C columns,
                                      const F& f) {
  for (int64_t row = 0; row < at.rows; ++row) {
    const int64_t first = row * at.width;
    const G* grad = at.grad + slot + first * at.grad_pixel;
    const T *saved = at.saved + slot + row * at.saved_row,
            *residual = at.residual == nullptr ? nullptr : at.residual + slot + first * at.residual_pixel;
    each_vector(cut, at.width, lanes, columns, [&](int k, int j, int64_t p, auto used) VOLOGAN_INLINE {
      const int64_t lane = j * kLanes<Accumulator<T>>;
      const auto point = reader.point(j, grad + lane + p * at.grad_pixel, saved + lane + p * at.saved_pixel,
                                      residual == nullptr ? nullptr : residual + lane + p * at.residual_pixel, used);
      f(k, j, point, slot + lane + (first + p) * at.dx_pixel, used);
    });
  }
}

// The sums of a part.
template <class T, class G, class Activation, class A = Accumulator<T>>
void sum(const Cut& cut, BackwardRows<T, G> at, const Normalised<A>& norm, const Sums<A>& sums) {
  using V = Vector<A>;
  each_column<A>(cut, [&](int64_t slot, auto lanes, auto columns) VOLOGAN_INLINE {
    const Reader<T, Activation, decltype(columns)> reader(norm, slot, columns);
    constexpr int kChains = decltype(columns)::chains;
    V g[kChains]{}, g_x_hat[kChains]{}, slope[kChains]{};
    // Lanes that are not used have a gradient of 0, and finite numbers elsewhere.
    const auto add = [&](int k, int j, const Point<V>& point, int64_t, auto) VOLOGAN_INLINE {
      const V through = reader.through_activation(j, point);
      g[k] += through;
      g_x_hat[k] += through * point.x_hat;
      if constexpr (std::is_same_v<Activation, Prelu>) slope[k] += point.u > 0 ? V{} : point.grad * point.u;
    };
    each_point(cut, at, reader, slot, lanes, columns, add);
    for (int j = 0; j < decltype(columns)::count; ++j) {
      const int64_t first = slot + j * kLanes<A>;
      store(sums.g + first, total(g, columns, j), All{});
      store(sums.g_x_hat + first, total(g_x_hat, columns, j), All{});
      store(sums.slope + first, total(slope, columns, j), All{});
    }
  });
}

// The gradients of a part.
template <class T, class G, class Activation, class A = Accumulator<T>>
void differentiate(const Cut& cut, BackwardRows<T, G> at, const Normalised<A>& norm, const Gradient<A>& gradient) {
  using V = Vector<A>;
  each_column<A>(cut, [&](int64_t slot, auto lanes, auto columns) VOLOGAN_INLINE {
    const Reader<T, Activation, decltype(columns)> reader(norm, slot, columns);
    const OfColumns<A, decltype(columns)> scale(gradient.scale + slot, columns),
        through(gradient.through + slot, columns), mean(gradient.mean + slot, columns);
    const auto write = [&](int, int j, const Point<V>& point, int64_t to, auto used) VOLOGAN_INLINE {
      const V g = reader.through_activation(j, point);
      if (at.d_residual != nullptr) store(at.d_residual + to, g, used);
      store(at.dx + to, ((g - mean[j]) - point.x_hat * through[j]) * scale[j], used);
    };
    each_point(cut, at, reader, slot, lanes, columns, write);
  });
}

// ---- reflection padding ---------------------------------------------------------------------------------------------

// Write row i of ∂L/∂y without its borders to `row` (width · channels), and add what the borders show of it.
template <class T, class A = Accumulator<T>>
void fold_row(const Image<const T>& grad, const Cut& cut, int64_t i, int64_t pad, A* row) {
  const int64_t width = cut.width, channels = cut.channels, padded_width = width + 2 * pad;
  const auto add_pixels = [&](const T* from, A* to, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t c = 0; c < channels; ++c) to[j * channels + c] += static_cast<A>(number(from[j * grad.pixel + c]));
    }
  };
  each_reflection(i, cut.height, pad, [&](int64_t padded_row) {
    const T* from = grad.at(padded_row * padded_width + pad);
    const bool first = padded_row == i + pad;
    const auto add = [&](int64_t k, auto used) {
      const auto v = load(from + k, used);
      store(row + k, first ? v : load(static_cast<const A*>(row) + k, used) + v, used);
    };
    if (grad.pixel == channels) {
      const int64_t count = width * channels;
      int64_t k = 0;
      for (; k + kLanes<A> <= count; k += kLanes<A>) add(k, All{});
      if (k < count) add(k, First{count - k});
    } else {
      if (first) std::memset(row, 0, width * channels * sizeof(A));
      add_pixels(from, row, width);
    }
    for (int64_t j = 1; j <= pad; ++j) {
      add_pixels(from - j * grad.pixel, row + j * channels, 1);
      add_pixels(from + (width - 1 + j) * grad.pixel, row + (width - 1 - j) * channels, 1);
    }
  });
}

// ---- an image -------------------------------------------------------------------------------------------------------

template <class T>
class Backward {
 public:
  using A = Accumulator<T>;

  Backward(const VologanBackward& call, double* plane_sums) : call_(call), norm_(call.norm), plane_sums_(plane_sums) {
    const int64_t channels = norm_.channels_last ? norm_.c : 1;
    bool dense = true;
    for (const VologanView* view : {&call.grad, &call.saved, &call.residual, &call.dx, &call.d_residual}) {
      dense = dense && (view->data == nullptr || view->p == channels);
    }
    cut_ = cut_of(norm_, kLanes<A>, dense, norm_.pad > 0);
    with_activation(norm_.activation, [this](auto f) {
      using F = decltype(f);
      direct_ = {&sum<T, T, F>, &differentiate<T, T, F>};
      folded_ = {&sum<T, A, F>, &differentiate<T, A, F>};
    });
  }

  const Cut& cut() const { return cut_; }

  int64_t scratch_numbers(int64_t threads) const {
    return (3 * cut_.parts + 9) * cut_.slots + folded_numbers() * threads;
  }

  // `each(count, f)` calls f(k, thread) for all k below count.
  template <class Each>
  void image(int64_t image, const Scratch<A>& scratch, const Each& each) const {
    A* next = scratch.numbers;
    const auto take = [&] { return std::exchange(next, next + cut_.slots); };
    const Normalised<A> norm{take(), take(), take(), take(), take(), take(), call_.from_output != 0};
    const Gradient<A> gradient{take(), take(), take()};
    A* parts = std::exchange(next, next + 3 * cut_.parts * cut_.slots);
    A* folded = next;
    prepare(image, norm);
    each(cut_.parts, [&](int64_t part, int64_t thread) {
      A* g = parts + 3 * part * cut_.slots;
      const Sums<A> sums{g, g + cut_.slots, g + 2 * cut_.slots};
      with_rows(image, part, folded + thread * folded_numbers(),
                [&](const auto& kernels, const auto& rows) { kernels.sum(cut_, rows, norm, sums); });
    });
    merge(image, parts, norm, gradient);
    // Backwards, because the caches hold what was read last.
    each(cut_.parts, [&](int64_t part, int64_t thread) {
      with_rows(image, cut_.parts - 1 - part, folded + thread * folded_numbers(),
                [&](const auto& kernels, const auto& rows) { kernels.differentiate(cut_, rows, norm, gradient); });
    });
  }

 private:
  template <class G>
  struct Kernels {
    void (*sum)(const Cut&, BackwardRows<T, G>, const Normalised<A>&, const Sums<A>&);
    void (*differentiate)(const Cut&, BackwardRows<T, G>, const Normalised<A>&, const Gradient<A>&);
  };

  // The numbers of a part's gradient, if its borders are to be added.
  int64_t folded_numbers() const { return norm_.pad > 0 ? cut_.part_pixels * cut_.channels : 0; }

  void prepare(int64_t image, const Normalised<A>& norm) const {
    const Parameters<A> parameters(norm_, image);
    const A *means = static_cast<const A*>(norm_.mean) + image * cut_.channels,
            *rstds = static_cast<const A*>(norm_.rstd) + image * cut_.channels;
    for (int64_t s = 0; s < 6 * cut_.slots; ++s) norm.centre[s] = 0;
    each_slot(cut_, [&](int64_t s, int64_t c) {
      norm.centre[s] = norm.from_output ? parameters.beta(c) : means[c];
      norm.factor[s] = norm.from_output ? 1 / parameters.gamma(c) : rstds[c];
      norm.gamma[s] = parameters.gamma(c);
      norm.beta[s] = parameters.beta(c);
      norm.slope[s] = parameters.slope(c);
      norm.inverse_slope[s] = norm.from_output ? 1 / parameters.slope(c) : 0;
    });
  }

  // Call f(kernels, rows) for the rows of a part.
  template <class F>
  void with_rows(int64_t image, int64_t part, A* folded, const F& f) const {
    const auto grad = image_of<const T>(call_.grad, norm_, image), saved = image_of<const T>(call_.saved, norm_, image),
               residual = image_of<const T>(call_.residual, norm_, image);
    const auto dx = image_of<T>(call_.dx, norm_, image), d_residual = image_of<T>(call_.d_residual, norm_, image);
    const int64_t first = part * cut_.part_pixels, count = cut_.pixels_of(part), pad = norm_.pad;
    if (pad == 0) {
      f(direct_, BackwardRows<T, T>{1, count, grad.at(first), saved.at(first), residual.at(first), dx.at(first),
                                    d_residual.at(first), grad.pixel, saved.pixel, residual.pixel, dx.pixel, 0});
      return;
    }
    const int64_t width = norm_.w, row = first / width, rows = count / width, padded_width = width + 2 * pad;
    for (int64_t i = 0; i < rows; ++i) fold_row(grad, cut_, row + i, pad, folded + i * width * cut_.channels);
    const bool padded = call_.from_output != 0;
    const T* saved_at = saved.at(padded ? (row + pad) * padded_width + pad : first);
    f(folded_, BackwardRows<T, A>{rows, width, folded, saved_at, residual.at(first), dx.at(first), d_residual.at(first),
                                  cut_.channels, saved.pixel, residual.pixel, dx.pixel,
                                  (padded ? padded_width : width) * saved.pixel});
  }

  void merge(int64_t image, const A* parts, const Normalised<A>& norm, const Gradient<A>& gradient) const {
    const int64_t planes = norm_.n * norm_.c;
    const A* rstds = static_cast<const A*>(norm_.rstd) + image * cut_.channels;
    double *g = plane_sums_ + image * cut_.channels, *g_x_hat = g + planes, *slope = g_x_hat + planes;
    constexpr int64_t kSlots = kLanes<A>;
    for (int64_t column = 0; column < cut_.used_slots(); column += kSlots) {
      double of_g[kSlots]{}, of_g_x_hat[kSlots]{}, of_slope[kSlots]{};
      for (int64_t part = 0; part < cut_.parts; ++part) {
        const A* from = parts + 3 * part * cut_.slots + column;
        for (int64_t i = 0; i < kSlots; ++i) {
          of_g[i] += double{from[i]};
          of_g_x_hat[i] += double{from[cut_.slots + i]};
          of_slope[i] += double{from[2 * cut_.slots + i]};
        }
      }
      for (int64_t i = 0; i < smaller(kSlots, cut_.used_slots() - column); ++i) {
        const int64_t c = (column + i) % cut_.channels;
        g[c] += of_g[i];
        g_x_hat[c] += of_g_x_hat[i];
        slope[c] += of_slope[i];
      }
    }
    const double share = 1 / static_cast<double>(cut_.pixels());
    for (int64_t s = 0; s < 3 * cut_.slots; ++s) gradient.scale[s] = 0;
    each_slot(cut_, [&](int64_t s, int64_t c) {
      const double scale = double{norm.gamma[s]} * double{rstds[c]};
      gradient.scale[s] = static_cast<A>(scale);
      gradient.through[s] = static_cast<A>(g_x_hat[c] * share);
      gradient.mean[s] = static_cast<A>(g[c] * share);
    });
  }

  const VologanBackward& call_;
  const VologanNorm& norm_;
  double* plane_sums_;  // (3, N, C), 0 at first: the sums of g, g · x̂ and of the slope
  Cut cut_;
  Kernels<T> direct_;
  Kernels<A> folded_;
};

}  // namespace vologan::VOLOGAN_LEVEL
