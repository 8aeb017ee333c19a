"""The error that all bad data raises."""

from __future__ import annotations


class DataError(ValueError):
    """Training data cannot be used. The message is one sentence.

    It names the file, the value that was found and the value that was expected.
    """
