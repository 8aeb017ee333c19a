"""The checksums of a checkpoint's files, and its errors. `vologan_fast.checksums` has the form."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vologan_fast.checksums import CHECKSUMS, ChangedError, Entries, checksums, entry, parse_checksums
from vologan_fast.files import crc32, open_regular, read_regular

_PIECE = 2**20  # bytes that are read at once
_LARGEST = 2**20  # bytes of a checksums.json


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written. The message names the file and the problem."""


class DamagedError(CheckpointError):
    """A file does not hold what was written. The message names the file, what was found and what was expected."""


class SummedFile(io.FileIO):
    """A new file that sums up its bytes while they are written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self._crc = self._bytes = 0

    def write(self, data: Any, /) -> int:
        """Write all of `data`. Raises OSError."""
        with memoryview(data).cast("B") as whole:
            done = 0
            while done < len(whole):
                done += super().write(whole[done:]) or 0
            self._crc = crc32(whole, self._crc)
            self._bytes += done
        return done

    @property
    def entry(self) -> dict[str, Any]:
        """What `write_checksums` writes about the file."""
        return entry(self._bytes, self._crc)


def write_checksums(folder: Path, step: int, files: Entries) -> None:
    """Write checksums.json with the `entry` of each file. Raises OSError."""
    (folder / CHECKSUMS).write_bytes(checksums(step, files))


def read_checksums(folder: Path, step: int | None) -> Entries | None:
    """Return the entries of the files in `folder`, by their names. None if there is no checksums.json.

    Raises DamagedError for a checksums.json that is not, byte for byte, as `write_checksums` writes it, and for one of
    another step than `step`, if this is known.
    """
    path = folder / CHECKSUMS
    try:
        found, files = parse_checksums(read_regular(path, _LARGEST))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ChangedError as error:
        raise DamagedError(f"{path}: {error}") from None
    if step not in (None, found):
        raise DamagedError(f"{path}: damaged (expected step {step}, found {found})")
    return files


@contextlib.contextmanager
def checked(path: Path, files: Entries | None) -> Iterator[BinaryIO]:
    """Open a file whose bytes are those that `files` tells, as `read_checksums` returns it.

    Without `files`, any bytes will do. Raises DamagedError for other bytes, for a file that is missing or is not in
    `files`, and for one that cannot be read.
    """
    try:
        with open_regular(path) as file:
            _check(path, file, files)
            file.seek(0)
            yield file
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: no such file") from error
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror or error})") from error


def _check(path: Path, file: BinaryIO, files: Entries | None) -> None:
    if files is None:
        return
    if path.name not in files:
        raise DamagedError(f"{path}: not in {CHECKSUMS}, which has {', '.join(files)}")
    expected = files[path.name]
    size, crc = 0, 0
    while piece := file.read(_PIECE):
        size, crc = size + len(piece), crc32(piece, crc)
        if size > expected["bytes"]:
            break
    if size != expected["bytes"]:
        found = "more" if size > expected["bytes"] else f"{size}"
        raise DamagedError(f"{path}: damaged (expected {expected['bytes']} bytes, found {found})")
    if f"{crc:08x}" != expected["crc32"]:
        raise DamagedError(f"{path}: damaged (expected checksum {expected['crc32']}, found {crc:08x})")
