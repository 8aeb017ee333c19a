// NAdam on the CPU. `vologan_kernels/nadam/native.py` calls it by ctypes. The docstring of `vologan_kernels/nadam`
// states the mathematics.

#pragma once

#include <cstdint>

#include "library.h"

#pragma GCC visibility push(default)

extern "C" {

// A parameter, with the columns of `vologan_kernels/nadam/rows.py`. Its four tensors are dense and lie alike.
struct VologanNAdamRow {
  void* parameter;
  const void* grad;
  void *moment, *square;   // m, v
  float *steps, *product;  // t, Π: one number each
  int64_t numbers;         // elements of the parameter
  const float* rate;       // η; null: it is rate_number
  double rate_number;
  double log_decay;  // ψ ln 0.96
  double log_beta2;  // ln β₂
  double sign;       // −1 to maximize, else 1
  double decay;      // λ
  double decoupled;  // λ of the decoupled decay
  double beta1, beta2, eps;
};

// Update `count` parameters of one type, t and Π included. Returns 0, or 1 if there is no memory for the coefficients;
// then nothing was changed.
int vologan_nadam(const VologanNAdamRow* rows, int64_t count, int64_t type, int64_t threads);
}

#pragma GCC visibility pop
