"""Other people's recordings become a domain's folders, in the layout that `manifest` reads.

    python -m vologan_fast.data convert record3d scan.r3d DIR --domain real

writes DIR/real/color/NAME.jpg (or .png) and DIR/real/depth/NAME.png (or .exr), and says which settings of training the
depth needs. Colour is the source's own bytes wherever the source holds JPEG or PNG. Depth loses nothing: 16-bit
integers stay 16-bit PNG, in their own unit; everything else becomes float32 EXR in metres.

A format is a module here with two functions: `find` names its recordings under a folder, `read` opens one. `writer`
holds what they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vologan_fast.data.convert import arkitscenes, hypersim, record3d, scannet, tum
from vologan_fast.data.convert.writer import locked, recording_name, write_frames
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import MANIFEST
from vologan_fast.data.shards.index import MANIFEST as SHARDS

FORMATS: dict[str, ModuleType] = {
    "record3d": record3d,
    "scannet": scannet,
    "hypersim": hypersim,
    "tum": tum,
    "arkitscenes": arkitscenes,
}


@dataclass(frozen=True)
class Conversion:
    """What was done."""

    written: int
    kept: int
    """Frames that were there from an earlier run."""
    broken: tuple[str, ...]
    """A sentence for every frame or recording that could not be read."""
    options: str
    """What training on the folder needs, such as "--data.real.unit m"; empty where its defaults are right."""


def convert(kind: str, source: Path, target: Path, domain: str, every: int = 1, limit: int | None = None) -> Conversion:
    """Writes every `every`-th frame of all recordings in `source`, at most `limit`, into `target`/`domain`.

    What is broken is left out and reported; what an earlier run has written is kept. Raises DataError where there is
    nothing to convert, where recordings disagree about the unit of depth or have one name, where a list says which
    images `target` has, and where a file cannot be written.
    """
    for name, value in {"every": every, "limit": 1 if limit is None else limit}.items():
        if value < 1:
            raise DataError(f"--{name} is {value}; expected at least 1")
    for file in (SHARDS, MANIFEST):
        if (target / file).is_file():
            raise DataError(f"{target}: {file} lists this data set's images, no others would be seen; expected none")
    format_ = FORMATS[kind]
    paths = format_.find(source)
    if not paths:
        found = "nothing" if not source.exists() else f"a {'folder' if source.is_dir() else 'file'} without one"
        raise DataError(f"{source}: expected {format_.EXPECTED}, found {found}")
    recordings, broken = [], []
    for path in paths:
        try:
            recordings.append(format_.read(path, recording_name(source, path)))
        except DataError as error:
            broken.append(str(error))
    if not recordings:
        return Conversion(0, 0, tuple(broken), "")
    frames = [frame for recording in recordings for frame in recording.frames]
    folder = target / domain
    with locked(folder, recordings) as settings:
        written, kept, unread = write_frames(folder, frames[::every][:limit])
    options = " ".join(f"--data.{domain}.{name} {value}" for name, value in settings.items())
    return Conversion(written, kept, (*broken, *unread), options)
