// One level: all kernels, compiled for one instruction set.

#pragma once

#include "norm.h"

namespace vologan {

struct Level {
  const char* name;
  int (*forward)(const VologanForward&);
  int (*backward)(const VologanBackward&);
};

}  // namespace vologan
