"""How a run says why it cannot go on. A sweep finds these words in what a run has printed."""

from __future__ import annotations

import torch

DIVERGED = "A lower learning rate is the usual cure"
OUT_OF_MEMORY = "memory ran out"
_NO_MEMORY = "out of memory", "t allocate memory", "cannot allocate memory", "alloc_failed", "t start new thread"
"""What torch, CUDA's libraries and Python say, in small letters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the machine, of a limit, or of a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(words in said for words in _NO_MEMORY)
