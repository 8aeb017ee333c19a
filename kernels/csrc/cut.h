// How images are cut: into parts that stay in the first cache, and parts into vectors.
//
// Both layouts are one case. In a contiguous tensor, each plane is an image of one channel. In a channels_last tensor,
// each sample is an image of C channels, which lie side by side at each position.
//
// A vector has a slot for each of its lanes, and a slot belongs to one channel. If a position has more channels than a
// vector has lanes, several vectors in a row are its columns, and each has slots of its own. If it has fewer, a vector
// holds `fold` positions, so several slots belong to one channel.

#pragma once

#include "vectors.h"

#include "norm.h"

namespace vologan::VOLOGAN_LEVEL {

#define VOLOGAN_INLINE __attribute__((always_inline))

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Cut {
  int64_t lanes;
  int64_t images, channels;  // channels of one image
  int64_t height, width;
  int64_t fold, columns, slots;
  int64_t part_pixels, parts;

  int64_t pixels() const { return height * width; }
  int64_t pixels_of(int64_t part) const { return smaller(part_pixels, pixels() - part * part_pixels); }
  // Slots behind these are lanes without a channel.
  int64_t used_slots() const { return channels < lanes ? fold * channels : channels; }
};

// How many of `count` positions each slot gets.
struct Share {
  int64_t whole;  // positions of each slot
  int64_t more;   // slots below this one get one more

  Share(const Cut& cut, int64_t count) : whole(count / cut.fold), more(count % cut.fold * cut.channels) {}
  int64_t operator[](int64_t slot) const { return whole + (slot < more ? 1 : 0); }
};

// The shares of one column of slots, in the last part and in all others.
template <class A>
struct ColumnShares {
  double whole[kLanes<A>], last[kLanes<A>];

  ColumnShares(const Cut& cut, int64_t column) {
    const Share of_whole(cut, cut.part_pixels), of_last(cut, cut.pixels_of(cut.parts - 1));
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      whole[i] = static_cast<double>(of_whole[column + i]);
      last[i] = static_cast<double>(of_last[column + i]);
    }
  }
};

// Call f(slot, channel) for each slot of an image that has a channel.
template <class F>
VOLOGAN_INLINE inline void each_slot(const Cut& cut, const F& f) {
  const int64_t used = cut.used_slots();
  for (int64_t first = 0; first < used; first += cut.channels) {
    for (int64_t c = 0; c < cut.channels; ++c) f(first + c, c);
  }
}

// Numbers that a part may have. With float32, it fills a first cache of 32 KiB. Smaller parts have more to merge.
constexpr int64_t kPartNumbers = 8192;

inline Cut cut_of(const VologanNorm& norm, int64_t lanes, bool dense, bool by_rows) {
  Cut cut{};
  cut.lanes = lanes;
  cut.images = norm.channels_last ? norm.n : norm.n * norm.c;
  cut.channels = norm.channels_last ? norm.c : 1;
  cut.height = norm.h;
  cut.width = norm.w;
  cut.fold = cut.channels < lanes && dense ? lanes / cut.channels : 1;
  cut.columns = (cut.channels + lanes - 1) / lanes;
  cut.slots = cut.columns * lanes;
  const int64_t wanted = larger(kPartNumbers / cut.channels, 64);
  cut.part_pixels = by_rows ? larger(wanted / norm.w, 1) * norm.w : larger(wanted / cut.fold, 1) * cut.fold;
  cut.parts = (cut.pixels() + cut.part_pixels - 1) / cut.part_pixels;
  return cut;
}

// One image of a tensor.
template <class T>
struct Image {
  T* data;
  int64_t pixel;  // distance between positions

  T* at(int64_t position) const { return data + position * pixel; }
};

template <class T>
inline Image<T> image_of(const VologanView& view, const VologanNorm& norm, int64_t image) {
  if (view.data == nullptr) return {nullptr, 0};
  const int64_t offset = norm.channels_last ? image * view.n : image / norm.c * view.n + image % norm.c * view.c;
  return {static_cast<T*>(view.data) + offset, view.p};
}

// Columns that are read together, so that a part is read in the order of its addresses.
template <int kCount>
struct Columns {
  static constexpr int count = kCount;
  static constexpr int chains = kCount < 4 ? 4 : kCount;  // sums that do not wait for each other
};

// Call f(first slot, used lanes, columns) for all columns. A is the type of the accumulators.
template <class A, class F>
VOLOGAN_INLINE inline void each_column(const Cut& cut, const F& f) {
  const int64_t used = cut.used_slots();
  int64_t slot = 0;
  const auto whole = [&](auto columns) VOLOGAN_INLINE {
    const int64_t width = columns.count * cut.lanes;
    for (; slot + width <= used; slot += width) f(slot, All{}, columns);
  };
  // As many together as there are registers for. float64 is for checks, and need not be fast.
  if constexpr (sizeof(A) == 4 && VOLOGAN_VECTOR_BYTES == 64) {
    whole(Columns<8>{});
    whole(Columns<4>{});
    whole(Columns<2>{});
  } else if constexpr (sizeof(A) == 4) {
    whole(Columns<4>{});
  }
  whole(Columns<1>{});
  if (slot < used) f(slot, First{used - slot}, Columns<1>{});
}

// Call f(chain, column, position, used lanes) for each vector, where `positions` positions follow each other.
template <class Used, class C, class F>
VOLOGAN_INLINE inline void each_vector(const Cut& cut, int64_t positions, Used used, C, const F& f) {
  constexpr int kPositions = C::chains / C::count;  // that are read together
  const int64_t fold = cut.fold;
  int64_t p = 0;
  for (; p + kPositions * fold <= positions; p += kPositions * fold) {
#pragma GCC unroll 8
    for (int k = 0; k < C::chains; ++k) f(k, k % C::count, p + k / C::count * fold, used);
  }
  for (; p + fold <= positions; p += fold) {
#pragma GCC unroll 8
    for (int k = 0; k < C::count; ++k) f(k, k, p, used);
  }
  if (p < positions) f(0, 0, p, First{(positions - p) * cut.channels});
}

// The sum of one column, from the sums of all chains.
template <class V, int kChains, class C>
VOLOGAN_INLINE inline V total(const V (&sums)[kChains], C, int column) {
  static_assert(kChains == C::chains);
  if constexpr (C::count == 1) return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  V sum = sums[column];
  for (int k = column + C::count; k < kChains; k += C::count) sum += sums[k];
  return sum;
}

// A vector for each column, from numbers of each slot.
template <class A, class C>
struct OfColumns {
  Vector<A> of[C::count];

  OfColumns(const A* from, C) {
#pragma GCC unroll 8
    for (int j = 0; j < C::count; ++j) of[j] = load(from + j * kLanes<A>, All{});
  }
  const Vector<A>& operator[](int column) const { return of[column]; }
};

// Which positions a reflected one stands for: call f(padded index) for each index of [0, size + 2 pad) that shows `i`.
template <class F>
inline void each_reflection(int64_t i, int64_t size, int64_t pad, const F& f) {
  f(i + pad);
  if (1 <= i && i <= pad) f(pad - i);
  const int64_t from_end = size - 1 - i;
  if (1 <= from_end && from_end <= pad) f(pad + size - 1 + from_end);
}

}  // namespace vologan::VOLOGAN_LEVEL
