"""Depth: its unit, holes, profiles along a line, and the share that is clamped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vologan_fast.config import DepthSpec
from vologan_fast.data.pixels import NEAREST, is_normalized
from vologan_fast.evaluation.sensor import HOLE

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_WITHOUT_UNIT = 2.0
"""Distance that normalised depth 0 gets where depth has no unit. Depth 1 is 1 behind it."""


@dataclass(frozen=True)
class DepthScale:
    """The distance that a normalised depth z in [0, 1] means."""

    near: float
    far: float
    unit: str
    """"m", or "" if the data have no unit."""

    @staticmethod
    def of(spec: DepthSpec) -> DepthScale:
        """Return the scale of a resolved spec. Depth without a unit is drawn from 2 to 3, as the docs say."""
        if is_normalized(spec) or spec.near is None or spec.far is None:
            return DepthScale(_WITHOUT_UNIT, _WITHOUT_UNIT + 1, "")
        return DepthScale(spec.near, spec.far, "m")

    def distance(self, z: Floats) -> Floats:
        """Return the distance from the camera's plane, near + z · (far − near)."""
        return self.near + np.asarray(z, np.float64) * (self.far - self.near)


def measured(depth: Floats) -> Mask:
    """Return where depth (…, H, W) in [0, 1] is not missing."""
    return np.asarray(depth) >= HOLE


def holes(depth: Floats, figure: Mask) -> Mask:
    """Return the holes: pixels of the figure without depth. Both arguments have one shape."""
    return figure & ~measured(depth)


def profile_row(depth: Floats) -> int:
    """Return the row of a depth image (H, W) that a profile follows.

    Among the rows with at least 0.9 of the most measured pixels that a row has, it is the one nearest to the middle.
    """
    counts = measured(depth).sum(1)
    rows = np.flatnonzero(counts >= 0.9 * counts.max())
    return int(rows[np.abs(rows - (len(depth) - 1) / 2).argmin()])


def profile(depth: Floats, row: int, scale: DepthScale) -> Floats:
    """Return the distances along a row of a depth image (H, W): (W,), NaN where depth is missing."""
    line = np.asarray(depth)[row]
    return np.where(measured(line), scale.distance(line), np.nan)


def clamped(depth: Floats) -> tuple[float, float]:
    """Return the shares of the measured pixels (…, H, W) that are at the near end and at the far end.

    The loader clamps depth to [1/1024, 1]. A generator's output is bounded in the same way. 0 without measured pixels.
    """
    found = np.asarray(depth)[measured(depth)]
    if not found.size:
        return 0.0, 0.0
    return float((found <= NEAREST).mean()), float((found >= 1).mean())
