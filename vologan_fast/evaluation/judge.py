"""Compares candidates, such as translations of S, with the real images T, by all measures and with intervals.

    judge = Judge(synthetic, real)
    row = judge.row("G(S)", translate(synthetic))
    print(row.score.value, row.values["depth gradient"].distance)

A `Row` has a `Value` for each measure. Its `distance` says how far the candidate is from T, in the unit of the measure.
Two rows give the scale: the *floor* is the distance of T from itself, and the *untranslated* images S are the ceiling.

**Floor.** T is split into random halves, again and again. The root mean square of their distances, times √½, is the
floor: a squared distance between samples of one distribution falls with their size. (An overlap and KID are squares
themselves, so they are halved.)

**Score.** One number that ranks candidates. For each measure, let

    r = max(distance(candidate), floor) / max(distance(S), floor), between 1/20 and 20

So nobody gains from being closer than T is to itself, and no single measure can decide. A measure without a floor and
without a distance of S tells nothing, and is left out. The logarithms of r are averaged over the measures of a kind,
then over the kinds of a group, then over the two groups (`GROUPS`): the distances of patches, and the sensor. The score
is the exponential of this mean. S has 1, and less is better.

**Intervals** are percentiles of a bootstrap over the images (`bootstrap`), 95 %. All candidates are made of the same
images, and so use the same resamples. T has its own resamples, again the same for all candidates. `change` is the
difference to S, with an interval in which the choice of images cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vologan_fast.config import CHANNELS, Channels
from vologan_fast.evaluation import components, sensor, sequences
from vologan_fast.evaluation.bootstrap import centred, halves, interval, resample
from vologan_fast.evaluation.distances import Projections, check_images, error_sums, noise_floor, sliced_wasserstein
from vologan_fast.evaluation.sensor import Statistic, Unit

Translate = Callable[[Tensor], Tensor]
"""Maps images (N, 4, H, W) in [0, 1] to images of the same shape."""

GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "patches": {name: (name,) for name in ("colour", "depth", "depth gradient")},
    "sensor": {
        "holes": ("holes by depth", "holes by slope", "holes by edge distance"),
        "bias": ("bias by depth", "bias by edge distance"),
        "noise": ("noise by depth",),
        "autocorrelation": ("autocorrelation",),
        "edge tails": ("edge tails",),
        "quantisation": ("quantisation by depth",),
        "level": ("mean depth",),
        "repeatability": ("repeatability",),
        "flicker": ("flicker",),
    },
}
"""The measures that the score is made of: groups of equal weight, of kinds of equal weight."""
LARGEST_RATIO = 20.0
FLOOR_SPLITS = 4
"""Splits of T for the floor if there are no resamples."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95 % interval. The ends are NaN without resamples."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, value: Tensor, replicates: Tensor) -> Interval:
        """Return a number with the percentile interval of its replicates (B,)."""
        return cls(float(value), *interval(replicates))

    def beyond_zero(self) -> bool:
        """Return whether 0 lies outside of the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Value:
    """The result of one measure for one candidate."""

    distance: Interval
    """How far the candidate is from T."""
    change: Interval
    """Distance of the candidate minus distance of S. Below 0 is better."""
    number: Interval
    """The statistic itself, for example the share of holes. NaN for measures that only have a distance."""
    number_change: Interval
    """The statistic of the candidate minus the one of S."""
    curve: tuple[float, ...] = ()
    """The statistic by bin."""


@dataclass(frozen=True)
class Row:
    """All results for one candidate."""

    name: str
    values: Mapping[str, Value]
    """By the name of the measure. A measure that the images tell nothing about is absent."""
    scores: Mapping[str, Interval]
    """"score", and the score of each group alone: "patches" and, with depth, "sensor". Empty for T."""
    replicates: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """By the name of a measure or score: its value, followed by the replicates."""
    errors: dict[str, Interval] = field(default_factory=dict)
    """Mean absolute errors, for example "paired depth"."""

    @property
    def score(self) -> Interval:
        """One number that ranks candidates: 1 for S, less is better."""
        return self.scores["score"]

    def minus(self, other: Row) -> dict[str, Interval]:
        """Return the differences of all distances and scores to another candidate, with paired intervals."""
        common = [name for name in self.replicates if name in other.replicates]
        return {name: self.difference(other, name) for name in common}

    def difference(self, other: Row, name: str) -> Interval:
        """Return the difference of one distance or score to another candidate. NaN if one of them has none."""
        if name not in self.replicates or name not in other.replicates:
            return Interval(math.nan)
        difference = self.replicates[name] - other.replicates[name]
        return Interval.of(difference[0], difference[1:])


def as_written(images: Tensor, source: Tensor) -> Tensor:
    """Return images (N, 4, H, W) as `vologan_fast.translate` writes them.

    The background of their source (N, C, H, W), which is 0 in all its channels, stays. Depth below HOLE is missing.
    """
    kept = images * (source.amax(1, keepdim=True) > 0)
    depth = kept[:, 3:]
    return torch.cat([kept[:, :3], depth * (depth >= sensor.HOLE)], 1)


class Family:
    """Some measures that look at images in the same way.

    The methods here are for distances of which the squares, between samples of one distribution, fall with their size.
    """

    names: Sequence[str]
    """The M measures."""

    def look(self, images: Tensor, names: Sequence[str]) -> Any:
        """Return all that is needed to know about the images (N, 4, H, W)."""
        raise NotImplementedError

    def resample(self, looked: Any, counts: Tensor) -> Any:
        """Return the quantities that the measures are computed of, for resamples (B, N)."""
        raise NotImplementedError

    def distances(self, x: Any, t: Any) -> Tensor:
        """Return the distances (B, M) of two sets, from what `resample` returned."""
        raise NotImplementedError

    def whole(self, x: Any, t: Any) -> Tensor:
        """Return the distances (M,) of two whole sets, from what `look` returned."""
        of_x, of_t = (self.resample(part, torch.ones(1, self.count(part), dtype=torch.float64)) for part in (x, t))
        return self.distances(of_x, of_t)[0]

    def count(self, looked: Any) -> int:
        """Return the number of images."""
        return len(looked)

    def numbers(self, resampled: Any) -> Tensor:
        """Return (B, M): the statistics; or (1, M), NaN, for measures that are no number of one set."""
        return torch.full((1, len(self.names)), torch.nan)

    def curves(self, resampled: Any) -> dict[str, tuple[float, ...]]:
        """Return the curves of the first resample, for the measures that have one."""
        return {}

    def floor(self, t: Any, halves: Tensor) -> tuple[Tensor, Tensor]:
        """Return the floor (M,) and its replicates (B, M), from the distances (B, M) of halves of T."""
        return (halves.square().nanmean(0) / 2).sqrt(), halves * math.sqrt(0.5)

    def centred(self, replicates: Tensor, whole: Tensor) -> Tensor:
        """Return replicates (B, M) of distances without the bias of resampling."""
        return centred(replicates, whole)


class Patches(Family):
    """The sliced Wasserstein distances of the parts that the images have."""

    def __init__(self, seed: int = 0, channels: Channels = CHANNELS["rgbd"]) -> None:
        self.seed = seed
        there = (channels.color > 0, channels.depth, channels.depth)
        names = ("colour", "depth", "depth gradient")
        self.names = tuple(name for name, has in zip(names, there, strict=True) if has)
        self._there = torch.tensor(there)

    def look(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, Projections]:
        return images, Projections(images, self.seed)

    def resample(self, looked: tuple[Tensor, Projections], counts: Tensor) -> Tensor:
        return looked[1].quantiles(counts)

    def distances(self, x: Tensor, t: Tensor) -> Tensor:
        return Projections.distances(x, t)[:, self._there]

    def whole(self, x: tuple[Tensor, Projections], t: tuple[Tensor, Projections]) -> Tensor:
        found = sliced_wasserstein(x[0], t[0], seed=self.seed)
        return torch.tensor([found.colour, found.depth, found.depth_gradient]).double()[self._there]

    def floor(self, t: tuple[Tensor, Projections], halves: Tensor) -> tuple[Tensor, Tensor]:
        found = noise_floor(t[0], splits=FLOOR_SPLITS, seed=self.seed)
        floor = torch.tensor([found.colour, found.depth, found.depth_gradient]).double()[self._there] * math.sqrt(0.5)
        return floor, centred(halves * math.sqrt(0.5), floor)


class Sensor(Family):
    """The statistics of `sensor` and of `sequences`, in the unit of depth. Flicker needs colour."""

    def __init__(
        self,
        bins: sensor.Bins,
        unit: Unit,
        scene_pattern: str = sequences.SCENE_PATTERN,
        channels: Channels = CHANNELS["rgbd"],
    ) -> None:
        self.bins, self.unit, self.scene_pattern = bins, unit, scene_pattern
        flicker = [sequences.FLICKER] if channels.color else []
        self.statistics: tuple[Statistic, ...] = (*sensor.STATISTICS, sequences.REPEATABILITY, *flicker)
        self.names = tuple(statistic.name for statistic in self.statistics)

    def look(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return sensor.measure(images, self.bins) | sequences.measure(images, names, self.scene_pattern)

    def resample(self, looked: dict[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
        return {name: torch.einsum("bn,nck->bck", counts, sums) for name, sums in looked.items()}

    def numbers(self, resampled: dict[str, Tensor]) -> Tensor:
        found = [self._in_unit(s, s.number(resampled[s.name])) for s in self.statistics]
        return torch.stack(found, -1)

    def curves(self, resampled: dict[str, Tensor]) -> dict[str, tuple[float, ...]]:
        return {s.name: tuple(self._in_unit(s, s.curve(resampled[s.name][0])).tolist()) for s in self.statistics}

    def distances(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> Tensor:
        found = [s.distance(x[s.name], t[s.name]) * self._span(s) for s in self.statistics]
        return torch.stack(found, -1)

    def count(self, looked: dict[str, Tensor]) -> int:
        return len(looked["mean depth"])

    def _span(self, statistic: Statistic) -> float:
        return self.unit.span if statistic.unit == "depth" else 1.0

    def _in_unit(self, statistic: Statistic, values: Tensor) -> Tensor:
        return values * self._span(statistic) + (self.unit.near if statistic.name == "mean depth" else 0.0)


class Components(Family):
    """1 − overlap of the first principal components (`components`)."""

    names = ("components",)

    def look(self, images: Tensor, names: Sequence[str]) -> Tensor:
        return components.flattened(images)

    def resample(self, looked: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return looked, counts

    def distances(self, x: tuple[Tensor, Tensor], t: tuple[Tensor, Tensor]) -> Tensor:
        return 1 - components.overlap(*x, *t)[:, None]

    def floor(self, t: Tensor, halves: Tensor) -> tuple[Tensor, Tensor]:
        return halves.nanmean(0) / 2, halves / 2

    def centred(self, replicates: Tensor, whole: Tensor) -> Tensor:
        return replicates - replicates.nanmean(0) + whole


class Judge:
    """Holds T and S, and judges candidates that are made of S.

    `synthetic` and `real` are (N, 4, H, W) and (M, 4, H, W) in [0, 1], with at least two images each. The names of the
    images are for the statistics of sequences. `resamples` is the number of resamples of the bootstrap; 0 gives no
    intervals. `more` are further families of measures, such as `features.Features`.

    `channels` are those that T has. Images of other channels are shown as RGB-D (`views`), and the measures of an
    absent part are left out. `figure` (N, 1, H, W) is 0 in the background of S, which translations keep. By default,
    that is where `synthetic` is 0 in all channels.

    Raises ValueError for tensors of another shape, non-finite values, a set of one image, or without foreground.
    """

    def __init__(
        self,
        synthetic: Tensor,
        real: Tensor,
        *,
        unit: Unit | None = None,
        synthetic_names: Sequence[str] = (),
        real_names: Sequence[str] = (),
        scene_pattern: str = sequences.SCENE_PATTERN,
        resamples: int = 200,
        seed: int = 0,
        more: Sequence[Family] = (),
        channels: Channels = CHANNELS["rgbd"],
        figure: Tensor | None = None,
    ) -> None:
        for name, images in (("synthetic", synthetic), ("real", real)):
            check_images(name, images)
            if len(images) < 2:
                raise ValueError(f"{name}: found {len(images)} image, expected at least 2")
        self.unit = unit or Unit()
        self.channels = channels
        self.bins = sensor.find_bins(real)
        self._families: list[Family] = [
            Patches(seed, channels),
            *([Sensor(self.bins, self.unit, scene_pattern, channels)] if channels.depth else []),
            Components(),
            *more,
        ]
        self._figure = synthetic if figure is None else figure
        self.measures = tuple(name for family in self._families for name in family.names)
        self.synthetic, self._synthetic_names = synthetic, synthetic_names
        self._counts = resample(resamples, len(synthetic), seed + 1)
        self._one = torch.ones(1, len(real), dtype=torch.float64)
        self._real = [family.look(real, real_names) for family in self._families]
        self._real_resamples = self._resample(self._real, resample(resamples, len(real), seed + 2))
        self.real, self._floor = self._row_of_real(halves(max(resamples, FLOOR_SPLITS), len(real), seed + 3))
        self._before = self._find(synthetic)
        self.untranslated = self._row("S", self._before)

    def row(self, name: str, images: Tensor) -> Row:
        """Return the results for a candidate: images (N, 4, H, W) that were made of the synthetic ones, in their order.

        They are judged as they would be written (`as_written`). Raises ValueError for another shape.
        """
        if images.shape != self.synthetic.shape:
            raise ValueError(f"{name}: found shape {tuple(images.shape)}, expected {tuple(self.synthetic.shape)}")
        return self._row(name, self._find(as_written(images, self._figure)))

    def _resample(self, looked: Sequence[Any], counts: Tensor) -> list[Any]:
        return [family.resample(part, counts) for family, part in zip(self._families, looked, strict=True)]

    def _find(self, images: Tensor) -> _Found:
        ones = torch.ones(1, len(images), dtype=torch.float64)
        distances, numbers, distance_replicates, number_replicates = [], [], [], []
        curves: dict[str, tuple[float, ...]] = {}
        for family, t, t_resamples in zip(self._families, self._real, self._real_resamples, strict=True):
            x = family.look(images, self._synthetic_names)
            x_whole, x_resamples = family.resample(x, ones), family.resample(x, self._counts)
            distances.append(family.whole(x, t))
            numbers.append(family.numbers(x_whole)[0])
            distance_replicates.append(family.centred(family.distances(x_resamples, t_resamples), distances[-1]))
            number_replicates.append(family.numbers(x_resamples).expand(len(self._counts), -1))
            curves |= family.curves(x_whole)
        return _Found(
            torch.cat(distances),
            torch.cat(numbers),
            torch.cat(distance_replicates, 1),
            torch.cat(number_replicates, 1),
            curves,
        )

    def _row(self, name: str, found: _Found) -> Row:
        before = self._before
        values = {
            measure: Value(
                Interval.of(found.distances[m], found.distance_replicates[:, m]),
                Interval.of(
                    found.distances[m] - before.distances[m],
                    found.distance_replicates[:, m] - before.distance_replicates[:, m],
                ),
                Interval.of(found.numbers[m], found.number_replicates[:, m]),
                Interval.of(
                    found.numbers[m] - before.numbers[m],
                    found.number_replicates[:, m] - before.number_replicates[:, m],
                ),
                found.curves.get(measure, ()),
            )
            for m, measure in enumerate(self.measures)
            if not found.distances[m].isnan()
        }
        whole = self._scores(found.distances, before.distances)
        of_resamples = self._scores(found.distance_replicates, before.distance_replicates)
        replicates = {name: torch.cat([whole[name][None], of_resamples[name]]) for name in whole}
        for m, measure in enumerate(self.measures):
            if measure in values:
                replicates[measure] = torch.cat([found.distances[m : m + 1], found.distance_replicates[:, m]])
        return Row(name, values, {key: Interval.of(whole[key], of_resamples[key]) for key in whole}, replicates)

    def _row_of_real(self, split: tuple[Tensor, Tensor]) -> tuple[Row, Tensor]:
        """Return the row of T itself, whose distances are the floor; and the floor (M,)."""
        values, floors = {}, []
        a, b = (self._resample(self._real, half) for half in split)
        whole = self._resample(self._real, self._one)
        for i, family in enumerate(self._families):
            floor, replicates = family.floor(self._real[i], family.distances(a[i], b[i]))
            floors.append(floor)
            numbers, number_replicates = family.numbers(whole[i])[0], family.numbers(self._real_resamples[i])
            for m, measure in enumerate(family.names):
                if not (floor[m].isnan() and numbers[m].isnan()):
                    values[measure] = Value(
                        Interval.of(floor[m], replicates[:, m]),
                        Interval(math.nan),
                        Interval.of(numbers[m], number_replicates[:, m]),
                        Interval(math.nan),
                        family.curves(whole[i]).get(measure, ()),
                    )
        return Row("T", values, {}), torch.cat(floors)

    def _scores(self, distances: Tensor, before: Tensor) -> dict[str, Tensor]:
        """Return the score and the scores of the groups, for distances (…, M) of a candidate and of S."""
        allowed = before.maximum(self._floor)
        ratio = (distances.maximum(self._floor) / allowed).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        # With a ceiling and a floor of 0 a measure tells nothing, unless the candidate alone is different.
        ratio = torch.where(allowed == 0, torch.where(distances > 0, LARGEST_RATIO, torch.nan), ratio)
        # A candidate has lost what S and T have. Without ceiling or floor, a measure tells nothing.
        lost = distances.isnan() & ~allowed.isnan()
        logs = torch.where(lost, LARGEST_RATIO, ratio).log()
        place = {name: m for m, name in enumerate(self.measures)}
        groups = {}
        for group, kinds in GROUPS.items():
            found = [[place[name] for name in names if name in place] for names in kinds.values()]
            means = [logs[..., places].nanmean(-1) for places in found if places]
            if means:
                groups[group] = torch.stack(means, -1).nanmean(-1)
        return {"score": torch.stack(list(groups.values()), -1).nanmean(-1).exp()} | {
            group: mean.exp() for group, mean in groups.items()
        }


@dataclass(frozen=True)
class _Found:
    """All numbers of a candidate, with the M measures in the order of `Judge.measures`."""

    distances: Tensor
    """(M,)"""
    numbers: Tensor
    """(M,)"""
    distance_replicates: Tensor
    """(B, M)"""
    number_replicates: Tensor
    """(B, M)"""
    curves: dict[str, tuple[float, ...]]


def mean_errors(
    images: Tensor,
    truth: Tensor,
    unit: Unit,
    resamples: int,
    seed: int = 0,
    channels: Channels = CHANNELS["rgbd"],
) -> dict[str, Interval]:
    """Return the mean absolute errors of "colour" and "depth" per foreground pixel of the truth (`paired_error`).

    Both are (K, 4, H, W). Depth has the unit. The intervals are over the K images. A part that the `channels` lack is
    left out.
    """
    errors, pixels = error_sums(images, truth)
    counts = resample(resamples, len(images), seed)

    def mean(weights: Tensor) -> Tensor:
        return (weights @ errors) / (weights @ pixels).clamp_min(1)[:, None]

    whole, replicates = mean(torch.ones(1, len(images), dtype=torch.float64))[0], mean(counts)
    found = {}
    for i, (name, scale, there) in enumerate((("colour", 1.0, channels.color), ("depth", unit.span, channels.depth))):
        if there:
            found[name] = Interval.of(whole[i] * scale, replicates[:, i] * scale)
    return found
