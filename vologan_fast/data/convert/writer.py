"""The code that all formats share: frames to read, images to store, and files that are either complete or absent.

Depth that is not 16-bit is stored as EXR, in ZIP-compressed float32. Every reader of EXR supports this form, and so do
the native decoder and the DALI operator. On a phone's depth, the file is a third smaller than NPY. "Not measured" is
NaN in these files, so that no setting is needed for it.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from vologan_fast import depth as depth_files
from vologan_fast.checksums import CHECKSUMS, Entries, entry_of
from vologan_fast.config import DataConfig
from vologan_fast.data.checksums import add_checksums
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import COLOR_SUFFIXES, DEPTH_SUFFIXES
from vologan_fast.data.records import LARGEST
from vologan_fast.files import read_regular, write_whole

MAX_SIDE = 16384
MAX_PIXELS = DataConfig.max_pixels
"""The largest number of pixels of an image in a recording. No larger image is allocated, even if a header lists one."""
LIMITS = depth_files.Limits(max_pixels=MAX_PIXELS)
NEAREST = 0.1
"""Metres. The smallest plausible median depth of an image."""
RECORD = "converted.json"
"""A file in a domain's folder. It lists the recordings in the folder and the settings that all of them need."""


@dataclass(frozen=True)
class File:
    """The content of an image file, with its suffix."""

    suffix: str
    content: bytes


@dataclass(frozen=True)
class Frame:
    """One RGB-D image of a recording, not yet read."""

    name: str
    """A unique name, without a suffix."""
    read: Callable[[], tuple[File, File]]
    """A function that returns colour and depth. It raises DataError."""


@dataclass(frozen=True)
class Recording:
    """The frames of one recording, and the settings that its depth needs."""

    source: Path
    name: str
    frames: Sequence[Frame]
    settings: Mapping[str, str]
    """The settings of the DepthSpec that differ from its defaults, such as {"unit": "m"}."""
    broken: Sequence[str] = ()
    """One sentence for each part of the recording that holds no frames and should."""
    note: str = ""
    """A sentence for the user about the settings. Empty if they are certain."""


def missing_library(kind: str, library: str) -> DataError:
    return DataError(f"{kind} files need {library}: pip install 'vologan-fast[convert]' (or pip install {library})")


def recording_name(source: Path, path: Path) -> str:
    """Return a name for the recording at `path`, which is in the folder `source` or is `source` itself.

    The name is safe as the name of a file.
    """
    parts = (source.resolve().name, *path.relative_to(source).parts)
    return safe_name("-".join(parts).removesuffix(path.suffix if path.is_file() else ""))


def safe_name(text: str) -> str:
    """Return the text with only letters, digits, dots, dashes and underscores, and without a dot at the beginning."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


def read_bytes(path: Path) -> bytes:
    """Read all bytes of a file. Raises DataError."""
    try:
        return read_regular(path, LARGEST)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def color_file(content: bytes, where: str) -> tuple[File, tuple[int, int]]:
    """Check a JPEG or PNG. Returns it unchanged, and its (height, width). Raises DataError, which names `where`."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            height, width = image.height, image.width
            if height * width > MAX_PIXELS:
                raise DataError(f"{where}: colour of {width} × {height}; expected at most {MAX_PIXELS} pixels")
            image.load()
            return File(".png" if image.format == "PNG" else ".jpg", content), (height, width)  # phones write MPO too
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: expected a JPEG or PNG image, found {len(content)} bytes of neither") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the colour image cannot be decoded: {error}") from None


def encoded_color(color: npt.NDArray[np.uint8]) -> File:
    """Encode colour (h, w, 3) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(color).save(stream, "PNG")
    return File(".png", stream.getvalue())


def integer_depth_file(path: Path) -> File:
    """Read and check a 16-bit grey PNG. Returns it unchanged. Raises DataError."""
    content = read_bytes(path)
    try:
        info = depth_files.probe(content, limits=LIMITS)
        depth_files.decode(content, limits=LIMITS)
    except depth_files.DecodeError as error:
        raise DataError(f"{path}: {str(error).removeprefix('<bytes>: ')}") from None
    if (info.format, info.channels[0].dtype) != ("png", "uint16"):
        raise DataError(f"{path}: {info.channels[0].dtype} {info.format.upper()}; expected a 16-bit grey PNG")
    return File(".png", content)


def encoded_integer_depth(depth: npt.NDArray[np.uint16]) -> File:
    """Encode depth (h, w) as 16-bit PNG."""
    stream = io.BytesIO()
    Image.fromarray(depth).save(stream, "PNG")
    return File(".png", stream.getvalue())


def encoded_float_depth(depth: npt.NDArray[np.floating], background: npt.NDArray[np.bool_] | None = None) -> File:
    """Encode depth (h, w), float16 or float32, as EXR of the same type.

    Values that are not finite or not above 0 become NaN, "not measured". Where the mask `background` (h, w) is true,
    the value becomes infinite.
    """
    try:
        import OpenEXR
    except ImportError:
        raise missing_library("float depth", "OpenEXR") from None
    stream = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    stored = np.where(np.isfinite(depth) & (depth > 0), depth, depth.dtype.type(np.nan))
    if background is not None:
        stored = np.where(background, depth.dtype.type(np.inf), stored)
    OpenEXR.File(header, {"Z": stored}).write(stream)
    return File(".exr", stream.getvalue())


def require_depth(metres: npt.NDArray[np.floating], unit: str, farthest: float, where: str) -> None:
    """Check that an image has depth, and that it is plausible for its unit. Raises DataError, which names `where`.

    `metres` is the measured depth, in metres if the file holds the expected unit. Its median must be from NEAREST to
    `farthest`.
    """
    if not metres.size:
        raise DataError(f"{where}: expected pixels with depth, found none that are kept")
    median = float(np.median(metres))
    if not NEAREST <= median <= farthest:
        raise DataError(
            f"{where}: its median depth would be {median:.3g} m; expected {NEAREST:g} to {farthest:g} m: is it not in "
            f"{unit}?"
        )


@contextmanager
def locked(folder: Path, recordings: Sequence[Recording]) -> Iterator[dict[str, str]]:
    """Lock `folder`, so that only one conversion at a time writes into it, and record these recordings there.

    Yields the settings that all recordings in the folder need. Raises DataError if the new recordings do not fit the
    earlier ones, if two frames have the same name, if another conversion is running there, or if the folder cannot be
    written.
    """
    name, count = Counter(frame.name for recording in recordings for frame in recording.frames).most_common(1)[0]
    if count > 1:
        raise DataError(f"{count} frames of the name {name}; expected names that differ in letters, digits and .-_")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield _add_to_record(folder / RECORD, recordings)
    except BlockingIOError:
        raise DataError(f"{folder}: another conversion is writing there; expected one at a time") from None
    finally:
        os.close(handle)


def _add_to_record(path: Path, recordings: Sequence[Recording]) -> dict[str, str]:
    """Add the recordings to the record, and return the settings that all of them need.

    Raises DataError for a recording that needs other settings than the earlier ones, or has the name of an earlier one.
    """
    settings, sources = _read_record(path) if path.exists() else (dict(recordings[0].settings), {})
    for recording in recordings:
        if recording.settings != settings:
            raise DataError(
                f"{recording.source}: its depth needs {_words(recording.settings)}; expected {_words(settings)}, as "
                f"the others in {path.parent}: convert it into another folder"
            )
        source = str(recording.source.resolve())
        if sources.setdefault(recording.name, source) != source:
            raise DataError(
                f"{source}: there are frames of {recording.name} from {sources[recording.name]} in {path.parent}; "
                "expected another name: rename one of the two"
            )
    _write(path, json.dumps({"settings": settings, "recordings": sources}, indent=1).encode() + b"\n")
    return settings


def _read_record(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        record = json.loads(read_regular(path, LARGEST))
        return dict(record["settings"]), dict(record["recordings"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{path}: expected the record of earlier conversions, found something else") from None


def _words(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in settings.items()) or "no settings"


def write_frames(folder: Path, frames: Sequence[Frame]) -> tuple[int, int, list[str]]:
    """Write the frames that are not in the folder yet, and their checksums.

    Returns the number of written frames, the number of kept frames, and a sentence for each broken frame. Raises
    DataError if a file cannot be written.
    """
    colors, depths = _files(folder / "color", COLOR_SUFFIXES), _files(folder / "depth", DEPTH_SUFFIXES)
    there = colors.keys() & depths.keys()
    written, broken = 0, []
    kept: list[str] = []
    console = Console(stderr=True)
    checksums: Entries = {}
    try:
        for frame in track(frames, "converting", console=console, disable=not console.is_terminal):
            if frame.name in there:
                kept += [f"color/{colors[frame.name]}", f"depth/{depths[frame.name]}"]
                continue
            try:
                color, depth = frame.read()
            except DataError as error:
                broken.append(str(error))
                continue
            for part, file in (("depth", depth), ("color", color)):  # colour without depth is an error
                name = f"{part}/{frame.name}{file.suffix}"
                _write(folder / name, file.content)
                checksums[name] = entry_of(file.content)
            written += 1
    finally:
        with _writing(folder / CHECKSUMS):
            add_checksums(folder, checksums, kept)
    return written, len(kept) // 2, broken


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Return the names of the files in a folder, by what stands before their suffix."""
    return {path.stem: path.name for path in folder.iterdir() if path.suffix in suffixes} if folder.is_dir() else {}


def _write(path: Path, content: bytes) -> None:
    """Write a file, which is then complete or absent. Raises DataError."""
    with _writing(path):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
