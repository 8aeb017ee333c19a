"""The one error that bad data raises."""

from __future__ import annotations


class DataError(ValueError):
    """Training data cannot be used: one sentence that names the file, what was found and what was expected."""
