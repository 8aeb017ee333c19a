"""One image of a data set, and the place of its bytes: separate files of colour and depth, or parts of a shard.

All code that reads images uses `read` and `place`. Therefore the same code reads data sets in folders and in shards.
A place may know the CRC-32 of its bytes. Then `read` compares them, and native code does so with what `place` says:
each time that they are read, and before anything is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, Protocol

from vologan_fast.data.errors import DataError
from vologan_fast.files import crc32, read_regular


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
    crc: int | None = None
    """The CRC-32 of the bytes. None if it is unknown."""

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


class KnownFile(PosixPath):
    """The path of a file whose size and CRC-32 were recorded. It is equal to the plain path."""

    size: int
    crc: int | None = None
    """None in a path that was made of this one, such as its parent."""
    folder: Path
    """The folder whose checksums.json has recorded them."""

    @classmethod
    def of(cls, path: Path, size: int, crc: int, folder: Path) -> KnownFile:
        file = cls(path)
        file.size, file.crc, file.folder = size, crc, folder
        return file

    def __reduce__(self) -> Any:
        if self.crc is None:
            return super().__reduce__()
        return KnownFile.of, (Path(self), self.size, self.crc, self.folder)


Source = Path | Member
"""A Path may be a KnownFile."""
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
    """Return all bytes of a file. Raises DataError, which names the file.

    Other bytes than the recorded ones are an error, too.
    """
    if isinstance(source, Member):
        data = source.shard.read(source.offset, source.size)
    else:
        try:
            data = read_regular(source, LARGEST)
        except OSError as error:
            raise DataError(f"{source}: {cause(error)}") from None
    _compare(source, data)
    return data


def _compare(source: Source, data: bytes) -> None:
    """Raise DataError if the bytes of a file are not those that were recorded."""
    if not isinstance(source, Member | KnownFile) or source.crc is None:
        return
    size, crc = len(data), crc32(data)
    if (size, crc) != (source.size, source.crc):
        raise DataError(
            f"{source}: damaged, or changed: expected {source.size} bytes with the checksum {source.crc:08x}, found "
            f"{size} with {crc:08x}; {_remedy(source)}"
        )


def _remedy(source: Member | KnownFile) -> str:
    if isinstance(source, Member):
        return "get the shard again, or pack it again"
    command = f"python -m vologan_fast.data checksums {source.folder}"
    return f"get the file again; if it was changed on purpose, run {command}"


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


def place(source: Source) -> tuple[bytes, int, int, int]:
    """Return (path, offset, size, CRC-32), by which native code finds a file, and compares its bytes. Raises DataError.

    Size -1 means the whole file at the path. CRC-32 -1 means that it is unknown.
    """
    crc = source.crc if isinstance(source, Member | KnownFile) else None
    crc = -1 if crc is None else crc
    if isinstance(source, Path):
        return os.fsencode(source), 0, -1, crc
    return os.fsencode(source.shard.local()), source.offset, source.size, crc


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
