"""Files that are whole or absent: written aside, synced, renamed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_AGAIN = 0.02  # seconds


def write_whole(path: Path, data: bytes) -> None:
    """The file `path` with this content, over an old one. Raises OSError, and leaves nothing behind then."""
    with file_aside(path) as file:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
        aside_of(path).rename(path)
    sync_folder(path.parent)


def aside_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def file_aside(path: Path) -> Iterator[int]:
    """An empty file beside `path`, locked while it is filled, and removed unless it was renamed."""
    aside = aside_of(path)
    while True:
        file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if _lock(file, aside):
            break
        os.close(file)  # its owner was done with it while we waited
    try:
        os.ftruncate(file, 0)
        yield file
    finally:
        if is_at(aside, file):
            aside.unlink()
        os.close(file)


def _lock(file: int, path: Path) -> bool:
    """Lock the file, unless it goes away from `path` first. Whoever renames it may then lock it for as long as he
    likes, so waiting for the lock alone could last for ever."""
    while is_at(path, file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return is_at(path, file)
        except BlockingIOError:
            time.sleep(_LOOK_AGAIN)
    return False


def is_at(path: Path, file: int) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
