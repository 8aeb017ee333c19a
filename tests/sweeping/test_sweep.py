"""The command `python -m vologan_fast.sweep`, with real trainings: killed, without memory, diverged, pruned, shared."""

import csv
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")
pytest.importorskip("plotly")
import optuna
import yaml

from vologan_fast.data.demo import make_demo
from vologan_fast.sweeping.outcome import outcome_of

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TRAIN = {
    "preset": "demo",
    "device": "cpu",
    "data.size": 32,
    "train.batch": 1,
    "generator.width": 4,
    "generator.max-width": 8,
    "generator.levels": 2,
    "discriminator.widths": [4, 8],
    "discriminator.down-widths": [4, 8],
    "train.save-every": 2,
    "train.log-every": 1,
    "max-steps": 6,
}
RATES = {"low": 1e-4, "high": 1e-3, "log": True}
SWEEP = {"objective": "train/generator_ts/cycle", "startup-trials": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64))


class Sweep:
    """A sweep in a folder, whose file is written here."""

    def __init__(self, folder: Path, train: dict[str, Any], space: dict[str, Any], **settings: Any) -> None:
        self.out, self.file = folder / "out", folder / "a <b> sweep.yaml"
        settings = SWEEP | {name.replace("_", "-"): value for name, value in settings.items()}
        common = {option: value for option, value in (TRAIN | train).items() if option not in space}
        self.file.write_text(yaml.safe_dump({"train": common, "space": space, "sweep": settings}))
        self.command = [sys.executable, "-m", "vologan_fast.sweep", str(self.file), "--out", str(self.out)]

    def start(self, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )

    def run(self, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command, env=ENVIRONMENT, text=True, capture_output=True, **options)

    @property
    def trials(self) -> list[dict[str, str]]:
        with (self.out / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    @property
    def recorded(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name="sweep", storage=f"sqlite:///{self.out}/sweep.db").trials


def wait_for(what: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def trainings(out: Path) -> list[int]:
    """The processes that train for a sweep."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"vologan_fast.train" in words and any(str(out).encode() in word for word in words):
                found.append(int(process.name))
    return found


def checkpoints(out: Path, number: int) -> list[Path]:
    return list((out / "trials" / f"trial-{number:04d}" / "checkpoints").glob("step-*"))


def test_a_trial_without_memory_is_recorded_and_the_next_one_runs(tmp_path: Path, data: str) -> None:
    space = {"generator-optimizer.learning-rate": RATES, "generator.width": [4, 20000]}
    sweep = Sweep(tmp_path, {"data": data, "generator.max-width": 20000, "max-steps": 2}, space, trials=2, seed=2)
    limit = 8 * 2**30  # a convolution of width 20000 has 14 GB of weights
    ended = sweep.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trials = {trial["generator.width"]: trial for trial in sweep.trials}
    assert trials["20000"]["outcome"] == "out of memory" and "memory" in trials["20000"]["reason"]
    assert trials["4"]["outcome"] == "finished" and float(trials["4"][SWEEP["objective"]]) > 0
    states = {trial.params["generator.width"]: trial.state.name for trial in sweep.recorded}
    assert states == {4: "COMPLETE", 20000: "FAIL"}
    log = next(path for path in (sweep.out / "trials").glob("*.log") if "error: memory ran out" in path.read_text())
    assert "Traceback" not in log.read_text()
    page = (sweep.out / "sweep.html").read_text()
    assert "a &lt;b&gt; sweep.yaml" in page and "a <b> sweep" not in page
    assert not re.search(r'<(?:script|img|link)[^>]* (?:src|href)="(?:https?:)?//', page)
    # The same command has nothing left to do.
    again = sweep.run()
    assert again.returncode == 0 and "2 of 2 trials have ended" in again.stdout and len(sweep.recorded) == 2


@pytest.mark.slow
def test_a_sweep_of_six_trials_that_is_killed_twice_ends_with_six(tmp_path: Path, data: str) -> None:
    space = {"generator-optimizer.learning-rate": RATES, "generator.activation": ["relu", "leaky_relu"]}
    sweep = Sweep(tmp_path, {"data": data, "max-steps": 60, "train.save-every": 10}, space, trials=6)
    killed = []
    for number in (0, 2):
        process = sweep.start()

        def training() -> list[int]:
            return trainings(sweep.out) if checkpoints(sweep.out, number) else []  # noqa: B023

        (child,) = wait_for(training)
        process.kill()
        process.wait()
        wait_for(lambda: not trainings(sweep.out), 10)  # it dies with its parent
        killed.append(child)
    ended = sweep.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "goes on" in ended.stdout
    assert [trial["outcome"] for trial in sweep.trials] == 6 * ["finished"]
    assert Counter(trial.state.name for trial in sweep.recorded) == {"COMPLETE": 6, "FAIL": 2}
    folders = [path for path in (sweep.out / "trials").iterdir() if path.is_dir()]
    assert len(folders) == 6
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 61))
    interrupted = next(trial for trial in sweep.recorded if trial.state.name == "FAIL")
    (again,) = [
        t for t in sweep.recorded if t.user_attrs["folder"] == interrupted.number and t.state.name == "COMPLETE"
    ]
    assert again.params == interrupted.params


@pytest.mark.slow
def test_a_diverged_trial_is_recorded_and_a_bad_one_is_pruned(tmp_path: Path, data: str) -> None:
    space = {"generator-optimizer.learning-rate": {"low": 1e-4, "high": 1e30, "log": True}}
    train = {"data": data, "max-steps": 30, "generator-optimizer.kind": "sgd", "generator.norm": "none"}
    sweep = Sweep(tmp_path, train, space, trials=8, startup_trials=1)
    ended = sweep.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes = Counter(trial["outcome"] for trial in sweep.trials)
    assert outcomes["diverged"] >= 1 and outcomes["finished"] >= 1 and sum(outcomes.values()) == 8
    diverged = next(trial for trial in sweep.trials if trial["outcome"] == "diverged")
    assert "finite" in diverged["reason"] or "is nan" in diverged["reason"] or "is inf" in diverged["reason"]


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned_and_stopped(tmp_path: Path, data: str) -> None:
    """The objective is the rate that a trial trains with, so that it is known which trials are bad."""
    space = {"generator-optimizer.learning-rate": {"low": 1e-6, "high": 1e-3, "log": True}}
    train = {"data": data, "max-steps": 300, "train.save-every": 300}
    rate = "train/learning_rate/generator"
    sweep = Sweep(tmp_path, train, space, trials=6, startup_trials=1, objective=rate)
    ended = sweep.run()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    pruned = [trial for trial in sweep.recorded if trial.state.name == "PRUNED"]
    complete = [trial for trial in sweep.recorded if trial.state.name == "COMPLETE"]
    assert pruned and complete and len(pruned) + len(complete) == 6
    assert {trial["outcome"] for trial in sweep.trials} == {"pruned", "finished"}
    for trial in pruned:
        before = [t.params for t in complete if t.number < trial.number]
        (name,) = trial.params
        assert trial.params[name] > min(params[name] for params in before)
        lines = (sweep.out / "trials" / f"trial-{trial.number:04d}" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] < 300
        assert checkpoints(sweep.out, trial.number)  # it was asked to end, and saved


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path: Path, data: str) -> None:
    sweep = Sweep(tmp_path, {"data": data}, {"generator-optimizer.learning-rate": RATES}, trials=4)
    both = [sweep.start(), sweep.start()]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(int(n) for text in said for n in re.findall(r"^trial (\d+): finished", text, re.MULTILINE)) == [
        0,
        1,
        2,
        3,
    ]
    rates = {trial.params["generator-optimizer.learning-rate"] for trial in sweep.recorded}
    assert len(rates) == 4


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep_and_the_printed_command_goes_on(tmp_path: Path, data: str) -> None:
    space = {"generator-optimizer.learning-rate": RATES}
    train = {"data": data, "data.held-out": 0.5, "max-steps": 200, "train.evaluate-every": 100, "train.save-every": 20}
    sweep = Sweep(tmp_path, train, space, trials=1, objective="evaluate")
    process = sweep.start()
    wait_for(lambda: checkpoints(sweep.out, 0))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "") and not trainings(sweep.out)
    command = out.splitlines()[-1].partition("go on with: ")[2]
    ended = subprocess.run([sys.executable, *shlex.split(command)[1:]], env=ENVIRONMENT, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    (trial,) = sweep.trials
    evaluation = json.loads((sweep.out / "trials" / "trial-0000" / "evaluation" / "evaluation.json").read_text())
    assert float(trial["evaluate"]) == pytest.approx(evaluation["best"]["score"], rel=1e-4)


@pytest.mark.slow
def test_a_failed_trial_stops_the_sweep_and_is_tried_again(tmp_path: Path, data: str) -> None:
    sweep = Sweep(tmp_path, {"data": data + "\x1b[2J"}, {"generator-optimizer.learning-rate": RATES}, trials=1)
    ended = sweep.run()
    assert ended.returncode == 1 and ended.stderr.startswith("error: trial 0: ")
    assert "\x1b" not in ended.stdout + ended.stderr and r"\x1b[2J" in ended.stderr
    Path(data + "\x1b[2J").symlink_to(data)
    ended = sweep.run()
    assert ended.returncode == 0, ended.stderr
    assert [trial["outcome"] for trial in sweep.trials] == ["finished"]


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [
        (
            1,
            "error: memory ran out (DefaultCPUAllocator: can't allocate memory); less is needed with …",
            "out of memory",
        ),
        (1, "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", "out of memory"),
        (-9, "step 3/6", "out of memory"),
        (
            1,
            "error: step 3: the loss x is nan; last saved: nothing. A lower learning rate is the usual cure",
            "diverged",
        ),
        (1, "error: /data: no such folder", "failed"),
        (-11, "", "failed"),
    ],
)
def test_outcomes_follow_from_status_and_words(tmp_path: Path, status: int, said: str, outcome: str) -> None:
    (tmp_path / "log").write_text(f"step 1/6\n{said}\n")
    found = outcome_of(status, tmp_path / "log")
    assert found.name == outcome and found.reason.isprintable() and found.reason
