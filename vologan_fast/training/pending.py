"""What the host has asked of a GPU and not yet seen done: losses on their way to the log, and steps.

Reading a number of a GPU makes the host wait until everything before it is done, and then the GPU wait for the host. So
a step's losses are copied to host memory in the stream of the steps, and looked at later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from vologan_fast.training.losses import StepLosses


class PendingLosses:
    """A queue of losses, each with what else belongs to its line of the log."""

    def __init__(self) -> None:
        self._queue: deque[tuple[torch.cuda.Event | None, StepLosses, dict[str, Any]]] = deque()

    def add(self, losses: StepLosses, record: dict[str, Any]) -> None:
        """Start copying `losses`; `record` waits for them."""
        on_host = losses.on_host()
        self._queue.append((_arrival(losses.metrics.device), on_host, record))

    def arrived(self, wait: bool = False) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
        """The terms and records that are there by now, oldest first; with `wait` all."""
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
    """Keeps the host at most `most` steps ahead of the GPU, which then always has one to begin with.

    A step that is one CUDA graph costs the host next to nothing: left alone, it would run hundreds of steps ahead, and
    the times it measures, the log and the answer to Ctrl-C with it.
    """

    def __init__(self, device: torch.device, most: int = 2) -> None:
        self._device, self._most = device, most
        self._steps: deque[torch.cuda.Event] = deque()

    def add(self) -> None:
        """The host has just asked for a step."""
        if (step := _arrival(self._device)) is not None:
            self._steps.append(step)
        if len(self._steps) > self._most:
            self._steps.popleft().synchronize()


def _arrival(device: torch.device) -> torch.cuda.Event | None:
    """What tells when everything that was asked of a GPU so far is done; None where nothing is ever on its way."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
