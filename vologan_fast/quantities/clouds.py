"""Point clouds of RGB-D images, by a stated pinhole.

The data sets have no camera parameters, so the pinhole is an assumption: the principal point is the image's centre, the
pixels are square, and the longer side has the field of view φ. The pixel in column u and row v (from 0) with distance z
is at

    f = max(H, W) / (2 tan(φ / 2))    x = (u + ½ − W/2) z / f    y = (v + ½ − H/2) z / f

This is the camera's frame: x points to the right, y down, and z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vologan_fast.quantities.depth import DepthScale, Floats, measured

FIELD_OF_VIEW = 60.0
"""Degrees. Phones and depth cameras have 50 to 70 along the longer side."""
LIMIT = 8000
"""Most points of a cloud."""


@dataclass(frozen=True)
class Cloud:
    """Coloured points."""

    points: npt.NDArray[np.float32]
    """(N, 3): x to the right, y down, z forward, in metres or without a unit."""
    colors: npt.NDArray[np.uint8]
    """(N, 3): red, green and blue."""
    spacing: float = 0.0
    """How far neighbours are apart, as a share of their distance from the camera."""


def focal_length(height: int, width: int, field_of_view: float = FIELD_OF_VIEW) -> float:
    """Return the focal length in pixels, for a field of view of the longer side in degrees."""
    return max(height, width) / (2 * math.tan(math.radians(field_of_view) / 2))


def cloud(
    depth: Floats,
    colors: npt.NDArray[np.uint8],
    scale: DepthScale,
    field_of_view: float = FIELD_OF_VIEW,
    limit: int = LIMIT,
) -> Cloud:
    """Return the points of the measured pixels of depth (H, W) in [0, 1], with `colors` (H, W, 3).

    If there are more than `limit`, only every k-th row and column counts, with the smallest k that is enough.
    """
    height, width = depth.shape
    seen, step = measured(depth), 1
    while seen[::step, ::step].sum() > limit:
        step += 1
    v, u = np.nonzero(seen[::step, ::step])
    v, u = v * step, u * step
    z = scale.distance(depth[v, u])
    f = focal_length(height, width, field_of_view)
    points = np.stack([(u + 0.5 - width / 2) * z / f, (v + 0.5 - height / 2) * z / f, z], 1)
    return Cloud(points.astype(np.float32), colors[v, u], step / f)
