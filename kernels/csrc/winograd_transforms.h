// The transforms of Winograd's convolution.

#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>

#include "threads.h"
#include "vectors.h"
#include "winograd.h"

namespace vologan::VOLOGAN_LEVEL {

template <size_t Rows, size_t Columns>
struct Matrix {
  float at[Rows][Columns];

  constexpr Matrix<Columns, Rows> transposed() const {
    Matrix<Columns, Rows> result{};
    for (size_t i = 0; i < Rows; ++i) {
      for (size_t j = 0; j < Columns; ++j) result.at[j][i] = at[i][j];
    }
    return result;
  }
};

// Toom and Cook's construction with the points 0, ±a, ±b and ∞. Of the points with few binary places, these give the
// smallest rounding errors, half of those with the usual ±1 and ±2 (docs/log.md). Only kKernelMatrix is rounded.
constexpr double kA = 5 / 8., kB = 3 / 2., kAA = kA * kA, kBB = kB * kB;
constexpr double kP = 1 / (2 * kAA * (kAA - kBB)), kQ = 1 / (2 * kBB * (kBB - kAA));

inline constexpr Matrix<6, 6> kImageMatrix{{{kAA * kBB, 0, -kAA - kBB, 0, 1, 0},
                                            {0, -kA * kBB, -kBB, kA, 1, 0},
                                            {0, kA * kBB, -kBB, -kA, 1, 0},
                                            {0, -kB * kAA, -kAA, kB, 1, 0},
                                            {0, kB * kAA, -kAA, -kB, 1, 0},
                                            {0, kAA * kBB, 0, -kAA - kBB, 0, 1}}};
inline constexpr Matrix<6, 4> kResultMatrix{{{1, 0, 0, 0},
                                             {1, kA, kAA, kA * kAA},
                                             {1, -kA, kAA, -kA * kAA},
                                             {1, kB, kBB, kB * kBB},
                                             {1, -kB, kBB, -kB * kBB},
                                             {0, 0, 0, 1}}};
inline constexpr Matrix<6, 3> kKernelMatrix{{{1 / (kAA * kBB), 0, 0},
                                             {kP, kP * kA, kP * kAA},
                                             {kP, -kP * kA, kP * kAA},
                                             {kQ, kQ * kB, kQ * kBB},
                                             {kQ, -kQ * kB, kQ * kBB},
                                             {0, 0, 1}}};
template <const auto& M>
inline constexpr auto kTransposed = M.transposed();

// to[i · to_step] = Σ_j M_ij from[j · from_step], without the products with 0.
template <const auto& M, size_t... I>
inline void multiply_rows(const Floats* from, int64_t from_step, Floats* to, int64_t to_step,
                          std::index_sequence<I...>) {
  const auto row = [&]<size_t Row, size_t... J>(std::index_sequence<J...>) {
    Floats sum{};
    ((M.at[Row][J] != 0 ? void(sum += M.at[Row][J] * from[J * from_step]) : void()), ...);
    return sum;
  };
  ((to[I * to_step] = row.template operator()<I>(std::make_index_sequence<std::size(M.at[0])>())), ...);
}

// M X Mᵀ of the patch X (P, P). The result is (Q, Q).
template <const auto& M>
inline void transform(const Floats* patch, Floats* result) {
  constexpr int64_t q = std::size(M.at), p = std::size(M.at[0]);
  constexpr auto all = std::make_index_sequence<q>();
  Floats half[q * p];
  for (int64_t x = 0; x < p; ++x) multiply_rows<M>(patch + x, p, half + x, p, all);
  for (int64_t y = 0; y < q; ++y) multiply_rows<M>(half + y * p, 1, result + y * q, 1, all);
}

struct Winograd {
  static constexpr int64_t kSide = 6;  // of a transformed patch
  static constexpr int64_t kStep = 4;  // between patches

  // Call f(y, x, pixel) for the pixels of a patch that are inside the image.
  template <int64_t P, class F>
  static void for_pixels(const VologanWinograd& call, int64_t row, int64_t column, const F& f) {
    float* const image = call.image + row / call.rows * call.image_stride;
    const int64_t top = row % call.rows * kStep - call.padding_rows, left = column * kStep - call.padding_columns;
    const bool whole = top >= 0 && left >= 0 && top + P <= call.h && left + P <= call.w;
    for (int64_t y = 0; y < P; ++y) {
      if (!whole && (top + y < 0 || top + y >= call.h)) continue;
      for (int64_t x = 0; x < P; ++x) {
        if (!whole && (left + x < 0 || left + x >= call.w)) continue;
        f(y, x, image + (top + y) * call.row_stride + (left + x) * call.c);
      }
    }
  }

  template <const auto& M, class Used>
  static void gather_patch(const VologanWinograd& call, int64_t row, int64_t column, int64_t channel, Used used) {
    constexpr int64_t p = std::size(M.at[0]);
    Floats patch[p * p]{}, result[kSide * kSide];
    for_pixels<p>(call, row, column,
                  [&](int64_t y, int64_t x, const float* pixel) { patch[y * p + x] = load(pixel + channel, used); });
    transform<M>(patch, result);
    float* const to = call.transformed + ((row - call.first) * call.columns + column) * call.c + channel;
    for (int64_t k = 0; k < kSide * kSide; ++k) store(to + k * call.plane_stride, result[k], used);
  }

  template <const auto& M, class Used>
  static void scatter_patch(const VologanWinograd& call, int64_t row, int64_t column, int64_t channel, Used used) {
    constexpr int64_t p = std::size(M.at);
    Floats transformed[kSide * kSide], patch[p * p];
    const float* const from = call.transformed + ((row - call.first) * call.columns + column) * call.c + channel;
    for (int64_t k = 0; k < kSide * kSide; ++k) transformed[k] = load(from + k * call.plane_stride, used);
    transform<M>(transformed, patch);
    const Floats bias = call.bias == nullptr ? Floats{} : load(call.bias + channel, used);
    for_pixels<p>(call, row, column, [&](int64_t y, int64_t x, float* pixel) {
      const Floats before = p > kStep ? load(pixel + channel, used) : bias;
      store(pixel + channel, patch[y * p + x] + before, used);
    });
  }

  // Call f(row, column, channel, used) for all vectors of the rows of patches. With a step of 2, first for the even
  // rows of each image and then for the odd ones, so that no two threads add to the same pixel.
  template <class F>
  static void for_patches(const VologanWinograd& call, int64_t step, const F& f) {
    struct Work {
      const VologanWinograd& call;
      const F& f;
      int64_t step, rest;
    };
    const auto rows = [](void* context, int64_t, int64_t begin, int64_t end) {
      const Work& work = *static_cast<const Work*>(context);
      const VologanWinograd& call = work.call;
      for (int64_t row = call.first + begin; row < call.first + end; ++row) {
        if (row % call.rows % work.step != work.rest) continue;
        for (int64_t column = 0; column < call.columns; ++column) {
          int64_t channel = 0;
          for (; channel + kLanes<float> <= call.c; channel += kLanes<float>) work.f(row, column, channel, All{});
          if (channel < call.c) work.f(row, column, channel, First{call.c - channel});
        }
      }
    };
    for (int64_t rest = 0; rest < step; ++rest) {
      Work work{call, f, step, rest};
      share(call.threads, call.count, rows, &work);
    }
  }

  template <const auto& M>
  static void gather(const VologanWinograd& call) {
    for_patches(call, 1, [&](int64_t row, int64_t column, int64_t channel, auto used) {
      gather_patch<M>(call, row, column, channel, used);
    });
  }

  template <const auto& M>
  static void scatter(const VologanWinograd& call) {
    constexpr bool overlap = std::size(M.at) > kStep;
    for_patches(call, overlap ? 2 : 1, [&](int64_t row, int64_t column, int64_t channel, auto used) {
      scatter_patch<M>(call, row, column, channel, used);
    });
  }
};

}  // namespace vologan::VOLOGAN_LEVEL
