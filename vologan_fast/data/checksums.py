"""The checksums of the files in a folder of images: checksums.json.

    {"step": null, "files": {"real/color/0001.jpg": {"bytes": 73112, "crc32": "0a1b2c3d"}, …}, "crc32": …}

It has the form of `vologan_fast.checksums`, and covers its folder and all folders below. Names are relative to it, with
"/". A name that leaves the folder is never asked for.

A reader makes a KnownFile of each file that is listed. Then `records.read` and native code compare the bytes.
`convert` adds what it writes, and the command `checksums` makes a new file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from vologan_fast.checksums import CHECKSUMS, Entries, checksums, entry_of_file, parse_checksums
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import is_added_by_system
from vologan_fast.data.records import LARGEST, KnownFile, Record, cause, files_of
from vologan_fast.files import absolute_path, read_regular, write_whole

_ABOVE = 3
"""So many folders above one that a user names may list its files: SET/paired-test/real/color has three."""
_NAMED = 10
"""So many files are named that have changed, or are gone."""
_CRC = re.compile(r"[0-9a-f]{8}")


class Known:
    """The checksums that a folder, or one above it, has for the files in it and below.

    If several checksums.json list a file, the topmost is asked.
    """

    def __init__(self, folder: Path) -> None:
        folder = absolute_path(folder)
        self._top = (folder, *folder.parents)[: _ABOVE + 1][-1]
        self._read: dict[Path, Entries] = {}
        self._by_folder: dict[str, list[tuple[Path, str]]] = {}
        """For each folder: those whose lists may have its files, and what they put in front of the names."""

    def file(self, path: Path) -> Path:
        """Return the file with its checksum if it is listed, or else as it is.

        Raises DataError for a checksums.json that cannot be read, or is not as it was written.
        """
        folder, name = os.path.split(path)
        lists = self._by_folder.get(folder)
        if lists is None:
            lists = self._by_folder[folder] = list(self._lists(absolute_path(folder)))
        for place, before in lists:
            if (found := self._read[place].get(before + name)) is not None:
                return KnownFile.of(path, found["bytes"], int(found["crc32"], 16), place)
        return path

    def record(self, record: Record) -> Record:
        """Return the image whose files have their checksums."""
        files = (record.color_file, record.depth_file)
        return Record(*(self.file(file) if isinstance(file, Path) else file for file in files))

    def _lists(self, folder: Path) -> Iterator[tuple[Path, str]]:
        for place in reversed((folder, *folder.parents)):
            if not place.is_relative_to(self._top):
                continue
            if not os.path.isdir(place):  # noqa: PTH112  Path.is_dir raises for a name that is too long
                return
            if place not in self._read:
                self._read[place] = _read(place / CHECKSUMS)
            if self._read[place]:
                yield place, "" if place == folder else f"{folder.relative_to(place).as_posix()}/"


def _read(path: Path) -> Entries:
    """Return the entries of a checksums.json. If there is none, there are no entries. Raises DataError.

    Also for that of a checkpoint, and for a link to nothing, which tools that fetch files leave.
    """
    try:
        step, files = parse_checksums(read_regular(path, LARGEST))
        if step is not None:
            raise ValueError(f"of a checkpoint after {step} steps; expected that of a folder of images")
        if not all(_CRC.fullmatch(found["crc32"]) for found in files.values()):
            raise ValueError("expected checksums of 8 hexadecimal digits")
        return files
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG) and not os.path.islink(path):  # noqa: PTH114
            return {}
        raise DataError(f"{path}: {cause(error)}") from None
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; get it again, or run python -m vologan_fast.data checksums {path.parent}"
        ) from None


def unlisted(records: Iterable[Record]) -> list[str]:
    """Return a sentence if checksums list some of the files, but not all of them."""
    files = [file for file in files_of(records) if isinstance(file, Path)]
    listed = [file for file in files if isinstance(file, KnownFile)]
    if not listed or len(listed) == len(files):
        return []
    count = f"{len(files) - len(listed)} of {len(files)} files"
    return [
        f"{count} are in no {CHECKSUMS}, so nobody would notice that they are damaged: "
        f"run python -m vologan_fast.data checksums {listed[0].folder}"
    ]


def make_checksums(folder: Path) -> list[str]:
    """Read all files in a folder and below, on many threads, and write the checksums.json of the folder.

    Returns lines for people about what was found, also compared with the former checksums.json. Hidden files are left
    out, and so is what systems add. Raises DataError for a folder that cannot be read or written, has no files, or has
    those of a training run.
    """
    folder = absolute_path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}")
    lines = []
    try:
        former = _read(folder / CHECKSUMS)
    except DataError as error:
        former, lines = {}, [f"warning: the former list is replaced, and nothing was compared with it: {error}"]
    try:
        names = sorted(name for name in _names(folder, "", frozenset()) if name != CHECKSUMS)
        if not names:
            raise DataError(f"{folder}: expected images, found no files")
        if checkpoint := next((name for name in names if PurePath(name).name == "state.pt"), None):
            raise DataError(f"{folder}: has a checkpoint of a run ({checkpoint}); expected a folder of images")
        with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
            files = dict(zip(names, pool.map(lambda name: entry_of_file(folder / name), names), strict=True))
        write_whole(folder / CHECKSUMS, checksums(None, files))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {cause(error)}") from None
    lines.append(f"{folder / CHECKSUMS}: {len(files)} file{'s' if len(files) > 1 else ''}")
    if former:
        changed = [name for name in files if name in former and former[name] != files[name]]
        gone = [name for name in former if name not in files]
        lines[-1] += f"; {len(files.keys() - former.keys())} new, {len(changed)} changed, {len(gone)} gone"
        for what, names in (("changed", changed), ("gone", gone)):
            lines += [f"{what}: {name}" for name in names[:_NAMED]]
            lines += [f"{what}: {len(names) - _NAMED} more"] if len(names) > _NAMED else []
        if changed:
            lines.append(
                "if nobody changed these files on purpose, they are damaged: get them again, and run this again"
            )
    return lines


def add_checksums(folder: Path, files: Entries, kept: Iterable[str] = ()) -> None:
    """Add files that were written just now to the checksums.json of a folder, or make it.

    Those of `kept` that are not listed, because a process was killed before, are read. The names are sorted, so a kill
    does not change their order. Raises DataError if the checksums.json is damaged, and OSError.
    """
    former = _read(folder / CHECKSUMS)
    added = {name: entry_of_file(folder / name) for name in kept if name not in former}
    names = {**former, **added, **files}
    if names != former:
        write_whole(folder / CHECKSUMS, checksums(None, dict(sorted(names.items()))))


def _names(folder: Path, inside: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yield the names of the files in a folder and below, also through links, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for found in entries:
            if found.name.startswith(".") or is_added_by_system(PurePath(found.name)):
                continue
            if found.is_dir():
                yield from _names(Path(found.path), f"{inside}{found.name}/", above | {here})
            elif found.is_file():
                yield inside + found.name
