"""Read BEDLAM and BEDLAM 2: people rendered by Unreal, one folder per scene set.

A scene set NAME holds folders of sequences, `seq_000000` and so on, for each kind of file. FRAME is
`seq_000000_0000`. The first of these places that is there is taken:

- depth: `depth/SEQ/FRAME_depth.exr` (BEDLAM), `exr_layers/depth/SEQ/FRAME_depth.exr` (BEDLAM 2, extracted by its
  tools), `exr_depth/SEQ/FRAME.exr` (BEDLAM 2 as it is released, multilayer) or `exr/SEQ/FRAME.exr`
- colour: `png/SEQ/FRAME.png`, `jpg/SEQ/FRAME.jpg`, `exr_layers/image/SEQ/FRAME_image.png`, or R, G and B of the
  multilayer EXR. The PNGs have motion blur. The others have none, and neither has the depth.
- people: `masks/SEQ/FRAME_XX_body.png` (also …_clothing, …_hair), the same in `exr_layers/masks`, or the Cryptomatte of
  the multilayer EXR. `FRAME_env.png` shows everything else, and is not needed.

Depth is in centimetres: 32-bit floats in BEDLAM, 16-bit floats in BEDLAM 2. The values and their type are kept. The
channel is `Depth` or `FinalImageMovieRenderQueue_WorldDepth.R`. It is chosen by the rule for all EXR files. Unreal's
scene depth is z, the distance from the camera's plane. This is assumed here and was not verified with the data. Sky has
enormous values, or infinity. `FARTHEST` and more becomes background, which is infinite in the written file.

Some scene sets were rendered sideways (`is_sideways`). Their images are turned by 90° clockwise. With `people`, images
are cut to the square that shows most of them.

Formats: https://github.com/PerceivingSystems/bedlam_render (tools/post_render_pipeline; the unit: issue 14),
https://github.com/PerceivingSystems/bedlam2_render (tools/post_render_pipeline/exr),
https://huggingface.co/datasets/Intelligent-Systems/BEDLAM2-depth, and data_processing (also for the scene sets that are
sideways) in https://github.com/pixelite1201/BEDLAM.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
from PIL import Image

from vologan_fast import depth as depth_files
from vologan_fast.data.convert.multilayer import Multilayer
from vologan_fast.data.convert.people import Mask, people_square, read_mask
from vologan_fast.data.convert.writer import (
    LIMITS,
    File,
    Frame,
    Recording,
    color_file,
    encoded_color,
    encoded_float_depth,
    read_bytes,
    require_depth,
    safe_name,
)
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import find_all, is_added_by_system

EXPECTED = "a folder with depth/seq_000000 or exr_depth/seq_000000 in it"
FARTHEST = 65504.0
"""Centimetres. The largest finite half: BEDLAM 2 cannot store more. Such depth and more is background."""
_DEPTH = (("depth", "_depth.exr"), ("exr_layers/depth", "_depth.exr"), ("exr_depth", ".exr"), ("exr", ".exr"))
_MULTILAYER = ("exr_depth", "exr")
_COLOR = (("png", ".png"), ("jpg", ".jpg"), ("exr_layers/image", "_image.png"))
_MASKS = ("masks", "exr_layers/masks")
_MASK = re.compile(r"(.+?)(?:_env|_\d+_(body|clothing|hair))\.png", re.IGNORECASE)
_SIDEWAYS = re.compile(  # from the lists of scene sets: closeup in BEDLAM, portrait in BEDLAM 2
    r"202210\d\d_.*_closeup_.*|\d{8}_.*_portrait.*"
    r"|(20240729_1_250_ai1004|20240730_1_250_ai1101|20240806_1_250_ai1101|20240809_1_250_ai1102"
    r"|20241217_1_250_rome|20250103_1_250_rome|20250110_1_250_chemicalplant)_vcam.*"
)
_FARTHEST_MEDIAN = 200.0  # metres

Key = tuple[str, str]
"""Sequence and frame."""


def find(source: Path) -> list[Path]:
    kinds = {path.parent for path in find_all(source, "seq_*") if path.is_dir()}
    return sorted({kind.parent.parent if kind.parent.name == "exr_layers" else kind.parent for kind in kinds})


def read(path: Path, name: str, people: bool = False) -> Recording:
    """Open a scene set. With `people`, everything except people is background. Raises DataError."""
    depth, place = _first(path, _DEPTH)
    if not depth:
        places = " or ".join(f"{folder}/SEQ/FRAME{suffix}" for folder, suffix in _DEPTH[:3])
        raise DataError(f"{path}: expected depth in {places}, found none (it is a download of its own)")
    color, _ = _first(path, _COLOR)
    multilayer = place in _MULTILAYER
    if not color and not multilayer:
        raise DataError(f"{path}: expected colour in png/SEQ/FRAME.png, found none (it is a download of its own)")
    keys = sorted(depth.keys() & color.keys()) if color else sorted(depth)
    if not keys:
        raise DataError(f"{path}: expected colour and depth of the same frames, found none of {len(depth)} with both")
    alone = len(depth.keys() ^ color.keys()) if color else 0
    notes = [f"{alone} images of colour or depth have no partner"] if alone else []
    masks = _masks(path) if people else {}
    if people and not masks and not multilayer:
        raise DataError(f"{path}: expected masks of people in masks/SEQ/FRAME_XX_body.png, found none")
    seen = [key for key in keys if masks.get(key) != []]
    if not seen:
        raise DataError(f"{path}: expected people in some of the {len(keys)} images, found masks of none")
    if len(seen) < len(keys):
        notes.append(f"{len(keys) - len(seen)} images without people are left out")
    notes.append(_channel_note(depth[keys[0]]))
    turned = is_sideways(path)
    if turned:
        notes.append("its images are turned by 90° clockwise, because they were rendered sideways")
    name = f"{name}-people" if people else name  # so that frames of the whole scene are not taken for these
    frames = []
    for key in seen:
        source = _Source(depth[key], color.get(key), people, masks.get(key, []) if masks else None, turned)
        frames.append(Frame(f"{name}-{_frame_name(key)}", functools.partial(_read_frame, source)))
    note = "; ".join(filter(None, notes))
    return Recording(path, name, frames, {"unit": "cm", "background": "inf"}, note=note and f"{path}: {note}")


def is_sideways(path: Path) -> bool:
    """Return whether a scene set, which has the folder's name or a parent's, was rendered sideways."""
    return any(_SIDEWAYS.fullmatch(part) for part in path.resolve().parts)


@dataclass(frozen=True)
class _Source:
    """The files of one frame."""

    depth: Path
    color: Path | None
    """None: R, G and B of the multilayer depth file."""
    people: bool
    """Whether everything except people becomes background."""
    masks: Sequence[Path] | None
    """The masks of the people. None: the Cryptomatte of the multilayer depth file, if people are wanted."""
    turned: bool


def _first(root: Path, places: Sequence[tuple[str, str]]) -> tuple[dict[Key, Path], str]:
    """Return the files of the first folder that has some, by sequence and frame, and the folder's name."""
    for folder, suffix in places:
        files = [path for path in _files(root / folder) if path.name.lower().endswith(suffix)]
        if files:
            return {(path.parent.name, path.name[: -len(suffix)]): path for path in files}, folder
    return {}, ""


def _files(folder: Path) -> list[Path]:
    """Return the files in the subfolders of a folder, without those that systems add."""
    sequences = sorted(path for path in folder.glob("seq_*") if path.is_dir()) if folder.is_dir() else []
    return [
        path for sequence in sequences for path in sequence.iterdir() if not is_added_by_system(PurePath(path.name))
    ]


def _masks(root: Path) -> dict[Key, list[Path]]:
    """Return the masks of people of each frame. The list is empty for a frame that has only a mask of the rest."""
    masks: dict[Key, list[Path]] = {}
    for folder in _MASKS:
        for path in _files(root / folder):
            if match := _MASK.fullmatch(path.name):
                found = masks.setdefault((path.parent.name, match[1]), [])
                if match[2]:
                    found.append(path)
        if masks:
            break
    return masks


def _frame_name(key: Key) -> str:
    sequence, frame = key
    return safe_name(frame if frame.startswith(sequence) else f"{sequence}_{frame}")


def _channel_note(path: Path) -> str:
    try:
        info = depth_files.probe(path)
    except (OSError, depth_files.DecodeError):
        return ""  # reading the frame will report it
    return f"depth is the channel {info.channel.name} ({info.why})" if info.channel else ""


def _read_frame(source: _Source) -> tuple[File, File]:
    centimetres = _read_depth(source.depth)
    size = (centimetres.shape[0], centimetres.shape[1])
    layers = None
    if source.color is None or (source.people and source.masks is None):
        layers = Multilayer(source.depth, size)
    color = _read_color(source, layers, size)
    background = ~(centimetres < FARTHEST) & ~np.isnan(centimetres)
    kept = (slice(None), slice(None))
    if source.people:
        background |= ~_read_people(source, layers, size)
        kept = people_square(~background & (centimetres > 0))
    centimetres, background = centimetres[kept], background[kept]
    measured = centimetres[~background & (centimetres > 0)]
    require_depth(measured.astype(np.float32) / 100, "centimetres", _FARTHEST_MEDIAN, str(source.depth))
    turns = -1 if source.turned else 0
    if source.people or source.turned:
        color = encoded_color(np.ascontiguousarray(np.rot90(_pixels(color)[kept], turns)))
    return color, encoded_float_depth(np.ascontiguousarray(np.rot90(centimetres, turns)), np.rot90(background, turns))


def _read_depth(path: Path) -> npt.NDArray[np.floating]:
    """Read depth in centimetres, in the type of the file: float16 or float32. Raises DataError."""
    content = read_bytes(path)
    try:
        channel = depth_files.probe(content).channel
        values = depth_files.decode(content, limits=LIMITS)
    except depth_files.DecodeError as error:
        raise DataError(f"{path}: {str(error).removeprefix('<bytes>: ')}") from None
    if channel is None or channel.dtype not in ("float16", "float32"):
        raise DataError(f"{path}: {channel.dtype if channel else 'no'} depth; expected an EXR of floats")
    return values.astype(channel.dtype)


def _read_color(source: _Source, layers: Multilayer | None, size: tuple[int, int]) -> File:
    if source.color is None:
        assert layers is not None
        return encoded_color(layers.color())
    color, found = color_file(read_bytes(source.color), str(source.color))
    if found != size:
        raise DataError(
            f"{source.color}: colour of {found[1]} × {found[0]}; expected {size[1]} × {size[0]}, as the depth's"
        )
    return color


def _read_people(source: _Source, layers: Multilayer | None, size: tuple[int, int]) -> Mask:
    if source.masks is None:
        assert layers is not None
        return layers.people()
    if not source.masks:
        raise DataError(f"{source.depth}: expected a mask of people for this frame, found none")
    return np.logical_or.reduce([read_mask(path, size) for path in source.masks])


def _pixels(color: File) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(color.content)) as image:
        return np.asarray(image.convert("RGB"))
