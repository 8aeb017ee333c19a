"""Statistics of several images of one scene: repeatability and flicker. Their names say which belong together.

*Shots of a scene* have the same name except for a last `_shotN` or `-shotN`, for example `desk_shot1` and
`desk_shot2`. More than SHOTS images of one name are a sequence, not shots. Another rule can be given as a regular
expression: its first group is the name of the scene.

*Frames of a sequence* have the same name except for a last number, and the numbers follow each other: `walk0007` and
`walk0008`. They count only if at least half of the figure stands still, because many data sets number images that
have nothing to do with each other.

    repeatability   √ of the mean variance of a pixel's depth between shots, where all shots measured it
    flicker         mean absolute difference of a pixel's depth between two frames, where the pixel stands still and
                    both frames measured it

A pixel stands still if its colour, averaged over 3 × 3 pixels, differs by less than STILL in each channel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vologan_fast.evaluation.distances import foreground
from vologan_fast.evaluation.sensor import HOLE, Statistic

SCENE_PATTERN = r"(.+?)[_-]shot\d+"
"""Default rule for shots. The whole name must match."""
SHOTS = 32
STILL = 0.05

REPEATABILITY = Statistic("repeatability", "", "depth", root=True)
FLICKER = Statistic("flicker", "", "depth")


def scenes(names: Sequence[str], pattern: str = SCENE_PATTERN) -> list[list[int]]:
    """Return the indices of the images of each scene that was shot more than once."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if match := re.fullmatch(pattern, name):
            found[match[1]].append(index)
    return [shots for shots in found.values() if 2 <= len(shots) <= SHOTS]


def successive(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of indices of images that follow each other in a sequence, by their names."""
    places: dict[tuple[str, int], int] = {}
    for index, name in enumerate(names):
        if match := re.fullmatch(r"(.*?)(\d+)", name):
            places[match[1], int(match[2])] = index
    return [(place, places[name, n + 1]) for (name, n), place in places.items() if (name, n + 1) in places]


def describe(names: Sequence[str], pattern: str = SCENE_PATTERN) -> list[str]:
    """Return a sentence about the shots and one about the frames that the names tell of, if any."""
    lines = []
    if found := scenes(names, pattern):
        lines.append(f"shots of one scene, by their names: {len(found)} scenes, such as {names[found[0][0]]}")
    if pairs := successive(names):
        lines.append(f"perhaps frames of a sequence, by their names: {len(pairs)} pairs, such as {names[pairs[0][0]]}")
    return lines


def measure(images: Tensor, names: Sequence[str], pattern: str = SCENE_PATTERN) -> dict[str, Tensor]:
    """Return the sums of both statistics for images (N, 4, H, W) with these names: {name: (N, 2, 1)}.

    The sums of a scene or of a pair stand at its first image. They are 0 if the names tell nothing.
    """
    sums = {
        statistic.name: torch.zeros(len(images), 2, 1, dtype=torch.float64) for statistic in (REPEATABILITY, FLICKER)
    }
    if not names:
        return sums
    for shots in scenes(names, pattern):
        depth = images[shots, 3].double()
        measured = _measured(images[shots]).all(0)
        variance = depth.var(0)[measured]
        sums["repeatability"][shots[0], :, 0] = torch.tensor([float(variance.sum()), float(len(variance))]).double()
    for first, second in successive(names):
        pair = images[[first, second]]
        figure = foreground(pair)[:, 0].all(0)
        colour = functional.avg_pool2d(pair[:, :3], 3, 1, 1, count_include_pad=False)
        still = figure & ((colour[0] - colour[1]).abs().amax(0) < STILL)
        if still.sum() * 2 >= figure.sum() and figure.any():
            difference = (pair[0, 3] - pair[1, 3]).abs()[still & _measured(pair).all(0)].double()
            sums["flicker"][first, :, 0] = torch.tensor([float(difference.sum()), float(len(difference))]).double()
    return sums


def _measured(images: Tensor) -> Tensor:
    return foreground(images)[:, 0] & (images[:, 3] >= HOLE)
