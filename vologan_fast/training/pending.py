"""Work that a GPU has not finished yet: losses on their way to the log, and steps.

When the host reads a number from a GPU, it waits until all earlier work is done. Then the GPU waits for the host. To
avoid this, the stream of the steps copies a step's losses to host memory, and the host reads them later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from vologan_fast.training.losses import Losses


class PendingLosses:
    """A queue of losses, each with the other entries of its line in the log."""

    def __init__(self) -> None:
        self._queue: deque[tuple[torch.cuda.Event | None, Losses, dict[str, Any]]] = deque()

    def add(self, losses: Losses, record: dict[str, Any]) -> None:
        """Start to copy `losses` to the host, and keep `record` until they arrive."""
        on_host = losses.on_host()
        self._queue.append((_arrival(next(iter(losses.tensors().values())).device), on_host, record))

    def clear(self) -> None:
        """Forget all losses."""
        self._queue.clear()

    def arrived(self, wait: bool = False) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
        """Yield the (terms, record) pairs that have arrived, oldest first. With `wait`, wait for all of them."""
        while self._queue:
            event, losses, record = self._queue[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    return
            self._queue.popleft()
            yield {name: float(value) for name, value in losses.terms().items()}, record


class StepsAhead:
    """A limit on the host: at most `most` steps ahead of the GPU. The GPU then always has a step to begin with.

    A CUDA graph of a step costs the host almost no time. Without a limit the host would run hundreds of steps ahead.
    Its measured times would be wrong, and the log and the reaction to Ctrl-C would be late.
    """

    def __init__(self, device: torch.device, most: int = 2) -> None:
        self._device, self._most = device, most
        self._steps: deque[torch.cuda.Event] = deque()

    def add(self) -> None:
        """Count a step that the host has just launched, and wait if the host is too far ahead."""
        if (step := _arrival(self._device)) is not None:
            self._steps.append(step)
        if len(self._steps) > self._most:
            self._steps.popleft().synchronize()


def _arrival(device: torch.device) -> torch.cuda.Event | None:
    """Return an event that tells when all earlier work on the GPU is done. None on the CPU, which is never behind."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
