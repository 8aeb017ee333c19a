"""The logs of long runs: lines and grids become rare, the last step has both, and a resumed run has the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from test_train import TINY, metrics

from vologan_fast.config import Config, ScheduleConfig, TrainConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.profiling.dry_run import events_of
from vologan_fast.train import main
from vologan_fast.training.run_folder import RunFolder
from vologan_fast.training.thinning import stride


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=4, size=32)


def events(run: Path, tag: str) -> list[int]:
    """The steps of the events with this tag, in TensorBoard's files."""
    return [
        event.step
        for file in sorted((run / "tensorboard").iterdir())
        for event in EventFileLoader(str(file)).Load()
        if any(value.tag == tag for value in event.summary.value)
    ]


def test_a_long_run_logs_less_often_and_resumes_alike(tmp_path: Path, data: Path) -> None:
    torch.set_num_threads(1)
    command = [*TINY, "--data", str(data), "--train.log-every", "1", "--train.log-limit", "4"]
    command += ["--train.validate-every", "2", "--train.grid-limit", "2", "--train.save-every", "7", "--resume"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*command, "--run-dir", str(whole), "--max-steps", "23"]) == 0
    for steps in (7, 14, 23):
        assert main([*command, "--run-dir", str(stopped), "--max-steps", str(steps)]) == 0
    lines = [1, 2, 3, 4, 6, 8, 12, 16, 23]
    assert [line["step"] for line in metrics(whole)] == lines
    assert events(whole, "train/generator_st/cycle") == lines
    validations = [*range(2, 23, 2), 23]
    assert [line["step"] for line in metrics(whole, "held_out")] == validations
    grids = [2, 4, 8, 16, 23]  # of the validations 1, 2, 4, 8, and of the last step
    assert sorted(int(path.stem[5:]) for path in (whole / "samples").iterdir()) == grids
    assert events(whole, "samples") == grids
    # The stopped run has the ends of its parts too, as any run has.
    assert [line for line in metrics(stopped) if line["step"] in lines] == metrics(whole)
    assert {line["step"] for line in metrics(stopped)} == {*lines, 7, 14}


def test_the_forecast_counts_the_same() -> None:
    config = Config(
        train=TrainConfig(log_every=1, log_limit=4, validate_every=2, grid_limit=2),
        schedule=ScheduleConfig(decay="none"),
    )
    found = events_of(config, steps_per_epoch=6, finished=0, end=23)
    assert (found.logged, found.grids) == (9, 5)


@pytest.mark.parametrize("limit", [10_000, 500, 7])
def test_a_longer_run_has_little_more_lines(limit: int) -> None:
    most = 64 * limit
    written = [number for number in range(1, most + 1) if number % stride(number, limit) == 0]
    assert written[:limit] == list(range(1, limit + 1))
    assert len(written) <= limit + 6 * ((limit + 1) // 2)  # six times twice as long
    assert all(later - former <= max(1, 2 * later / limit) for former, later in pairwise(written))
    assert all(stride(number, 0) == 1 for number in (0, 1, most))


@pytest.mark.slow
def test_a_million_steps(tmp_path: Path) -> None:
    """All lines of a run of 10⁶ steps, as training writes them: the files stay small, and nothing is lost or torn."""
    train, folder = TrainConfig(), RunFolder(tmp_path / "run")
    folder.lock()
    folder.begin(0, Config())
    names = [f"{network}/{term}" for network in ("generator_st", "discriminator_s") for term in "abcd"]
    steps = []
    for number in range(1, 1_000_000 // train.log_every + 1):
        if number % stride(number, train.log_limit) == 0:
            steps.append(number * train.log_every)
            losses = {name: 1 / number + k for k, name in enumerate(names)}
            folder.log({"step": steps[-1], "split": "train", "epoch": 1, **losses})
    folder.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == steps
    assert events(tmp_path / "run", f"train/{names[-1]}") == steps
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").glob("metrics.jsonl")}
    sizes["TensorBoard"] = sum(path.stat().st_size for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert len(steps) == 26_250  # instead of 100,000
    assert all(size < 20e6 for size in sizes.values()), sizes
