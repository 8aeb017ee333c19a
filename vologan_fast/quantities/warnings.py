"""Sentences about numbers that look wrong, each with what to try. Every limit is stated here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ALIKE = 0.25
"""Translations have collapsed if they differ from each other by less than this share of the differences in S and T."""
SURE = 0.9
"""A discriminator is saturated if it is sure and right at this share of its outputs, for real images and for others."""
PAINTED = 0.02
"""Background bleeds if this share of it is painted."""
VISIBLE = 0.05
"""A pixel is painted if any channel is above this."""
CLAMPED = 0.05
"""Depth is clamped if this share of the measured pixels is at one end."""
MORE_HOLES = 0.1
"""Depth is lost if the share of holes is so much larger than in T."""


@dataclass(frozen=True)
class Certainty:
    """How sure a discriminator is: shares of its outputs at which it is sure and right."""

    real: float
    fake: float


def spread(pooled: Tensor) -> float:
    """Return the mean absolute difference between two images of a set (N, C, h, w), over all pairs. 0 for one image."""
    flat = pooled.flatten(1).double()
    count = len(flat)
    if count < 2:
        return 0.0
    return float(torch.cdist(flat, flat, p=1).sum() / (count * (count - 1) * flat.shape[1]))


def painted(background: Tensor, translation: Tensor) -> tuple[int, int]:
    """Return how many background pixels a translation (N, C, H, W) paints, and how many there are.

    `background` (N, 1, H, W) is True on the background of the input.
    """
    shown = (translation > VISIBLE).any(1, keepdim=True) & background
    return int(shown.sum()), int(background.sum())


def collapse(name: str, spreads: Mapping[str, float], source: str, target: str) -> list[str]:
    """Return a sentence if the translations `name` differ much less from each other than images of both domains do."""
    limit = ALIKE * min(spreads[source], spreads[target])
    if spreads[name] >= limit:
        return []
    return [
        f"{name} has collapsed: two translations differ by {spreads[name]:.4f} on average, two images of {source} by "
        f"{spreads[source]:.4f} and of {target} by {spreads[target]:.4f}. Try a larger --loss.cycle, or "
        "--contrast.weight with CUT, and a lower --generator-optimizer.learning-rate."
    ]


def saturation(name: str, certainties: Mapping[str, Certainty]) -> list[str]:
    """Return a sentence if the discriminator `name` is sure and right nearly everywhere."""
    found = certainties[name]
    if min(found.real, found.fake) < SURE:
        return []
    return [
        f"{name} is saturated: it is sure and right at {found.real:.0%} of its outputs for real images, and at "
        f"{found.fake:.0%} for translations, so the generator learns little from it. Try --loss.penalty r1, "
        "--loss.diffaugment color translation cutout, or a lower --discriminator-optimizer.learning-rate."
    ]


def bleeding(name: str, source: str, share: float) -> list[str]:
    """Return a sentence if a generator paints a share of the background of its input."""
    if share < PAINTED:
        return []
    return [
        f"{name} paints {share:.0%} of the background of {source}. `translate` removes this, but the discriminator "
        "judges it. Try --generator.keep-background."
    ]


def clamping(name: str, domain: str, shares: tuple[float, float], translated: bool) -> list[str]:
    """Return sentences if the depth of a set is clamped at the near or at the far end. `domain` is that of its unit."""
    sentences = []
    for end, share, word in (("near", shares[0], "smaller"), ("far", shares[1], "larger")):
        if share < CLAMPED:
            continue
        sentence = f"{name}: {share:.0%} of the measured depth is clamped at the {end} end."
        advice = f" Try a {word} --data.{domain}.{end}."
        if translated:
            advice += " If the images themselves are not clamped, try a lower --generator-optimizer.learning-rate."
        sentences.append(sentence + advice)
    return sentences


def lost_depth(name: str, target: str, shares: Mapping[str, float], hole_head: bool) -> list[str]:
    """Return a sentence if the translations `name` have many more holes than the images of `target`."""
    if shares[name] < shares[target] + MORE_HOLES:
        return []
    advice = "a larger --loss.hole-share" if hole_head else "a larger --loss.cycle, or more steps"
    return [
        f"{name} loses depth: {shares[name]:.0%} of its figure is holes, and {shares[target]:.0%} of that of {target}. "
        f"Try {advice}."
    ]
