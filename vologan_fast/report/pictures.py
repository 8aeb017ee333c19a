"""Pictures of an observation: images, hole maps, and maps of the discriminators' outputs. Loggers show them too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vologan_fast.config import Channels
from vologan_fast.quantities.observation import Direction, Example, Observation, Verdict
from vologan_fast.report.grid import depth_to_colour, tile

Pixels = npt.NDArray[np.uint8]
_SIDE = 256
"""Longest side of an image in a picture. Larger ones are shrunk."""
_HOLES, _OUTPUTS = "inferno", "PuOr_r"


@dataclass(frozen=True)
class Picture:
    """A picture (H, W, 3) with a caption. The caption may hold names of files."""

    caption: str
    pixels: Pixels


def pictures(observation: Observation) -> Iterator[tuple[str, Picture]]:
    """Yield all pictures of an observation, each with a name that is the same at every step."""
    for picture, name in zip(hole_maps(observation), observation.hole_maps, strict=True):
        yield f"holes/{name}", picture
    for verdict in observation.verdicts:
        for i, picture in enumerate(judged(verdict)):
            yield f"discriminators/{verdict.name}/{i}", picture
    for direction in observation.directions:
        for what, chosen in (("best", direction.best), ("worst", direction.worst)):
            for i, picture in enumerate(examples(direction, chosen, what)):
                yield f"{what}/{direction.source} to {direction.target}/{i}", picture


def shown(image: npt.NDArray[np.floating], channels: Channels) -> Pixels:
    """Return an image (C, H, W) in [0, 1]: colour, and beside it depth. It is at most 256 pixels high and wide."""
    tensor = torch.from_numpy(np.ascontiguousarray(image, np.float32))
    scale = _SIDE / max(tensor.shape[1:])
    if scale < 1:
        size = [max(round(side * scale), 1) for side in tensor.shape[1:]]
        tensor = torch.nn.functional.interpolate(tensor[None], size=size, mode="nearest-exact")[0]
    return tile(tensor, channels)


def surface(image: npt.NDArray[np.floating], channels: Channels) -> Pixels:
    """Return one picture (H, W, 3) of an image (C, H, W): its colour, or its depth in colours without one."""
    if channels.color:
        pixels = np.moveaxis(np.broadcast_to(image[: channels.color], (3, *image.shape[1:])), 0, -1)
    else:
        pixels = depth_to_colour(torch.from_numpy(np.ascontiguousarray(image[-1], np.float32))).numpy()
    rounded: Pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return rounded


def examples(direction: Direction, chosen: tuple[Example, ...], what: str) -> Iterator[Picture]:
    """Yield a picture for each of the examples: input, translation and cycle side by side."""
    for example in chosen:
        strips = [shown(i, kind) for i, kind in zip(example.images, direction.channels, strict=True)]
        labels = ", ".join(direction.labels)
        yield Picture(f"{what}: {example.name} ({example.error:.4f}); {labels}", np.concatenate(strips, 1))


def hole_maps(observation: Observation) -> Iterator[Picture]:
    """Yield the map of holes of each set with depth. Bright: often a hole."""
    top = max((float(found.max()) for found in observation.hole_maps.values()), default=0.0) or 1.0
    for name, found in observation.hole_maps.items():
        share = observation.hole_shares[name]
        caption = f"{name}: {share:.2%} of the figure is holes (white: {top:.0%} of the images)"
        yield Picture(caption, _coloured(_fitting(found / top), _HOLES))


def judged(verdict: Verdict) -> Iterator[Picture]:
    """Yield a picture for each example of a discriminator: the image, and over it each output that has places."""
    every = [judgement for of_set in verdict.examples.values() for _, judgement in of_set]
    outputs = len(every[0].maps) if every else 0
    middles, limits = [], []
    for k in range(outputs):
        values = np.concatenate([judgement.maps[k].ravel() for judgement in every])
        middles.append(float(values.mean()) if verdict.border is None else verdict.border)
        limits.append(max(float(np.quantile(np.abs(values - middles[k]), 0.99)), 1e-6))
    for name, of_set in verdict.examples.items():
        for image, judgement in of_set:
            base = _fitting(surface(image, verdict.channels))
            strips = [base]
            for found, middle, limit in zip(judgement.maps, middles, limits, strict=True):
                heat = _coloured((found - middle) / (2 * limit) + 0.5, _OUTPUTS)
                size = base.shape[1], base.shape[0]
                laid = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.NEAREST))
                grey = base.mean(-1, keepdims=True)
                strips.append((0.3 * grey + 0.7 * laid).round().astype(np.uint8))
            means = ", ".join(f"{mean:.2f}" for mean in judgement.means)
            ranges = ", ".join(f"{m - limit:.2f} to {m + limit:.2f}" for m, limit in zip(middles, limits, strict=True))
            caption = f"{verdict.name} on {name}: means of its outputs {means}"
            yield Picture(f"{caption}; colours from {ranges}" if ranges else caption, np.concatenate(strips, 1))


def _coloured(values: npt.NDArray[np.floating], name: str) -> Pixels:
    return (matplotlib.colormaps[name](values.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)


def _fitting(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a picture or a map (H, W, …), of which every k-th row and column is kept if it is larger than _SIDE."""
    step = -(-max(picture.shape[:2]) // _SIDE)
    return picture[::step, ::step]
