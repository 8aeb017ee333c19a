"""A training step as a CUDA graph: one launch replaces thousands.

The first steps run as usual, on another stream than the default one. They compile everything and make all optimiser
state. The first steps of each plan also run as usual, because cuDNN tries its algorithms there. Then the step is
captured, including the optimisers. Its inputs and outputs keep their addresses. A batch of another size than the
captured ones runs as usual.

Numbers on the host become constants of the graph. So there is one graph for each plan of a step (with and without
identity, for example), for the current learning rates. When the learning rates change, the old graphs are dropped. Runs
with several processes use no graphs, because their collectives stay outside of graphs.

All graphs share one pool of memory, so they take the memory of the largest and not of all. PyTorch allows this for
graphs that never run at the same time and are replayed in the order of their captures. Ours are replayed in any order.
This is right because a replay reads nothing that another replay wrote to the pool: weights, optimiser state and image
pools lie outside, and each replay computes its gradients anew. Only the losses must be read before the next replay.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vologan_kernels.graph_memory import GraphMemory

from vologan_fast.training.losses import Losses
from vologan_fast.training.step import Images, Plan, StepState, TrainingStep

RUNS_BEFORE = 3
"""Steps of each plan that run as usual: the first compiles, the second makes the optimiser state, and the third changes
nothing of this kind."""
_MOST_GRAPHS = 4
"""Graphs that are kept: with and without identity, with and without penalty. A loss that changes with the progress of
the run makes new plans, and the oldest graphs are dropped."""


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
        self._gave_up = False
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._rates: Any = None
        self._runs: Counter[Plan] = Counter()
        self._memory: defaultdict[Plan, GraphMemory] = defaultdict(GraphMemory)
        self._graphs: dict[Plan, _Captured] = {}  # the one that was used last comes last

    def __call__(self, synthetic: Tensor, real: Tensor, number: int, progress: float = 0.0) -> Losses:
        if self._gave_up:
            return self.step(synthetic, real, number, progress)
        plan = self.step.plan(number, progress)
        fits = self._inputs is None or all(
            place.shape == batch.shape for place, batch in zip(self._inputs, (synthetic, real), strict=True)
        )
        if self._runs[plan] < RUNS_BEFORE or not fits:
            self._runs[plan] += fits
            with self._memory[plan].counted():
                return self._beside(synthetic, real, number, progress)
        if self._inputs is None:
            self._inputs = synthetic.clone(), real.clone()
        for place, batch in zip(self._inputs, (synthetic, real), strict=True):
            place.copy_(batch)
        self.step.prepare(number, self._inputs[0])
        rates = self._current_rates()
        if rates != self._rates:
            self._rates = rates
            self._drop_all_graphs()
        captured = self._graphs.pop(plan, None)
        if captured is None:
            self._drop_old_graphs()
            try:
                captured = self._capture(plan)
            except RuntimeError as error:  # torch's type for everything that cannot be captured
                self._gave_up = True
                self._drop_all_graphs()
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph, it runs without ({error}). "
                    "--train.no-cuda-graph does so from the start",
                    stacklevel=2,
                )
                return self.step(synthetic, real, number, progress)
        self._graphs[plan] = captured
        captured.graph.replay()
        return captured.losses

    @property
    def skipped(self) -> bool:
        """As that of `TrainingStep`."""
        return self.step.skipped

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
        current, stream = torch.cuda.current_stream(), self._side_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            losses = self.step(synthetic, real, number, progress)
        current.wait_stream(stream)
        return losses

    def _capture(self, plan: Plan) -> _Captured:
        assert self._inputs is not None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            self._memory[plan].held(self._inputs[0].device),
            torch.cuda.stream(torch.cuda.current_stream()),  # `graph` does not come back to it if the capture fails
            # "relaxed" allows the threads of a loader to pin memory during the capture.
            torch.cuda.graph(graph, pool=self._pool, stream=self._side_stream(), capture_error_mode="relaxed"),
        ):
            losses = self.step.run(*self._inputs, plan)
        return _Captured(graph, losses)

    def _side_stream(self) -> torch.cuda.Stream:
        """Return the stream of all usual runs and captures. PyTorch keeps memory apart for each stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream

    def _drop_all_graphs(self) -> None:
        """Drop all graphs and their pool. CUDA frees a graph that is running once it has ended."""
        self._graphs.clear()
        self._pool = None  # PyTorch refuses a pool that has lost all of its graphs

    def _drop_old_graphs(self) -> None:
        """Drop what belongs to the plans that were used before the last ones, to make room for one more graph."""
        while len(self._graphs) >= _MOST_GRAPHS:
            oldest = next(iter(self._graphs))
            for kept in (self._graphs, self._runs, self._memory):
                del kept[oldest]

    def _current_rates(self) -> Any:
        optimizers = self.step.generator_optimizer, self.step.discriminator_optimizer
        return [
            (type(getattr(optimizer, "active", optimizer)), [group["lr"] for group in optimizer.param_groups])
            for optimizer in optimizers
        ]
