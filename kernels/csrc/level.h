// One level: all kernels, compiled for one instruction set.

#pragma once

#include "nadam.h"
#include "norm.h"
#include "winograd.h"

namespace vologan {

struct Level {
  const char* name;
  int (*forward)(const VologanForward&);
  int (*backward)(const VologanBackward&);
  int (*nadam)(const VologanNAdamRow* rows, int64_t count, int64_t type, int64_t threads);
  void (*winograd_gather)(const VologanWinograd&);
  void (*winograd_scatter)(const VologanWinograd&);
};

}  // namespace vologan
