"""Notices the first step that left weights which are not finite, without a wait of the host for the GPU.

Gradients that are not finite, and steps that are far too long, leave such weights. A tensor on the device keeps the
number of the first such step. It is copied to the host when a line is logged, and looked at when the next one is. So
the copy has arrived long before.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_NONE = 2**62


class FirstBadStep:
    """The first bad step among those that were noted."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), _NONE, dtype=torch.int64, device=device)
        self._on_host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def note(self, step: int, parameters: Iterable[Tensor]) -> None:
        """Note the step that has just changed the parameters. This starts work on the device and waits for nothing."""
        finite = all_finite([parameter.detach() for parameter in parameters])
        self._first.clamp_(max=torch.where(finite, _NONE, step))

    def arrived(self) -> int | None:
        """Return the first bad step, as it was at the last call. Start a copy for the next one."""
        before, copied = self._on_host, self._copied
        self._on_host = self._first.to("cpu", non_blocking=True, copy=True)
        if self._first.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self._first.device))
        if copied is not None:
            copied.synchronize()
        return None if before is None else _number(before)

    def now(self) -> int | None:
        """Return the first bad step. The host waits for the device."""
        return _number(self._first)

    def forget(self) -> None:
        """Forget all steps, because their weights are gone."""
        self._first.fill_(_NONE)
        self._on_host = None


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Return whether all values are finite, as a tensor on their device. Norms beyond 10¹⁹ may count as infinite.

    On a CPU, the 2-norm takes half the time of the 1-norm: 0.35 ms for the 168 weights of the demo preset.
    """
    return torch.stack(torch._foreach_norm(tensors, 2)).isfinite().all()


def _number(first: Tensor) -> int | None:
    found = int(first)
    return None if found == _NONE else found
