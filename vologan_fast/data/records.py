"""One image of a data set, and the place of its bytes: separate files of colour and depth, or parts of a shard.

All code that reads images uses `read` and `place`. Therefore the same code reads data sets in folders and in shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vologan_fast.data.errors import DataError
from vologan_fast.files import read_regular


class Shard(Protocol):
    """A file that holds the files of many images. `str` gives its name for messages."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    @property
    def sha256(self) -> str: ...

    def local(self) -> Path:
        """Return the path of the shard on this machine, and fetch the shard first if necessary.

        The file stays at this path while the most recently requested batches are made. Raises DataError.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes `offset` to `offset + size` of the shard. They must lie inside the shard. Raises DataError."""


@dataclass(frozen=True)
class Member:
    """A file inside a shard."""

    shard: Shard
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


Source = Path | Member
LARGEST = 1 << 30
"""The largest size of a file of an image, or of a list of images, in bytes. A larger one is refused, and not read."""


@dataclass(frozen=True)
class Record:
    """One image: a colour file and a depth file. One of them may be None, where a data set has only the other."""

    color_file: Source | None
    depth_file: Source | None = None

    @property
    def color(self) -> Source:
        """The colour file. Raises DataError if there is none."""
        if self.color_file is None:
            raise DataError(f"{self.depth_file}: the image has no colour file; expected one, or --data.channels depth")
        return self.color_file

    @property
    def depth(self) -> Source:
        """The depth file. Raises DataError if there is none."""
        if self.depth_file is None:
            raise DataError(
                f"{self.color_file}: the image has no depth file; expected one, or --data.channels rgb or grey"
            )
        return self.depth_file

    @property
    def files(self) -> tuple[Source, ...]:
        """The files that are there: at least one, and colour first."""
        return tuple(file for file in (self.color_file, self.depth_file) if file is not None)


def files_of(records: Iterable[Record]) -> list[Source]:
    """Return the files of some images."""
    return [file for record in records for file in record.files]


def read(source: Source) -> bytes:
    """Return all bytes of a file. Raises DataError, which names the file."""
    if isinstance(source, Member):
        return source.shard.read(source.offset, source.size)
    try:
        return read_regular(source, LARGEST)
    except OSError as error:
        raise DataError(f"{source}: {cause(error)}") from None


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Return bytes `offset` to `offset + size` of a file.

    Raises DataError if the file is shorter, and OSError if it cannot be read.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = bytearray()
        while len(data) < size:
            part = os.pread(file, size - len(data), offset + len(data))
            if not part:
                raise DataError(f"{path}: expected {offset + size} bytes or more, found {os.fstat(file).st_size}")
            data += part
        return bytes(data)
    finally:
        os.close(file)


def place(source: Source) -> tuple[bytes, int, int]:
    """Return (path, offset, size), by which native code finds a file. Raises DataError.

    Size -1 means the whole file at the path.
    """
    if isinstance(source, Path):
        return os.fsencode(source), 0, -1
    return os.fsencode(source.shard.local()), source.offset, source.size


def size_of(source: Source) -> int:
    """Return the size of a file in bytes, or -1 if there is no file that can be read, but for example a pipe."""
    if isinstance(source, Member):
        return source.size
    try:
        return source.stat().st_size if is_file(source) else -1
    except OSError:
        return -1


def is_file(path: Path) -> bool:
    """Return whether there is a regular file at the path, or a link to one. No name is an error."""
    try:
        return path.is_file()
    except OSError:  # for example, the name is longer than the file system allows
        return False


def fetch_whole(source: Source) -> None:
    """Fetch the whole shard that holds the file, because more of it will be read soon. Raises DataError."""
    if isinstance(source, Member):
        source.shard.local()


def cause(error: OSError) -> str:
    """Return the reason of a system error in words for a message."""
    return "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
