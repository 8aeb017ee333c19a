// The parameters of a channel, and the choice of an activation.

#pragma once

#include "activations.h"
#include "norm.h"

namespace vologan::VOLOGAN_LEVEL {

template <class A>
class Parameters {
 public:
  explicit Parameters(const VologanNorm& norm) : norm_(norm) {}

  // γ, at least min_scale away from 0.
  A gamma(int64_t channel) const {
    if (norm_.weight == nullptr) return 1;
    const A weight = static_cast<const A*>(norm_.weight)[channel], least = static_cast<A>(norm_.min_scale);
    if (weight < 0) return weight > -least ? -least : weight;
    return weight < least ? least : weight;  // a NaN stays one
  }
  A beta(int64_t channel) const { return norm_.bias == nullptr ? 0 : static_cast<const A*>(norm_.bias)[channel]; }
  A slope(int64_t channel) const {
    return norm_.slope == nullptr ? static_cast<A>(norm_.negative_slope) : static_cast<const A*>(norm_.slope)[channel];
  }

 private:
  const VologanNorm& norm_;
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
