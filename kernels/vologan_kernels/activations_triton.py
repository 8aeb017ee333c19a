"""The table of `activations.py` as Triton functions. ACTIVATION is the name of one of its rows."""

import triton
import triton.language as tl


@triton.jit
def _tanh(u):
    """Cephes' rational approximation near 0 (S. Moshier, tanh.c), where the exponentials would cancel."""
    z = u * u
    p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
    q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
    e = tl.exp(-2 * tl.abs(u))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(u) < 0.625, u + u * z * p / q, tl.where(u < 0, -far, far))


@triton.jit
def _sigmoid(u):
    return 1 / (1 + tl.exp(-u))


@triton.jit
def activate(u, slope, ACTIVATION: tl.constexpr):
    """y = f(u)"""
    if ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, u)
    elif ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(u > 0, u, u * slope)
    elif ACTIVATION == "silu":
        return u * _sigmoid(u)
    elif ACTIVATION == "gelu":
        return 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "elu":  # expm1(u) = 2 tanh(u/2) / (1 − tanh(u/2))
        t = _tanh(0.5 * tl.where(u > 0, 0.0, u))
        return tl.where(u > 0, u, 2 * t / (1 - t))
    elif ACTIVATION == "tanh":
        return _tanh(u)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return u


@triton.jit
def gradient(grad, u, slope, ACTIVATION: tl.constexpr):
    """f'(u) · grad. Where torch sets 0, an infinite gradient becomes 0 too."""
    if ACTIVATION == "relu":
        return tl.where(u <= 0, 0.0, grad)
    elif ACTIVATION == "leaky_relu" or ACTIVATION == "prelu":
        return tl.where(u > 0, grad, grad * slope)
    elif ACTIVATION == "silu":
        s = _sigmoid(u)
        return grad * (s * (1 + u * (1 - s)))
    elif ACTIVATION == "gelu":
        return grad * (0.5 * (1 + tl.erf(u * 0.7071067811865476)) + u * tl.exp(-0.5 * u * u) * 0.3989422804014327)
    elif ACTIVATION == "elu":
        return grad * tl.exp(tl.where(u > 0, 0.0, u))
    elif ACTIVATION == "tanh":
        t = _tanh(u)
        return grad * (1 - t * t)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return grad


@triton.jit
def invert(y, slope, ACTIVATION: tl.constexpr):
    """u, from y = f(u)"""
    if ACTIVATION == "leaky_relu":
        return tl.where(y > 0, y, y / slope)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return y
