"""Convert recordings from other sources into a domain's folders, in a layout that `manifest` reads.

    python -m vologan_fast.data convert record3d scan.r3d DIR --domain real

This command writes DIR/real/color/NAME.jpg (or .png) and DIR/real/depth/NAME.png (or .exr). It prints the settings of
training that the depth needs. If the source holds JPEG or PNG, its bytes become the colour file unchanged. Depth is
stored without loss. 16-bit integers stay 16-bit PNG in their own unit. All other depth becomes float32 EXR in metres.

Each format has a module here with two functions. `find` lists the recordings in a folder, and `read` opens one of them.
`writer` holds the code that the formats share.
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


def convert(kind: str, source: Path, target: Path, domain: str, every: int = 1, limit: int | None = None) -> Conversion:
    """Write every `every`-th frame of all recordings in `source`, at most `limit` frames, into `target`/`domain`.

    Broken frames and recordings are left out and reported. Frames that an earlier run has written are kept. Raises
    DataError in these cases:

    - there is nothing to convert;
    - recordings need different depth settings, or two recordings or two frames have the same name;
    - `target` has a list of its images, so that new ones would not be found;
    - another conversion is writing there, or a file cannot be written.
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
            recording = format_.read(path, recording_name(source, path))
        except DataError as error:
            broken.append(str(error))
        else:
            recordings.append(recording)
            broken += recording.broken
    if not recordings:
        return Conversion(0, 0, tuple(broken), "")
    frames = [frame for recording in recordings for frame in recording.frames]
    folder = target / domain
    with locked(folder, recordings) as settings:
        written, kept, unread = write_frames(folder, frames[::every][:limit])
    options = " ".join(f"--data.{domain}.{name} {value}" for name, value in settings.items())
    notes = tuple(recording.note for recording in recordings if recording.note)
    return Conversion(written, kept, (*broken, *unread), options, notes)
