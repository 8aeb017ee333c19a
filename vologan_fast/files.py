"""Atomic writing of files and folders, the cache folder, and the checksum that finds damage.

A file is first written under another name, which `aside_of` gives. Then `publish` syncs it to the disk and renames it.
If the process is killed, either the whole file exists or none. The unfinished file is locked, so a second process that
writes the same file waits for the first. An unfinished file that a killed process left behind is overwritten. Folders
work the same way.

A folder may come from somebody else, and hold links to any place. So no file is written through a link: `open_own`
refuses it, and a link at the name of an unfinished file or folder is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    from isal.isal_zlib import crc32 as crc32  # the same value as zlib's, several times faster
except ImportError:
    from zlib import crc32 as crc32

LONGEST_LINE = 1 << 20
"""Bytes of a line of a log. Those that we write have some hundreds, or some thousands with long names of files."""
_LOOK_AGAIN = 0.02  # seconds
_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # only Linux has it
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)  # so it is with this


def cache_folder(name: str) -> Path:
    """Return the path of the folder `name` in the user's cache folder. It may not exist yet.

    The path is $XDG_CACHE_HOME/vologan_fast/NAME, or ~/.cache/vologan_fast/NAME if the variable is not set.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vologan_fast" / name


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read it.

    Raises OSError, also for what is no such file, for example a pipe or a device: reading it may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe must not wait
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes. Raises OSError, also for a larger file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"expected at most {most} bytes, found {size}", str(path))
        return file.read(size)


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a regular file with their ends. Of a line of more than LONGEST_LINE bytes, only the end.

    So a file of any size takes little memory. Raises OSError.
    """
    with open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                line = line[-1:]
            yield line


class LinkError(OSError):
    """A file or folder that would be written is a link, or something else than expected."""

    def __init__(self, path: Path, expected: str) -> None:
        what = f"{path.name}: expected {expected} of this folder, found a link or another thing"
        super().__init__(errno.EINVAL, what, str(path))


def open_own(path: Path, flags: int) -> int:
    """Open a file to write it, or make it, and return its descriptor. `flags` are those of os.open.

    Raises LinkError for a symbolic link, because it may lead to any file, and for what is no regular file. Raises
    OSError.
    """
    flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe must not wait
    try:
        file = os.open(path, flags & ~os.O_TRUNC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a pipe that nobody reads
            raise LinkError(path, "a file") from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise LinkError(path, "a file")
    if flags & os.O_TRUNC:
        os.ftruncate(file, 0)
    return file


def append_to(path: Path, buffering: int = -1) -> BinaryIO:
    """Open a file to append bytes to it and to read it, or make it. Raises LinkError and OSError, as `open_own`."""
    return os.fdopen(open_own(path, os.O_RDWR | os.O_APPEND), "a+b", buffering)


def refuse_link(path: Path, expected: str = "a folder") -> None:
    """Raise LinkError if a symbolic link is in place of what will be written: `expected`."""
    if path.is_symlink():
        raise LinkError(path, expected)


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file or folder, without `..`.

    Links in it are kept, except where a `..` follows. There, the folder above the link's target is meant.
    """
    whole = Path(path).absolute()
    return whole.resolve() if ".." in whole.parts else whole


def write_whole(path: Path, data: bytes, *, alone: bool = False) -> None:
    """Write the file `path`, or replace it. Raises OSError, and then leaves no partial file behind.

    `alone` is as in `file_aside`.
    """
    with file_aside(path, alone=alone) as file:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        publish(path)


def aside_of(path: Path) -> Path:
    """Return the path under which `path` is first written: a hidden name in the same folder."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def file_aside(path: Path, *, alone: bool = False) -> Iterator[int]:
    """Open and lock an empty file beside `path`, and yield its descriptor.

    The block fills the file and calls `publish(path)`. An unpublished file is removed at the end. `alone` says that no
    other process writes this path. Then nothing is locked, so it also works on file systems without locks. Without
    `alone`, they raise OSError.

    Raises OSError, also if a device, a pipe or a socket is at `path`: /dev/null, for example, serves the whole machine.
    An error names `path`, and not the unfinished file.
    """
    _refuse_replacing_what_is_no_file(path)
    aside = aside_of(path)
    try:
        while True:
            file = _open_unfinished(aside)
            if alone or _lock(file, aside):
                break
            os.close(file)  # its owner published or removed it while we waited
        try:
            os.ftruncate(file, 0)
            yield file
        finally:
            if is_at(aside, file):
                aside.unlink()
            os.close(file)
    except OSError as error:
        if error.filename == os.fspath(aside):
            error.filename = os.fspath(path)
        raise


def _refuse_replacing_what_is_no_file(path: Path) -> None:
    """Raise OSError if a device, a pipe or a socket is at `path`. Where a folder is, a rename says so."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "not a regular file, so it is not replaced", os.fspath(path))


@contextmanager
def folder_aside(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Make and lock an empty folder beside `path`, and yield its path.

    The block fills the folder and calls `publish(path)`. An unpublished folder is removed at the end. `alone` is as in
    `file_aside`.
    """
    aside = aside_of(path)
    while True:
        with contextlib.suppress(FileExistsError):
            aside.mkdir()
        try:
            folder = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # its owner published or removed it just now
            continue
        except NotADirectoryError:  # a link, whose target would be emptied
            aside.unlink(missing_ok=True)
            continue
        if alone or _lock(folder, aside):
            break
        os.close(folder)  # its owner published or removed it while we waited
    try:
        for old in aside.iterdir():
            remove(old)
        yield aside
    finally:
        if is_at(aside, folder):
            shutil.rmtree(aside, ignore_errors=True)
        os.close(folder)


def _open_unfinished(aside: Path) -> int:
    """Open the file at an unfinished name. What is there and may be somebody else's file, is removed, not written."""
    while True:
        with contextlib.suppress(LinkError):
            file = open_own(aside, os.O_RDWR)
            if os.fstat(file).st_nlink <= 1:  # else it is a file with another name, too
                return file
            os.close(file)
        aside.unlink(missing_ok=True)


def publish(path: Path, *, replace: bool = False) -> None:
    """Sync the file or folder that was written under the name `aside_of(path)`, and rename it to `path`.

    An old file at `path` is replaced. An old folder is replaced if it is empty, or with `replace`. Raises OSError, also
    for a folder that holds something.
    """
    aside = aside_of(path)
    for folder, _, files in os.walk(aside):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    if not aside.is_dir():
        sync(aside)
    moved = replace and _set_old_aside(path)
    try:
        aside.rename(path)
    except OSError:
        if moved:
            _old_of(path).rename(path)
        raise
    sync(path.parent)
    if replace:
        remove(_old_of(path))


def publish_together(files: Sequence[tuple[Path, int]], folder: int) -> None:
    """Publish files as `publish` does, but wait for the disk once, and not once for each file.

    `files` are paths, and the open descriptors by which they were written (`file_aside`). `folder` is the descriptor of
    a folder, opened before all of them. Files on its file system are synced together, if the system can do so (Linux).
    Errors since it was opened are noticed. Raises OSError.
    """
    here = os.fstat(folder).st_dev
    for _, file in files:
        if _syncfs is None or os.fstat(file).st_dev != here:
            os.fsync(file)
    if _syncfs is not None and _syncfs(folder) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for path, _ in files:
        aside_of(path).rename(path)
    for parent in {path.parent for path, _ in files}:
        sync(parent)


def reserve(path: Path, size: int) -> bool:
    """Make a file that takes `size` bytes of the disk, and return whether there was room.

    Where the system or the file system cannot reserve room without a write of so many bytes, there is no file. Raises
    OSError for other reasons.
    """
    if _fallocate is None:
        return True
    remove(path)  # not written through, if it is a link
    file = open_own(path, os.O_WRONLY)
    try:
        if _fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
            return True
        path.unlink()
        return ctypes.get_errno() not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        os.close(file)


def remove_whole(path: Path) -> None:
    """Remove a folder if it exists. At no time is there an incomplete folder under its name."""
    _set_old_aside(path)
    remove(_old_of(path))


def remove(path: Path) -> None:
    """Remove a file, a folder or a symbolic link, if there is one. The target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _old_of(path: Path) -> Path:
    """Return the name under which an old folder is removed."""
    return path.with_name(f".{path.name}.old.partial")


def _set_old_aside(path: Path) -> bool:
    """Rename the folder at `path` to `_old_of(path)`. Return whether there was one."""
    if not os.path.lexists(path):
        return False
    remove(_old_of(path))  # left by a process that was killed
    path.rename(_old_of(path))
    return True


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_at(path: Path, file: int) -> bool:
    """Return whether the open file or folder is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int, path: Path) -> bool:
    """Lock the open file, and return True. Return False once the file is no longer at `path`.

    The wait is not inside flock, because a process that has published the file may keep it locked for any time.
    """
    try:
        while is_at(path, file):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return is_at(path, file)
            except BlockingIOError:
                time.sleep(_LOOK_AGAIN)
    except BaseException:  # no locks here, or Ctrl-C while waiting: nobody else has the descriptor
        os.close(file)
        raise
    return False
