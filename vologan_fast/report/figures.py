"""Figures of a run for plotly.js, as plain dictionaries: `{"data": [traces], "layout": {…}}`.

Nothing here imports plotly. Texts from users go through `label`, because plotly.js reads a part of HTML in names.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast.quantities.clouds import FIELD_OF_VIEW, LIMIT, Cloud, cloud
from vologan_fast.quantities.depth import DepthScale, profile
from vologan_fast.quantities.histograms import Histogram
from vologan_fast.quantities.observation import Direction, Example, Observation
from vologan_fast.quantities.principal import Projection
from vologan_fast.report.pictures import surface
from vologan_fast.report.record import MACHINE, Lines
from vologan_fast.words import printable

Figure = dict[str, Any]

COLORS = {
    "S": "#1f77b4",
    "T": "#e07b00",
    "G(S)": "#2a9d4a",
    "F(T)": "#8e5bb5",
    "F(G(S))": "#17a2b8",
    "G(F(T))": "#c2476d",
}
"""The colour of each set in all figures."""
LINES = ("#1f77b4", "#e07b00", "#2a9d4a", "#d0342c", "#8e5bb5", "#8c6146", "#c2476d", "#5f5f5f", "#9a9a00", "#17a2b8")
POINTS = 2000
"""Most points of a curve. Longer curves are averaged."""


def label(text: object) -> str:
    """Return a text as plotly.js shows it unchanged."""
    return html.escape(printable(text), quote=False)


def array(values: Iterable[float] | npt.NDArray[np.generic]) -> dict[str, Any]:
    """Return numbers as plotly.js reads them without a loss: their bytes in base64. NaN is a gap."""
    with np.errstate(over="ignore"):  # a gap, too
        found = np.ascontiguousarray(np.asarray(values, np.float32))
    return {"dtype": "f4", "bdata": base64.b64encode(found.tobytes()).decode()}


def layout(title: str = "", x: str = "", y: str = "", **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share."""
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0.01, "xanchor": "left"},
        "margin": {"l": 56, "r": 12, "t": 34, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
        "legend": {"orientation": "h", "yanchor": "top", "x": 0},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#999", "activecolor": "#333"},
        "xaxis": {"title": {"text": x, "standoff": 6}, "gridcolor": "#e6e6e6", "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y}, "gridcolor": "#e6e6e6", "zeroline": False, "automargin": True},
        "hovermode": "closest",
        **more,
    }


def curve(lines: Lines, name: str, points: int = POINTS) -> tuple[list[float], list[float]]:
    """Return steps and values of a field of log lines. Neighbours are averaged where there are more than `points`."""
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
    width = math.ceil(len(found) / points) or 1
    parts = [found[i : i + width] for i in range(0, len(found), width)]
    return [part[-1][0] for part in parts], [sum(v for _, v in part) / len(part) for part in parts]


def curves(lines: Lines, names: Sequence[str], title: str, y: str = "") -> Figure:
    """Return a figure with a curve for each of the fields."""
    data = []
    for i, name in enumerate(names):
        steps, values = curve(lines, name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if len(steps) > 1 else "markers",
                "name": label(name),
                "x": array(steps),
                "y": array(values),
                "line": {"color": LINES[i % len(LINES)], "width": 1.5},
            }
        )
    return {"data": data, "layout": layout(title, "step", y)}


def fields(lines: Lines, *beginnings: str) -> list[str]:
    """Return the fields of log lines that begin so, in their order."""
    names = dict.fromkeys(name for line in lines for name in line)
    return [name for name in names if name.startswith(beginnings) and name not in MACHINE]


def overlaid(runs: Mapping[str, Lines], name: str) -> Figure:
    """Return a figure with a field of several runs."""
    data = []
    for i, (run, lines) in enumerate(runs.items()):
        steps, values = curve(lines, name, max(2 * POINTS // len(runs), 20))  # many runs fit into one file
        if steps:
            color = LINES[i % len(LINES)]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines" if len(steps) > 1 else "markers",
                    "name": label(run),
                    "x": array(steps),
                    "y": array(values),
                    "line": {"color": color, "width": 1.5},
                }
            )
    return {"data": data, "layout": layout(label(name), "step", showlegend=True)}


def value_histograms(
    found: Mapping[str, Histogram], channel: str, scales: Mapping[str, DepthScale] | None = None
) -> Figure:
    """Return the histograms of a channel, one line for each set.

    Depth is shown in metres if S and T have one range in metres, else normalised.
    """
    x = "value" if channel != "depth" else "normalised depth (0: near, 1: far)"
    scale = None
    if channel == "depth" and scales:
        first, *others = scales.values()
        if first.unit and all(other == first for other in others):
            scale, x = first, f"distance in {first.unit}"
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": array(of_set.centres if scale is None else scale.distance(of_set.centres)),
            "y": array(100 * of_set.shares),
            "line": {"color": COLORS[name], "width": 2, "shape": "hvh"},
        }
        for name, of_set in found.items()
    ]
    return {"data": data, "layout": layout(channel, x, "% of the pixels")}


def profiles(direction: Direction, example: Example) -> Figure:
    """Return the distances along one row of an example's images."""
    unit = direction.scale.unit
    data = []
    for name, image, kind in zip(direction.labels, example.images, direction.channels, strict=True):
        if kind.depth:
            line = profile(image[-1], example.row, direction.scale)
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": array(np.arange(len(line))),
                    "y": array(line),
                    "line": {"color": COLORS[name], "width": 2},
                    "connectgaps": False,
                }
            )
    title = f"{label(example.name)}, row {example.row}"
    return {"data": data, "layout": layout(title, "column", f"distance in {unit}" if unit else "depth without a unit")}


def pairs(projection: Projection) -> Figure:
    """Return the pair plot of the components: each against each, with the sets' histograms on the diagonal."""
    count = len(projection.variances)
    data: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    gap = 0.012
    side = (1 - gap * (count - 1)) / count
    for row in range(count):
        for column in range(row + 1):
            number = row * count + column + 1
            left, top = column * (side + gap), 1 - row * (side + gap)
            shares = projection.variances
            common = {
                "showgrid": False,
                "zeroline": False,
                "showticklabels": False,
                "linecolor": "#bbb",
                "mirror": True,
            }
            axes[f"xaxis{number}"] = {
                **common,
                "domain": [left, left + side],
                "anchor": f"y{number}",
                "title": {"text": f"{column + 1} ({shares[column]:.0%})" if row == count - 1 else "", "standoff": 4},
            }
            axes[f"yaxis{number}"] = {
                **common,
                "domain": [max(top - side, 0), top],
                "anchor": f"x{number}",
                "title": {"text": f"{row + 1}" if column == 0 else "", "standoff": 4},
            }
            for name, places in projection.places.items():
                trace: dict[str, Any] = {
                    "name": name,
                    "legendgroup": name,
                    "showlegend": row == 0,
                    "xaxis": f"x{number}",
                    "yaxis": f"y{number}",
                }
                if row == column:
                    trace |= {"type": "histogram", "x": array(places[:, column]), "nbinsx": 12, "opacity": 0.5}
                    trace["marker"] = {"color": COLORS[name]}
                else:
                    trace |= {"type": "scatter", "mode": "markers", "hoverinfo": "name"}
                    trace |= {"x": array(places[:, column]), "y": array(places[:, row])}
                    trace["marker"] = {"color": COLORS[name], "size": 4, "opacity": 0.7}
                data.append(trace)
    shared = layout(margin={"l": 28, "r": 8, "t": 8, "b": 30}, barmode="overlay", dragmode="select")
    del shared["xaxis"], shared["yaxis"]
    shared["legend"] = {"orientation": "v", "x": 1, "xanchor": "right", "y": 0.92}
    return {"data": data, "layout": {**shared, **axes}}


def weight_histograms(observation: Observation) -> Figure:
    """Return the histograms of the weights of all networks, on a logarithmic axis."""
    data = []
    for i, (name, weights) in enumerate(observation.weights.items()):
        shares = 100 * weights.histogram.shares
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": array(weights.histogram.centres),
                "y": array(np.where(shares > 0, shares, np.nan)),
                "line": {"color": LINES[i % len(LINES)], "width": 1.5},
            }
        )
    figure = {"data": data, "layout": layout("weights", "weight", "% of the weights")}
    figure["layout"]["yaxis"]["type"] = "log"  # type: ignore[index]
    return figure


def norm_scales(observation: Observation) -> Figure:
    """Return γ of each norm: its median, with a bar from the smallest to the largest."""
    data = []
    for i, (name, weights) in enumerate(observation.weights.items()):
        if not weights.gammas:
            continue
        median = np.array([scales.median for scales in weights.gammas])
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": array(np.arange(1, len(median) + 1)),
                "y": array(median),
                "text": [label(scales.layer) for scales in weights.gammas],
                "marker": {"color": LINES[i % len(LINES)], "size": 6},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": array([scales.high for scales in weights.gammas] - median),
                    "arrayminus": array(median - [scales.low for scales in weights.gammas]),
                    "thickness": 1,
                    "width": 2,
                },
            }
        )
    return {"data": data, "layout": layout("γ of the norms", "number of the norm", "γ")}


def spectral_norms(observation: Observation) -> Figure:
    """Return σ of each layer. Layers that divide by it are drawn as rings."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": array(np.arange(1, len(weights.spectra) + 1)),
            "y": array([found.sigma for found in weights.spectra]),
            "text": [label(found.layer) for found in weights.spectra],
            "line": {"color": LINES[i % len(LINES)], "width": 1},
            "marker": {
                "size": 7,
                "symbol": ["circle-open" if found.normalised else "circle" for found in weights.spectra],
            },
        }
        for i, (name, weights) in enumerate(observation.weights.items())
        if weights.spectra
    ]
    return {"data": data, "layout": layout("σ of the layers", "number of the layer", "σ")}


def clouds(
    direction: Direction, example: Example, field_of_view: float = FIELD_OF_VIEW, limit: int = LIMIT
) -> list[dict[str, Any]]:
    """Return the point clouds of an example: input, translation and cycle, packed for the page's script.

    Points are in the frame that is drawn: x to the right, y away from the camera, z up. So a person stands upright.
    """
    packed = []
    for name, image, kind in zip(direction.labels, example.images, direction.channels, strict=True):
        if kind.depth:
            found = cloud(image[-1], surface(image, kind), direction.scale, field_of_view, limit)
            packed.append({"title": name, **packed_cloud(found)})
    return packed


def packed_cloud(found: Cloud) -> dict[str, Any]:
    """Return a cloud as base64 of 16-bit places between its bounds, and of 8-bit colours."""
    points = np.stack([found.points[:, 0], found.points[:, 2], -found.points[:, 1]], 1).astype(np.float64)
    low = points.min(0) if len(points) else np.zeros(3)
    size = (np.ptp(points, axis=0) if len(points) else np.zeros(3)).clip(1e-6)
    places = ((points - low) / size * 65535).round().astype("<u2")
    return {
        "low": low.tolist(),
        "size": size.tolist(),
        "spacing": found.spacing,
        "points": base64.b64encode(places.tobytes()).decode(),
        "colors": base64.b64encode(np.ascontiguousarray(found.colors).tobytes()).decode(),
    }
