"""A simulated phone with a LiDAR, which photographs the `Buffers` of a scene.

There are two kinds of effects. The *systematic* effects depend only on the scene, in a small neighbourhood of each
pixel. A translation from the clean domain can learn them. The *random* effects differ from capture to capture.
`capture(buffers, None)` has the systematic effects alone. This is the truth for scoring a translation.

Depth: the sensor has S/2 × 3S/8 points for an image of S × S (256 × 192 for 512). Each point averages over a
footprint. So it mixes the figure with the wall behind it at silhouettes (flying pixels, edge tails), and it loses small
relief. The range has a bias, which grows with distance and on dark surfaces. Dark surfaces also return less light. They
are noisier and drop out, and so do surfaces at a grazing angle. The result is enlarged smoothly to full size.

Colour: the effects are lens blur, vignette, the room's light around the edges, white balance, exposure, a tone curve
of high contrast, vivid and coarse chroma, sharpening and noise.

Segmentation: the phone cuts out the figure along a smoothed, wandering outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vologan_fast.data.demo.figure import Array, vector
from vologan_fast.data.demo.scene import FAR, NEAR, Buffers

WALL = 0.8
"""Distance from the figure's mean depth to the wall behind it, which mixes into its silhouette, metres."""
ROOM_LIGHT = vector(0.30, 0.27, 0.23)
"""Radiance of this wall."""
WHITE_BALANCE = vector(1.27, 1.03, 0.75)
"""Gains of R, G, B: daylight balance under a warm lamp."""
VIVIDNESS = 1.5
"""Factor for the difference between colour and grey."""


@dataclass(frozen=True)
class Capture:
    """One RGB-D photograph."""

    mask: NDArray[np.bool_]
    """(size, size): true for pixels of the figure."""
    colour: Array
    """(size, size, 3): display values in [0, 1], meaningful inside `mask`."""
    depth: Array
    """(size, size): planar distance in metres, meaningful inside `mask`. NaN if it was not measured."""


def clean(buffers: Buffers) -> Capture:
    """Return the image of a renderer: the scene itself, with a gamma of 2.2."""
    return Capture(buffers.mask, np.clip(buffers.radiance, 0, 1) ** np.float32(1 / 2.2), buffers.depth)


def capture(buffers: Buffers, rng: np.random.Generator | None) -> Capture:
    """Return the phone's photograph of a scene. Without `rng`, it has only the systematic effects."""
    return Capture(_segment(buffers, rng), _photograph(buffers, rng), _measure(buffers, rng))


def gaussian_matrix(outputs: int, inputs: int, sigma: float) -> Array:
    """Return the matrix (outputs, inputs) that samples a row of `inputs` pixels at `outputs` evenly spaced places.

    Each sample is a Gaussian average, with `sigma` in input pixels. Each row of the matrix sums to 1. The matrix may
    shrink the row, enlarge it, or blur it at the same size.
    """
    centre = (np.arange(outputs, dtype=np.float32)[:, None] + 0.5) * np.float32(inputs / outputs) - 0.5
    weight = np.exp(-(((np.arange(inputs, dtype=np.float32) - centre) / sigma) ** 2) / 2)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Blur an image (H, W) or (H, W, C) with a Gaussian. `sigma` is in pixels."""
    rows, columns = (gaussian_matrix(n, n, sigma) for n in image.shape[:2])
    return np.einsum("yi,ij...,xj->yx...", rows, image, columns, optimize=True)


def _noise(rng: np.random.Generator | None, *shape: int) -> Array:
    """Return standard normal numbers, or zeros without `rng`.

    This is the only difference between a capture and its systematic part.
    """
    return np.zeros(shape, np.float32) if rng is None else rng.standard_normal(shape, np.float32)


def _segment(buffers: Buffers, rng: np.random.Generator | None) -> NDArray[np.bool_]:
    """Return the figure's mask with the outline of a segmentation network.

    The outline is round at sharp corners of the true one. It wanders a little to the inside and to the outside.
    """
    size = len(buffers.mask)
    cells = max(size // 12, 4)
    spread = gaussian_matrix(size, cells, 0.5)
    wander = spread @ (0.15 * _noise(rng, cells, cells)) @ spread.T
    return blur(buffers.mask.astype(np.float32), 0.6 + size / 320) + wander > 0.5


def _measure(buffers: Buffers, rng: np.random.Generator | None) -> Array:
    """Return the measured depth (size, size) in metres, with NaN for holes."""
    size = len(buffers.depth)
    rows, columns = size // 2, 3 * size // 8
    look = (
        gaussian_matrix(rows, size, 0.55 * size / rows),
        gaussian_matrix(columns, size, 0.55 * size / columns),
    )
    grow = gaussian_matrix(size, rows, 0.6), gaussian_matrix(size, columns, 0.6)
    inside = buffers.mask.astype(np.float32)

    def sense(plane: Array) -> Array:
        return look[0] @ plane @ look[1].T

    share = sense(inside)
    albedo = sense(buffers.albedo) / np.maximum(share, 1e-3)
    facing = sense(buffers.facing) / np.maximum(share, 1e-3)
    wall = buffers.depth[buffers.mask].mean() + WALL
    depth = sense(np.where(buffers.mask, buffers.depth, wall))

    echo = albedo * (0.35 + 0.65 * facing) * (3 / depth) ** 2
    faint = share / (1 + echo / 0.04)
    biased = depth + 0.03 + 0.10 * (depth - 2.8) + 0.09 * faint
    noisy = biased + 0.004 * (depth / 3) ** 2 * (1 + 3 * faint) * _noise(rng, *depth.shape)
    lost = faint + 0.5 * (1 - facing) * share + 0.12 * _noise(rng, *depth.shape)

    measured = grow[0] @ noisy @ grow[1].T
    hole = grow[0] @ lost @ grow[1].T > 0.77
    return np.where(hole, np.nan, np.clip(measured, NEAR + 0.01, FAR - 0.01)).astype(np.float32)


def _photograph(buffers: Buffers, rng: np.random.Generator | None) -> Array:
    """Return the display colours (size, size, 3) in [0, 1] of the whole frame, including the room."""
    size = len(buffers.mask)
    light = blur(np.where(buffers.mask[..., None], buffers.radiance, ROOM_LIGHT), 0.45 + size / 640)
    place = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    light *= (1 - 0.22 * (place[:, None] ** 2 + place**2))[..., None]
    light *= WHITE_BALANCE * np.exp(0.02 * _noise(rng, 3) + 0.03 * _noise(rng, 1))
    light += np.sqrt(light * 0.0006 + 0.00002) * _noise(rng, *light.shape)

    display = np.maximum(light, 0) ** np.float32(1 / 2.2)
    grey = display @ vector(0.30, 0.59, 0.11)
    chroma = blur(display - grey[..., None], 0.7 + size / 512)
    sharp = grey + 0.6 * (grey - blur(grey, 0.8 + size / 400))
    return np.clip(tone(sharp)[..., None] + VIVIDNESS * chroma, 0, 1).astype(np.float32)


def tone(grey: Array) -> Array:
    """Apply a phone's S-curve to grey values: lifted blacks, a steep middle and a soft shoulder."""
    steep = np.maximum(grey, 0) ** 3
    return 0.04 + 0.94 * steep / (steep + np.float32(0.46**3))
