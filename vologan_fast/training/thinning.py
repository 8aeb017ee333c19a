"""Logs that stay small in long runs: after many entries, only each second one is written, then each fourth, and so on.

Nothing that was written is changed or removed, and no entry depends on what was written before. So it does not matter
where a run was stopped and resumed. With a limit of N entries, a run twice as long writes N/2 more. Beyond the
limit, the distance of two entries is at most 2/N of the run so far.
"""

from __future__ import annotations


def stride(number: int, limit: int) -> int:
    """Return how many entries follow before one is written, counted from 1, at the entry with this number.

    It is a power of two: 1 up to the number `limit`, 2 up to 2 · `limit`, 4 up to 4 · `limit`. Without a limit (0),
    it is always 1.
    """
    return 1 << (max(number - 1, 0) // limit).bit_length() if limit else 1
