"""Waits for files that may never come: a disk or a server that does not answer, or answers a byte a minute.

All waits are alike. After NAMED_AFTER seconds a sentence names the file. After `patience` seconds the wait is a
DataError. If a signal asks for the end meanwhile, the file has GRACE seconds left, and then the wait raises
`stopping.Stopped`. In both cases the threads that read are left behind, because nothing can end them, and the process
ends without them.

Seconds are counted by looks, each of which waits for a moment. So a process that was stopped itself (SIGSTOP) does not
take this time for the file's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from vologan_fast import stopping
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Source, read
from vologan_fast.words import say_error

PATIENCE = 600.0
"""Seconds of the longest wait, for what has no settings of its own."""
NAMED_AFTER = 10.0
GRACE = 3.0
_LOOK = 0.25
_SLOW = 1.0
"""A file is the one that all wait for if a second look at it takes so many seconds."""

T = TypeVar("T")


class Stalled(DataError):
    """A file has not come in time."""

    def __init__(self, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file
        """The name of the file. None if it is not known which one does not come."""


class ReadingThreads(ThreadPoolExecutor):
    """A pool of threads that read files. At the end of a `with`, it leaves behind those that wait for one."""

    def __init__(self, count: int) -> None:
        super().__init__(count, thread_name_prefix="vologan-data")
        self._open: set[Future[Any]] = set()

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        future = super().submit(*arguments, **named)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        if wait(list(self._open), GRACE).not_done:
            stopping.abandon_threads()
        else:
            self.shutdown()


def result_of(reading: Future[T], files: Callable[[], Sequence[Source]], patience: float) -> T:
    """Return the result of a thread that reads `files`, or raise its error.

    `files` is called if the wait is long. Then another thread reads them one by one, and finds the one that does not
    come. Raises DataError and `stopping.Stopped` as this module tells.
    """
    search: _Search | None = None

    def name() -> str | None:
        nonlocal search
        search = search or _Search(files())
        return search.found()

    def arrives(seconds: float) -> bool:
        if not reading.done():
            try:
                reading.exception(seconds)
            except TimeoutError:
                return False
        return True

    _wait(arrives, name, patience)
    return reading.result()


def in_time(items: Generator[T], name: str, patience: float) -> Generator[T]:
    """Yield the items of an iterator that reads the file `name`, each after at most `patience` seconds.

    The iterator, whose items are never None, runs in a thread of its own. Raises its errors and those of this module.
    It also raises `stopping.Stopped` between two items, because the rest may take long.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    taken: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def take() -> None:
        while wanted.get():
            try:
                taken.put((next(items, None), None))
            except BaseException as error:
                taken.put((None, error))
        items.close()

    arrived: list[tuple[T | None, BaseException | None]] = []

    def arrives(seconds: float) -> bool:
        try:
            arrived.append(taken.get(timeout=seconds))
        except Empty:
            return False
        return True

    threading.Thread(target=take, daemon=True).start()  # a process that ends does not wait for it
    try:
        while True:
            wanted.put(True)
            _wait(arrives, lambda: name, patience)
            item, error = arrived.pop()
            if error is not None:
                raise error
            if item is None:
                return
            if stopping.requested():
                raise stopping.Stopped
            yield item
    finally:
        wanted.put(False)


def _wait(arrives: Callable[[float], bool], name: Callable[[], str | None], patience: float) -> None:
    """Wait until `arrives`, which waits for some seconds at most, returns True."""
    waited = asked = 0.0
    named = False
    while not arrives(_LOOK):
        waited += _LOOK
        asked += _LOOK if stopping.requested() else 0.0
        if asked >= GRACE:
            raise stopping.Stopped
        if waited >= patience:
            file = name()
            raise Stalled(f"{file or 'a file'}: not read within {patience:g} s, which is --data.patience", file)
        if waited >= min(NAMED_AFTER, patience / 2) and not named and (found := name()) is not None:
            named = True
            after = f"it counts as broken after {patience:g} s of this (--data.patience)"
            say_error(f"{found}: waiting for it since {waited:.0f} s; {after}")


class _Search:
    """A thread that reads files one by one, to find the one that does not come."""

    def __init__(self, files: Sequence[Source]) -> None:
        self._files = files
        self._at = 0
        self._same = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def found(self) -> str | None:
        """Return the name of the file that has not come for a moment, or None."""
        at = self._at
        self._same.clear()
        if at == len(self._files) or self._same.wait(_SLOW):
            return None
        return str(self._files[at])

    def _read(self) -> None:
        for file in self._files:
            with contextlib.suppress(Exception):  # an error is an answer, and whoever needs the file will see it
                read(file)
            self._at += 1
            self._same.set()
