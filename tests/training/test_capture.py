"""Which steps a captured step runs as usual, captures and replays. `test_fast_step.py` captures them on a GPU."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from vologan_kernels import graph_memory

from vologan_fast.config import Config, LossConfig
from vologan_fast.profiling import summary
from vologan_fast.training.capture import CapturedStep


class Recorded(CapturedStep):
    """A captured step that records its actions instead of running them."""

    def __init__(self, plan_of, rate=lambda number: 1.0):
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
        super().__init__(
            SimpleNamespace(
                plan=lambda number, progress: plan_of(number),
                prepare=lambda number, batch: optimizer.param_groups[0].update(lr=rate(number)),
                generator_optimizer=optimizer,
                discriminator_optimizer=optimizer,
            )
        )
        self.actions = []

    def _beside(self, synthetic, real, number, progress):
        self.actions.append(f"run {number}")

    def _capture(self, plan):
        self.actions.append(f"capture {plan}")
        graph = SimpleNamespace(replay=lambda: self.actions.append(f"replay {plan}"))
        return SimpleNamespace(graph=graph, losses=None)


def actions(step, numbers):
    for number in numbers:
        step(torch.zeros(1), torch.zeros(1), number)
    return step.actions


def test_three_steps_run_and_then_one_graph_is_replayed():
    found = actions(Recorded(lambda number: "always"), range(6))
    assert found == ["run 0", "run 1", "run 2", "capture always", *["replay always"] * 3]


def test_each_plan_runs_three_times_before_it_is_captured():
    """A run that resumes at step 5 meets a step with a penalty, at 8, only after it has captured the others."""
    step = Recorded(lambda number: "penalty" if number % 8 == 0 else "plain")
    assert actions(step, (5, 6, 7, 8, 9, 16, 17, 24, 25, 32, 33, 40)) == [
        *("run 5", "run 6", "run 7", "run 8"),
        *("capture plain", "replay plain"),
        *("run 16", "replay plain", "run 24", "replay plain"),
        *("capture penalty", "replay penalty"),
        *("replay plain", "replay penalty"),
    ]


@pytest.mark.parametrize("changed", [4, 5])
def test_graphs_are_dropped_when_the_learning_rate_changes(changed):
    step = Recorded(lambda number: "plan", rate=lambda number: 1.0 if number < changed else 0.5)
    found = actions(step, range(7))
    assert found.count("capture plan") == 2 and found.count("replay plan") == 4
    assert found.index("capture plan") == 3 and found[found.index("capture plan", 4) - 1] == "replay plan"


def test_graphs_of_former_plans_are_dropped():
    """A loss that changes with the progress of the run makes a plan for each epoch."""
    step = Recorded(lambda number: number // 5)
    assert actions(step, range(40)).count("capture 7") == 1
    assert list(step._graphs) == [4, 5, 6, 7] and set(step._memory) == set(step._graphs)


@pytest.mark.parametrize("other", [1, 3, 5])
def test_a_batch_of_another_size_runs_as_usual(other):
    """A batch of one image would fill the graph's inputs with copies of itself."""
    step = Recorded(lambda number: "plan")
    for number, size in enumerate([4, 4, 4, 4, other, 4]):
        step(torch.zeros(size, 2), torch.zeros(size, 2), number)
    assert step.actions == ["run 0", "run 1", "run 2", "capture plan", "replay plan", "run 4", "replay plan"]


class Cuda:
    """Fakes for torch.cuda, which record the streams and the pools that captures use."""

    def __init__(self, monkeypatch):
        self.streams, self.pools, self.runs, self.captures = 0, 0, [], []
        self.current = SimpleNamespace(name="main", wait_stream=lambda other: None)
        for name in ("current_stream", "Stream", "stream", "graph_pool_handle", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def current_stream(self):
        return self.current

    def Stream(self):
        self.streams += 1
        return SimpleNamespace(name=f"side {self.streams}", wait_stream=lambda other: None)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: None)

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.captures.append((pool, stream.name))
        self.current = stream  # torch comes back from it only if the capture succeeds
        yield
        self.current = SimpleNamespace(name="main")


def captured(cuda, plan_of, rate=lambda number: 1.0, run=lambda *arguments: None):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])

    class Step(SimpleNamespace):
        def __call__(self, *arguments):
            cuda.runs.append(cuda.current.name)

    return CapturedStep(
        Step(
            plan=lambda number, progress: plan_of(number),
            prepare=lambda number, batch: optimizer.param_groups[0].update(lr=rate(number)),
            run=run,
            generator_optimizer=optimizer,
            discriminator_optimizer=optimizer,
        )
    )


def test_all_runs_and_captures_are_on_one_side_stream_and_graphs_share_a_pool(monkeypatch):
    cuda = Cuda(monkeypatch)
    step = captured(cuda, lambda number: number % 2, rate=lambda number: 1.0 if number < 9 else 0.5)
    for number in range(12):
        step(torch.zeros(1), torch.zeros(1), number)
    assert cuda.streams == 1 and cuda.runs == ["side 1"] * 6
    # A pool that has lost all of its graphs is not used again: torch refuses it.
    assert cuda.captures == [(1, "side 1")] * 2 + [(2, "side 1")] * 2


def test_after_a_failed_capture_it_runs_where_it_ran_before_and_keeps_no_graph(monkeypatch):
    cuda = Cuda(monkeypatch)

    def run(synthetic, real, plan):
        if plan == "broken":
            raise RuntimeError("operation not permitted when stream is capturing")

    step = captured(cuda, lambda number: "broken" if number >= 5 else "fine", run=run)
    with pytest.warns(UserWarning, match="cannot be captured.*not permitted"):
        for number in range(11):
            step(torch.zeros(1), torch.zeros(1), number)
    assert cuda.runs == ["side 1"] * 6 + ["main"] * 3 and not step._graphs and len(cuda.captures) == 2


def test_the_memory_of_a_graph_is_counted_in_the_runs_of_its_plan_and_kept_with_it(monkeypatch):
    cuda, seen = Cuda(monkeypatch), []
    step = captured(cuda, lambda number: "plan", run=lambda *arguments: seen.append(graph_memory.current()))
    for number in range(5):
        step(torch.zeros(1), torch.zeros(1), number)
    assert seen == [step._memory["plan"]] and graph_memory.current() is None


@pytest.mark.parametrize(
    ("loss", "period"),
    [
        (LossConfig(), 1),
        (LossConfig(identity_every=4), 4),
        (LossConfig(identity_every=4, penalty="r1", penalty_every=6), 12),
        (LossConfig(identity_every=2, penalty_every=16), 2),
    ],
)
def test_the_profiler_times_steps_after_all_captures(loss, period):
    step = Recorded(lambda n: (n % loss.identity_every == 0, loss.penalty != "none" and n % loss.penalty_every == 0))
    before = summary._steps_to_capture(Config(loss=loss), SimpleNamespace(step=step))
    assert before == 4 * period and summary._steps_to_capture(Config(loss=loss), SimpleNamespace(step=None)) == 0
    actions(step, range(before))
    step.actions.clear()
    assert all(action.startswith("replay") for action in actions(step, range(before, before + 3 * period)))
