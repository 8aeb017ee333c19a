// The activations y = f(u), their derivatives, and the functions behind them. `activations.py` has the same formulas.

#pragma once

#include "vectors.h"

namespace vologan::VOLOGAN_LEVEL {

// ---- functions ------------------------------------------------------------------------------------------------------

// Call a function of the C library for each lane. float64 is for checks, so it need not be fast.
template <class F>
inline Doubles by_lane(const Doubles& x, F f) {
  Doubles y;
  for (int64_t i = 0; i < kLanes<double>; ++i) y[i] = f(x[i]);
  return y;
}

struct Exponential {
  Floats power;      // 2^n, where n is x / ln 2, rounded
  Floats remainder;  // e^r - 1, where r = x - n ln 2
};

// e^x = power · (1 + remainder) for x between the bounds, so that the power is a normal number. A NaN stays one. The
// series is Taylor's: for |r| <= ln 2 / 2, its error is below 1e-8.
constexpr float kLeastExponent = -87.0f, kLargestExponent = 88.0f;
inline Exponential exponential(const Floats& x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: what is added to it loses its fraction
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  const UnsignedWords exponent = ((UnsignedWords)shifted - (UnsignedWords)broadcast(kRound)) << 23;
  return {(Floats)((UnsignedWords)broadcast(1.0f) + exponent), p * r * r + r};
}

// Beyond the bounds it is 0 and infinity, because it may be multiplied with a number that is as large.
inline Floats exp(const Floats& x) {
  const Exponential e = exponential(x);
  const Floats y = e.power + e.power * e.remainder;
  return x < kLeastExponent ? Floats{} : x > kLargestExponent ? broadcast(INFINITY) : y;
}
// Beyond the bounds it stays what it is there.
inline Floats expm1(Floats x) {
  x = x < kLeastExponent ? broadcast(kLeastExponent) : x;
  x = x > kLargestExponent ? broadcast(kLargestExponent) : x;
  const Exponential e = exponential(x);
  return e.power * e.remainder + (e.power - 1.0f);
}
inline Floats tanh(const Floats& x) {
  const Floats e = expm1(x + x);
  return e / (e + 2.0f);
}

inline Doubles exp(const Doubles& x) {
  return by_lane(x, [](double v) { return std::exp(v); });
}
inline Doubles expm1(const Doubles& x) {
  return by_lane(x, [](double v) { return std::expm1(v); });
}
inline Doubles tanh(const Doubles& x) {
  return by_lane(x, [](double v) { return std::tanh(v); });
}

template <class V>
struct Normal {
  V below;    // Φ(u), the share of a standard normal distribution below u
  V density;  // φ(u)
};

constexpr float kDensityAt0 = 0.39894228f;  // 1 / √(2π)

// Φ(u) from erfc(x) = t · P(t) · exp(-x²) with t = 1 / (1 + 0.45 x) and x = |u| / √2. P was fitted to mpmath's erfc by
// least squares, reweighted until the largest error of erfc was 1e-9.
inline Normal<Floats> normal(const Floats& u) {
  const Floats x = (u < 0.0f ? -u : u) * 0.70710678f;
  const Floats bell = exp(u * u * -0.5f);
  const Floats t = 1.0f / (x * 0.45f + 1.0f);
  Floats p = t * 0.09256982803344727f + -0.4941052198410034f;
  p = p * t + 0.857169508934021f;
  p = p * t + -0.375804603099823f;
  p = p * t + 0.4601716697216034f;
  p = p * t + 0.20100906491279602f;
  p = p * t + 0.25898972153663635f;
  const Floats tail = p * t * bell * 0.5f;  // Φ(-|u|)
  return {u < 0.0f ? tail : 1.0f - tail, bell * kDensityAt0};
}

inline Normal<Doubles> normal(const Doubles& u) {
  return {by_lane(u, [](double v) { return 0.5 * std::erfc(-v * 0.70710678118654752); }),
          by_lane(u, [](double v) { return 0.39894228040143268 * std::exp(-0.5 * v * v); })};
}

// ---- activations ----------------------------------------------------------------------------------------------------

// value(u, slope) is f(u), and gradient(grad, u, slope) is f'(u) · grad. The slope is for leaky_relu and prelu.
// inverse(y, 1 / slope) is u, where the backward may be given y instead of x.

struct Identity {
  static constexpr bool kInvertible = true;
  template <class V>
  static V inverse(const V& y, const V&) {
    return y;
  }
  template <class V>
  static V value(const V& u, const V&) {
    return u;
  }
  template <class V>
  static V gradient(const V& grad, const V&, const V&) {
    return grad;
  }
};

struct Relu {
  static constexpr bool kInvertible = false;
  template <class V>
  static V value(const V& u, const V&) {
    return u <= 0 ? V{} : u;  // a NaN stays one
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V&) {
    return u <= 0 ? V{} : grad;
  }
};

struct Leaky {
  static constexpr bool kInvertible = true;
  template <class V>
  static V inverse(const V& y, const V& inverse_slope) {
    return y > 0 ? y : y * inverse_slope;
  }
  template <class V>
  static V value(const V& u, const V& slope) {
    return u > 0 ? u : u * slope;
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V& slope) {
    return u > 0 ? grad : grad * slope;
  }
};

struct Prelu : Leaky {
  static constexpr bool kInvertible = false;  // its slopes may become 0 in training
};

struct Silu {
  static constexpr bool kInvertible = false;
  template <class V>
  static V value(const V& u, const V&) {
    return u / (exp(-u) + 1);
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V&) {
    const V sigmoid = 1 / (exp(-u) + 1);
    return grad * sigmoid * (1 + u * (1 - sigmoid));
  }
};

struct Gelu {
  static constexpr bool kInvertible = false;
  template <class V>
  static V value(const V& u, const V&) {
    return u * normal(u).below;
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V&) {
    const Normal<V> n = normal(u);
    return grad * (n.below + u * n.density);
  }
};

struct Elu {
  static constexpr bool kInvertible = false;
  template <class V>
  static V value(const V& u, const V&) {
    return u > 0 ? u : expm1(u);
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V&) {
    return u > 0 ? grad : grad * exp(u);
  }
};

struct Tanh {
  static constexpr bool kInvertible = false;
  template <class V>
  static V value(const V& u, const V&) {
    return tanh(u);
  }
  template <class V>
  static V gradient(const V& grad, const V& u, const V&) {
    const V y = tanh(u);
    return grad * (1 - y * y);
  }
};

}  // namespace vologan::VOLOGAN_LEVEL
