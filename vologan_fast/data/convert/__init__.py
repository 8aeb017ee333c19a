"""Convert recordings from other sources into a domain's folders, in a layout that `manifest` reads.

    python -m vologan_fast.data convert record3d scan.r3d DIR --domain real

This command writes DIR/real/color/NAME.jpg (or .png) and DIR/real/depth/NAME.png (or .exr). It prints the settings of
training that the depth needs. If the source holds JPEG or PNG, its bytes become the colour file unchanged. Depth is
stored without loss. 16-bit integers stay 16-bit PNG in their own unit. All other depth becomes float32 EXR in metres.

Each format has a module here with two functions. `find` lists the recordings in a folder, and `read` opens one of them.
`writer` holds the code that the formats share. `people` reads masks, `registration` moves depth into another camera's
view, and `paired` writes images for scoring.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vologan_fast.data.convert import arkitscenes, bedlam, hammer, humman, hypersim, record3d, scannet, tum
from vologan_fast.data.convert.paired import write_paired
from vologan_fast.data.convert.writer import Recording, locked, recording_name, write_frames
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import MANIFEST, PAIRED
from vologan_fast.data.shards.index import MANIFEST as SHARDS


@dataclass(frozen=True)
class Format:
    """A kind of recordings."""

    expected: str
    find: Callable[[Path], list[Path]]
    read: Callable[..., Recording]
    """Opens the recording at a path, with a name. It takes people=True if `people` is set."""
    people: bool = False
    """Whether the recordings say which pixels show people."""
    is_test: Callable[[Path], bool] | None = None
    """Whether a recording belongs to the paired test, and not to a domain. None: there is no paired test."""


def _format(module: ModuleType) -> Format:
    return Format(module.EXPECTED, module.find, module.read)


def _hammer(depth: str) -> Format:
    return Format(hammer.EXPECTED, hammer.find, functools.partial(hammer.read, depth=depth), is_test=hammer.is_test)


FORMATS: dict[str, Format] = {
    "record3d": _format(record3d),
    "scannet": _format(scannet),
    "hypersim": _format(hypersim),
    "tum": _format(tum),
    "arkitscenes": _format(arkitscenes),
    "bedlam": Format(bedlam.EXPECTED, bedlam.find, bedlam.read, people=True),
    "humman-kinect": Format(humman.EXPECTED_KINECT, humman.find_kinects, humman.read_kinect, people=True),
    "humman-iphone": Format(humman.EXPECTED_IPHONE, humman.find_iphones, humman.read_iphone, people=True),
    "hammer-truth": _hammer(hammer.TRUTH),
    "hammer-tof": _hammer("depth_tof"),
    "hammer-d435": _hammer("depth_d435"),
    "hammer-l515": _hammer("depth_l515"),
}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    written: int
    """The number of frames that were written."""
    kept: int
    """The number of frames that were there from an earlier run."""
    broken: tuple[str, ...]
    """One sentence for each frame or recording that could not be read."""
    options: str
    """The options that training on the folder needs, such as "--data.real.unit m". Empty if the defaults are right."""
    notes: tuple[str, ...] = ()
    """Sentences for the user about these options."""


def convert(
    kind: str,
    source: Path,
    target: Path,
    domain: str,
    every: int = 1,
    limit: int | None = None,
    people: bool = False,
) -> Conversion:
    """Write every `every`-th frame of all recordings in `source`, at most `limit` frames, into `target`/`domain`.

    With `people`, everything except people becomes background. The domain "paired-test" writes images for scoring
    (`paired`), for the sensors of HAMMER. Broken frames and recordings are left out and reported. Frames that an
    earlier run has written are kept. Raises DataError in these cases:

    - there is nothing to convert;
    - recordings need different depth settings, or two recordings or two frames have the same name;
    - `target` has a list of its images, so that new ones would not be found;
    - the recordings do not say where people are, or have no clean depth for a paired test;
    - another conversion is writing there, or a file cannot be written.
    """
    for name, value in {"every": every, "limit": 1 if limit is None else limit}.items():
        if value < 1:
            raise DataError(f"--{name} is {value}; expected at least 1")
    format_ = FORMATS[kind]
    if people and not format_.people:
        able = ", ".join(name for name, other in FORMATS.items() if other.people)
        raise DataError(f"--people: {kind} does not say where people are; expected one of {able}")
    if domain == PAIRED:
        return _convert_paired(kind, source, target, every, limit)
    for file in (SHARDS, MANIFEST):
        if (target / file).is_file():
            raise DataError(f"{target}: {file} lists this data set's images, no others would be seen; expected none")
    read = functools.partial(format_.read, people=True) if people else format_.read
    is_test = format_.is_test
    paths = [path for path in _find(format_, source) if is_test is None or not is_test(path)]
    if not paths:
        raise DataError(f"{source}: expected recordings that are not test scenes, found none")
    recordings, broken = _open(read, source, paths)
    if not recordings:
        return Conversion(0, 0, tuple(broken), "")
    frames = [frame for recording in recordings for frame in recording.frames]
    folder = target / domain
    with locked(folder, recordings) as settings:
        written, kept, unread = write_frames(folder, frames[::every][:limit])
    options = " ".join(f"--data.{domain}.{name} {value}" for name, value in settings.items())
    notes = tuple(recording.note for recording in recordings if recording.note)
    return Conversion(written, kept, (*broken, *unread), options, notes)


def _convert_paired(kind: str, source: Path, target: Path, every: int, limit: int | None) -> Conversion:
    """Write the paired test of a sensor: the clean depth as `synthetic`, and the depth of the sensor as `real`."""
    format_, clean = FORMATS[kind], FORMATS["hammer-truth"]
    if format_.is_test is None or format_ is clean:
        able = ", ".join(name for name, other in FORMATS.items() if other.is_test and other is not clean)
        raise DataError(f"--domain {PAIRED}: {kind} has no clean depth beside a sensor's; expected one of {able}")
    paths = [path for path in _find(format_, source) if format_.is_test(path)]
    if not paths:
        raise DataError(
            f"{source}: expected test scenes ({hammer.TEST_SCENES[0]} to {hammer.TEST_SCENES[-1]}), found none"
        )
    synthetic, broken = _open(clean.read, source, paths)
    real, more = _open(format_.read, source, paths)
    if not synthetic or not real:
        return Conversion(0, 0, (*broken, *more), "")
    written, kept, unread = write_paired(target, synthetic, real, every, limit)
    notes = tuple(recording.note for recording in (*synthetic, *real) if recording.note)
    return Conversion(written, kept, (*broken, *more, *unread), "", notes)


def _find(format_: Format, source: Path) -> list[Path]:
    """Return the recordings in `source`. Raises DataError if there are none."""
    paths = format_.find(source)
    if not paths:
        found = "nothing" if not source.exists() else f"a {'folder' if source.is_dir() else 'file'} without one"
        raise DataError(f"{source}: expected {format_.expected}, found {found}")
    return paths


def _open(read: Callable[..., Recording], source: Path, paths: Sequence[Path]) -> tuple[list[Recording], list[str]]:
    """Open recordings. Returns those that can be read, and a sentence for everything that cannot."""
    recordings, broken = [], []
    for path in paths:
        try:
            recording = read(path, recording_name(source, path))
        except DataError as error:
            broken.append(str(error))
        else:
            recordings.append(recording)
            broken += recording.broken
    return recordings, broken
