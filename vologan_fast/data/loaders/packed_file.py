"""A memory-mapped file of arrays, which is either complete or absent.

The first page lists the arrays in JSON. Each array begins at a new page. The file is written under another name, synced
and renamed. A second process that needs the same file waits for the first one. If the first process is killed, the
second one makes the file and overwrites the incomplete one.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vologan_fast.data.errors import DataError
from vologan_fast.files import file_aside, publish
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


@dataclass(frozen=True)
class PackedFile:
    """A complete file, mapped for reading."""

    path: Path
    header: dict[str, Any]
    arrays: dict[str, torch.Tensor]
    """The arrays by name, read-only. The file must not shrink while they are in use."""


def open_packed(path: Path) -> PackedFile | None:
    """Open a complete file. Returns None if there is no file, or if it was truncated or is not such a file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_PAGE).rstrip(b"\0"))
            specs = {name: ArraySpec(tuple(shape), dtype) for name, (shape, dtype) in header["arrays"].items()}
            offsets, total = _offsets(specs)
            if os.fstat(file.fileno()).st_size != total:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError, KeyError):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        arrays = {
            name: torch.from_numpy(
                np.frombuffer(mapped, spec.dtype, math.prod(spec.shape), offsets[name]).reshape(spec.shape)
            )
            for name, spec in specs.items()
        }
    return PackedFile(path, header[_JSON], arrays)


def make_packed(
    path: Path, header: dict[str, Any], specs: Mapping[str, ArraySpec], fill: Callable[[Write], None]
) -> None:
    """Make the file `path`. `fill` writes its arrays. If another process has made the file in the meantime, do nothing.

    Raises DataError if the file cannot be written, for example on a full disk. Then no file is left behind.
    """
    specs = dict(specs)
    offsets, total = _offsets(specs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(path) as aside:
            if open_packed(path) is not None:  # another process made it while this one waited
                return
            free = shutil.disk_usage(path.parent).free
            if total > free:
                raise DataError(_too_large(path, f"{in_words(free)} are free", total))
            first = {_JSON: header, "arrays": {name: (spec.shape, spec.dtype) for name, spec in specs.items()}}
            _write_at(aside, 0, json.dumps(first).encode().ljust(_PAGE, b"\0"))

            def write(array: str, entry: int, values: np.ndarray[Any, Any]) -> None:
                _write_at(aside, offsets[array] + entry * specs[array].entry_bytes, values.data.cast("B"))

            fill(write)
            os.ftruncate(aside, total)
            publish(path)
    except OSError as error:
        raise DataError(_too_large(path, error.strerror or str(error), total)) from None


def _too_large(path: Path, reason: str, total: int) -> str:
    return (
        f"{path}: cannot be written ({reason}); expected room for {in_words(total)} of decoded images: set "
        "--data.cache none, or XDG_CACHE_HOME to a folder with more"
    )


def _offsets(specs: Mapping[str, ArraySpec]) -> tuple[dict[str, int], int]:
    """Return the offset of each array, and the size of the file, in bytes."""
    offsets, end = {}, _PAGE
    for name, spec in specs.items():
        offsets[name] = end
        end += -(-spec.shape[0] * spec.entry_bytes // _PAGE) * _PAGE
    return offsets, end


def _write_at(file: int, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count
