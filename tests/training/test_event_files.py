"""TensorBoard's curves after a clock that jumped: the names of the event files hold the time."""

import random
import time

import pytest

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vologan_fast.config import Config
from vologan_fast.training.run_folder import RunFolder

JUMPS = [
    [0, -3600],  # the clock goes back by an hour
    [0, 0, 0],  # three starts within a second
    [400_000_000, 0, -10, 0],  # it was wrong at first
    [0, 5, -86_400, -86_400, 30, -1_000_000_000],
    [random.Random(0).randrange(-(10**9), 10**8) for _ in range(8)],
]


def steps_of(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("jumps", JUMPS, ids=str)
def test_no_step_vanishes_when_the_clock_goes_back(tmp_path, monkeypatch, jumps):
    """Each start resumes two steps before the end of the former one, as after a kill."""
    clock, ahead, step = time.time, 0, 0
    monkeypatch.setattr(time, "time", lambda: clock() + ahead)
    for ahead in jumps:  # noqa: B007  the clock reads it
        folder = RunFolder(tmp_path / "run")
        folder.lock()
        step = max(step - 2, 0)
        folder.begin(step, Config())
        for _ in range(5):
            step += 1
            folder.log({"step": step, "split": "train", "loss": 1.0})
        folder.sync()
        folder.close()
        assert steps_of(tmp_path / "run") == list(range(1, step + 1))


def test_a_kill_loses_no_event_before_a_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    folder.begin(0, Config())
    for step in range(1, 4):
        folder.log({"step": step, "split": "train", "loss": 1.0})
    folder.sync()
    assert steps_of(tmp_path / "run") == [1, 2, 3]  # without close, as in a killed process
    folder.close()


def test_a_folder_that_tensorboard_cannot_name_gets_no_curves(tmp_path, capsys):
    folder = RunFolder(tmp_path / "r\udcff")
    folder.lock()
    folder.begin(0, Config())
    folder.log({"step": 1, "split": "train", "loss": 1.0})
    folder.close()
    assert "TensorBoard needs folders whose names are UTF-8" in capsys.readouterr().err
    assert (tmp_path / "r\udcff" / "metrics.jsonl").read_text().count("\n") == 1
