"""Why a training ended, from its exit status and what it has printed."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import NamedTuple

from vologan_fast.training.endings import DIVERGED, OUT_OF_MEMORY
from vologan_fast.words import printable

FINISHED, PRUNED, NO_MEMORY, DIVERGES, REFUSED, FAILED = (
    "finished",
    "pruned",
    "out of memory",
    "diverged",
    "refused",
    "failed",
)
ENDED = {FINISHED, PRUNED, NO_MEMORY, DIVERGES, REFUSED}
"""Outcomes that would be the same again. A trial that failed for another reason is tried again."""
_TAIL = 20_000
"""Bytes of a log that are looked at."""
_NO_MEMORY = re.compile(
    rf"{OUT_OF_MEMORY}|out of memory|bad_alloc|MemoryError|t allocate memory|cannot allocate memory|ALLOC_FAILED|"
    r"failed to map segment|Resource temporarily unavailable",
    re.IGNORECASE,
)
_DIVERGES = re.compile(f"{DIVERGED}|expected a checkpoint with finite translations")


class Outcome(NamedTuple):
    """How a trial ended."""

    name: str
    reason: str = ""
    """One line. Empty for a trial that finished."""
    value: float | None = None
    """The objective of a trial that finished."""


def outcome_of(status: int, log: Path) -> Outcome:
    """Return the outcome of a training that did not end well. `status` is negative for a signal, as in subprocess."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _TAIL, 0))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error: ")] or lines or ["it printed nothing"]
    reason = printable(said[-1].removeprefix("error: "))[:300]
    if matched := next((line for line in reversed(lines) if _NO_MEMORY.search(line)), None):
        return Outcome(NO_MEMORY, printable(matched.removeprefix("error: "))[:300])
    if status == -signal.SIGKILL:
        return Outcome(NO_MEMORY, "killed by the system, which does this when memory runs out")
    if any(_DIVERGES.search(line) for line in lines):
        return Outcome(DIVERGES, reason)
    return Outcome(FAILED, f"status {status}: {reason}" if status < 0 else reason)
