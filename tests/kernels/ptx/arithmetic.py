"""What the instructions compute: functions of numpy arrays, one element a thread.

A register holds bits. `decode` makes numbers of them, by the type in an opcode, and `encode` makes bits again. bfloat16
has no numpy type: its numbers are float32. Approximate instructions (div.full, ex2.approx, …) have
numpy's result, or one that is off by up to as many ulps as the PTX ISA allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # np.ndarray; also a numpy scalar, for an immediate operand
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


class Type(NamedTuple):
    """A type in an opcode."""

    kind: str  # of b, u, s, f, bf, p
    bits: int  # of one element
    count: int = 1  # 2 for two elements in one register

    @property
    def storage(self) -> Any:
        """The unsigned type of a register that holds it."""
        return np.bool_ if self.kind == "p" else UNSIGNED[self.bits * self.count]


def type_of(name: str) -> Type:
    """The type that a part of an opcode names. Raises KeyError if it names none."""
    if name == "pred":
        return Type("p", 1)
    found = re.fullmatch(r"(b|u|s|f|bf)(8|16|32|64)(x2)?", name)
    if found is None:
        raise KeyError(name)
    return Type(found[1], int(found[2]), 2 if found[3] else 1)


def decode(bits: Array, of: Type) -> Array:
    """The numbers in a register. Two in one register are a row of two."""
    if of.count == 2:
        return decode(np.atleast_1d(bits).view(UNSIGNED[of.bits]).reshape(-1, 2), of._replace(count=1))
    if of.kind == "bf":
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if of.kind == "f":
        return bits.view(FLOAT[of.bits])
    if of.kind == "s":
        return bits.view(SIGNED[of.bits])
    return bits if of.kind == "p" else bits.view(UNSIGNED[of.bits])


def encode(numbers: Array, of: Type) -> Array:
    """Bits, of numbers that `decode` would find in them; rounded to the nearest."""
    if of.count == 2:
        return np.ascontiguousarray(encode(numbers, of._replace(count=1))).view(of.storage)[:, 0]
    if of.kind == "bf":
        return round_to_bfloat16(numbers)
    if of.kind == "f" and numbers.dtype != FLOAT[of.bits]:
        return numbers.astype(FLOAT[of.bits])
    return numbers


def round_to_bfloat16(numbers: Array) -> Array:
    """To the nearest, ties to even."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), rounded.astype(np.uint16))


def fused(a: Array, b: Array, c: Array) -> Array:
    """a · b + c, rounded once (T. J. Dekker, 1971; in rare cases of float64, twice)."""
    if a.dtype != np.float64:
        return (a.astype(np.float64) * b + c).astype(a.dtype)
    product = a * b
    high_a, high_b = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))  # Veltkamp's splitting: 26 bits each
    low_a, low_b = a - high_a, b - high_b
    of_product = low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)
    total = product + c
    back = total - product
    of_total = (product - (total - back)) + (c - back)
    exact = total + (of_product + of_total)
    return np.where(np.isfinite(exact), exact, total)


def high_half(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers."""
    if a.dtype.itemsize < 8:
        wide = {np.dtype(np.int32): np.int64, np.dtype(np.uint32): np.uint64}[a.dtype]
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    upper = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & low)) >> half)
    if a.dtype == np.int64:
        upper = upper - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return upper.view(a.dtype)


def quotient(a: Array, b: Array) -> Array:
    """a / b, rounded towards zero. Integers by 0 give what they may: the caller refuses them where it matters."""
    if a.dtype.kind == "f":
        return a / b
    divisor = np.where(b == 0, np.ones_like(b), b)
    floor = a // divisor
    return floor + ((a - floor * divisor != 0) & ((a < 0) != (divisor < 0))).astype(a.dtype)


def shifted_left(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0))


def shifted_right(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    least = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return least if a.dtype.kind == "i" else np.where(by < bits, least, a.dtype.type(0))


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """prmt: each nibble of the selector picks one of eight bytes, or its sign."""
    eight = np.broadcast_arrays(*[(x >> np.uint32(8 * i)) & np.uint32(255) for x in (a, b) for i in range(4)], selector)
    found = np.zeros_like(eight[0])
    for i in range(4):
        nibble = (eight[8] >> np.uint32(4 * i)) & np.uint32(15)
        byte = np.choose(nibble & np.uint32(7), eight[:8])
        byte = np.where(nibble & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        found = found | (byte << np.uint32(8 * i))
    return found


def field_of(a: Array, start: Array, length: Array) -> Array:
    """bfe: `length` bits from `start` on, with the sign of a signed type."""
    bits = 8 * a.dtype.itemsize
    start, length = (np.asarray(x).astype(np.int64) & 255 for x in (start, length))
    left = np.clip(bits - start - length, 0, bits)
    up = shifted_left(a, left)
    return np.where(length == 0, a.dtype.type(0), shifted_right(up, np.minimum(left + start, bits)))


def converted(x: Array, to: Type, parts: tuple[str, ...]) -> Array:
    """cvt: numbers to another type."""
    if to.kind in ("f", "bf"):
        if to.kind == "f" and x.dtype.kind == "f" and x.dtype.itemsize * 8 == to.bits:
            for rounding, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
                if rounding in parts:
                    x = function(x)
            return x
        return x.astype(np.float32) if to.kind == "bf" else x.astype(FLOAT[to.bits])
    number = (SIGNED if to.kind == "s" else UNSIGNED)[to.bits]
    if x.dtype.kind != "f":
        return x.astype(number)
    whole = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil}.get(next((p for p in parts if p in _WHOLE), ""), np.trunc)
    limits = np.iinfo(number)
    exact = np.nan_to_num(whole(x.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    inside = (exact > float(limits.min) - 1) & (exact < float(limits.max))
    ends = np.where(exact < 0, number(limits.min), number(limits.max))
    return np.where(inside, np.where(inside, exact, 0).astype(number), ends)


_WHOLE = ("rni", "rzi", "rmi", "rpi")


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: ~(a == b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}

LOGIC: dict[str, Callable[..., Array]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
}

FUNCTIONS: dict[str, Callable[..., Array]] = LOGIC | {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "fma": fused,
    "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * np.where(b == 0, np.ones_like(b), b),
    "neg": lambda a: -a,
    "abs": lambda a: np.abs(a),
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "ex2": np.exp2,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(a.dtype),
    "rcp": lambda a: a.dtype.type(1) / a,
    "shl": shifted_left,
    "shr": shifted_right,
    "prmt": permuted,
    "bfe": field_of,
    "copysign": lambda a, b: np.copysign(b, a),
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
}

KNOWN_MODIFIERS = {"rn", "ftz", "approx", "full", "lo", "wide", "hi", "relu", "sat", "NaN", "rni", "rzi", "rmi", "rpi"}
"""Parts of an arithmetic opcode beside its name and type. Another one may change the result, and is refused."""


MOST_ULPS = {"div": 2, "ex2": 2, "sqrt": 1, "rcp": 1, "rsqrt": 2}
"""The largest error of the approximate instructions of float32, by the PTX ISA."""


def approximated(x: Array, ulps: int) -> Array:
    """x, off by up to `ulps` ulps. Equal numbers get equal errors, and powers of two none: libdevice relies on ex2."""
    hashed = (x.view(np.uint32) * np.uint32(2654435761)) >> np.uint32(8)  # D. Knuth's multiplicative hashing
    error = (hashed.astype(np.float64) * 2**-23 - 1) * ulps * np.spacing(np.abs(x)).astype(np.float64)
    exact = ~np.isfinite(x) | (x.view(np.uint32) & np.uint32(0x7FFFFF) == 0)
    return np.where(~exact, (x + error).astype(np.float32), x)


def flushed(x: Array) -> Array:
    """.ftz: subnormal float32 numbers become 0."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)
