"""What reads the files of a data set in shards from a server. `s3.py` and `filesystem.py` implement it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vologan_fast.data.errors import DataError


class Unreachable(DataError):
    """A server did not answer, or a connection broke. Another attempt may succeed."""


class Store(Protocol):
    """The files below a URL. All methods may be called from any thread."""

    def url(self, name: str) -> str:
        """Return the URL of the file `name`. It names the file in messages."""

    def blocks(self, name: str, first: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file from `first` on, in order: at most `size` bytes, by default all.

        They are fewer if the file ends before. Raises DataError. It is Unreachable if another attempt may succeed.
        """
