"""What the formats share: frames to be read, images as they are stored, and files that appear complete or not at all.

Depth that is not 16-bit is stored as EXR, ZIP-compressed float32: every reader of EXR knows it, the native decoder and
the DALI operator read it, and it is a third smaller than NPY on a phone's depth. "Not measured" is NaN there, so that
no setting has to say it.
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
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import COLOR_SUFFIXES, DEPTH_SUFFIXES
from vologan_fast.files import write_whole

MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
"""Of an image in a recording: nothing larger is allocated, whatever a header says."""
RECORD = "converted.json"
"""In a domain's folder: which recordings are in it, and the settings that all of them need."""


@dataclass(frozen=True)
class File:
    """An image as it will be on disk."""

    suffix: str
    content: bytes


@dataclass(frozen=True)
class Frame:
    """One RGB-D image of a recording, not yet read."""

    name: str
    """Without a suffix; unique."""
    read: Callable[[], tuple[File, File]]
    """Colour and depth. Raises DataError."""


@dataclass(frozen=True)
class Recording:
    """What one source holds."""

    source: Path
    name: str
    frames: Sequence[Frame]
    settings: Mapping[str, str]
    """Of the DepthSpec: what its defaults do not say, such as {"unit": "m"}."""


def missing_library(kind: str, library: str) -> DataError:
    return DataError(f"{kind} files need {library}: pip install 'vologan-fast[convert]' (or pip install {library})")


def recording_name(source: Path, path: Path) -> str:
    """A name for the recording at `path` in the folder `source` (or `source` itself), fit for a file's."""
    parts = (source.resolve().name, *path.relative_to(source).parts)
    return safe_name("-".join(parts).removesuffix(path.suffix if path.is_file() else ""))


def safe_name(text: str) -> str:
    """Only letters, digits, dots, dashes and underscores, and no dot at the beginning."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


def read_bytes(path: Path) -> bytes:
    """Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def color_file(content: bytes, where: str) -> tuple[File, tuple[int, int]]:
    """A whole JPEG or PNG as it is, and its (height, width). Raises DataError."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            height, width = image.height, image.width
            if height * width > MAX_PIXELS:
                raise DataError(f"{where}: colour of {width} × {height}; expected at most {MAX_PIXELS} pixels")
            image.load()
            return File(".png" if image.format == "PNG" else ".jpg", content), (height, width)  # a phone's may be MPO
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: expected a JPEG or PNG image, found {len(content)} bytes of neither") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the colour image cannot be decoded: {error}") from None


def encoded_color(color: npt.NDArray[np.uint8]) -> File:
    """Colour (h, w, 3) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(color).save(stream, "PNG")
    return File(".png", stream.getvalue())


def integer_depth_file(path: Path) -> File:
    """A whole 16-bit grey PNG as it is. Raises DataError."""
    content = read_bytes(path)
    try:
        info = depth_files.probe(content)
        depth_files.decode(content)
    except depth_files.DecodeError as error:
        raise DataError(f"{path}: {str(error).removeprefix('<bytes>: ')}") from None
    if (info.format, info.channels[0].dtype) != ("png", "uint16"):
        raise DataError(f"{path}: {info.channels[0].dtype} {info.format.upper()}; expected a 16-bit grey PNG")
    return File(".png", content)


def encoded_integer_depth(depth: npt.NDArray[np.uint16]) -> File:
    """Depth (h, w) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(depth).save(stream, "PNG")
    return File(".png", stream.getvalue())


def encoded_float_depth(depth: npt.NDArray[np.float32]) -> File:
    """Depth (h, w) in metres as EXR; what is 0 or less, or infinite, was not measured."""
    try:
        import OpenEXR
    except ImportError:
        raise missing_library("float depth", "OpenEXR") from None
    stream = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    measured = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))
    OpenEXR.File(header, {"Z": measured}).write(stream)
    return File(".exr", stream.getvalue())


@contextmanager
def locked(folder: Path, recordings: Sequence[Recording]) -> Iterator[dict[str, str]]:
    """Lets one conversion at a time write into `folder`, if what is there goes with these recordings.

    Yields the settings that all of them need. Raises DataError.
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
    """Refuses recordings that need other settings than those before, or would pass for one of them."""
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
        record = json.loads(path.read_text())
        return dict(record["settings"]), dict(record["recordings"])
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f"{path}: expected the record of earlier conversions, found something else") from None


def _words(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in settings.items()) or "no settings"


def write_frames(folder: Path, frames: Sequence[Frame]) -> tuple[int, int, list[str]]:
    """Writes what is not there yet; returns how many were written and kept, and what is wrong with the others.

    Raises DataError where a file cannot be written.
    """
    there = _names(folder / "color", COLOR_SUFFIXES) & _names(folder / "depth", DEPTH_SUFFIXES)
    written, kept, broken = 0, 0, []
    console = Console(stderr=True)
    for frame in track(frames, "converting", console=console, disable=not console.is_terminal):
        if frame.name in there:
            kept += 1
            continue
        try:
            color, depth = frame.read()
        except DataError as error:
            broken.append(str(error))
            continue
        _write(folder / "depth" / f"{frame.name}{depth.suffix}", depth.content)  # first: colour without it is an error
        _write(folder / "color" / f"{frame.name}{color.suffix}", color.content)
        written += 1
    return written, kept, broken


def _names(folder: Path, suffixes: tuple[str, ...]) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix in suffixes} if folder.is_dir() else set()


def _write(path: Path, content: bytes) -> None:
    """The file appears whole or not at all. Raises DataError."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
