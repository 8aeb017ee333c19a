// The backward: sums of each part, then the gradients.
//
// With z = x, or z = u for a saved output: x̂ = (z - centre) · factor, u = γ · x̂ + β + residual, and g = f'(u) · ∂L/∂y.
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

// dx = g · scale - x̂ · through - mean, for each slot.
template <class A>
struct Gradient {
  A *scale, *through, *mean;
};

// G is the type of ∂L/∂y: T, or accumulators where the borders have been added.
template <class T, class G>
struct BackwardRow {
  const G* grad;
  const T *saved, *residual;
  T *dx, *d_residual;
  int64_t grad_pixel, saved_pixel, residual_pixel, dx_pixel;
};

template <class V>
struct Point {
  V x_hat, u, grad;
};

// Reads the vectors of one column.
template <class T, class G, class Activation>
class Column {
 public:
  using A = Accumulator<T>;
  using V = Vector<A>;

  Column(const BackwardRow<T, G>& row, const Normalised<A>& norm, int64_t slot)
      : row_(row),
        slot_(slot),
        from_output_(norm.from_output),
        centre_(load(norm.centre + slot, All{})),
        factor_(load(norm.factor + slot, All{})),
        gamma_(load(norm.gamma + slot, All{})),
        beta_(load(norm.beta + slot, All{})),
        slope_(load(norm.slope + slot, All{})),
        inverse_slope_(load(norm.inverse_slope + slot, All{})) {}

  template <class Used>
  VOLOGAN_INLINE Point<V> point(int64_t p, Used used) const {
    Point<V> at;
    at.grad = load(row_.grad + slot_ + p * row_.grad_pixel, used);
    V z = load(row_.saved + slot_ + p * row_.saved_pixel, used);
    if constexpr (Activation::kInvertible) {
      if (from_output_) z = Activation::inverse(z, inverse_slope_);
    }
    at.x_hat = (z - centre_) * factor_;
    at.u = at.x_hat * gamma_ + beta_;
    if (row_.residual != nullptr) at.u += load(row_.residual + slot_ + p * row_.residual_pixel, used);
    return at;
  }

  VOLOGAN_INLINE V through_activation(const Point<V>& at) const { return Activation::gradient(at.grad, at.u, slope_); }

 private:
  const BackwardRow<T, G>& row_;
  const int64_t slot_;
  const bool from_output_;
  const V centre_, factor_, gamma_, beta_, slope_, inverse_slope_;
};

// Add the sums of positions that follow each other.
template <class T, class G, class Activation>
void sum_row(const Cut& cut, int64_t count, const BackwardRow<T, G>& row, const Normalised<Accumulator<T>>& norm,
             const Sums<Accumulator<T>>& sums) {
  using V = Vector<Accumulator<T>>;
  each_column(cut, [&](int64_t slot, auto column_lanes) {
    const Column<T, G, Activation> column(row, norm, slot);
    V g[4]{}, g_x_hat[4]{}, slope[4]{};
    each_vector(cut, count, column_lanes, [&](int k, int64_t p, auto used) VOLOGAN_INLINE {
      const Point<V> at = column.point(p, used);
      // Lanes that are not used have a gradient of 0, and finite numbers elsewhere.
      const V through = column.through_activation(at);
      g[k] += through;
      g_x_hat[k] += through * at.x_hat;
      if constexpr (std::is_same_v<Activation, Prelu>) slope[k] += at.u > 0 ? V{} : at.grad * at.u;
    });
    const auto add = [slot](Accumulator<T>* to, const V(&parts)[4]) {
      store(to + slot, load(to + slot, All{}) + ((parts[0] + parts[1]) + (parts[2] + parts[3])), All{});
    };
    add(sums.g, g);
    add(sums.g_x_hat, g_x_hat);
    if constexpr (std::is_same_v<Activation, Prelu>) add(sums.slope, slope);
  });
}

// Write the gradients of positions that follow each other.
template <class T, class G, class Activation>
void gradient_row(const Cut& cut, int64_t count, const BackwardRow<T, G>& row, const Normalised<Accumulator<T>>& norm,
                  const Gradient<Accumulator<T>>& gradient) {
  using V = Vector<Accumulator<T>>;
  each_column(cut, [&](int64_t slot, auto column_lanes) {
    const Column<T, G, Activation> column(row, norm, slot);
    const V scale = load(gradient.scale + slot, All{}), through = load(gradient.through + slot, All{}),
            mean = load(gradient.mean + slot, All{});
    each_vector(cut, count, column_lanes, [&](int, int64_t p, auto used) VOLOGAN_INLINE {
      const Point<V> at = column.point(p, used);
      const V g = column.through_activation(at);
      const int64_t offset = slot + p * row.dx_pixel;
      if (row.d_residual != nullptr) store(row.d_residual + offset, g, used);
      store(row.dx + offset, (g * scale - mean) - at.x_hat * through, used);
    });
  });
}

// ---- reflection padding ---------------------------------------------------------------------------------------------

// Add row i of x's part of ∂L/∂y, with all that the borders show of it, to `row` (width · channels).
template <class T, class A = Accumulator<T>>
void add_reflections(const Image<const T>& grad, const Cut& cut, int64_t i, int64_t pad, A* row) {
  const int64_t width = cut.width, channels = cut.channels, padded_width = width + 2 * pad;
  const auto add_pixel = [&](const T* from, int64_t to) {
    for (int64_t c = 0; c < channels; ++c) row[to * channels + c] += static_cast<A>(number(from[c]));
  };
  each_reflection(i, cut.height, pad, [&](int64_t padded_row) {
    const auto at = [&](int64_t column) { return grad.at(padded_row * padded_width + column); };
    if (grad.pixel == channels) {
      const T* from = at(pad);
      const int64_t count = width * channels, whole = count / kLanes<A> * kLanes<A>;
      for (int64_t k = 0; k < whole; k += kLanes<A>) store(row + k, load(row + k, All{}) + load(from + k, All{}), All{});
      for (int64_t k = whole; k < count; ++k) row[k] += static_cast<A>(number(from[k]));
    } else {
      for (int64_t j = 0; j < width; ++j) add_pixel(at(pad + j), j);
    }
    for (int64_t j = 1; j <= pad; ++j) {
      add_pixel(at(pad - j), j);
      add_pixel(at(pad + width - 1 + j), width - 1 - j);
    }
  });
}

// ---- an image -------------------------------------------------------------------------------------------------------

template <class T>
class Backward {
 public:
  using A = Accumulator<T>;

  Backward(const VologanBackward& call, double* plane_sums)
      : call_(call), norm_(call.norm), plane_sums_(plane_sums) {
    const int64_t channels = norm_.channels_last ? norm_.c : 1;
    bool dense = true;
    for (const VologanView* view : {&call.grad, &call.saved, &call.residual, &call.dx, &call.d_residual}) {
      dense = dense && (view->data == nullptr || view->p == channels);
    }
    cut_ = cut_of(norm_, kLanes<A>, dense, norm_.pad > 0);
    with_activation(norm_.activation, [this](auto f) {
      using F = decltype(f);
      direct_ = {&sum_row<T, T, F>, &gradient_row<T, T, F>};
      reflected_ = {&sum_row<T, A, F>, &gradient_row<T, A, F>};
    });
  }

  const Cut& cut() const { return cut_; }

  int64_t scratch_numbers() const {
    const int64_t row = norm_.pad > 0 ? cut_.width * cut_.channels : 0;
    return (3 * cut_.parts + 9) * cut_.slots + row * cut_.parts;
  }

  template <class Each>
  void image(int64_t image, const Scratch<A>& scratch, const Each& each) const {
    A* next = scratch.numbers;
    const auto take = [&] { return std::exchange(next, next + cut_.slots); };
    Normalised<A> norm{take(), take(), take(), take(), take(), take(), call_.from_output != 0};
    const Gradient<A> gradient{take(), take(), take()};
    A* parts = std::exchange(next, next + 3 * cut_.parts * cut_.slots);
    A* rows = next;
    prepare(image, norm);
    for (int64_t k = 0; k < 3 * cut_.parts * cut_.slots; ++k) parts[k] = 0;

    each(cut_.parts, [&](int64_t part) {
      A* g = parts + 3 * part * cut_.slots;
      const Sums<A> sums{g, g + cut_.slots, g + 2 * cut_.slots};
      each_row(image, part, rows, [&](auto rows_of, int64_t count, const auto& row) {
        rows_of.sum(cut_, count, row, norm, sums);
      });
    });
    merge(image, parts, norm, gradient);
    // Backwards, because the caches hold what was read last.
    each(cut_.parts, [&](int64_t part) {
      each_row(image, cut_.parts - 1 - part, rows, [&](auto rows_of, int64_t count, const auto& row) {
        rows_of.gradient(cut_, count, row, norm, gradient);
      });
    });
  }

 private:
  template <class G>
  struct RowKernels {
    void (*sum)(const Cut&, int64_t, const BackwardRow<T, G>&, const Normalised<A>&, const Sums<A>&);
    void (*gradient)(const Cut&, int64_t, const BackwardRow<T, G>&, const Normalised<A>&, const Gradient<A>&);
  };

  void prepare(int64_t image, const Normalised<A>& norm) const {
    const Parameters<A> parameters(norm_);
    for (int64_t s = 0; s < cut_.slots; ++s) {
      const bool used = s < cut_.used_slots();
      const int64_t plane = image * cut_.channels + (used ? cut_.channel(s) : 0), channel = plane % norm_.c;
      norm.gamma[s] = parameters.gamma(channel);
      norm.beta[s] = parameters.beta(channel);
      norm.slope[s] = parameters.slope(channel);
      norm.inverse_slope[s] = 1 / norm.slope[s];
      norm.centre[s] = norm.from_output ? norm.beta[s] : static_cast<const A*>(norm_.mean)[plane];
      norm.factor[s] = norm.from_output ? 1 / norm.gamma[s] : static_cast<const A*>(norm_.rstd)[plane];
    }
  }

  // Call f(kernels, count, row) for the rows of a part. Without padding, all positions of a part are one row.
  template <class F>
  void each_row(int64_t image, int64_t part, A* rows, const F& f) const {
    const auto grad = image_of<const T>(call_.grad, norm_, image), saved = image_of<const T>(call_.saved, norm_, image),
               residual = image_of<const T>(call_.residual, norm_, image);
    const auto dx = image_of<T>(call_.dx, norm_, image), d_residual = image_of<T>(call_.d_residual, norm_, image);
    const int64_t first = part * cut_.part_pixels, count = cut_.pixels_of(part), pad = norm_.pad;
    const auto row_from = [&]<class G>(int64_t position, const G* from, int64_t grad_pixel) -> BackwardRow<T, G> {
      const int64_t i = position / norm_.w;
      const int64_t saved_at =
          call_.from_output && pad > 0 ? (i + pad) * (norm_.w + 2 * pad) + pad + position % norm_.w : position;
      return {from,       saved.at(saved_at), residual.at(position), dx.at(position), d_residual.at(position),
              grad_pixel, saved.pixel,        residual.pixel,        dx.pixel};
    };
    if (pad == 0) {
      f(direct_, count, row_from(first, grad.at(first), grad.pixel));
      return;
    }
    const int64_t row_numbers = norm_.w * cut_.channels;
    A* row = rows + part * row_numbers;
    for (int64_t position = first; position < first + count; position += norm_.w) {
      for (int64_t k = 0; k < row_numbers; ++k) row[k] = 0;
      add_reflections(grad, cut_, position / norm_.w, pad, row);
      f(reflected_, norm_.w, row_from(position, static_cast<const A*>(row), cut_.channels));
    }
  }

  void merge(int64_t image, const A* parts, const Normalised<A>& norm, const Gradient<A>& gradient) const {
    const int64_t planes = norm_.n * norm_.c;
    double* sums = plane_sums_ + image * cut_.channels;
    for (int64_t part = 0; part < cut_.parts; ++part) {
      for (int64_t kind = 0; kind < 3; ++kind) {
        const A* of_part = parts + (3 * part + kind) * cut_.slots;
        for (int64_t s = 0; s < cut_.used_slots(); ++s) sums[kind * planes + cut_.channel(s)] += double{of_part[s]};
      }
    }
    const double pixels = static_cast<double>(cut_.pixels());
    for (int64_t s = 0; s < cut_.slots; ++s) {
      const int64_t c = s < cut_.used_slots() ? cut_.channel(s) : 0;
      const double scale =
          double{norm.gamma[s]} * double{static_cast<const A*>(norm_.rstd)[image * cut_.channels + c]};
      gradient.scale[s] = static_cast<A>(scale);
      gradient.mean[s] = static_cast<A>(sums[c] / pixels * scale);
      gradient.through[s] = static_cast<A>(sums[planes + c] / pixels * scale);
    }
  }

  const VologanBackward& call_;
  const VologanNorm& norm_;
  double* plane_sums_;  // (3, N, C), 0 at first: the sums of g, g · x̂ and of the slope
  Cut cut_;
  RowKernels<T> direct_;
  RowKernels<A> reflected_;
};

}  // namespace vologan::VOLOGAN_LEVEL
