"""Data sets in shards on a server: `--data s3://bucket/prefix`, `gs://bucket/prefix`, `hf://datasets/user/name`.

shards.json and the index files are read when a run begins. During training, whole shards are fetched before they are
needed, into a folder of bounded size (`cache.py`). Other images are read one by one: the sample of each domain whose
depth is examined, and the held-out images.

A store reads the files of one kind of server: `s3.py` with boto3, `filesystem.py` with fsspec. All rules are here, and
so they are the same for all servers: the schemes, the limits, and the attempts after a connection broke.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vologan_fast.data.errors import DataError
from vologan_fast.data.records import read_part
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.filesystem import FileSystem
from vologan_fast.data.shards.index import TRAINING, ShardEntry, ShardRecords, open_shards
from vologan_fast.data.shards.s3 import Bucket
from vologan_fast.data.shards.store import Store, Unreachable
from vologan_fast.data.waiting import PATIENCE, in_time

STORES: dict[str, Callable[[str], Store]] = {
    "s3": Bucket,
    "gs": FileSystem,
    "hf": FileSystem,
    "http": FileSystem,
    "https": FileSystem,
}
"""What reads the URLs of a scheme. fsspec knows more schemes, among them some that run commands or read local files."""

CONNECTIONS = 64
"""The number of index files that are read at the same time."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WAITS = (0.5, 2.0, 8.0)
"""Seconds to wait before the next attempts at a file. After a block has arrived, they begin anew."""


def is_url(name: str) -> bool:
    """Return whether the name of a data set is a URL and not a folder."""
    return _SCHEME.match(name) is not None


def find_remote_records(
    url: str, cache: ShardCache, patience: float = PATIENCE, part: str = TRAINING
) -> Mapping[str, ShardRecords]:
    """Return all images of a part of the data set in shards at `url`, by domain.

    `patience` is the longest wait for an answer, in seconds. Raises DataError, and ConfigError if the package that
    reads such URLs is not installed.
    """
    match = _SCHEME.match(url)
    if match is None or match[1] not in STORES:
        raise DataError(f"{url}: expected a folder, or a URL that begins with {', '.join(f'{s}://' for s in STORES)}")
    store = STORES[match[1]](url)
    return open_shards(
        store.url("").rstrip("/"),
        lambda name, most: _read_whole(store, name, most, patience),
        lambda entry: RemoteShard(store, cache, entry, patience),
        CONNECTIONS,
        part,
    )


@dataclass(frozen=True, eq=False)
class RemoteShard:
    """A tar on a server, which may also be in the cache."""

    store: Store
    cache: ShardCache
    entry: ShardEntry
    patience: float = PATIENCE
    """Seconds of the longest wait for an answer."""

    def __str__(self) -> str:
        return self.store.url(self.entry.file)

    @property
    def size(self) -> int:
        return self.entry.bytes

    @property
    def sha256(self) -> str:
        return self.entry.sha256

    def blocks(self) -> Generator[bytes]:
        """Yield the bytes of the tar, in order. Raises DataError."""
        return self._in_time(_blocks(self.store, self.entry.file))

    def local(self) -> Path:
        return self.cache.local(self)

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the tar: from the cache if it is there or being fetched, else from the server."""
        if self.cache.has(self):
            with contextlib.suppress(FileNotFoundError):
                return read_part(self.cache.local(self), offset, size)
        data = b"".join(self._in_time(_blocks(self.store, self.entry.file, offset, size)))
        if len(data) != size:
            raise DataError(f"{self}: expected {offset + size} bytes or more, found {offset + len(data)}")
        return data

    def _in_time(self, blocks: Generator[bytes]) -> Generator[bytes]:
        return in_time(blocks, str(self), self.patience)


def _read_whole(store: Store, name: str, most: int, patience: float) -> bytes:
    data = bytearray()
    with contextlib.closing(in_time(_blocks(store, name), store.url(name), patience)) as blocks:
        for block in blocks:
            data += block
            if len(data) > most:
                raise DataError(f"{store.url(name)}: expected at most {most} bytes, found more")
    return bytes(data)


def _blocks(store: Store, name: str, first: int = 0, size: int | None = None) -> Generator[bytes]:
    """Yield what `store.blocks` yields. If the connection breaks, wait, and go on at the same byte.

    Raises DataError for a server that sends more than it was asked for.
    """
    end = None if size is None else first + size
    waits = iter(_WAITS)
    while True:
        try:
            for block in store.blocks(name, first, None if end is None else end - first):
                first += len(block)
                if end is not None and first > end:
                    raise DataError(f"{store.url(name)}: expected {size} bytes, as asked for, found more")
                waits = iter(_WAITS)
                yield block
            return
        except Unreachable:
            wait = next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)
