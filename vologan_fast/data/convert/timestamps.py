"""Which colour image and which depth image were taken at the same moment."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def nearest_pairs(first: Sequence[float], second: Sequence[float], within: float) -> list[tuple[int, int]]:
    """Indices (i, j) of times at most `within` seconds apart, nearest pairs first served, each time used once; in the
    order of the first times."""
    order = sorted(range(len(second)), key=second.__getitem__)
    times = [second[j] for j in order]
    candidates = []
    for i, time in enumerate(first):
        low, high = bisect.bisect_left(times, time - within), bisect.bisect_right(times, time + within)
        candidates += [(abs(times[k] - time), i, order[k]) for k in range(low, high)]
    pairs: dict[int, int] = {}
    taken = set()
    for _, i, j in sorted(candidates):
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return sorted(pairs.items(), key=lambda pair: first[pair[0]])
