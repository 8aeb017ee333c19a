"""Files and folders that are complete or absent, and the folder for what can be made again.

A file is written aside, under the name of `aside_of`; `publish` syncs it to the disk and renames it. Whatever ends the
process leaves either the whole file or none. While it is written it is locked: a second process that wants the same
file waits for the first one. What a killed process left aside is written over. Folders work the same way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_AGAIN = 0.02  # seconds


def cache_folder(name: str) -> Path:
    """The folder `name` in the user's cache folder: $XDG_CACHE_HOME/vologan_fast/NAME, by default below ~/.cache.

    It need not exist.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vologan_fast" / name


def write_whole(path: Path, data: bytes) -> None:
    """Write the file `path`, or replace it. Raises OSError, and leaves nothing behind then."""
    with file_aside(path) as file:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        publish(path)


def aside_of(path: Path) -> Path:
    """The name under which `path` is written: hidden, in the same folder."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def file_aside(path: Path) -> Iterator[int]:
    """Open an empty file beside `path`, and lock it; the block fills it and calls `publish(path)`.

    Yields the file's descriptor. The file is removed at the end unless it was published.
    """
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


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Make an empty folder beside `path`, and lock it; the block fills it and calls `publish(path)`.

    Yields the folder's path. The folder is removed at the end unless it was published.
    """
    aside = aside_of(path)
    while True:
        aside.mkdir(exist_ok=True)
        folder = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
        if _lock(folder, aside):
            break
        os.close(folder)  # its owner was done with it while we waited
    try:
        for old in aside.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        yield aside
    finally:
        if is_at(aside, folder):
            shutil.rmtree(aside, ignore_errors=True)
        os.close(folder)


def publish(path: Path) -> None:
    """Sync what was written aside, and give it its name. An old file of that name is replaced, an old folder removed.

    Raises OSError.
    """
    aside = aside_of(path)
    for folder, _, files in os.walk(aside):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if aside.is_dir():
        remove_folder(path)
    else:
        sync(aside)
    aside.rename(path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder if it is there. At no moment does a part of it stand under its name."""
    doomed = path.with_name(f".{path.name}.old.partial")
    shutil.rmtree(doomed, ignore_errors=True)  # of a process that was killed here
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_at(path: Path, file: int) -> bool:
    """Whether the open file or folder is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int, path: Path) -> bool:
    """Lock the file, unless it goes away from `path` first.

    We do not wait inside flock: a process that has published the file may keep it locked for as long as it likes.
    """
    while is_at(path, file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return is_at(path, file)
        except BlockingIOError:
            time.sleep(_LOOK_AGAIN)
        except OSError:  # a file system without locks, as some clusters have it: nobody is kept from writing
            return is_at(path, file)
    return False
