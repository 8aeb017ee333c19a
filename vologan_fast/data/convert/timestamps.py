"""Pair colour and depth images that were taken at nearly the same moment."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from pathlib import Path

from vologan_fast.data.convert.writer import File, Frame, color_file, integer_depth_file, read_bytes, safe_name
from vologan_fast.data.errors import DataError

Timed = Sequence[tuple[float, Path]]
"""Images with their times in seconds."""


def paired_frames(path: Path, name: str, color: Timed, depth: Timed, within: float) -> list[Frame]:
    """Return the frames of the recording `path`, from images at most `within` seconds apart.

    Reading a frame copies its files unchanged. Raises DataError if there are no such frames.
    """
    pairs = nearest_pairs([time for time, _ in color], [time for time, _ in depth], within)
    if not pairs:
        raise DataError(
            f"{path}: expected colour and depth images at most {within:.3g} s apart, found none among {len(color)} and "
            f"{len(depth)}"
        )
    return [
        Frame(f"{name}-{safe_name(color[i][1].stem)}", functools.partial(_read_pair, color[i][1], depth[j][1]))
        for i, j in pairs
    ]


def _read_pair(color: Path, depth: Path) -> tuple[File, File]:
    return color_file(read_bytes(color), str(color))[0], integer_depth_file(depth)


def nearest_pairs(first: Sequence[float], second: Sequence[float], within: float) -> list[tuple[int, int]]:
    """Return pairs of indices (i, j) for times that are at most `within` seconds apart.

    The nearest pairs are chosen first, and each time is used at most once. The pairs are in the order of the first
    times.
    """
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
