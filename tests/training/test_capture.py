"""Which steps a captured step runs as usual, captures and replays. `test_fast_step.py` captures them on a GPU."""

from types import SimpleNamespace

import pytest
import torch

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


def test_each_plan_runs_once_before_it_is_captured():
    """A run that resumes at step 5 meets a step with a penalty, at 8, only after it has captured the others."""
    step = Recorded(lambda number: "penalty" if number % 8 == 0 else "plain")
    assert actions(step, (5, 6, 7, 8, 9, 16, 17, 24)) == [
        *("run 5", "run 6", "run 7", "run 8"),
        *("capture plain", "replay plain"),
        *("capture penalty", "replay penalty"),
        "replay plain",
        "replay penalty",
    ]


@pytest.mark.parametrize("changed", [4, 5])
def test_graphs_are_dropped_when_the_learning_rate_changes(changed):
    step = Recorded(lambda number: "plan", rate=lambda number: 1.0 if number < changed else 0.5)
    found = actions(step, range(7))
    assert found.count("capture plan") == 2 and found.count("replay plan") == 4
    assert found.index("capture plan") == 3 and found[found.index("capture plan", 4) - 1] == "replay plan"
