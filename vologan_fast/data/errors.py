"""The error that all bad data raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """Training data cannot be used. The message is one sentence.

    It names the file, the value that was found and the value that was expected.
    """


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn an OSError inside, such as a denied access, into a DataError that names the file. It may be a decorator."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
