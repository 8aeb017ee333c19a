// Memory for the sums of one image.

#pragma once

#include <cstdint>
#include <cstdlib>

#include "vectors.h"

namespace vologan::VOLOGAN_LEVEL {

template <class A>
struct Scratch {
  A* numbers = nullptr;
  double* sums = nullptr;

  Scratch(int64_t count_numbers, int64_t count_sums)
      : numbers(static_cast<A*>(std::malloc(count_numbers * sizeof(A)))),
        sums(static_cast<double*>(std::malloc(count_sums * sizeof(double)))) {}
  ~Scratch() {
    std::free(numbers);
    std::free(sums);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool complete() const { return numbers != nullptr && sums != nullptr; }
};

}  // namespace vologan::VOLOGAN_LEVEL
