"""Whatever ends a run between two steps, its finished steps are saved first. The resumed run ends with the same bits.

The faults are in files that only the training's beginning and end would touch: held-out images, pictures, the log.
"""

import contextlib
import json
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from editors import EDITED
from test_train import ONE_THREAD, metrics, resume, train, weights

from vologan_fast.config import Config
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.data.skipping import Skipped
from vologan_fast.report.record import read_lines, record_of, skipped_of
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


LOGS = {"metrics.jsonl": record_of, "skipped.jsonl": skipped_of}
LOST = {
    "metrics.jsonl": "the report lacks the lost lines",
    "skipped.jsonl": "the images of lost lines count as good until they are found bad again",
}


@pytest.fixture
def logs(tmp_path):
    """A run folder with five lines in each log, the numbers of lines at step 4, and the content of the logs."""
    run = RunFolder(tmp_path)
    run.begin(0, Config(), ())
    for step in range(1, 6):
        run.log({"step": step, "split": "evaluation", "score": 0.5 / step, "ü": float("nan")})
        run.add_skipped([Skipped(step, "train", "real", f"real/color/{step}.jpg", f'"{step}.jpg": cut \udcff off')])
    yield run, run.lines(4) | {"metrics.jsonl": 4}, {name: (tmp_path / name).read_bytes() for name in LOGS}
    run.close()


@pytest.mark.parametrize("name", LOGS)
def test_a_line_with_any_other_byte_is_no_record(logs, name):
    parse = LOGS[name]
    line = logs[2][name].splitlines(keepends=True)[1]
    assert "crc32" in json.loads(line) and "crc32" not in parse(line)
    for place in range(len(line)):
        for byte in {*range(256)} - {line[place]}:
            if (place, byte) != (len(line) - 1, 13):  # the end of a line may be another
                assert parse(line[:place] + bytes([byte]) + line[place + 1 :]) is None, (place, byte)
        for size in range(1, 5):  # up to 32 bits in a row
            assert parse(line[:place] + bytes(size) + line[place + size :]) is None
        assert place == len(line) - 1 or parse(line[:place]) is None
    assert all(parse(line[:place] + b"\n" + line[place:]) is None for place in range(len(line) - 1))


@pytest.mark.parametrize("name", LOGS)
def test_no_flip_and_no_cut_in_a_log_is_accepted_in_silence(logs, name, capsys):
    """Whatever is not named gives what a whole log gives. It is in lines that are made again, or after them."""
    run, counted, whole = logs
    path = run.path / name
    expected = b"".join(whole[name].splitlines(keepends=True)[:4])
    rng = random.Random(0)
    flips = [(place, 1 << rng.randrange(8)) for place in range(0, len(whole[name]), 7)]
    flips += [(place, byte ^ other) for place, byte in enumerate(whole[name]) if byte in b"\n}" for other in b"\r\n\0"]
    faults = [whole[name][:cut] for cut in range(0, len(whole[name]), 11)]
    for place, change in flips:
        damaged = bytearray(whole[name])
        damaged[place] ^= change
        faults.append(bytes(damaged))
    named = 0
    for damaged in faults:
        path.write_bytes(damaged)
        capsys.readouterr()
        run.begin(4, Config(), (), counted)
        if f"warning: {path}: " in capsys.readouterr().err:
            named += 1
        else:
            assert path.read_bytes() == expected, damaged
            assert [*run.scores] == [1, 2, 3, 4] and [bad.step for bad in run.skipped.values()] == [1, 2, 3, 4]
    assert len(faults) / 2 < named < len(faults)  # what is after the last step is made again


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("edited", EDITED)
def test_ends_of_lines_of_an_editor_lose_no_line(logs, capsys, name, edited):
    """The resumed run writes its own ends, so that the lines that it appends can be read, too."""
    run, _, whole = logs
    path = run.path / name
    path.write_bytes(EDITED[edited](whole[name]))
    capsys.readouterr()
    assert len(read_lines(path, LOGS[name])) == 5
    run.begin(5, Config(), (), {name: 5})
    assert not capsys.readouterr().err
    assert path.read_bytes() == whole[name] and not path.with_suffix(".damaged.jsonl").exists()


@pytest.mark.parametrize("name", LOGS)
def test_a_counted_line_that_was_cut_is_kept_beside_the_log(logs, capsys, name):
    """A kill cuts off only lines that no checkpoint has counted."""
    run, counted, whole = logs
    path, copy = run.path / name, run.path / name.replace(".", ".damaged.")
    path.write_bytes(whole[name][:-5])
    for step, lines in (4, counted), (5, {name: 5}):
        path.write_bytes(whole[name][:-5])
        assert not copy.exists()
        capsys.readouterr()
        run.begin(step, Config(), (), lines)
        said = f"warning: {path}: line 5 is no record and dropped; the file is kept as {copy.name}; {LOST[name]}\n"
        assert capsys.readouterr().err == (said if step == 5 else "")
    assert copy.read_bytes() == whole[name][:-5]


ORDERS = {
    "one line": ([1, 2, 3, 4, 5], ""),
    "exchanged": ([1, 5, 3, 4, 2], "2 lines, from line 2 on, are out of order"),
    "exchanged neighbours": ([1, 3, 2, 4, 5], "line 2 is out of order"),
    "doubled": ([1, 2, 3, 2, 4, 5], "line 4 is out of order"),
    "doubled at once": ([1, 2, 2, 3, 4, 5], "line 2 is out of order"),
    "all twice": ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], "5 lines, from line 1 on, are out of order"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_exchanged_and_doubled_lines_are_named(logs, capsys, order):
    run, _, whole = logs
    lines = whole["metrics.jsonl"].splitlines(keepends=True)
    path, (steps, wrong) = run.path / "metrics.jsonl", ORDERS[order]
    path.write_bytes(b"".join(lines[step - 1] for step in steps))
    damaged = path.read_bytes()
    capsys.readouterr()
    read = read_lines(path)
    assert capsys.readouterr().err == (f"warning: {path}: {wrong} and left out\n" if wrong else "")
    run.begin(5, Config(), ())
    copy = run.path / "metrics.damaged.jsonl"
    said = f"warning: {path}: {wrong} and dropped; the file is kept as {copy.name}; {LOST[path.name]}\n"
    assert capsys.readouterr().err == (said if wrong else "")
    assert not wrong or copy.read_bytes() == damaged
    kept = [line["step"] for line in read_lines(path)]
    assert kept == [line["step"] for line in read] == sorted({*kept}) and len(kept) >= 3


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_gone_is_named(logs, name, capsys):
    run, counted, _ = logs
    (run.path / name).unlink()
    run.begin(4, Config(), (), counted)
    said = f"warning: {run.path / name}: expected 4 lines up to step 4, found 0; {LOST[name]}\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_log_of_a_former_version_goes_on(logs, capsys):
    """Its lines have no checksums. New lines after them have."""
    run, _, whole = logs
    for name, parse in LOGS.items():
        first, *rest = whole[name].splitlines(keepends=True)
        (run.path / name).write_bytes(json.dumps(parse(first)).encode() + b"\n" + b"".join(rest))
    run.begin(4, Config(), ())
    assert [*run.scores] == [1, 2, 3, 4] and [bad.step for bad in run.skipped.values()] == [1, 2, 3, 4]
    run.log({"step": 5, "split": "train"})
    assert [line["step"] for line in read_lines(run.path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in read_lines(run.path / "skipped.jsonl", skipped_of)] == [1, 2, 3, 4]
    assert "warning: " not in capsys.readouterr().err


def test_a_reader_names_a_log_with_a_line_that_has_changed(logs, capsys):
    run, _, whole = logs
    for name, parse in LOGS.items():
        path = run.path / name
        path.write_bytes(whole[name].replace(b'"step": 2', b'"step": 3') + b'{"step": 6, "sp')
        assert [line["step"] for line in read_lines(path, parse)] == [1, 3, 4, 5]
        assert capsys.readouterr().err.splitlines()[-1] == f"warning: {path}: line 2 is no record and left out"


def test_a_resumed_run_says_that_its_log_has_changed(stopped):
    log = stopped / "metrics.jsonl"
    log.write_bytes(re.sub(rb'"epoch": 0', b'"epoch": 1', log.read_bytes(), count=1))
    command = [sys.executable, "-m", "vologan_fast.train", "--resume", "--run-dir", str(stopped), "--max-steps", "6"]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=True)
    assert f"warning: {log}: line 1 is no record and dropped" in done.stderr


def test_an_edited_run_folder_goes_on(stopped, undisturbed):
    """All its texts were edited, without a change of what they say."""
    names = [stopped / "config.json", stopped / "metrics.jsonl", *stopped.glob("checkpoints/*/checksums.json")]
    for path in names:
        path.write_bytes(EDITED["all of it"](path.read_bytes()))
    command = [sys.executable, "-m", "vologan_fast.train", "--resume", "--run-dir", str(stopped), "--max-steps", "6"]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=True)
    assert len(names) >= 3 and "warning: " not in done.stderr
    log = stopped / "metrics.jsonl"
    assert log.read_bytes().startswith((undisturbed("validation") / log.name).read_bytes())
    assert read_lines(log)[-1]["step"] == 6


def test_a_resumed_run_says_that_lines_are_missing(stopped, capsys):
    log = stopped / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]))
    expected = len(lines) - 1  # the held-out images of the last step come after its checkpoint
    assert resume(stopped, "--max-steps", "6") == 0
    said = f"warning: {log}: expected {expected} lines up to step 5, found {expected - 2}; {LOST[log.name]}\n"
    assert said in capsys.readouterr().err
    assert resume(stopped, "--max-steps", "7") == 0  # the next checkpoint has counted the lines that are left
    assert "warning: " not in capsys.readouterr().err


def test_a_checkpoint_of_a_former_version_has_not_counted_lines(stopped, capsys):
    folder = stopped / "checkpoints/step-00000005"
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state.pop("lines").keys() == LOGS.keys()
    torch.save(state, folder / "state.pt")
    (folder / "checksums.json").unlink()
    (stopped / "metrics.jsonl").unlink()
    assert resume(stopped, "--max-steps", "6") == 0
    assert "metrics.jsonl" not in capsys.readouterr().err
