// The parameters of a channel, and the choice of an activation.

#pragma once

#include "activations.h"
#include "norm.h"

namespace vologan::VOLOGAN_LEVEL {

template <class A>
class Parameters {
 public:
  // Of the channels of one image. In a contiguous tensor, an image is a plane.
  Parameters(const VologanNorm& norm, int64_t image) : norm_(norm), first_(norm.channels_last ? 0 : image % norm.c) {}

  // γ, at least min_scale away from 0.
  A gamma(int64_t c) const {
    const A weight = given(norm_.weight, c, 1), least = static_cast<A>(norm_.min_scale);
    if (norm_.weight == nullptr) return weight;
    if (weight < 0) return weight > -least ? -least : weight;
    return weight < least ? least : weight;  // a NaN stays one
  }
  A beta(int64_t c) const { return given(norm_.bias, c, 0); }
  A slope(int64_t c) const { return given(norm_.slope, c, norm_.negative_slope); }

 private:
  A given(const void* parameters, int64_t c, double otherwise) const {
    return parameters == nullptr ? static_cast<A>(otherwise) : static_cast<const A*>(parameters)[first_ + c];
  }

  const VologanNorm& norm_;
  const int64_t first_;
};

template <class F>
auto with_activation(int64_t activation, const F& f) {
  switch (activation) {
    case kRelu:
      return f(Relu{});
    case kLeakyRelu:
      return f(Leaky{});
    case kPrelu:
      return f(Prelu{});
    case kSilu:
      return f(Silu{});
    case kGelu:
      return f(Gelu{});
    case kElu:
      return f(Elu{});
    case kTanh:
      return f(Tanh{});
    default:
      return f(Identity{});
  }
}

}  // namespace vologan::VOLOGAN_LEVEL
