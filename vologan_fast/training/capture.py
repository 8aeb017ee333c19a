"""A training step as a CUDA graph: one launch replaces thousands.

The first steps run as usual, on another stream than the default one. They compile everything and make all optimiser
state. The first step of each plan also runs as usual, because cuDNN tries its algorithms there. Then the step is
captured, including the optimisers. Its inputs and outputs keep their addresses.

Numbers on the host become constants of the graph. So there is one graph for each plan of a step (with and without
identity, for example), for the current learning rates. When the learning rates change, the old graphs are dropped. Runs
with several processes use no graphs, because their collectives stay outside of graphs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vologan_fast.training.losses import Losses
from vologan_fast.training.step import Images, Plan, StepState, TrainingStep

_STEPS_BEFORE = 3
"""Steps that run as usual: the first compiles, the second makes the optimiser state, and the third changes nothing of
this kind."""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    losses: Losses
    """Every replay overwrites these tensors."""


class CapturedStep:
    """A replacement for `step` that replays it as a CUDA graph.

    If the capture fails, it warns once and runs `step` without a graph from then on. Each call overwrites the losses
    that the call before returned.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._steps = 0
        self._gave_up = False
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._rates: Any = None
        self._seen: set[Plan] = set()
        self._graphs: dict[Plan, _Captured] = {}

    def __call__(self, synthetic: Tensor, real: Tensor, number: int, progress: float = 0.0) -> Losses:
        self._steps += 1
        if self._gave_up:
            return self.step(synthetic, real, number, progress)
        plan = self.step.plan(number, progress)
        if self._steps <= _STEPS_BEFORE or plan not in self._seen:
            self._seen.add(plan)
            return self._beside(synthetic, real, number, progress)
        if self._inputs is None:
            self._inputs = synthetic.clone(), real.clone()
        for place, batch in zip(self._inputs, (synthetic, real), strict=True):
            place.copy_(batch)
        self.step.prepare(number, self._inputs[0])
        rates = self._current_rates()
        if rates != self._rates:
            self._rates, self._graphs = rates, {}
        if plan not in self._graphs:
            try:
                self._graphs[plan] = self._capture(plan)
            except RuntimeError as error:  # torch's type for everything that cannot be captured
                self._gave_up = True
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph, it runs without ({error}). "
                    "--train.no-cuda-graph does so from the start",
                    stacklevel=2,
                )
                return self.step(synthetic, real, number, progress)
        captured = self._graphs[plan]
        captured.graph.replay()
        return captured.losses

    def evaluate(
        self, synthetic: Tensor, real: Tensor, progress: float = 0.0, first_image: int = 0
    ) -> tuple[Losses, Images]:
        """Do the same as `TrainingStep.evaluate`."""
        return self.step.evaluate(synthetic, real, progress, first_image)

    def translate_held_out(self, synthetic: Tensor, first_image: int = 0) -> Tensor:
        """Do the same as `TrainingStep.translate_held_out`."""
        return self.step.translate_held_out(synthetic, first_image)

    def state_dict(self) -> StepState:
        """Do the same as `TrainingStep.state_dict`."""
        return self.step.state_dict()

    def load_state_dict(self, state: StepState) -> None:
        """Do the same as `TrainingStep.load_state_dict`. Call it before the first step."""
        self.step.load_state_dict(state)

    def _beside(self, synthetic: Tensor, real: Tensor, number: int, progress: float) -> Losses:
        """Run the step on a side stream. A CUDA graph capture requires such runs before it."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            losses = self.step(synthetic, real, number, progress)
        current.wait_stream(stream)
        return losses

    def _capture(self, plan: Plan) -> _Captured:
        assert self._inputs is not None
        graph = torch.cuda.CUDAGraph()
        # "relaxed" allows the step to pin its tables of addresses during the capture.
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):
            losses = self.step.run(*self._inputs, plan)
        return _Captured(graph, losses)

    def _current_rates(self) -> Any:
        optimizers = self.step.generator_optimizer, self.step.discriminator_optimizer
        return [
            (type(getattr(optimizer, "active", optimizer)), [group["lr"] for group in optimizer.param_groups])
            for optimizer in optimizers
        ]
