"""A phone with a LiDAR, simulated: what it makes of a scene that a perfect camera would see as `Buffers`.

Every effect is one of two kinds. The *systematic* ones follow from the scene alone, from a small neighbourhood of each
pixel: that is what a translation from the clean domain can learn. The *random* ones differ from capture to capture.
`capture(buffers, None)` is the systematic part alone, the truth that a translation is scored against.

Depth: the sensor has S/2 × 3S/8 points for an image of S × S (256 × 192 for 512). Each averages over a footprint, so
that at silhouettes it mixes the figure with the room behind (flying pixels); range is biased with distance and on dark
surfaces, which also return less light and drop out, as grazing ones do; the result is smoothed up to full size.
Colour: exposure and white balance, lens blur and vignette, coloured light of the room around the edges, a tone curve
with strong contrast, saturation, sharpening, blurred chroma, noise.
Segmentation: the phone cuts the figure out along a smoothed, ragged outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vologan_fast.data.demo_scene import FAR, NEAR, Array, Buffers

ROOM_DEPTH = 0.45
"""The wall that mixes into silhouettes stands this far behind the figure's middle, metres."""
ROOM_RADIANCE = np.float32([0.30, 0.27, 0.23])


@dataclass(frozen=True)
class Capture:
    """One RGB-D photograph, (size, size, 3) and (size, size). Where `mask` is false there is nothing: all 0."""

    mask: NDArray[np.bool_]
    colour: Array
    """Encoded for a display, [0, 1]."""
    depth: Array
    """Planar distance in metres, NaN where the figure is seen but was not measured."""


def encode(radiance: Array) -> Array:
    """Linear light to display values: the plain 2.2 gamma, clipped to [0, 1]."""
    return np.clip(radiance, 0, 1) ** np.float32(1 / 2.2)


def clean(buffers: Buffers) -> Capture:
    """What a renderer delivers: the scene itself."""
    return Capture(buffers.mask, encode(buffers.radiance), buffers.depth)


def gaussian_matrix(outputs: int, inputs: int, sigma: float) -> Array:
    """(outputs, inputs) matrix that samples a row of `inputs` pixels at `outputs` even places through a Gaussian of
    standard deviation `sigma`, in input pixels. The rows sum to 1."""
    centre = (np.arange(outputs, dtype=np.float32)[:, None] + 0.5) * (inputs / outputs) - 0.5
    weight = np.exp(-(((np.arange(inputs, dtype=np.float32) - centre) / sigma) ** 2) / 2)
    return weight / weight.sum(1, keepdims=True)


def blur(image: Array, sigma: float) -> Array:
    """Separable Gaussian blur of (H, W) or (H, W, C), `sigma` in pixels."""
    rows, columns = (gaussian_matrix(n, n, sigma) for n in image.shape[:2])
    return (
        np.moveaxis(rows @ np.moveaxis(image, -1, 0) @ columns.T, 0, -1)
        if image.ndim == 3
        else rows @ image @ columns.T
    )


def capture(buffers: Buffers, rng: np.random.Generator | None) -> Capture:
    """The phone's photograph of a scene; without `rng` only its systematic part."""
    mask = _segment(buffers, rng)
    colour = _photograph(buffers, rng)
    depth = _measure(buffers, mask, rng)
    return Capture(mask, colour * mask[..., None], np.where(mask, depth, 0).astype(np.float32))


def _noise(rng: np.random.Generator | None, shape: tuple[int, ...]) -> Array | float:
    return 0.0 if rng is None else rng.standard_normal(shape, np.float32)


def _segment(buffers: Buffers, rng: np.random.Generator | None) -> NDArray[np.bool_]:
    """A network's outline: round where the true one is sharp, a little inside or outside of it by turns."""
    size = len(buffers.mask)
    soft = blur(buffers.mask.astype(np.float32), 0.6 + size / 512)
    cells = max(size // 16, 4)
    wander = gaussian_matrix(size, cells, 0.5)
    ragged = wander @ (0.12 * _noise(rng, (cells, cells)) * np.ones((cells, cells), np.float32)) @ wander.T
    return soft + ragged > 0.5


def _measure(buffers: Buffers, mask: NDArray[np.bool_], rng: np.random.Generator | None) -> Array:
    """Depth in metres inside `mask`, NaN for holes."""
    size = len(buffers.depth)
    rows, columns = size // 2, 3 * size // 8
    look = (
        gaussian_matrix(rows, size, 0.55 * size / rows),
        gaussian_matrix(columns, size, 0.55 * size / columns),
    )
    grow = gaussian_matrix(size, rows, 0.6), gaussian_matrix(size, columns, 0.6)

    def sense(plane: Array) -> Array:
        return look[0] @ plane @ look[1].T

    inside = buffers.mask.astype(np.float32)
    share = sense(inside)
    middle = buffers.depth[buffers.mask].mean()
    depth = sense(np.where(buffers.mask, buffers.depth, middle + ROOM_DEPTH))
    albedo = sense(buffers.albedo * inside) / np.maximum(share, 1e-3)
    facing = sense(buffers.facing * inside) / np.maximum(share, 1e-3)

    echo = albedo * (0.35 + 0.65 * facing) / (depth / 3) ** 2
    dark = 1 / (1 + echo / 0.04)
    depth = depth + 0.04 + 0.12 * (depth - 2.8) + 0.07 * dark * share
    spread = 0.004 * (depth / 3) ** 2 * (1 + 2.5 * dark)
    depth = depth + spread * _noise(rng, depth.shape)
    lost = dark + 0.5 * (1 - facing) * share - 0.25 * (1 - share) + 0.10 * _noise(rng, depth.shape)

    measured = grow[0] @ depth @ grow[1].T
    missing = grow[0] @ lost @ grow[1].T > 0.98
    limits = NEAR + 0.01, FAR - 0.01
    return np.where(missing & mask, np.nan, np.clip(measured, *limits)).astype(np.float32)


def _photograph(buffers: Buffers, rng: np.random.Generator | None) -> Array:
    """Display colours in [0, 1] of the whole frame, the room included."""
    size = len(buffers.mask)
    scene = np.where(buffers.mask[..., None], buffers.radiance, ROOM_RADIANCE)
    light = blur(scene.astype(np.float32), 0.45 + size / 640)

    place = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    vignette = 1 - 0.22 * (place[:, None] ** 2 + place**2)
    gains = np.float32([1.30, 1.06, 0.74]) * np.exp(0.025 * _noise(rng, (3,)) + 0.03 * _noise(rng, (1,)))
    light = light * vignette[..., None] * gains
    light = light + np.sqrt(np.clip(light, 0, None) * 0.0006 + 0.00002) * _noise(rng, light.shape)

    display = np.clip(light, 0, None) ** np.float32(1 / 2.2)
    grey = display @ np.float32([0.30, 0.59, 0.11])
    chroma = blur(display - grey[..., None], 0.7 + size / 512)
    grey = grey + 0.6 * (grey - blur(grey, 0.8 + size / 400))
    toned = _tone(grey)
    return np.clip(toned[..., None] + 1.35 * chroma, 0, 1).astype(np.float32)


def _tone(grey: Array) -> Array:
    """A phone's S-curve: lifted blacks, steep middle, soft shoulder."""
    x = np.clip(grey, 0, 1.2)
    return 0.045 + 0.93 * x**1.7 / (x**1.7 + (1.02 - np.minimum(x, 1.0)) ** 1.7 * 0.72 + 1e-6)
