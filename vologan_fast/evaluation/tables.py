"""The results of an evaluation for people and programs: JSON, tables and plots."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from vologan_fast.evaluation import repeats, sensor
from vologan_fast.evaluation.judge import Interval, Row
from vologan_fast.evaluation.sensor import Bins, Unit
from vologan_fast.files import write_whole

_UNITS = {
    "colour": "pixel value",
    "depth": "of near … far",
    "depth gradient": "of near … far",
    "components": "1 − overlap",
}


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown, with its title above."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, ["---"] * len(self.columns), *self.rows)]
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n"


def legend(baselines: Sequence[Row]) -> str:
    """Return what the numbers and letters of the tables mean, with S as the first of the `baselines`."""
    letters = ", ".join(f"{row.name} ({row.name[0]})" for row in baselines)
    return (
        "T is the floor: its distance from itself. [low, high] are 95 % intervals over the images. Letters: closer to "
        f"T than {letters}, beyond the interval of the difference. Scores: 1 is S, less is better."
    )


def measures_table(rows: Sequence[Row], unit: Unit, baselines: Sequence[Row]) -> Table:
    """Return the distances from T of some candidates, one measure a line, with their intervals.

    A number is followed by the first letters of the `baselines` that are farther from T, beyond the interval of the
    difference.
    """
    cells = []
    for measure in _measures(rows):
        line = [f"{measure} ({_unit_of(measure, unit)})"]
        for row in rows:
            found = row.values[measure].distance if measure in row.values else Interval(math.nan)
            line.append(in_digits(found) + _letters(row, measure, baselines))
        cells.append(line)
    for name in _scores(rows):
        line = [f"{name}"]
        for row in rows:
            found = row.scores.get(name, Interval(math.nan))
            line.append(in_digits(found) + _letters(row, name, baselines))
        cells.append(line)
    return Table("Distance from T", ["", *(row.name for row in rows)], cells)


def _measures(rows: Sequence[Row]) -> list[str]:
    """Return the measures that any of the candidates has. T alone lacks some, such as the repeatability of no shots."""
    return list(dict.fromkeys(measure for row in rows for measure in row.values))


def _scores(rows: Sequence[Row]) -> list[str]:
    """Return the names of the scores: those of the groups that the images have, and "score" at the end."""
    return [name for name in ("patches", "sensor", "score") if any(name in row.scores for row in rows)]


def _score_first(steps: Mapping[int, Row]) -> list[str]:
    return ["score", *_scores(list(steps.values()))[:-1]]


def numbers_table(rows: Sequence[Row], unit: Unit) -> Table:
    """Return the statistics themselves, one a line."""
    cells = []
    for measure in _measures(rows):
        if any(measure in row.values and not math.isnan(row.values[measure].number.value) for row in rows):
            numbers = [in_digits(row.values[measure].number) if measure in row.values else "–" for row in rows]
            name = "share of holes" if measure == "holes by depth" else measure.removesuffix(" by depth")
            if measure not in ("holes by slope", "holes by edge distance", "bias by edge distance"):
                cells.append([f"{name} ({_unit_of(measure, unit)})", *numbers])
    return Table("The statistics themselves", ["", *(row.name for row in rows)], cells)


def errors_table(rows: Sequence[Row], unit: Unit) -> Table:
    """Return the mean absolute errors of the candidates that have any."""
    having = [row for row in rows if row.errors]
    names = list(dict.fromkeys(name for row in having for name in row.errors))
    cells = [
        [
            f"{name} ({unit.name if 'depth' in name else 'pixel value'})",
            *(in_digits(row.errors[name]) if name in row.errors else "–" for row in having),
        ]
        for name in names
    ]
    return Table("Mean absolute errors", ["", *(row.name for row in having)], cells)


def repeats_table(rows: Mapping[str, Mapping[str, Tensor]], bins: Bins, unit: Unit) -> Table:
    """Return the statistics of repeated shots (`repeats.measure`), for the candidates by name. T comes first."""
    scale = {"depth": (unit.span, unit.name), "share": (1.0, "share")}
    cells = []
    for statistic in repeats.STATISTICS:
        factor, name = scale[statistic.unit]
        sums = {candidate: found[statistic.name].sum(0) for candidate, found in rows.items()}
        if statistic is not repeats.SPREAD_BY_EDGE:
            title = "spread" if statistic is repeats.SPREAD_BY_DEPTH else statistic.name
            numbers = [_digits(float(statistic.number(of)) * factor) for of in sums.values()]
            cells.append([f"{title} ({name})", *numbers])
        if statistic.axis:
            curves = [(statistic.curve(of) * factor).tolist() for of in sums.values()]
            for i, label in enumerate(_labels(statistic.axis, bins, unit)):
                cells.append([f"{statistic.name}, {label}", *(_digits(curve[i]) for curve in curves)])
            t = next(iter(sums.values()))
            apart = [_digits(float(statistic.distance(of, t)) * factor) for of in sums.values()]
            cells.append([f"{statistic.name}: distance from T ({name})", *apart])
    return Table("Repeated shots of one scene", ["", *rows], cells)


def repeats_as_json(found: Mapping[str, Tensor], unit: Unit) -> dict[str, Any]:
    """Return the statistics of repeated shots as JSON values: a number and a curve each. NaN becomes null."""
    values = {}
    for statistic in repeats.STATISTICS:
        sums, factor = found[statistic.name].sum(0), unit.span if statistic.unit == "depth" else 1.0
        curve = [_number(value * factor) for value in statistic.curve(sums).tolist()]
        values[statistic.name] = {"number": _number(float(statistic.number(sums)) * factor), "curve": curve}
    return values


def _digits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def checkpoints_table(steps: Mapping[int, Row], best: int) -> Table:
    """Return the scores of all checkpoints, one a line."""
    names = _score_first(steps)
    cells = [
        [
            f"{step}{' (best)' if step == best else ''}",
            *(in_digits(row.scores[n]) for n in names),
        ]
        for step, row in steps.items()
    ]
    return Table("Checkpoints", ["step", *names], cells)


def in_digits(found: Interval) -> str:
    """Return a number with its interval, in as many digits as the interval's width allows."""
    if math.isnan(found.value):
        return "–"
    width = found.high - found.low
    scale = width if width > 0 else abs(found.value)
    digits = min(max(1 - math.floor(math.log10(scale)), 0), 6) if scale > 0 else 0
    text = f"{found.value:.{digits}f}"
    return text if math.isnan(width) else f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _letters(row: Row, name: str, baselines: Sequence[Row]) -> str:
    beaten = [other.name[0] for other in baselines if other is not row and row.difference(other, name).high < 0]
    return f" {''.join(beaten)}" if beaten else ""


def _unit_of(measure: str, unit: Unit) -> str:
    for statistic in sensor.STATISTICS:
        if statistic.name == measure and statistic.unit != "depth":
            return statistic.unit
    return _UNITS.get(measure, "" if measure.startswith(("KID", "FID")) else unit.name)


def as_json(row: Row, baselines: Sequence[Row] = ()) -> dict[str, Any]:
    """Return a row as JSON values, with its differences to the baselines. An interval is [value, low, high].

    NaN becomes null.
    """
    return {
        "minus": {
            baseline.name: {name: as_list(found) for name, found in row.minus(baseline).items()}
            for baseline in baselines
            if baseline is not row
        },
        "score": {name: as_list(found) for name, found in row.scores.items()},
        "measures": {
            name: {
                "distance": as_list(value.distance),
                "change": as_list(value.change),
                "number": as_list(value.number),
                "number_change": as_list(value.number_change),
                "curve": [_number(c) for c in value.curve],
            }
            for name, value in row.values.items()
        },
        "errors": {name: as_list(found) for name, found in row.errors.items()},
    }


def as_list(found: Interval) -> list[float | None]:
    """Return [value, low, high]. NaN becomes None."""
    return [_number(found.value), _number(found.low), _number(found.high)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plot_curves(path: Path, rows: Sequence[Row], bins: Bins, unit: Unit) -> None:
    """Write a PNG with the curves of all statistics that have one. Raises OSError."""
    shown = [s for s in sensor.STATISTICS if s.axis and s.name in rows[0].values]
    figure = _figure(3, -(-len(shown) // 3))
    for i, statistic in enumerate(shown):
        axes = figure.add_subplot(-(-len(shown) // 3), 3, i + 1)
        labels = _labels(statistic.axis, bins, unit)
        for row in (row for row in rows if statistic.name in row.values):
            style = {"T": "k-", "S": "k:"}.get(row.name, "o-")
            axes.plot(labels, row.values[statistic.name].curve, style, label=row.name, markersize=3)
        axes.set_title(f"{statistic.name} ({_unit_of(statistic.name, unit)})", fontsize=9)
        axes.set_xlabel(statistic.axis + (f" ({unit.name})" if statistic.axis == "depth" else ""), fontsize=8)
        axes.tick_params(labelsize=7)
        if i == 0:
            axes.legend(fontsize=7)
    _save(path, figure)


def plot_checkpoints(path: Path, steps: Mapping[int, Row], best: int, others: Sequence[Row]) -> None:
    """Write a PNG with the scores over the steps, and the distances relative to S. Raises OSError."""
    figure = _figure(2, 1)
    places = list(steps)
    axes = figure.add_subplot(1, 2, 1)
    for name in _score_first(steps):
        found = [row.scores[name] for row in steps.values()]
        (line,) = axes.plot(places, [f.value for f in found], "o-", label=name, markersize=3)
        axes.fill_between(places, [f.low for f in found], [f.high for f in found], color=line.get_color(), alpha=0.15)
    for row, style in zip(others, ("--", ":", "-."), strict=False):
        axes.axhline(row.score.value, color="k", linestyle=style, linewidth=1, label=f"score of {row.name}")
    axes.axvline(best, color="k", alpha=0.2)
    axes.set_title("score: 1 for S, less is better", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    axes = figure.add_subplot(1, 2, 2)
    first = next(iter(steps.values()))
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, name in enumerate(first.values):
        ratios = [_ratio(row, name) for row in steps.values()]
        axes.plot(places, ratios, "-", label=name, linewidth=1, color=colours[i % 20])
    axes.axhline(1, color="k", linewidth=0.5)
    axes.set_ylim(0, 2)
    axes.set_title("distance from T, as a multiple of the distance of S", fontsize=9)
    axes.legend(fontsize=6, ncols=2)
    for axes in figure.axes:
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
    _save(path, figure)


def _ratio(row: Row, name: str) -> float:
    if name not in row.values:
        return math.nan
    distance, change = row.values[name].distance.value, row.values[name].change.value
    return distance / (distance - change) if distance - change > 0 else math.nan


def _labels(axis: str, bins: Bins, unit: Unit) -> list[str]:
    """Return the labels of the bins."""
    if axis.startswith("lag"):
        return [f"{axis}{lag}" for axis in "xy" for lag in range(1, sensor.LAGS + 1)]
    if axis.startswith("pixels"):
        ends = [*sensor.DISTANCES[1:], 0]
        return [
            str(low) if high == low + 1 else f"{low}+" if not high else f"{low}–{high - 1}"
            for low, high in zip(sensor.DISTANCES, ends, strict=True)
        ]
    inner = (bins.depth * unit.span + unit.near if axis == "depth" else bins.slope * unit.span).tolist()
    return [f"< {inner[0]:.3g}", *(f"< {end:.3g}" for end in inner[1:]), f"≥ {inner[-1]:.3g}"]


def _figure(columns: int, rows: int) -> Figure:
    return Figure(figsize=(4.2 * columns, 3.2 * rows), dpi=110, layout="constrained")


def _save(path: Path, figure: Figure) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_whole(path, image.getvalue())
