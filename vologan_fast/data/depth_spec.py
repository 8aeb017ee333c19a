"""The meaning of a domain's depth values: its `DepthSpec`, completed and checked with a sample of its files.

A run resolves the spec once, when it begins. If the unit is open, it follows from the type of the values in the files.
If near and far are open, they become the 1st and 99th percentile of the valid depth, or -1 and 1 for normalised depth.
The resolved spec is recorded with the run. Resolving it again changes nothing and computes no percentiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vologan_fast.config import DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.pixels import (
    DEFAULT,
    Floats,
    Limits,
    check_plausible,
    check_type,
    depth_type,
    find_frame,
    is_normalized,
    metres_per_unit,
    picture_shape,
    probe_depth,
    read_color_shape,
    read_depth,
)
from vologan_fast.data.records import Record, Source

SAMPLE = 64
"""The number of files of a domain that are examined, spread evenly over the domain."""
PIXELS_PER_FILE = 1 << 16
"""At most about this many depth values of a file enter the statistics."""
FARTHEST = 1000.0
"""Metres. A larger 99th percentile is a background value or a wrong unit: no RGB-D camera measures as far."""


@dataclass(frozen=True)
class ResolvedDepth:
    """The resolved depth settings of one domain."""

    spec: DepthSpec
    description: str
    """For example "float16 EXR, near -1, far 1 (by convention), background -1"."""
    not_native: str
    """The name of a file in the sample that DALI's operator cannot read, and why. Empty if it can read all."""


def resolve_depth(
    domain: str, records: Sequence[Record], spec: DepthSpec, under_color: bool = True, limits: Limits = DEFAULT
) -> ResolvedDepth:
    """Complete `spec` from at most SAMPLE of the domain's records, and check that it fits them.

    Without `under_color`, no colour file is read, and all pixels count that show the depth file's own picture.
    Raises DataError, which names a file or a setting, in these cases:

    - a file that cannot be read, or that has no valid depth;
    - colour and depth with different aspect ratios;
    - integer and float files in one domain;
    - 8-bit depth, if the unit and the scale are both left open;
    - a scale, near or far that is not finite, a scale of 0, or near that is not less than far;
    - a 99th percentile beyond FARTHEST;
    - normalised depth with more than 1 % of its values far outside [near, far];
    - metric depth with less than 1 % of its values inside [near, far].
    """
    sample = evenly_spread(records, SAMPLE)
    infos = [probe_depth(record.depth, spec.channel, limits) for record in sample]
    types = [depth_type(info) for info in infos]
    integer = _all_integer(sample, types)
    settings = f"--data.{domain}"
    if spec.scale is not None and (spec.scale == 0 or not math.isfinite(spec.scale)):
        raise DataError(f"{settings}: scale is {spec.scale:g}; expected metres per file unit, which are not 0")
    if spec.unit == "auto" and spec.scale is None:
        _refuse_8_bit(sample, types, settings)
    spec = with_defaults(spec, integer)
    if spec.values == "auto":
        few_bits = any(t in ("uint8", "int8") for t in types)
        spec = dataclasses.replace(spec, values="8-bit" if few_bits else "integer" if integer else "float")
    for record, info in zip(sample, infos, strict=True):
        check_type(record.depth, info, spec)
    normalized = is_normalized(spec)

    measured = [_measure(record, spec, under_color, limits) for record in sample]
    valid = [file.values for file in measured]
    for name, limit in (("near", spec.near), ("far", spec.far)):
        if limit is not None and not math.isfinite(limit):
            raise DataError(f"{settings}.{name}: expected a finite number, found {limit:g}")
    origin = "as set"
    if spec.near is None or spec.far is None:
        if normalized:
            near, far, origin = -1.0, 1.0, "by convention"
        else:
            near, far = _percentiles(sample, measured, settings)
            origin = f"1st and 99th percentile of {len(sample)} files"
        spec = dataclasses.replace(
            spec,
            near=near if spec.near is None else spec.near,
            far=far if spec.far is None else spec.far,
        )
    assert spec.near is not None and spec.far is not None
    if not spec.near < spec.far:
        raise DataError(
            f"{sample[0].depth}: near is {spec.near:g} and far is {spec.far:g} for the {domain} domain "
            f"({origin}); expected near < far (set {settings}.near and {settings}.far)"
        )
    if normalized:
        # Whoever sets near and far may want to cut off some depth. By convention, all of it lies between them.
        _refuse_other_units(sample, valid, spec, settings, slack=1e-3 if origin == "by convention" else 0.25)
    else:
        _refuse_nothing_between(sample, valid, spec, settings)
    foreign = [f"{r.depth}: {i.reason}" for r, i in zip(sample, infos, strict=True) if i.reason]
    files = f"{types[0]} {infos[0].format.upper()}"
    if (channel := infos[0].channel) and len(infos[0].channels) > 1:
        files += f" (channel {channel.name})"
    return ResolvedDepth(spec, _describe(spec, files, origin, measured), foreign[0] if foreign else "")


def readable_sample(records: Sequence[Record], spec: DepthSpec, limits: Limits) -> list[Record]:
    """Return those of the records that `resolve_depth` examines whose depth can be read, or one if none can."""
    sample = evenly_spread(records, SAMPLE)
    return [record for record in sample if _is_readable(record, spec, limits)] or sample[:1]


def _is_readable(record: Record, spec: DepthSpec, limits: Limits) -> bool:
    try:
        info, depth = read_depth(record.depth, spec.channel, limits)
        spec = with_defaults(spec, "int" in depth_type(info))
        check_plausible(record.depth, depth, spec, limits)
        valid_depth(record.depth, depth, spec)
        if record.color_file is not None:
            find_frame(record.depth, info, read_color_shape(record.color, limits))
    except DataError:
        return False
    return True


def evenly_spread(records: Sequence[Record], count: int) -> list[Record]:
    """Return at most `count` of the records, evenly spread."""
    count = min(len(records), count)
    return [records[i * len(records) // count] for i in range(count)]


def with_defaults(spec: DepthSpec, integer: bool) -> DepthSpec:
    """Return the spec with defaults for unit, invalid and background where they are open.

    The defaults depend on the type of the domain's files: `integer` or float.
    """
    if spec.unit == "auto" and spec.scale is None:
        spec = dataclasses.replace(spec, unit="mm" if integer else "normalized")
    if spec.invalid is None:
        spec = dataclasses.replace(spec, invalid=(0.0,) if integer else ())
    if spec.background is None and is_normalized(spec):
        spec = dataclasses.replace(spec, background=-1.0)
    return spec


def valid_pixels(depth: Floats, spec: DepthSpec) -> npt.NDArray[np.bool_]:
    """Return a mask (h, w) of the pixels of a file's depth that are neither missing nor background.

    The spec must have its defaults (`with_defaults`).
    """
    valid: npt.NDArray[np.bool_] = np.isfinite(depth)
    nothing = (*(spec.invalid or ()), *(() if spec.background is None else (spec.background,)))
    for value in nothing:
        valid &= depth != np.float32(value)
    if not is_normalized(spec):  # a distance of 0 or less is not a measurement
        valid &= depth * np.sign(np.float32(metres_per_unit(spec))) > 0
    return valid


def negative_pixels(depth: Floats, spec: DepthSpec) -> npt.NDArray[np.bool_]:
    """Return a mask (h, w) of the pixels that are missing because their depth is negative in a metric unit.

    The spec must have its defaults (`with_defaults`).
    """
    if is_normalized(spec):
        return np.zeros(depth.shape, bool)
    negative: npt.NDArray[np.bool_] = np.isfinite(depth) & (depth * np.sign(np.float32(metres_per_unit(spec))) < 0)
    return negative if spec.background is None else negative & (depth != np.float32(spec.background))


def valid_depth(source: Source, depth: Floats, spec: DepthSpec) -> Floats:
    """Return the valid values (n,) of a file's depth (h, w), in the file's units.

    The spec must have its defaults (`with_defaults`). Raises DataError, which names the file, if there are none.
    """
    values = depth[valid_pixels(depth, spec)]
    if not values.size:
        reason = "all of it is missing or background"
        if negative_pixels(depth, spec).any():
            reason += (
                ": depth of 0 or less is missing in a metric unit (if these values point backwards, as in OpenGL, set "
                f"--data.DOMAIN.scale {-metres_per_unit(spec):g})"
            )
        raise DataError(f"{source}: no valid depth; {reason}")
    return values


def in_words(value: float) -> str:
    """Return a file value as an option takes it. No digit of its float32 is lost."""
    return str(np.float32(value)).removesuffix(".0")


def _all_integer(sample: Sequence[Record], types: Sequence[str]) -> bool:
    integer = ["int" in t for t in types]
    if any(integer) != all(integer):
        odd = integer.index(not integer[0])
        raise DataError(
            f"{sample[odd].depth}: {types[odd]} depth in a domain whose first file, "
            f"{sample[0].depth.name}, holds {types[0]}; expected only integer or only float files"
        )
    return integer[0]


def _refuse_8_bit(sample: Sequence[Record], types: Sequence[str], settings: str) -> None:
    for record, t in zip(sample, types, strict=True):
        if t == "uint8":
            raise DataError(
                f"{record.depth}: 8-bit depth, which has only 256 levels; expected 16 bits (if this "
                f"is meant, set {settings}.unit or {settings}.scale)"
            )


@dataclass(frozen=True)
class _Measured:
    """The depth of one file of the sample."""

    values: Floats
    """At most PIXELS_PER_FILE valid values, in the unit of near and far."""
    farthest: float
    """The valid value that is farthest away, in the file's units."""
    missing: float
    """The fraction of missing pixels."""
    negative: float
    """The fraction of pixels that are missing because they are negative in a metric unit."""


def _measure(record: Record, spec: DepthSpec, under_color: bool, limits: Limits) -> _Measured:
    """Read the depth of one file.

    Only depth that lies under the colour counts, or in the file's own picture. Raises DataError if none of it is valid,
    or if the colour has another aspect ratio.
    """
    info, whole = read_depth(record.depth, spec.channel, limits)
    shape = read_color_shape(record.color, limits) if under_color else picture_shape(info)
    frame = find_frame(record.depth, info, shape)
    depth, pixels = frame.crop(whole), frame.height * frame.width
    values = valid_depth(record.depth, depth, spec)
    background = 0 if spec.background is None else np.count_nonzero(depth == np.float32(spec.background))
    step = math.ceil(values.size / PIXELS_PER_FILE)
    return _Measured(
        values[::step] * np.float32(metres_per_unit(spec)),
        farthest=float(values.max() if metres_per_unit(spec) > 0 else values.min()),
        missing=1 - (values.size + background) / pixels,
        negative=float(negative_pixels(depth, spec).sum() / pixels),
    )


def _percentiles(sample: Sequence[Record], measured: Sequence[_Measured], settings: str) -> tuple[float, float]:
    """Return the 1st and 99th percentile of all files' values together, in metres.

    They are rounded to the millimetre, or to a thousandth of the distance between them if that is less.

    Raises DataError if the 99th percentile is beyond FARTHEST.
    """
    near, far = (float(p) for p in np.percentile(np.concatenate([m.values for m in measured]), (1, 99)))
    digits = 3 - min(0, math.floor(math.log10(far - near))) if far > near else 3
    near, far = round(near, digits), round(far, digits)
    if far > FARTHEST:
        i = max(range(len(sample)), key=lambda i: float(measured[i].values.max()))
        raise DataError(
            f"{sample[i].depth}: depth reaches {float(measured[i].values.max()):g} m; expected less than {FARTHEST:g} "
            f"m (if the largest value means background, set {settings}.background {in_words(measured[i].farthest)}; "
            f"else check {settings}.unit)"
        )
    return near, far


def _refuse_other_units(
    sample: Sequence[Record], valid: Sequence[Floats], spec: DepthSpec, settings: str, slack: float
) -> None:
    """Raise DataError if a file with normalised depth seems to hold another unit, such as metres.

    At most 1 % of a file's values may lie outside [near, far] by more than `slack`, a fraction of far - near.
    """
    assert spec.near is not None and spec.far is not None
    slack *= spec.far - spec.near
    for record, values in zip(sample, valid, strict=True):
        outside = (values < spec.near - slack) | (values > spec.far + slack)
        if outside.mean() > 0.01:
            beyond, before = values.max() - spec.far, spec.near - values.min()
            end = values.max() if beyond > before else values.min()
            raise DataError(
                f"{record.depth}: depth from {values.min():g} to {values.max():g}; expected normalised "
                f"depth in [{spec.near:g}, {spec.far:g}] (if these are metres, set {settings}.unit m; if "
                f"{in_words(end)} means background, set {settings}.background {in_words(end)}; if it is "
                f"normalised in another way, set {settings}.near and {settings}.far)"
            )


def _refuse_nothing_between(sample: Sequence[Record], valid: Sequence[Floats], spec: DepthSpec, settings: str) -> None:
    """Raise DataError if less than 1 % of all depth lies between near and far.

    Then near and far were probably not set in metres.
    """
    values = np.concatenate(valid)
    between = (values >= np.float32(spec.near)) & (values <= np.float32(spec.far))
    if between.mean() < 0.01:
        raise DataError(
            f"{sample[0].depth}: depth of this and other files is from {values.min():g} to {values.max():g} m, next to "
            f"none of it from {spec.near:g} to {spec.far:g} m; expected {settings}.near and {settings}.far in metres, "
            f"and the right {settings}.unit"
        )


def _describe(spec: DepthSpec, files: str, origin: str, measured: Sequence[_Measured]) -> str:
    unit = "normalized" if is_normalized(spec) else "metres"
    if spec.scale is not None:
        files += f", {spec.scale:g} m a unit"
    elif unit == "metres":
        files += f" in {spec.unit}"
    suffix = " m" if unit == "metres" else ""
    parts = [f"{files}, near {spec.near:g}{suffix}, far {spec.far:g}{suffix} ({origin})"]
    metric = unit == "metres"
    nothing = ["0 and below"] if metric else []
    nothing += [in_words(value) for value in spec.invalid or () if not metric or value * metres_per_unit(spec) > 0]
    if nothing:
        parts.append(f"missing {', '.join(nothing)}")
    if spec.background is not None:
        parts.append(f"background {in_words(spec.background)}")
    missing, negative = (np.mean([getattr(file, share) for file in measured]) for share in ("missing", "negative"))
    parts.append(f"{missing:.1%} of the pixels missing{f' ({negative:.1%} negative)' if negative else ''}")
    return ", ".join(parts)
