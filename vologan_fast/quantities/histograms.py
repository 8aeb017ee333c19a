"""Histograms that can be added up over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width. A value on an inner edge is in the upper bin."""

    edges: npt.NDArray[np.float64]
    """(B + 1,) rising."""
    counts: npt.NDArray[np.int64]
    """(B,)."""
    total: float = 0.0
    """Sum of the values."""
    squares: float = 0.0
    """Sum of their squares."""

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin, (B,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The share of the values in each bin, (B,). All are 0 without values."""
        return self.counts / max(int(self.counts.sum()), 1)

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of both sets of values. Both must have equal edges."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("expected histograms with equal edges")
        return Histogram(self.edges, self.counts + other.counts, self.total + other.total, self.squares + other.squares)


def histogram(values: Floats, low: float, high: float, bins: int) -> Histogram:
    """Return the histogram of values of any shape, between `low` and `high`. Values beyond count in the end bins.

    NaN is left out.
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[~np.isnan(values)]
    counts, edges = np.histogram(values.clip(low, high), bins, (low, high))
    return Histogram(edges, counts.astype(np.int64), float(values.sum()), float(np.square(values).sum()))
