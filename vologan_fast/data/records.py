"""One RGB-D image of a data set, and where its bytes are: files of its own, or parts of a shard.

Everything that reads images goes through `read` and `place`, so that data sets in folders and in shards are read by
the same code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vologan_fast.data.errors import DataError


class Shard(Protocol):
    """A file that holds the files of many images; `str` gives its name for messages."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sha256(self) -> str: ...

    def local(self) -> Path:
        """Where it is on this machine; it stays there while the batches that were asked for soon before are made.
        Raises DataError."""

    def read(self, offset: int, size: int) -> bytes:
        """A part of it that lies inside `size`. Raises DataError."""


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


@dataclass(frozen=True)
class Record:
    """One RGB-D image: two files that exist."""

    color: Source
    depth: Source


def read(source: Source) -> bytes:
    """All bytes of a file. Raises DataError, naming it."""
    if isinstance(source, Member):
        return source.shard.read(source.offset, source.size)
    try:
        return source.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: {cause(error)}") from None


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Bytes `offset` to `offset + size` of a file. Raises DataError where it ends before; OSError."""
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
    """Where native code finds a file: path, offset and size; size -1 is all of it. Raises DataError."""
    if isinstance(source, Path):
        return os.fsencode(source), 0, -1
    return os.fsencode(source.shard.local()), source.offset, source.size


def size_of(source: Source) -> int:
    """Bytes; -1 where there is no such file."""
    if isinstance(source, Member):
        return source.size
    try:
        return source.stat().st_size
    except OSError:
        return -1


def fetch_whole(source: Source) -> None:
    """Have the shard on this machine, where more of it will be read. Raises DataError."""
    if isinstance(source, Member):
        source.shard.local()


def cause(error: OSError) -> str:
    """What the system says, in the words of our messages."""
    return "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
