// The update of NAdam: one pass, which reads θ, g, m and v and writes θ, m and v.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>

#include "nadam.h"
#include "threads.h"
#include "vectors.h"

namespace vologan::VOLOGAN_LEVEL {

// The numbers of a parameter's step. Those that depend on t are computed in float64.
template <class A>
struct NAdamNumbers {
  A sign, decay, beta1, beta2, rest1, rest2, eps;
  A shrink;         // 1 − ηλ of the decoupled decay
  A scale;          // 1 / √(1 − β₂^t)
  A grad_factor;    // −η (1 − μ_t) / (1 − Π)
  A moment_factor;  // −η μ_{t+1} / (1 − Π μ_{t+1})
  float steps, product;

  void compute(const VologanNAdamRow& row) {
    const double rate = row.rate == nullptr ? row.rate_number : *row.rate;
    steps = *row.steps + 1;
    const double t = steps;
    const double mu = row.beta1 * (1 - 0.5 * std::exp(t * row.log_decay));
    const double mu_next = row.beta1 * (1 - 0.5 * std::exp((t + 1) * row.log_decay));
    product = *row.product * static_cast<float>(mu);
    const double all = product;
    sign = static_cast<A>(row.sign);
    decay = static_cast<A>(row.decay);
    beta1 = static_cast<A>(row.beta1);
    beta2 = static_cast<A>(row.beta2);
    rest1 = static_cast<A>(1 - row.beta1);
    rest2 = static_cast<A>(1 - row.beta2);
    eps = static_cast<A>(row.eps);
    shrink = static_cast<A>(1 - rate * row.decoupled);
    scale = static_cast<A>(1 / std::sqrt(1 - std::exp(t * row.log_beta2)));
    grad_factor = static_cast<A>(-rate * (1 - mu) / (1 - all));
    moment_factor = static_cast<A>(-rate * mu_next / (1 - all * mu_next));
  }
};

template <class T>
struct NAdam {
  using A = Accumulator<T>;

  // A thread takes whole pieces, so the threads change no bit. A piece has 4 · 16 KB in float32, which fits the L1 and
  // L2 caches beside those of a thread that shares the core.
  static constexpr int64_t kPiece = 4096;

  static int64_t pieces(const VologanNAdamRow& row) { return (row.numbers + kPiece - 1) / kPiece; }

  // Whether two parameters share numbers, as two views of one tensor do. No: also if there is no memory to find out.
  static bool any_overlap(const VologanNAdamRow* rows, int64_t count) {
    const std::unique_ptr<const VologanNAdamRow*[]> sorted(new (std::nothrow) const VologanNAdamRow*[count]);
    if (sorted == nullptr) return false;
    for (int64_t i = 0; i < count; ++i) sorted[i] = rows + i;
    const auto start = [](const VologanNAdamRow* row) { return static_cast<const T*>(row->parameter); };
    std::sort(sorted.get(), sorted.get() + count,
              [&](const auto* a, const auto* b) { return std::less<const T*>{}(start(a), start(b)); });
    const T* end = nullptr;
    for (int64_t i = 0; i < count; ++i) {
      if (sorted[i]->numbers == 0) continue;
      if (end != nullptr && std::less<const T*>{}(start(sorted[i]), end)) return true;
      end = start(sorted[i]) + sorted[i]->numbers;
    }
    return false;
  }

  template <class Used>
  static void update(const VologanNAdamRow& row, const NAdamNumbers<A>& k, int64_t first, Used used) {
    T* const parameter = static_cast<T*>(row.parameter) + first;
    T* const moment = static_cast<T*>(row.moment) + first;
    T* const square = static_cast<T*>(row.square) + first;
    Vector<A> theta = load(parameter, used);
    Vector<A> g = load(static_cast<const T*>(row.grad) + first, used) * k.sign;
    if (k.decay != 0) g += theta * k.decay;
    const Vector<A> m = load(moment, used) * k.beta1 + g * k.rest1;
    const Vector<A> v = load(square, used) * k.beta2 + g * g * k.rest2;
    theta = theta * k.shrink + (k.grad_factor * g + k.moment_factor * m) / (root(v) * k.scale + k.eps);
    store(parameter, theta, used);
    store(moment, m, used);
    store(square, v, used);
  }

  static void update_piece(const VologanNAdamRow& row, const NAdamNumbers<A>& k, int64_t first) {
    const int64_t end = first + kPiece < row.numbers ? first + kPiece : row.numbers;
    int64_t i = first;
    for (; i + kLanes<A> <= end; i += kLanes<A>) update(row, k, i, All{});
    if (i < end) update(row, k, i, First{end - i});
  }

  static int step(const VologanNAdamRow* rows, int64_t count, int64_t threads) {
    const std::unique_ptr<NAdamNumbers<A>[]> numbers(new (std::nothrow) NAdamNumbers<A>[count]);
    if (numbers == nullptr) return 1;
    struct Work {
      const VologanNAdamRow* rows;
      const NAdamNumbers<A>* numbers;
      int64_t count;
    } work{rows, numbers.get(), count};
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
      numbers[i].compute(rows[i]);
      total += pieces(rows[i]);
    }
    const auto range = [](void* context, int64_t, int64_t begin, int64_t end) {
      const Work& w = *static_cast<const Work*>(context);
      int64_t before = 0;  // pieces of the rows before this one
      for (int64_t i = 0; i < w.count && before < end; ++i) {
        const int64_t here = pieces(w.rows[i]);
        const int64_t last = end - before < here ? end - before : here;
        for (int64_t piece = begin > before ? begin - before : 0; piece < last; ++piece) {
          update_piece(w.rows[i], w.numbers[i], piece * kPiece);
        }
        before += here;
      }
    };
    // One thread takes the rows in their order. So such parameters are updated one after the other, as by torch.
    if (threads > 1 && any_overlap(rows, count)) threads = 1;
    share(threads, total, range, &work);
    for (int64_t i = 0; i < count; ++i) {
      *rows[i].steps = numbers[i].steps;
      *rows[i].product = numbers[i].product;
    }
    return 0;
  }
};

}  // namespace vologan::VOLOGAN_LEVEL
