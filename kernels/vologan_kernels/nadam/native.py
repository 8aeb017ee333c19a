"""NAdam on a CPU: the native library updates all parameters in one pass (`csrc/nadam_update.h`)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

import torch

from vologan_kernels import native_library
from vologan_kernels.nadam.reference import Update
from vologan_kernels.nadam.rows import rows_of


def update(updates: Sequence[Update]) -> None:
    """The same as `reference.update`, for parameters of one dtype that `native_library.refusal` accepts.

    Raises MemoryError before it has changed anything.
    """
    rows = rows_of(updates)
    table = array("q", chain.from_iterable(rows.table))
    kind = native_library.TYPES[updates[0].parameter.dtype]
    address, _ = table.buffer_info()
    if native_library.load().vologan_nadam(address, len(updates), kind, torch.get_num_threads()):
        raise MemoryError(f"NAdam: no memory for the coefficients of {len(updates)} parameters")
    # Autograd does not see these writes. A graph that saved a parameter must not use the new value instead.
    torch.autograd.graph.increment_version([update.parameter for update in updates])
