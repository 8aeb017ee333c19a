"""A training step as a CUDA graph: what takes thousands of launches becomes one.

The first steps run as usual, beside the default stream, until everything is compiled and every state exists. Then the
step is captured, with the optimisers, over inputs and outputs that keep their places. What is a number on the host is
part of a graph: a graph is captured for each set of learning rates and for steps with and without identity, and those
of former learning rates are dropped. Not for several processes, whose collectives stay outside of graphs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vologan_fast.training.losses import StepLosses
from vologan_fast.training.step import TrainingStep, Translations

_STEPS_BEFORE = 3
"""Run as usual: for compiling, for optimisers' states, and one to see them settled."""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    losses: StepLosses
    """Overwritten by every replay."""


class CapturedStep:
    """Does what `step` does. If the capture fails, it warns once and runs `step` as it is from then on.

    The losses that a call returns are overwritten by the next call.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._steps = 0
        self._gave_up = False
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._rates: Any = None
        self._graphs: dict[bool, _Captured] = {}

    def __call__(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        self._steps += 1
        if self._gave_up:
            return self.step(synthetic, real, number)
        if self._steps <= _STEPS_BEFORE:
            return self._beside(synthetic, real, number)
        if self._inputs is None:
            self._inputs = synthetic.clone(), real.clone()
        for place, batch in zip(self._inputs, (synthetic, real), strict=True):
            place.copy_(batch)
        self.step.prepare(number, self._inputs[0])
        rates = self._current_rates()
        if rates != self._rates:
            self._rates, self._graphs = rates, {}
        identity = self.step.has_identity(number)
        if identity not in self._graphs:
            try:
                self._graphs[identity] = self._capture(identity)
            except RuntimeError as error:  # torch's type for everything that cannot be captured
                self._gave_up = True
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph, it runs without ({error}). "
                    "--no-train.cuda-graph does so from the start",
                    stacklevel=2,
                )
                return self.step(synthetic, real, number)
        captured = self._graphs[identity]
        captured.graph.replay()
        return captured.losses

    def evaluate(self, synthetic: Tensor, real: Tensor) -> tuple[StepLosses, Translations]:
        """As `TrainingStep.evaluate`."""
        return self.step.evaluate(synthetic, real)

    def _beside(self, synthetic: Tensor, real: Tensor, number: int) -> StepLosses:
        """Run on a stream of its own, as whatever is captured later must have run before."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            losses = self.step(synthetic, real, number)
        current.wait_stream(stream)
        return losses

    def _capture(self, identity: bool) -> _Captured:
        assert self._inputs is not None
        graph = torch.cuda.CUDAGraph()
        # Relaxed: tables of addresses are pinned while the capture goes on.
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):
            losses = self.step.run(*self._inputs, identity)
        return _Captured(graph, losses)

    def _current_rates(self) -> Any:
        optimizers = self.step.generator_optimizer, self.step.discriminator_optimizer
        return [
            (type(getattr(optimizer, "active", optimizer)), [group["lr"] for group in optimizer.param_groups])
            for optimizer in optimizers
        ]
