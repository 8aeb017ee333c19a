"""The cache for remote shards.

Shards are fetched whole into a folder of bounded size, before the step that reads them. All runs and processes of a
machine share the folder. A shard is named after its checksum. It appears in the folder only when it is complete and
its checksum is right. A process that opens it compares the checksum again, and fetches a damaged shard anew. A process
that reads a shard holds a shared lock on it. A process that needs room removes unlocked shards, the least recently used
first. A lock ends with its process, even if the process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar

from vologan_fast import stopping
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Shard, cause
from vologan_fast.data.waiting import GRACE
from vologan_fast.files import file_aside, is_at, publish
from vologan_fast.words import in_words, say_error

FETCHERS = 8
"""The number of shards that are fetched at the same time."""
AT_LEAST = 16
"""The number of next steps whose shards are always fetched, even if they exceed the limit. Loaders prefetch fewer
steps."""
_PIECE = 1 << 20  # bytes that are read at once
_DISK_SHARE = 0.9  # of the free disk space

Batch = TypeVar("Batch")


class Distant(Shard, Protocol):
    """A shard that can be fetched."""

    def blocks(self) -> Generator[bytes]:
        """Yield the bytes of the shard, in order. Raises DataError."""


class ShardCache:
    """A cache of shards in `folder`. Together they take at most `limit` bytes.

    They may take more in two cases: all shards are in use, or several processes make room at the same moment. If the
    disk has less space, the limit is lower. A process holds locks on its most recently requested shards, up to `share`
    bytes of them. All methods may be called from any thread. Raises DataError if the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(folder).free + sum(size for _, size, _ in self._files())
        except OSError as error:
            raise DataError(f"{folder}: cannot be made: {cause(error)}") from None
        self._room = int(room * _DISK_SHARE)
        self.limit = min(limit, self._room)
        self.share = self.limit
        self._lock = threading.Lock()
        self._making_room = threading.Lock()
        self._held: OrderedDict[str, tuple[Distant, Future[int]]] = OrderedDict()  # descriptors of locked files

    def local(self, shard: Distant) -> Path:
        """Fetch the shard if it is not in the cache, and return its path. Raises DataError."""
        with self._lock:
            found = self._held.get(shard.sha256)
            future: Future[int] = found[1] if found else Future()
            self._held[shard.sha256] = shard, future
            self._held.move_to_end(shard.sha256)
        if found is None:
            try:
                future.set_result(self._fetch(shard))
            except BaseException as error:
                with self._lock:
                    del self._held[shard.sha256]
                future.set_exception(error)
            self._hold_at_most(self.share)
        future.result()
        return self._path(shard)

    def has(self, shard: Distant) -> bool:
        """Return whether the shard is in the cache or is being fetched."""
        with self._lock:
            return shard.sha256 in self._held or self._path(shard).exists()

    def release(self, shard: Distant) -> None:
        """Release the lock on the shard, so that it may be removed to make room."""
        with self._lock:
            found = self._held.get(shard.sha256)
            if found and found[1].done():
                self._let_go(shard.sha256)

    def _hold_at_most(self, size: int) -> None:
        with self._lock:
            held = sum(shard.size for shard, _ in self._held.values())
            for key, (shard, future) in list(self._held.items())[:-1]:
                if held > size and future.done():
                    held -= shard.size
                    self._let_go(key)

    def _let_go(self, key: str) -> None:
        _, future = self._held.pop(key)
        os.close(future.result())

    def _path(self, shard: Distant) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _fetch(self, shard: Distant) -> int:
        path = self._path(shard)
        if shard.size > self._room:  # before others are removed for it
            raise DataError(f"{shard}: {in_words(shard.size)}; expected at most {in_words(self._room)}, which are free")
        try:
            fetched = False
            while (file := _locked(path, shard, fetched)) is None:
                with file_aside(path) as aside:
                    if not path.exists():  # another process may have fetched it while this one waited
                        with self._making_room:
                            self._make_room(shard.size)
                            os.ftruncate(aside, shard.size)  # so that other processes count its full size
                        _download(shard, aside)
                        fetched = True
                        with self._making_room:  # else a listing during the rename could miss the file
                            publish(path)
            os.utime(file)
            return file
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({cause(error)}); expected room for {self.limit / 1e9:g} GB of shards: set "
                "--data.shard-cache lower, or XDG_CACHE_HOME to a folder with more"
            ) from None

    def _make_room(self, size: int) -> None:
        files = self._files()
        used = sum(of_file for _, of_file, _ in files)
        for _, of_file, path in sorted(files):
            if used + size <= self.limit:
                return
            if _removed(path):
                used -= of_file

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use, size, path) of all files in the folder."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        return files


def _locked(path: Path, shard: Distant, fetched: bool) -> int | None:
    """Open and lock a whole file, so that no process removes it until it is closed.

    Returns its descriptor, or None if there is no such file. A file with other bytes than the shard is removed. If it
    was `fetched` just now, it would be so again: raises DataError.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    try:
        whole = os.fstat(file).st_size == shard.size and _digest(file) == shard.sha256
    except BaseException:
        os.close(file)
        raise
    if is_at(path, file):
        if whole:
            return file
        path.unlink(missing_ok=True)
    os.close(file)
    if not whole and fetched:
        raise DataError(f"{path}: what was read again is not what was written; check the disk")
    if not whole:
        say_error(f"{path}: damaged since it was fetched; fetching it again")
    return None


def _digest(file: int) -> str:
    digest, place = hashlib.sha256(), 0
    while block := os.pread(file, _PIECE, place):
        digest.update(block)
        place += len(block)
    return digest.hexdigest()


def _removed(path: Path) -> bool:
    """Remove a file unless a process has locked it. Returns whether the file is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(path, file):
            path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def _download(shard: Distant, file: int) -> None:
    digest, size = hashlib.sha256(), 0
    with contextlib.closing(shard.blocks()) as blocks:  # a server may send more, without an end
        for block in blocks:
            digest.update(block)
            size += len(block)
            if size > shard.size:
                break
            view = memoryview(block)
            while view:
                view = view[os.write(file, view) :]
    if size != shard.size or digest.hexdigest() != shard.sha256:
        raise DataError(f"{shard}: these are not the {shard.size} bytes that shards.json names: the checksum differs")
    os.fsync(file)


def read_ahead(
    batches: Iterator[Batch],
    cache: ShardCache,
    shards_of: Callable[[int], Iterable[Distant]],
    step: int,
    horizon: int,
) -> Iterator[Batch]:
    """Yield the batches from `step` on, and meanwhile fetch the shards of later steps.

    `shards_of` returns the shards of a step. Shards are fetched up to `horizon` steps ahead, while all of them fit into
    `cache.share`. The shards of the next AT_LEAST steps are fetched even if they do not fit. Shards that are no longer
    needed are released. The caller must close() the iterator.
    """
    ahead = _Ahead(cache, shards_of, step, horizon)
    try:
        for batch in batches:
            yield batch
            step += 1
            ahead.advance(step)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator
        ahead.close()


class _Ahead:
    """Threads that fetch shards ahead: one walks over the steps, and others fetch the shards that it finds.

    They are daemon threads, so a process that ends does not wait for them.
    """

    def __init__(
        self, cache: ShardCache, shards_of: Callable[[int], Iterable[Distant]], step: int, horizon: int
    ) -> None:
        self._cache = cache
        self._shards_of = shards_of
        self._step = step
        self._horizon = max(horizon, AT_LEAST)
        self._closed = False
        self._moved = threading.Condition()
        self._wanted: SimpleQueue[Distant | None] = SimpleQueue()
        self._last_use: dict[Distant, int] = {}
        self._threads = [threading.Thread(target=self._walk, args=(step,), daemon=True)]
        self._threads += [threading.Thread(target=self._fetch, daemon=True) for _ in range(FETCHERS)]
        for thread in self._threads:
            thread.start()

    def advance(self, step: int) -> None:
        with self._moved:
            self._step = step
            self._moved.notify()

    def close(self) -> None:
        with self._moved:
            self._closed = True
            self._moved.notify()
        for _ in range(FETCHERS):
            self._wanted.put(None)
        deadline = time.monotonic() + GRACE
        for thread in self._threads:  # one may wait for a server for a long time
            thread.join(max(deadline - time.monotonic(), 0.0))
        for shard in self._last_use:
            self._cache.release(shard)

    def _walk(self, first: int) -> None:
        for step in count(first):
            for shard in self._shards_of(step):
                with self._moved:
                    self._moved.wait_for(partial(self._may_go_on, shard, step))
                    if self._closed:
                        return
                if shard not in self._last_use:
                    self._wanted.put(shard)
                self._last_use[shard] = step

    def _may_go_on(self, shard: Distant, step: int) -> bool:
        """Return whether the walk may continue with `shard`, a shard of `step`. Release shards of past steps.

        The next AT_LEAST steps never wait for room. So the uses of all batches in progress are recorded in `_last_use`
        before any shard is released.
        """
        if self._closed or step <= self._step + AT_LEAST:
            return True
        if step > self._step + self._horizon:
            return False
        for used, last in list(self._last_use.items()):
            if last < self._step:
                del self._last_use[used]
                self._cache.release(used)
        if shard in self._last_use:
            return True
        return sum(used.size for used in self._last_use) + shard.size <= self._cache.share

    def _fetch(self) -> None:
        while (shard := self._wanted.get()) is not None and not self._closed:
            with contextlib.suppress(DataError, stopping.Stopped):  # the reader fetches it again, and raises the error
                self._cache.local(shard)
