"""A check of a data set before a run begins: a summary of its files, and a list of findings that look wrong.

`inspect_dataset` counts all files and reads a sample of each domain. A broken file does not stop it. It calls
`resolve_depth`, as training does, and so both accept the same data. It does not guess facts that the files cannot
show, for example whether depth is z or the distance from the camera's centre.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from vologan_fast import depth as depth_files
from vologan_fast.config import DOMAINS, Channels, DataConfig, DepthSpec, Size, height_and_width, size_in_words
from vologan_fast.data.checksums import unlisted
from vologan_fast.data.dataset import check_settings, few_held_out
from vologan_fast.data.depth_spec import (
    SAMPLE,
    evenly_spread,
    in_words,
    negative_pixels,
    resolve_depth,
    valid_depth,
    with_defaults,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import (
    empty_domain,
    list_records,
    list_test_records,
    refuse_unread_tests,
    require_files,
    skipped_files,
    without_color,
    without_depth,
)
from vologan_fast.data.pixels import (
    Floats,
    Frame,
    Limits,
    check_plausible,
    crop_shape,
    depth_type,
    find_frame,
    is_normalized,
    metres_per_unit,
    open_color,
    picture_shape,
    read_depth,
)
from vologan_fast.data.records import Record, Source, read, size_of
from vologan_fast.data.sampling import held_out_count

VALUES = 1 << 22
"""About this many depth values of a domain enter the statistics."""
COMPARED_BYTES = 1 << 28
"""The largest number of bytes that are read to compare files, once for colour and once for depth. Only files of equal
size are compared."""
PLATEAU = 0.01
"""A fraction of the valid pixels. A larger fraction that holds a few equal values looks wrong if no other values are
near them."""
MOST_CODES = 8
"""The largest number of values at one end of an image's depth that may be codes and not depth."""
NO_MEASURE = (65535.0, 65504.0, 1e10)
"""Values that mean "nothing": the largest unsigned 16-bit value, the largest half, and Blender's background."""
NEAREST, FARTHEST = 0.1, 200.0
"""Metres. If a domain's median depth lies outside this range, its unit is probably another one."""
LITTLE_OVERLAP = 0.2
"""The least overlap of two domains' depth ranges that looks right, as a fraction of the shorter range."""
_ORIENTATION = 0x0112  # EXIF's tag
_TURNED = range(5, 9)  # its values that exchange width and height
_Value = TypeVar("_Value", bound=Hashable)
_File = TypeVar("_File", "Color", "Depth")


@dataclass(frozen=True)
class Color:
    """A colour file that could be read."""

    file: Source
    format: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    orientation: int
    """The EXIF orientation, 1 to 8. 1 is upright."""


@dataclass(frozen=True)
class Depth:
    """A depth file that could be read."""

    file: Source
    info: depth_files.Info
    frame: Frame
    """The pixels of the file that lie under the colour: all of them, or the display window of an EXR."""
    type: str
    """The NumPy name of the channel's type."""
    values: Floats
    """Some of the valid depth values, in the file's units."""
    missing: float
    """The fraction of missing pixels, of those that lie under the colour."""
    background: float
    """The fraction of background pixels."""
    negative: float
    """The fraction of pixels that are missing because their depth is negative in a metric unit."""
    lowest: float
    """The lowest valid depth, in the file's units."""
    highest: float
    """The highest valid depth, in the file's units."""
    codes: dict[float, float]
    """Valid values, in the file's units, that look like codes and not like depth, with their fraction of the valid
    pixels."""


@dataclass(frozen=True)
class Image:
    """One image that could be read. Colour, or depth, is None if it is absent or not read."""

    record: Record
    color: Color | None
    depth: Depth | None


@dataclass(frozen=True)
class Domain:
    """The result of the check for one domain."""

    name: str
    channels: Channels
    """The channels that are read: those of the settings, without those that no file holds."""
    records: Sequence[Record]
    """All images. Those that the data set names for tests come last."""
    held_out: int
    """The number of held-out images: those for tests, or else those that training draws."""
    sample: tuple[Image, ...]
    """The images of the sample that could be read."""
    sampled: int
    """The number of images in the sample, including the broken ones."""
    color_bytes: int
    """The bytes of all colour files that are read."""
    depth_bytes: int
    spec: DepthSpec
    """The resolved spec. If training would refuse the domain, only the readable images are used to resolve it. If no
    image is readable, it is the given spec."""
    description: str
    """The meaning of the depth for training, or "not read". Empty if training would refuse the domain."""
    refusal: str
    """The reason why training would refuse the domain. Empty if it would not, or if `broken` contains the reason."""
    broken: tuple[str, ...]
    """One sentence for each file that cannot be used."""
    findings: tuple[str, ...]
    """One sentence for each thing that looks wrong."""
    warnings: tuple[str, ...]
    """The warnings that training prints."""
    limits: Limits
    """What a file may hold."""

    @property
    def colors(self) -> list[Color]:
        """The colour files of the sample."""
        return [image.color for image in self.sample if image.color is not None]

    @property
    def depths(self) -> list[Depth]:
        """The depth files of the sample."""
        return [image.depth for image in self.sample if image.depth is not None]

    @property
    def values(self) -> Floats:
        """Valid depth values of the sample, in the files' units."""
        return np.concatenate([depth.values for depth in self.depths] or [np.empty(0, np.float32)])

    @property
    def metres(self) -> float:
        """Metres per file unit. NaN for normalised depth, and for depth whose unit is still `auto`."""
        unknown = self.spec.scale is None and self.spec.unit in ("auto", "normalized")
        return math.nan if unknown else metres_per_unit(self.spec)


def inspect_dataset(root: Path, config: DataConfig, sample: int | None = SAMPLE) -> tuple[list[Domain], list[str]]:
    """Check a data set. Returns the results for both domains, and sentences about problems between the domains.

    At most `sample` images of each domain are read, and as many of its images for tests. None means all images. Raises
    DataError if `list_records` cannot list the images, for example because the folder has no known layout, and
    ConfigError for settings of `data` that are invalid for every data set.
    """
    check_settings(config)
    records, tests = list_records(root), list_test_records(root)
    parts = (*records.values(), *tests.values())
    sizes = {path: size_of(path) for found in parts for record in found for path in record.files}
    skipped = skipped_files(root)
    domains = []
    for name in DOMAINS:
        found = _inspect_domain(root, name, records[name], tests.get(name, ()), config, sample, sizes)
        domains.append(dataclasses.replace(found, findings=(*skipped[name], *found.findings)))
    without = unlisted(record for found in parts for record in found)
    return domains, [*_identical(records, tests, sizes), *_little_overlap(domains), *without]


def _inspect_domain(
    root: Path,
    name: str,
    records: Sequence[Record],
    tests: Sequence[Record],
    config: DataConfig,
    sample: int | None,
    sizes: dict[Source, int],
) -> Domain:
    spec: DepthSpec = getattr(config, name)
    needed = config.channel_sets[name]
    channels = _there(records, needed)
    chosen, broken = [], []
    for part in (records, tests):
        there, absent = _with_files(part, _there(part, needed), sizes)
        chosen += evenly_spread(there, len(there) if sample is None else sample)
        broken += [f"{path}: no such file" for path in absent]
    most = max(64, VALUES // max(1, len(chosen)))
    images = []
    of_tests = _there(tests, needed)
    named = set(tests)
    limits = Limits.of(config)
    for result in _in_threads(
        lambda record: _read(record, of_tests if record in named else channels, spec, most, limits),
        chosen,
        f"reading {name}",
    ):
        if isinstance(result, Image):
            images.append(result)
        else:
            broken.append(result)
    refusal, resolved, description = "", spec, "" if needed.depth else "not read"
    held_out = len(tests) or (held_out_count(len(records), config.held_out) if len(records) > 1 else 0)
    if len(records) == 1 and not tests:
        refusal = f"1 image in the {name} domain; expected at least 2, to train on one and hold out the other"
    elif not records:
        refusal = empty_domain(root, name)
    try:
        refuse_unread_tests(root, name)
        for part in (records, tests):
            require_files(part, needed)
        if records and needed.depth:
            found = resolve_depth(name, records, spec, needed.color > 0, limits)
            resolved, description = found.spec, found.description
    except DataError as error:
        refusal, description = str(error), ""
        trained = [image for image in images if image.record not in named]
        resolved = _resolve_readable(name, trained, spec, channels, limits) if channels.depth else spec
    return Domain(
        name,
        channels,
        [*records, *tests] if tests else records,
        held_out,
        tuple(images),
        len(chosen),
        _bytes((*records, *tests), "color_file", sizes) if channels.color else 0,
        _bytes((*records, *tests), "depth_file", sizes) if channels.depth else 0,
        resolved,
        description,
        "" if refusal in broken else refusal,
        tuple(broken),
        tuple(_findings(images, resolved, f"--data.{name}", config.size)),
        tuple(few_held_out(name, held_out, bool(tests)) if held_out else ()),
        limits,
    )


def _there(records: Sequence[Record], needed: Channels) -> Channels:
    """Return the needed channels without those that some of the images lack."""
    return Channels(0 if without_color(records) else needed.color, needed.depth and not without_depth(records))


def _with_files(
    records: Sequence[Record], channels: Channels, sizes: dict[Source, int]
) -> tuple[list[Record], list[Source]]:
    """Return the images whose files are there, of those that are read, and the files that are absent."""
    files = [_files(record, channels) for record in records]
    absent = [path for paths in files for path in paths if sizes[path] < 0]
    whole = [paths and all(sizes[path] >= 0 for path in paths) for paths in files]
    return [record for record, there in zip(records, whole, strict=True) if there], absent


def _bytes(records: Sequence[Record], kind: str, sizes: dict[Source, int]) -> int:
    files = (getattr(record, kind) for record in records)
    return sum(max(0, sizes[file]) for file in files if file is not None)


def _files(record: Record, channels: Channels) -> list[Source]:
    """Return the files of an image that are read."""
    return [*([record.color] if channels.color else []), *([record.depth] if channels.depth else [])]


def _in_threads(work: Callable[[Record], Image | str], records: Sequence[Record], title: str) -> Iterable[Image | str]:
    """Yield `work(record)` for all records in order. Use all cores, and show a progress bar if there is a terminal."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(
            pool.map(work, records), title, total=len(records), console=console, disable=not console.is_terminal
        )


def _read(record: Record, channels: Channels, spec: DepthSpec, most: int, limits: Limits) -> Image | str:
    """Read one image and keep at most `most` of its depth values. For a broken image, return a sentence about it."""
    try:
        color = _read_color(record.color, limits) if channels.color else None
        return Image(record, color, _read_depth(record.depth, color, spec, most, limits) if channels.depth else None)
    except DataError as error:
        return str(error)


def _read_color(source: Source, limits: Limits) -> Color:
    with open_color(source, limits=limits) as color:
        return Color(source, color.format or "", color.size, color.getexif().get(_ORIENTATION, 1))


def _read_depth(source: Source, color: Color | None, spec: DepthSpec, most: int, limits: Limits) -> Depth:
    info, whole = read_depth(source, spec.channel, limits)
    check_plausible(source, whole, spec, limits)
    frame = find_frame(source, info, picture_shape(info)) if color is None else _find_frame(source, info, color)
    depth, pixels = frame.crop(whole), frame.height * frame.width
    spec = with_defaults(spec, "int" in depth_type(info))
    valid = valid_depth(source, depth, spec)
    background = 0 if spec.background is None else np.count_nonzero(depth == np.float32(spec.background))
    return Depth(
        source,
        info,
        frame,
        depth_type(info),
        valid[:: math.ceil(valid.size / most)].copy(),
        missing=1 - (valid.size + background) / pixels,
        background=background / pixels,
        negative=float(negative_pixels(depth, spec).sum() / pixels),
        lowest=float(valid.min()),
        highest=float(valid.max()),
        codes=_codes(valid),
    )


def _codes(valid: Floats) -> dict[float, float]:
    """Return the values of one image's valid depth that look like codes, with their fraction of the valid pixels.

    These values look like codes:

    - up to MOST_CODES values at one end, if together they fill more than PLATEAU and lie far from all others;
    - the highest value, if it is one of NO_MEASURE;
    - 0, if it fills more than PLATEAU. It is valid in normalised depth alone.
    """
    values, counts = np.unique(valid, return_counts=True)
    shares = counts / valid.size
    last = len(values)
    for k in range(max(1, last - MOST_CODES), last):  # the values from k on are high codes
        below = abs(values[k - 1])
        if values[k] - below > below > 0 and shares[k:].sum() > PLATEAU:
            last = k
            break
    if last == len(values) and values[-1] in NO_MEASURE:
        last -= 1
    first = 0
    for k in range(min(MOST_CODES, last - 1), 0, -1):  # the values before k are low codes
        gap, spread = values[k] - values[k - 1], values[last - 1] - values[k]
        if (gap > spread > 0 or gap > 3 * values[k - 1] > 0) and shares[:k].sum() > PLATEAU:
            first = k
            break
    codes = [*range(first), *range(last, len(values))]
    codes += [k for k in np.flatnonzero(values == 0) if shares[k] > PLATEAU and k not in codes]
    return {float(values[k]): float(shares[k]) for k in codes}


def _find_frame(source: Source, info: depth_files.Info, color: Color) -> Frame:
    try:
        return find_frame(source, info, color.size[::-1])
    except DataError as error:
        if color.orientation not in _TURNED:
            raise
        raise DataError(
            f"{error}; the colour is turned by EXIF orientation {color.orientation}, which is not applied: turn its "
            "pixels"
        ) from None


def _resolve_readable(
    name: str, images: Sequence[Image], spec: DepthSpec, channels: Channels, limits: Limits
) -> DepthSpec:
    """Return the spec that follows from the readable images alone."""
    depths = [image.depth for image in images if image.depth is not None]
    if not depths:
        return spec
    try:
        return resolve_depth(name, [image.record for image in images], spec, channels.color > 0, limits).spec
    except DataError:
        spec = with_defaults(spec, "int" in depths[0].type)
        unit = metres_per_unit(spec)
        near, far = (float(p) * unit for p in np.percentile(np.concatenate([d.values for d in depths]), (1, 99)))
        return dataclasses.replace(
            spec, near=near if spec.near is None else spec.near, far=far if spec.far is None else spec.far
        )


def counts(values: Iterable[_Value]) -> list[tuple[_Value, int]]:
    """Return each value with the number of its occurrences, the most frequent value first."""
    return Counter(values).most_common()


def _findings(images: Sequence[Image], spec: DepthSpec, option: str, size: Size) -> list[str]:
    """Return a sentence for each thing that looks wrong in a domain's sample."""
    colors = [image.color for image in images if image.color is not None]
    depths = [image.depth for image in images if image.depth is not None]
    return [
        *(_of_depth(depths, spec, option) if depths else []),
        *_of_color(colors, size, beside_depth=bool(depths)),
    ]


def _of_depth(depths: Sequence[Depth], spec: DepthSpec, option: str) -> list[str]:
    return [
        *_mixed("types of depth", [f"{d.type} {d.info.format.upper()}" for d in depths]),
        *_mixed("channels of depth", [d.info.channel.name for d in depths if d.info.channel]),
        *_mixed("sizes of depth", [f"{d.frame.width} × {d.frame.height}" for d in depths]),
        *_some(
            depths,
            lambda d: d.type == "uint8",
            "have 8-bit depth, which has only 256 levels: a picture of the depth?",
        ),
        *_some(depths, lambda d: d.lowest == d.highest, "have the same depth everywhere"),
        *_nothing_there(depths, spec, option),
        *_some(depths, lambda d: d.negative > 0, "hold negative depth, which counts as missing in a metric unit"),
        *_unlikely_unit(depths, spec, option),
        *_half_unused(depths, spec, option),
        *_some(
            depths,
            lambda d: d.info.decoder == "OpenEXR",
            f"have EXR depth that only the OpenEXR library reads ({_reasons(depths)}): then the native loader runs",
        ),
        *_some(
            depths,
            lambda d: d.info.decoder not in ("native", "OpenEXR"),
            f"have depth that DALI does not read ({_reasons(depths)}): then the native loader runs",
        ),
    ]


def _of_color(colors: Sequence[Color], size: Size, beside_depth: bool) -> list[str]:
    shape = height_and_width(size)
    return [
        *_mixed("sizes of colour", [f"{c.size[0]} × {c.size[1]}" for c in colors]),
        *_some(
            colors,
            lambda c: c.orientation != 1,
            "have colour with an EXIF orientation, which is not applied"
            + ": right only if the depth beside it is as the colour's pixels are stored" * beside_depth,
        ),
        *_some(
            colors,
            lambda c: any(a < b for a, b in zip(crop_shape(c.size[::-1], size), shape, strict=True)),
            f"have colour smaller than --data.size {size_in_words(size)}, and are enlarged",
        ),
    ]


def _some(files: Sequence[_File], wrong: Callable[[_File], bool], what: str) -> list[str]:
    """Return the sentence "3 of 64 images have … (such as FILE)" if any file is `wrong`, else nothing."""
    found = [file for file in files if wrong(file)]
    if not found:
        return []
    return [f"{len(found)} of {len(files)} images {what} (such as {found[0].file})"]


def _mixed(what: str, values: Sequence[str]) -> list[str]:
    kinds = counts(values)
    listed = ", ".join(f"{value} ({count})" for value, count in kinds[:6])
    return [f"{len(kinds)} {what} in one domain: {listed}{', …' if len(kinds) > 6 else ''}"] if len(kinds) > 1 else []


def _reasons(depths: Sequence[Depth]) -> str:
    return ", ".join(sorted({depth.info.reason for depth in depths if depth.info.reason}))


def _nothing_there(depths: Sequence[Depth], spec: DepthSpec, option: str) -> list[str]:
    """Report values that look like codes: for background, or for a camera's "not measured"."""
    codes = counts(code for depth in depths for code in depth.codes)
    # Background is compared first. So the list may hold all codes, also one that the reader declares as background.
    invalid = " ".join(in_words(value) for value in sorted({*(spec.invalid or ()), *(code for code, _ in codes)}))
    found = []
    for code, count in codes:
        such = [depth for depth in depths if code in depth.codes]
        share = np.mean([depth.codes[code] for depth in such])
        found.append(
            f"{count} of {len(depths)} images hold the depth {in_words(code)}, in {share:.1%} of their valid pixels "
            f"and apart from the others: if it means background, set {option}.background {in_words(code)}; if "
            f'"not measured", {option}.invalid {invalid} (such as {such[0].file})'
        )
    return found


def _unlikely_unit(depths: Sequence[Depth], spec: DepthSpec, option: str) -> list[str]:
    if is_normalized(spec):
        return []
    median = float(np.median(np.concatenate([depth.values for depth in depths]))) * metres_per_unit(spec)
    if NEAREST <= median <= FARTHEST:
        return []
    return [f"the median depth is {median:.3g} m: is {option}.unit or {option}.scale right?"]


def _half_unused(depths: Sequence[Depth], spec: DepthSpec, option: str) -> list[str]:
    """Report normalised depth in one half of the range from near to far alone, such as [0, 1] in [-1, 1]."""
    if not is_normalized(spec):
        return []
    assert spec.near is not None and spec.far is not None
    low, high = (float(p) for p in np.percentile(np.concatenate([depth.values for depth in depths]), (1, 99)))
    if low < spec.near or high > spec.far:
        return []
    near, far = spec.near, spec.far
    while near < far and low < high:
        middle = (near + far) / 2
        if low >= middle:
            near = middle
        elif high <= middle:
            far = middle
        else:
            break
    if (near, far) == (spec.near, spec.far):
        return []
    metres = f"if these are metres, set {option}.unit m; else, " if low > 0 else ""
    return [
        f"the depth lies from {low:.3g} to {high:.3g}, and half of the range from {spec.near:g} to {spec.far:g} or "
        f"more is unused: {metres}for a finer depth, set {option}.near {near:g} and {option}.far {far:g}"
    ]


def _identical(
    records: Mapping[str, Sequence[Record]], tests: Mapping[str, Sequence[Record]], sizes: dict[Source, int]
) -> list[str]:
    """Report files with equal content. Colour is compared with colour and depth with depth, over both domains.

    Images for tests with the files of a training image get a sentence of their own.
    """
    found = []
    for what in ("color", "depth"):
        word = {"color": "colour"}.get(what, what)
        by_size: dict[int, list[Source]] = {}
        of_tests: set[Source] = set()
        for part in (records, tests):
            for domain in part.values():
                paths = [file for record in domain if (file := getattr(record, f"{what}_file")) is not None]
                of_tests |= set(paths) if part is tests else set()
                for path in paths:
                    by_size.setdefault(sizes[path], []).append(path)
        by_content: dict[bytes, list[Source]] = {}
        budget = COMPARED_BYTES
        for size, paths in by_size.items():
            for path in paths if len(paths) > 1 and size > 0 else ():
                budget -= size
                if budget >= 0:
                    by_content.setdefault(_digest(path), []).append(path)
        groups = []
        copies: list[tuple[Source, Source]] = []
        for paths in by_content.values():
            trained = [path for path in paths if path not in of_tests]
            if trained:
                copies += [(path, trained[0]) for path in paths if path in of_tests]
            groups.append(trained or paths)
        if copies:
            found.append(
                f"{len(copies)} {word} files of images for tests have the bytes of a training image, such as "
                f"{copies[0][0]} those of {copies[0][1]}: scores of held-out images are then too good"
            )
        groups = [paths for paths in groups if len(paths) > 1]
        if groups:
            extra = sum(len(paths) - 1 for paths in groups)
            found.append(
                f"{extra} {word} files have the bytes of another one, such as {groups[0][1]} those of {groups[0][0]}"
            )
    return found


def _digest(path: Source) -> bytes:
    try:
        return hashlib.blake2b(read(path)).digest()
    except DataError:
        return os.urandom(64)  # equal to no other digest; the unreadable file is reported elsewhere


def _little_overlap(domains: Sequence[Domain]) -> list[str]:
    """Report two domains whose depth ranges barely overlap, if both are in metres or both are normalised."""
    if any(not domain.depths for domain in domains):
        return []
    metric = [not math.isnan(domain.metres) for domain in domains]
    if any(metric) != all(metric):
        return []
    unit = " m" if metric[0] else ""
    ranges = [np.percentile(d.values * (d.metres if metric[0] else 1.0), (1, 99)) for d in domains]
    common = min(high for _, high in ranges) - max(low for low, _ in ranges)
    if common >= LITTLE_OVERLAP * min(high - low for low, high in ranges):
        return []
    described = " and ".join(
        f"{low:.3g} to {high:.3g}{unit} in {domain.name}" for domain, (low, high) in zip(domains, ranges, strict=True)
    )
    return [f"the domains' depths barely overlap: {described} (1st to 99th percentile)"]
