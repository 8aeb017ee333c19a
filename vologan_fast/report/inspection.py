"""The report of `python -m vologan_fast.data inspect`: text, and a picture of the images as training gets them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vologan_fast.data.depth_spec import evenly_spread
from vologan_fast.data.errors import DataError
from vologan_fast.data.inspection import Depth, Domain, counts
from vologan_fast.data.pixels import pack, read_cropped
from vologan_fast.files import write_whole
from vologan_fast.report.grid import tile
from vologan_fast.words import printable

BARS = 16
PAIRS = 6
"""Images of each domain in the picture."""
_SIDE = 192  # longest side of an image in the picture, in pixels


def print_report(domains: Sequence[Domain], between: Sequence[str], console: Console) -> None:
    """Print facts, a histogram and the problems of each domain, then the problems between both domains."""
    for domain in domains:
        console.rule(domain.name, align="left")
        console.print(_facts(domain))
        if domain.depths:
            console.print(_histogram(domain))
        _sentences(console, "broken", domain.broken)
        _sentences(console, "training refuses", [domain.refusal] if domain.refusal else [])
        _sentences(console, "looks wrong", domain.findings)
        _sentences(console, "warning", domain.warnings)
    console.rule(align="left")
    _sentences(console, "looks wrong", between)
    if not any((d.broken, d.refusal, d.findings) != ((), "", ()) for d in domains) and not between:
        console.print("nothing looks wrong")


def _sentences(console: Console, heading: str, sentences: Iterable[str]) -> None:
    for sentence in sentences:
        console.print(printable(f"{heading}: {sentence}"), markup=False, highlight=False, soft_wrap=True)


def _facts(domain: Domain) -> Table:
    table = Table.grid(padding=(0, 2))
    count = len(domain.records)
    split = f" ({count - domain.held_out} training and {domain.held_out} held-out images)" if domain.held_out else ""
    rows = {"images": f"{count}{split}, of which {domain.sampled} were read"}
    if colors := domain.colors:
        rows["colour"] = (
            f"{_listed(c.format for c in colors)}; {_listed(_size(c.size) for c in colors)}; "
            f"{_megabytes(domain.color_bytes)}"
        )
    if depths := domain.depths:
        rows |= {
            "depth": f"{_listed(_kind(d.info.format, d.info.compression, d.type) for d in depths)}; "
            f"{_listed(_size((d.frame.width, d.frame.height)) for d in depths)}; {_megabytes(domain.depth_bytes)}",
            **_exr_facts(depths),
            "decoder": _listed(d.info.decoder for d in depths),
            "missing": _fraction(d.missing for d in depths),
            "background": _fraction(d.background for d in depths),
            "read as": domain.description or "training refuses, see below",
        }
    elif domain.description:
        rows["depth"] = domain.description
    for name, text in rows.items():
        table.add_row(name, Text(printable(text)))
    return table


def _listed(values: Iterable[str]) -> str:
    """Return the different values: "JPEG", or with counts "JPEG (60), PNG (4)"."""
    kinds = counts(values)
    return kinds[0][0] if len(kinds) == 1 else ", ".join(f"{value} ({count})" for value, count in kinds)


def _exr_facts(depths: Iterable[Depth]) -> dict[str, str]:
    """Return the channels that are read, with the reason for each, and what is done where the windows differ."""
    exr = [depth for depth in depths if depth.info.format == "exr"]
    channels = [f"{depth.info.channel.name}: {depth.info.why}" for depth in exr if depth.info.channel]
    windows = [_placement(depth) for depth in exr if depth.info.data_window != depth.info.display_window]
    return {name: _listed(values) for name, values in (("channel", channels), ("windows", windows)) if values}


def _placement(depth: Depth) -> str:
    """Return how depth lies under the colour, if the data window of its EXR is not the display window."""
    frame = depth.frame
    whole = (frame.width, frame.height) == (depth.info.width, depth.info.height)
    if whole and frame.top == frame.left == 0:
        return "the data window lies under the colour, not the display window"
    return "placed in the display window"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _kind(format_: str, compression: str, depth_type: str) -> str:
    return f"{format_.upper()} {depth_type}, {compression}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"


def _fraction(fractions: Iterable[float]) -> str:
    """Return the mean fraction of the pixels, and the largest fraction in one image, as text."""
    values = list(fractions)
    return f"{np.mean(values):.1%} of the pixels, at most {max(values):.1%} of one image's"


def _bins(domain: Domain, bins: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int, int]:
    """Return edges and counts of the middle 99 % of the values, and the numbers of values below and above.

    Without this cut, a single background value could press all other values into one bar.
    """
    values = domain.values.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    number, edges = np.histogram(values, bins, (low, high if high > low else low + max(1.0, abs(low))))
    return edges, number, int((values < edges[0]).sum()), int((values > edges[-1]).sum())


def _histogram(domain: Domain) -> Table:
    """Return bars of valid depth, with their edges in the file's unit and, if it is known, in metres."""
    edges, number, below, above = _bins(domain, BARS)
    metric = not math.isnan(domain.metres) and domain.metres != 1  # values in metres need no second column
    table = Table(box=None, padding=(0, 1), title="valid depth", title_justify="left")
    table.add_column("file unit", justify="right", no_wrap=True)
    if metric:
        table.add_column("metres", justify="right", no_wrap=True)
    table.add_column("", width=40)
    table.add_column("", justify="right")
    total = number.sum() + below + above

    def add(name: str, low: float, high: float, count: int) -> None:
        cells = [name or f"{low:.4g} … {high:.4g}"]
        if metric:
            cells.append("" if name else f"{low * domain.metres:.3f} … {high * domain.metres:.3f}")
        table.add_row(*cells, Bar(max(1, number.max()), 0, min(count, number.max())), f"{count / total:.1%}")

    if below:
        add("less", 0, 0, below)
    for i, count in enumerate(number):
        add("", edges[i], edges[i + 1], int(count))
    if above:
        add("more", 0, 0, above)
    return table


def write_picture(path: Path, domains: Sequence[Domain], size: tuple[int, int]) -> bool:
    """Write a PNG with colour and depth of some images of each domain, as training gets them, and a depth histogram.

    Returns False, and writes nothing, if no image could be read. The PNG is written atomically. Raises DataError if it
    cannot be written.
    """
    shown = [(domain, strip) for domain in domains if (strip := _strip(domain, _at_most(size))) is not None]
    if not shown:
        return False
    figure = Figure(figsize=(12, 3.4 * len(shown)), layout="constrained")
    axes = figure.subplots(2 * len(shown), 1, squeeze=False, height_ratios=[2, 1] * len(shown))[:, 0]
    for (domain, strip), above, below in zip(shown, axes[::2], axes[1::2], strict=True):
        above.imshow(strip)
        above.set_title(f"{domain.name}: {_title(domain)}", fontsize=9, loc="left")
        above.set_axis_off()
        if not domain.depths:
            below.set_axis_off()
            continue
        edges, number, _, _ = _bins(domain, 8 * BARS)
        scale = 1.0 if math.isnan(domain.metres) else domain.metres
        below.stairs(number / number.sum(), edges * scale, fill=True)
        unit = "file unit" if math.isnan(domain.metres) else "m"
        below.set_xlabel(f"{unit}; dashed: near and far")
        for limit in (domain.spec.near, domain.spec.far):
            if limit is not None:
                below.axvline(limit, color="black", linewidth=0.8, linestyle="--")
        below.set_ylabel("of valid depth")
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    try:
        write_whole(path, picture.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    return True


def _title(domain: Domain) -> str:
    if not domain.description:
        return "training refuses this domain"
    return domain.description if domain.depths else ", ".join(domain.channels.names)


def _at_most(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) with the aspect ratio of `size`, and sides of at most _SIDE."""
    shrink = min(_SIDE / max(size), 1)
    return max(round(size[0] * shrink), 1), max(round(size[1] * shrink), 1)


def _strip(domain: Domain, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """Return some images of the domain side by side, each with its depth. None if there is no readable image."""
    tiles = []
    for record in evenly_spread([image.record for image in domain.sample], PAIRS):
        try:
            color, depth = read_cropped(record, domain.spec, size, domain.channels, domain.limits)
        except DataError:  # valid as a whole, but not in the centre that is shown
            continue
        image = np.empty((*size, domain.channels.number), np.float32)
        pack(color, depth, None, image)
        tiles.append(tile(torch.from_numpy(image).permute(2, 0, 1), domain.channels))
    return np.concatenate(tiles, axis=1) if tiles else None
