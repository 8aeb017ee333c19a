"""The page of a report: sections of plots, pictures and tables in one HTML file that needs no network.

jinja2 writes all texts, and escapes them. Numbers are JSON in a script element, with < and > escaped, so no text can
end it. plotly.js comes from the installed package `plotly`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vologan_fast.files import write_whole
from vologan_fast.report.figures import Figure
from vologan_fast.report.pictures import Picture, Pixels
from vologan_fast.report.record import Table
from vologan_fast.words import printable

LIMIT = 15_000_000
"""Bytes. A report is smaller."""
_LARGE = 60_000
"""Bytes of a PNG from which a JPEG may replace it."""
_PICTURES = 2_000_000
"""Bytes of all pictures of a page together, without those of its sliders. Each of them has an equal share."""
_JPEGS = (1.0, 88), (1.0, 70), (0.7, 70), (0.5, 60), (0.3, 60)
"""Width and quality of the JPEGs, of which the first one counts that is small enough."""


class ReportError(RuntimeError):
    """A report cannot be written. The message is one sentence."""


@dataclass(frozen=True)
class Plot:
    """Figures of which a menu shows one at a time. A single figure has no menu."""

    figures: Mapping[str, Figure]
    height: int = 380
    curves: bool = False
    """Whether these are curves over the steps, which the controls smooth and put on a logarithmic axis."""
    kind = "plot"


@dataclass(frozen=True)
class Clouds:
    """Point clouds side by side, for each entry of a menu."""

    choices: Mapping[str, Sequence[dict[str, Any]]]
    unit: str
    kind = "clouds"


@dataclass(frozen=True)
class Strip:
    """Pictures in columns. A narrow screen has fewer of them."""

    pictures: Sequence[Picture]
    columns: int = 2
    kind = "strip"


@dataclass(frozen=True)
class Slider:
    """Pictures over the steps. A slider chooses the step; each entry shows pictures side by side."""

    frames: Sequence[tuple[int, Sequence[tuple[str, bytes]]]]
    """Step, and the caption and JPEG file of each picture."""
    kind = "slider"


@dataclass(frozen=True)
class Tables:
    """Tables below each other."""

    tables: Sequence[Table]
    kind = "tables"


@dataclass(frozen=True)
class Sentences:
    """Sentences as a list. Each has the class of its urgency: "warning" or "note"."""

    sentences: Sequence[str]
    urgency: str = "note"
    kind = "sentences"


Part = Plot | Clouds | Strip | Slider | Tables | Sentences


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    key: str
    title: str
    how: str
    """One sentence: how to read it."""
    parts: Sequence[Part] = field(default_factory=tuple)


def plotly_script() -> str:
    """Return plotly.js from the installed package. Raises ReportError if there is none."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ReportError("plotly is not installed; pip install plotly") from None
    return str(get_plotlyjs())


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> Path:
    """Write the page to `path`, complete or not at all, and return the path.

    Raises ReportError without plotly or jinja2, and for a page that would be too large. Raises OSError.
    """
    content = page(title, subtitle, sections).encode()
    if len(content) >= LIMIT:
        raise ReportError(f"{path}: {len(content) / 1e6:.1f} MB, expected less than {LIMIT / 1e6:.0f} MB")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML."""
    script = plotly_script()
    try:
        import jinja2
    except ImportError:
        raise ReportError("jinja2 is not installed; pip install jinja2") from None
    folder = Path(__file__).parent / "page"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["printable"] = printable
    strips = [part for section in sections for part in section.parts if isinstance(part, Strip)]
    share = _PICTURES // max(sum(len(strip.pictures) for strip in strips), 1)
    environment.filters["data_uri"] = lambda pixels: _data_uri(pixels, share)
    numbers: dict[str, Any] = {"plots": {}, "sliders": {}, "clouds": {}}
    numbered = []
    for section in sections:
        parts = []
        for i, part in enumerate(section.parts):
            key = f"{section.key}-{i}"
            parts.append((key, part))
            if isinstance(part, Plot):
                choices = [[printable(name), figure] for name, figure in part.figures.items()]
                numbers["plots"][key] = {"choices": choices, "curves": part.curves}
            elif isinstance(part, Clouds):
                numbers["clouds"][key] = {
                    "unit": part.unit,
                    "choices": [[printable(name), found] for name, found in part.choices.items()],
                }
            elif isinstance(part, Slider):
                numbers["sliders"][key] = [
                    [step, [[printable(caption), base64.b64encode(file).decode()] for caption, file in pictures]]
                    for step, pictures in part.frames
                ]
        numbered.append((section, parts))
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=numbered,
        plotly=script,
        style=(folder / "page.css").read_text(),
        clouds=(folder / "clouds.js").read_text(),
        script=(folder / "page.js").read_text(),
        numbers=embedded(numbers),
    )


def embedded(numbers: Any) -> str:
    """Return values as JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(numbers, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def jpeg(pixels: Pixels, width: int, quality: int = 82) -> bytes:
    """Return a picture as JPEG, at most `width` pixels wide."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width > width:
        image = image.resize((width, max(round(image.height * width / image.width), 1)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _data_uri(pixels: Pixels, most: int) -> str:
    """Return a picture as a data URI: a PNG if that is small, else a JPEG of at most about `most` bytes."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=6)
    kind, content = "png", file.getvalue()
    if len(content) > min(_LARGE, most):
        width = pixels.shape[1]
        for share, quality in _JPEGS:
            smaller = jpeg(pixels, max(int(share * width), 1), quality)
            if len(smaller) < len(content):
                kind, content = "jpeg", smaller
            if len(content) <= most:
                break
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
