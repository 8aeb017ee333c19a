"""A file of arrays, which is either complete or absent, with a checksum of each entry.

    first page    JSON: the arrays, the caller's header, the CRC-32 of the checksums, and of the page itself
    arrays        each begins at a new page
    checksums     the CRC-32 of each entry of each array, as little-endian uint32

The file is written under another name, synced and renamed. A second process that needs the same file waits for the
first one. If the first process is killed, the second one makes the file and overwrites the incomplete one.

Entries are read, not mapped: if a mapped file shrinks, or its disk fails, the process is killed without a word. Each
entry is compared with its checksum whenever it is read, because a disk may err at any time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vologan_fast.data.errors import DataError
from vologan_fast.files import crc32, file_aside, publish
from vologan_fast.words import in_words

_PAGE = 4096
_JSON = "json"

Write = Callable[[str, int, np.ndarray[Any, Any]], None]
"""write(array, i, values) stores `values` as entry i of the array `array`. It may be called from any thread."""


@dataclass(frozen=True)
class ArraySpec:
    """The shape and NumPy type of an array. Its first axis counts the entries, which are written one by one."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def entry_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


class PackedFile:
    """A complete file, open for reading. Any number of threads may read it at the same time."""

    def __init__(self, path: Path, file: int, header: dict[str, Any], specs: Mapping[str, ArraySpec]) -> None:
        """Take over the descriptor `file`."""
        self.path = path
        self.header = header
        self.specs = specs
        """The shape and type of each array."""
        self._file = file
        self._offsets, at = _offsets(specs)
        self._crcs = {}
        for name, spec in specs.items():
            count = spec.shape[0]
            self._crcs[name] = np.frombuffer(_read_at(file, at, 4 * count), "<u4")
            at += 4 * count
        weakref.finalize(self, os.close, file)

    @property
    def crc(self) -> int:
        """The CRC-32 of all checksums."""
        return _crc_of(self._crcs.values())

    def read(self, array: str, entry: int, out: np.ndarray[Any, Any]) -> None:
        """Fill `out` with an entry of an array. It has the entry's shape and type, and is contiguous.

        Raises DataError, which names the file and the entry, if the file does not hold what was written.
        """
        size = self.specs[array].entry_bytes
        view = out.data.cast("B")
        assert len(view) == size
        try:
            _read_into(self._file, self._offsets[array] + entry * size, view)
            found, expected = crc32(view), int(self._crcs[array][entry])
            if found != expected:
                raise ValueError(f"expected checksum {expected:08x}, found {found:08x}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{self.path}: entry {entry} of {array} is damaged ({reason})") from None


def open_packed(path: Path) -> PackedFile | None:
    """Open a complete file.

    Returns None if there is no file, if it was truncated, or if its first page or its checksums are not as they were
    written. Raises DataError if it cannot be read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe must not wait
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    opened = None
    try:
        page = _read_at(file, 0, _PAGE)
        record = json.loads(page.rstrip(b"\0"))
        specs = {name: ArraySpec(tuple(shape), dtype) for name, (shape, dtype) in record["arrays"].items()}
        if _first_page(record[_JSON], specs, record["checksums"]) == page and os.fstat(file).st_size == _size(specs):
            opened = PackedFile(path, file, record[_JSON], specs)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # damage makes any JSON, or none
        pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    finally:
        if opened is None:
            os.close(file)
    return opened if opened is not None and opened.crc == record["checksums"] else None


def make_packed(
    path: Path, header: dict[str, Any], specs: Mapping[str, ArraySpec], fill: Callable[[Write], None]
) -> None:
    """Make the file `path`. `fill` writes all entries of its arrays.

    If another process has made the file in the meantime, do nothing. Raises DataError if the file cannot be written,
    for example on a full disk, and beforehand if there is no room for it. Then no file is left behind.
    """
    specs = dict(specs)
    offsets, checksums_at = _offsets(specs)
    total = _size(specs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(path) as aside:
            if open_packed(path) is not None:  # another process made it while this one waited
                return
            free = shutil.disk_usage(path.parent).free
            if total > free:
                raise DataError(_too_large(path, f"{in_words(free)} are free", total))
            crcs = {name: np.zeros(spec.shape[0], "<u4") for name, spec in specs.items()}

            def write(array: str, entry: int, values: np.ndarray[Any, Any]) -> None:
                view = values.data.cast("B")
                crcs[array][entry] = crc32(view)
                _write_at(aside, offsets[array] + entry * specs[array].entry_bytes, view)

            fill(write)
            _write_at(aside, checksums_at, b"".join(of_array.tobytes() for of_array in crcs.values()))
            _write_at(aside, 0, _first_page(header, specs, _crc_of(crcs.values())))
            publish(path)
    except OSError as error:
        raise DataError(_too_large(path, error.strerror or str(error), total)) from None


def _too_large(path: Path, reason: str, total: int) -> str:
    return (
        f"{path}: cannot be written ({reason}); expected room for {in_words(total)} of decoded images: set "
        "--data.cache none, or XDG_CACHE_HOME to a folder with more"
    )


def _first_page(header: dict[str, Any], specs: Mapping[str, ArraySpec], checksums: int) -> bytes:
    record = {
        _JSON: header,
        "arrays": {name: (spec.shape, spec.dtype) for name, spec in specs.items()},
        "checksums": checksums,
    }
    own = crc32(json.dumps(record).encode())
    return json.dumps({**record, "crc32": own}).encode().ljust(_PAGE, b"\0")


def _crc_of(crcs: Iterable[npt.NDArray[np.uint32]]) -> int:
    found = 0
    for of_array in crcs:
        found = crc32(of_array.tobytes(), found)
    return found


def _offsets(specs: Mapping[str, ArraySpec]) -> tuple[dict[str, int], int]:
    """Return the offset of each array, and that of the checksums, in bytes."""
    offsets, end = {}, _PAGE
    for name, spec in specs.items():
        offsets[name] = end
        end += -(-spec.shape[0] * spec.entry_bytes // _PAGE) * _PAGE
    return offsets, end


def _size(specs: Mapping[str, ArraySpec]) -> int:
    """Return the size of the file in bytes."""
    return _offsets(specs)[1] + 4 * sum(spec.shape[0] for spec in specs.values())


def _read_at(file: int, offset: int, size: int) -> bytes:
    data = bytearray(size)
    _read_into(file, offset, memoryview(data))
    return bytes(data)


def _read_into(file: int, offset: int, view: memoryview) -> None:
    """Fill the view with the bytes of the file from `offset` on. Raises ValueError if the file is shorter."""
    while view:
        count = os.preadv(file, [view], offset)
        if count == 0:
            raise ValueError(f"expected {offset + len(view)} bytes or more, found {os.fstat(file).st_size}")
        view, offset = view[count:], offset + count


def _write_at(file: int, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count
