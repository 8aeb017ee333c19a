"""Whatever ends a run between two steps, its finished steps are saved first. The resumed run ends with the same bits.

The faults are in files that only the training's beginning and end would touch: held-out images, pictures, the log.
"""

import contextlib
import json
import re
import shutil

import pytest
import torch
from test_train import metrics, resume, train, weights

from vologan_fast.config import Config
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.training.run_folder import RunFolder, read_config
from vologan_fast.training.trainer import Trainer

EVERY = {
    "validation": ["--train.validate-every", "3"],
    "validation for the schedule": ["--schedule.decay", "plateau", "--schedule.warmup-epochs", "0"],
    "evaluation": ["--train.evaluate-every", "3"],
}
STEPS = ["--max-steps", "5"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Three steps are an epoch. Each domain has two held-out images."""
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=7, size=64)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, demo):
    """The folder of a run with these options, without a fault."""
    torch.set_num_threads(1)
    made = {}

    def run(what):
        if what not in made:
            made[what] = tmp_path_factory.mktemp("undisturbed") / "run"
            assert train(made[what], demo, "--data.held-out", "0.3", *EVERY[what], *STEPS) == 0
        return made[what]

    return run


@contextlib.contextmanager
def broken(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    try:
        yield
    finally:
        path.write_bytes(whole)


def assert_same(run, expected):
    for split in ("train", "held_out", "evaluation"):
        assert metrics(run, split) == metrics(expected, split)
    found, there = weights(run, 5), weights(expected, 5)
    assert found.keys() == there.keys() and all(torch.equal(value, there[name]) for name, value in found.items())
    pictures = [{path.name: path.read_bytes() for path in folder.glob("samples/*")} for folder in (run, expected)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    "what",
    ["validation", *(pytest.param(what, marks=pytest.mark.slow) for what in EVERY if what != "validation")],
)
def test_a_bad_held_out_file_loses_no_step(tmp_path, demo, undisturbed, capsys, monkeypatch, what):
    """The file breaks when the loader has been opened."""
    expected, run = undisturbed(what), tmp_path / "run"
    config = read_config(expected / "config.json")[1]
    bad = load_dataset(demo, config.data, config.train.seed).held_out["real"][0].depth
    trains = Trainer.train

    def with_a_broken_file(trainer, steps):
        with broken(bad):
            return trains(trainer, steps)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", with_a_broken_file)
        assert train(run, demo, "--data.held-out", "0.3", *EVERY[what], *STEPS) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {what.split()[0]} after step 3: ") and str(bad) in error
        assert error.endswith("; saved up to step 3")
        assert resume(run, *STEPS) == 1  # and so again, without a loss
    assert resume(run, *STEPS) == 0
    assert_same(run, expected)


def test_a_removed_folder_of_pictures_is_made_again(tmp_path, demo, undisturbed, monkeypatch):
    run, validate = tmp_path / "run", Trainer.validate

    def without_pictures(trainer):
        shutil.rmtree(run / "samples")
        validate(trainer)

    monkeypatch.setattr(Trainer, "validate", without_pictures)
    assert train(run, demo, "--data.held-out", "0.3", *EVERY["validation"], *STEPS) == 0
    assert [path.name for path in (run / "samples").iterdir()] == ["step-00000005.png"]
    assert metrics(run, "held_out") == metrics(undisturbed("validation"), "held_out")


@pytest.mark.parametrize("name", ["samples", "metrics.jsonl"])
def test_what_cannot_be_written_loses_no_step(tmp_path, demo, undisturbed, capsys, monkeypatch, name):
    """A file is where a folder should be, or a folder where a file should be."""
    run, validate = tmp_path / "run", Trainer.validate

    def obstructed(trainer):
        (run / name).rename(tmp_path / "moved")
        (run / name).mkdir() if name == "metrics.jsonl" else (run / name).touch()
        validate(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "validate", obstructed)
        assert train(run, demo, "--data.held-out", "0.3", *EVERY["validation"], *STEPS) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    expected = rf"error: validation after step 3: {run}: cannot be written \(.*\); saved up to step 3"
    assert re.fullmatch(expected, error)
    (run / name).rmdir() if name == "metrics.jsonl" else (run / name).unlink()
    (tmp_path / "moved").rename(run / name)
    assert resume(run, *STEPS) == 0
    if name == "metrics.jsonl":  # the line that could not be written is lost, and no step
        lines = [metrics(folder) for folder in (run, undisturbed("validation"))]
        assert lines[0] == [line for line in lines[1] if line["step"] != 3]
        shutil.copy(undisturbed("validation") / name, run)
    assert_same(run, undisturbed("validation"))


def test_an_error_that_nobody_foresaw_loses_no_step(tmp_path, demo, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "add_picture", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "run", demo, "--data.held-out", "0.3", *EVERY["validation"], *STEPS)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000003"]


# The log


@pytest.fixture
def stopped(tmp_path, undisturbed):
    return shutil.copytree(undisturbed("validation"), tmp_path / "run")


NO_RECORDS = [
    b"garbage\n",
    b"\x00" * 4096 + b"\n",
    b"\xff\xfe{\n",
    b'{"step": "3", "split": "train"}\n',
    b'{"step": 3}\n',
    b'{"split": "train"}\n',
    b"[]\n",
    b"7\n",
    b'{"step": 1' + b"0" * 5000 + b', "split": "train"}\n',
    b"[" * 100_000 + b"\n",
    b'{"step": 3, "split": "evaluation", "score": "low"}\n',
    b'{"step": 3, "split": "evaluation"}\n',
    b"\n",
]


@pytest.mark.parametrize("line", [*NO_RECORDS, b"".join(NO_RECORDS)], ids=lambda line: repr(line[:20]))
def test_garbage_in_the_log_is_skipped_and_kept(stopped, capsys, line):
    """The lines after it stay."""
    log = stopped / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + line + b"".join(lines[1:]))
    damaged = log.read_bytes()
    folder = RunFolder(stopped)
    folder.begin(5, Config())
    error = capsys.readouterr().err
    assert f"warning: {log}: " in error and "the file is kept as metrics.damaged.jsonl" in error
    assert log.read_bytes() == b"".join(lines)
    assert (stopped / "metrics.damaged.jsonl").read_bytes() == damaged
    folder.close()


def test_a_resumed_run_with_garbage_in_its_log_has_all_lines(stopped, undisturbed, capsys):
    log = stopped / "metrics.jsonl"
    log.write_bytes(b"\x00" * 512 + b"\n" + log.read_bytes() + b'{"step": 6, "spl')
    assert resume(stopped, *STEPS) == 0
    assert "line 1 is no record and dropped" in capsys.readouterr().err
    assert log.read_bytes() == (undisturbed("validation") / "metrics.jsonl").read_bytes()


def test_a_log_of_a_killed_run_is_cut_without_a_word(stopped, capsys):
    log = stopped / "metrics.jsonl"
    lines = log.read_bytes()
    log.write_bytes(lines + json.dumps({"step": 9, "split": "train"}).encode() + b'\n{"step": 10, "sp')
    folder = RunFolder(stopped)
    folder.begin(5, Config())
    folder.close()
    assert log.read_bytes() == lines and not capsys.readouterr().err
