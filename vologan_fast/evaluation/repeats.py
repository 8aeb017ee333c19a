"""How much repeated measurements of one scene differ: those of a sensor, and the draws of a generator.

A scene has K shots, which show the same pixels. They are photographs by one sensor, or draws of a generator for one
image of S. So the differences between them are the noise alone.

    spread          √ of the mean variance of a pixel's depth between the shots, where all shots measured it
    changing holes  mean variance of a pixel's hole, which is 1 in a shot without depth there and else 0

Pixels belong to the figure in all shots. The variances have the divisor K − 1. Bins of depth and of distance to an edge
are those of `sensor`, for the surface of the first shot. A generator without noise has 0 in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vologan_fast.evaluation import sensor
from vologan_fast.evaluation.distances import foreground
from vologan_fast.evaluation.sensor import BINS, DISTANCES, HOLE, Bins, Statistic

SPREAD_BY_DEPTH = Statistic("spread by depth", "depth", "depth", root=True)
SPREAD_BY_EDGE = Statistic("spread by edge distance", "pixels to an edge", "depth", root=True)
CHANGING_HOLES = Statistic("changing holes", "", "share")
STATISTICS = (SPREAD_BY_DEPTH, SPREAD_BY_EDGE, CHANGING_HOLES)


def measure(shots: Tensor, bins: Bins) -> dict[str, Tensor]:
    """Return the sums of all statistics for N scenes of K ≥ 2 shots (K, N, 4, H, W): {name: (N, 2, bins)}.

    Raises ValueError for a single shot.
    """
    if len(shots) < 2:
        raise ValueError(f"shots: expected at least 2 of each scene, found {len(shots)}")
    first = sensor.view(shots[0])
    figure = torch.stack([foreground(shot)[:, 0] for shot in shots]).all(0)
    depth = shots[:, :, 3].double()
    holes = depth < HOLE
    everywhere = figure & ~holes.any(0)
    variance, of_holes = depth.var(0), holes.double().var(0)
    by_depth = torch.bucketize(first.surface, bins.depth)
    by_edge = torch.bucketize(first.edge_distance, torch.tensor(DISTANCES[1:]), right=True)
    return {
        SPREAD_BY_DEPTH.name: sensor.binned(everywhere, variance, by_depth, BINS),
        SPREAD_BY_EDGE.name: sensor.binned(everywhere, variance, by_edge, len(DISTANCES)),
        CHANGING_HOLES.name: sensor.binned(figure, of_holes, torch.zeros_like(by_edge), 1),
    }
