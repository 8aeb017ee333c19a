"""Random surfaces for the demo data: skin, hair and cloth, with procedural albedo and relief.

A colour is the fraction of linear light that the surface reflects, for R, G and B.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vologan_fast.data.demo.figure import Array, vector

SKIN_TONES = np.array(
    [
        [0.77, 0.54, 0.43],
        [0.68, 0.45, 0.33],
        [0.55, 0.34, 0.22],
        [0.40, 0.22, 0.13],
        [0.25, 0.13, 0.08],
        [0.14, 0.07, 0.045],
    ],
    np.float32,
)
HAIR_TONES = np.array(
    [
        [0.012, 0.010, 0.010],
        [0.03, 0.017, 0.011],
        [0.09, 0.045, 0.022],
        [0.22, 0.10, 0.04],
        [0.45, 0.30, 0.13],
        [0.42, 0.40, 0.38],
    ],
    np.float32,
)
TROUSER_TONES = np.array(
    [
        [0.035, 0.06, 0.14],
        [0.09, 0.15, 0.28],
        [0.02, 0.02, 0.025],
        [0.36, 0.28, 0.18],
        [0.14, 0.14, 0.15],
        [0.10, 0.11, 0.06],
        [0.55, 0.52, 0.47],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Material:
    """A material with a procedural albedo and a relief: cloth, skin, hair or shoes."""

    colours: Array
    """(3, 3): linear albedo of the pattern's colours, one per row."""
    pattern: str = "plain"
    """plain, stripes, columns, checks, noise or dots for cloth; face, strands or shoe for skin, hair or shoes."""
    scale: float = 0.1
    """Period of the pattern, metres."""
    thickness: float = 0.0
    """Height of the surface above the part, metres."""
    waves: Array = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    """(K, 5): the folds, each with wave vector (3 values) in rad/m, phase, amplitude in metres."""
    gloss: float = 0.0


def _random_colour(rng: np.random.Generator) -> Array:
    """Draw a colour for cloth: any hue, mostly muted, or black, grey or white."""
    if rng.uniform() < 0.3:
        return np.full(3, rng.choice([0.02, 0.10, 0.35, 0.75]), np.float32) * rng.uniform(0.85, 1.1, 3).astype(
            np.float32
        )
    hue, saturation, value = rng.uniform(), rng.beta(3, 2) * 0.9, rng.beta(2, 2.2) * 0.75 + 0.05
    ramp = np.clip(np.abs((hue * 6 + vector(0, 4, 2)) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _random_folds(rng: np.random.Generator, amplitude: float) -> Array:
    """Draw folds (7, 5) for `Material.waves`. They run across the limb: wave vectors point mostly along local y."""
    count = 7
    length = rng.uniform(0.035, 0.16, count)
    direction = rng.normal(0, 1, (count, 3)) * [0.55, 1.0, 0.45]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    height = amplitude * rng.uniform(0.3, 1.0, count) * length / 0.16
    return np.column_stack([direction * (2 * np.pi / length)[:, None], rng.uniform(0, 6.3, count), height]).astype(
        np.float32
    )


def _random_cloth(rng: np.random.Generator, base: Array, patterns: dict[str, float], thickness: float) -> Material:
    pattern = str(rng.choice(list(patterns), p=np.fromiter(patterns.values(), float)))
    return Material(
        colours=np.stack([base, _random_colour(rng), _random_colour(rng)]),
        pattern=pattern,
        scale=float(rng.uniform(0.05, 0.13)),
        thickness=thickness,
        waves=_random_folds(rng, rng.uniform(0.002, 0.008)),
    )


def random_materials(rng: np.random.Generator) -> tuple[Material, ...]:
    """Draw the materials SKIN, TOP, BOTTOM, SHOE and HAIR, in the order of their numbers."""
    tone = float(rng.uniform(0, len(SKIN_TONES) - 1))
    skin = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1] - SKIN_TONES[int(tone)])
    hair = HAIR_TONES[rng.choice(len(HAIR_TONES), p=[0.3, 0.25, 0.2, 0.08, 0.1, 0.07])] * rng.uniform(0.8, 1.25)
    lips = skin * vector(0.9, 0.5, 0.5)
    tops = {"plain": 0.34, "stripes": 0.18, "columns": 0.06, "checks": 0.16, "noise": 0.14, "dots": 0.12}
    trousers = TROUSER_TONES[rng.choice(len(TROUSER_TONES))] * rng.uniform(0.75, 1.25)
    bottom = trousers if rng.uniform() < 0.75 else _random_colour(rng)
    sole = np.full(3, rng.choice([0.02, 0.7]), np.float32)
    shoe = _random_colour(rng)
    return (
        Material(np.stack([skin, lips, hair]).astype(np.float32), "face", gloss=0.12),
        _random_cloth(rng, _random_colour(rng), tops, 0.004),
        _random_cloth(rng, bottom.astype(np.float32), {"plain": 0.8, "checks": 0.06, "noise": 0.14}, 0.003),
        Material(np.stack([shoe, sole, shoe]).astype(np.float32), "shoe", thickness=0.004, gloss=0.2),
        Material(np.stack([hair, hair * 1.5, hair]).astype(np.float32), "strands", gloss=0.15),
    )


_LATTICE = np.random.default_rng(20240229).random((32, 32, 32), np.float32)


def value_noise(points: Array) -> Array:
    """Return smooth noise in [0, 1] with period 32 at points (3, N): (N,)."""
    cell = np.floor(points)
    inside = points - cell
    weight = inside * inside * (3 - 2 * inside)
    low = cell.astype(np.int64) % 32
    high = (low + 1) % 32
    total = np.zeros(points.shape[1], np.float32)
    for corner in range(8):
        picked = [high[a] if corner >> a & 1 else low[a] for a in range(3)]
        share = [weight[a] if corner >> a & 1 else 1 - weight[a] for a in range(3)]
        total += _LATTICE[picked[0], picked[1], picked[2]] * share[0] * share[1] * share[2]
    return total


def _step(x: Array) -> Array:
    """Return a soft step from 0 to 1 around x = 0, for borders between colours."""
    return np.clip(x * 4 + 0.5, 0, 1)


def albedo_of(material: Material, local: Array, head: Array, look: Array, beard: float) -> Array:
    """Return the albedo (3, N) of a material at N points.

    `local` (3, N) holds the points in the axes of their part, in metres. `head` (3, N) holds the same points in the
    axes of the head, in units of its height. `look` and `beard` come from the scene.
    """
    x, y, z = local / material.scale
    first, second, third = material.colours[:, :, None]
    turn = np.float32(2 * np.pi)
    if material.pattern in ("stripes", "columns"):
        place = y if material.pattern == "stripes" else x
        return first + (second - first) * _step(np.sin(turn * place) + look[0])
    if material.pattern == "checks":
        bands = 0.5 * _step(np.sin(turn * y) + look[0]) + 0.5 * _step(np.sin(turn * x) + look[0])
        return first + (second - first) * bands + (third - first) * 0.25 * _step(np.sin(turn * 2 * y) - 0.9)
    if material.pattern == "noise":
        fine, coarse = value_noise(local / (material.scale * 0.2)), value_noise(local / (material.scale * 0.5) + 7)
        cloud = 0.7 * coarse + 0.3 * fine
        return first + (second - first) * _step((cloud - 0.52) * 6) + (third - first) * 0.5 * _step((0.36 - cloud) * 6)
    if material.pattern == "dots":
        radius = np.hypot((x * 1.6) % 1 - 0.5, (y * 1.6) % 1 - 0.5)
        return first + (second - first) * _step((0.28 - radius) * 6)
    if material.pattern == "face":
        return _paint_face(material, head, look, beard)
    if material.pattern == "strands":
        streak = value_noise(head * vector(170, 25, 60)[:, None] + 3)
        return first * (0.6 + 0.9 * streak)
    if material.pattern == "shoe":
        return first + (second - first) * _step((-z * material.scale - 0.018) * 200)
    return np.broadcast_to(first, local.shape).copy()


def _paint_face(material: Material, head: Array, look: Array, beard: float) -> Array:
    """Return the albedo (3, N) of skin, with eyes, brows, mouth, cheeks and beard on the face.

    `head` (3, N) holds the points in the axes of the head, in units of its height.
    """
    skin, lips, hair = material.colours[:, :, None]
    x, y, z = head
    blotches = value_noise(head * 6 + 11)
    colour = skin * (0.92 + 0.16 * blotches)
    front = z > 0.15
    if not front.any():
        return colour

    def spot(cx: float, cy: float, rx: float, ry: float) -> Array:
        return _step((1 - np.hypot((np.abs(x) - cx) / rx, (y - cy) / ry)) * 2) * front

    def blend(target: Array | float, share: Array) -> None:
        nonlocal colour
        colour = colour + (target - colour) * share

    blend(skin * vector(1.0, 0.72, 0.7)[:, None], 0.5 * spot(0.18, -0.12, 0.11, 0.09))
    blend(skin * 0.55, 0.6 * spot(0.145, 0.045, 0.09, 0.06))
    blend(0.75, 0.9 * spot(0.145, 0.04, 0.052, 0.026))
    blend(0.02, spot(0.145, 0.04, 0.024, 0.026))
    blend(hair * 1.2, 0.85 * spot(0.15, 0.125, 0.085, 0.020 + 0.012 * look[1]))
    blend(lips, 0.9 * spot(0.0, -0.26, 0.10, 0.035))
    blend(skin * 0.25, 0.7 * spot(0.0, -0.26, 0.095, 0.009))
    stubble = _step((-0.16 - y) * 12) * (z > -0.1) * (1 - spot(0.0, -0.26, 0.10, 0.035))
    blend(hair, beard * stubble)
    return colour
