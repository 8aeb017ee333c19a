"""One command with --resume, repeated after kills: it starts the run, continues it, and ends with the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import KILLED, Killer
from test_train import ONE_THREAD, TINY, metrics, weights

from vologan_fast.data.demo import make_demo
from vologan_fast.train import main
from vologan_fast.training.run_folder import read_config

STEPS = 6
OPTIONS = ["--max-steps", str(STEPS), "--train.save-every", "2", "--train.validate-every", "3", "--resume"]

IMPORTS = "import vologan_fast.training.trainer, torch.utils.tensorboard"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


def command(run, data, *options):
    return [*TINY, "--run-dir", str(run), "--data", str(data), *OPTIONS, *map(str, options)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    """The folder of a run that one command made, without a stop."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(command(run, data)) == 0
    return run


def assert_same(run, undisturbed, step=STEPS):
    for split in ("train", "held_out"):
        assert metrics(run, split) == metrics(undisturbed, split)
    found, expected = weights(run, step), weights(undisturbed, step)
    assert len(found) > 100 and found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if "tensorboard" not in path.parts}
        for folder in (run, undisturbed)
    ]
    assert names[0] == names[1]  # also: no partial files


def kill(run, moments, arguments):
    """Repeat the command, and kill it just before its n-th operation in the run folder, for each n, until it ends.

    Return how many of the attempts were killed, and the exit code and the words of the last one.
    """
    kills = 0
    with Killer("vologan_fast.train", run, IMPORTS) as killer:
        for moment in moments:
            ended = killer.run(arguments, operation=moment)
            if ended.code != KILLED:
                break
            kills += 1
    return kills, ended.code, ended.said


def test_kills_at_some_accesses_to_the_run_folder_change_no_bit(tmp_path, data, undisturbed):
    run = tmp_path / "run"
    kills, _, errors = kill(run, (2, 5, 9, 40), command(run, data))
    assert kills == 4, errors
    assert main(command(run, data)) == 0
    assert_same(run, undisturbed)
    sums = [folder / f"checkpoints/step-{STEPS:08d}/checksums.json" for folder in (run, undisturbed)]
    assert sums[0].read_bytes() == sums[1].read_bytes()  # also of state.pt


@pytest.mark.slow
def test_kills_at_every_second_access_to_the_run_folder_change_no_bit(tmp_path, data, undisturbed):
    run = tmp_path / "run"
    kills, code, errors = kill(run, range(1, 200, 2), command(run, data))
    assert code == 0 and kills >= 50, errors
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_kills_at_times_change_no_bit(tmp_path, data, undisturbed):
    """The command itself is killed, from 0.1 s on, and then at random times."""
    run, rng = tmp_path / "run", random.Random(0)
    arguments = [sys.executable, "-m", "vologan_fast.train", *command(run, data)]
    began = time.monotonic()
    subprocess.run([*arguments, "--run-dir", str(tmp_path / "timed")], env=ONE_THREAD, check=True, capture_output=True)
    whole = time.monotonic() - began
    kills = 0
    for moment in (0.1, 0.5, *(rng.uniform(0.4, 1) * whole for _ in range(5))):
        running = subprocess.Popen(arguments, env=ONE_THREAD, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            assert running.wait(moment) == 0
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            kills += 1
    assert kills >= 2
    assert main(command(run, data)) == 0
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_50_kills_at_random_times_change_no_bit(tmp_path, data, undisturbed):
    """The process is forked after its imports, so the kills are in the start, in steps, in saves and in validations."""
    run, rng, kills = tmp_path / "run", random.Random(1), 0
    with Killer("vologan_fast.train", run, IMPORTS) as killer:
        assert killer.run(command(tmp_path / "first", data)).code == 0
        whole = killer.run(command(tmp_path / "timed", data))
        assert whole.code == 0, whole.said
        while kills < 50:
            ended = killer.run(command(run, data), seconds=rng.uniform(0, whole.seconds))
            assert ended.code in (KILLED, 0), ended.said
            kills += ended.code == KILLED
            if ended.code == 0 or kills % 10 == 0:  # a new run begins
                ended = killer.run(command(run, data))
                assert ended.code == 0, ended.said
                assert_same(run, undisturbed)
                shutil.rmtree(run)


KILLED_THRICE = """
import os, sys
from vologan_fast import train
from vologan_fast.training import checkpoint, trainer

rank, restart = (int(os.environ[name]) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))

def killed(what, when):
    def function(*arguments, **options):
        if when(*arguments):
            os.kill(os.getpid(), 9)
        return what(*arguments, **options)
    return function

if (rank, restart) == (1, 0):  # in a step
    step = trainer.Trainer._set_learning_rates
    trainer.Trainer._set_learning_rates = killed(step, lambda self, _: self.finished_steps == 3)
if (rank, restart) == (0, 1):  # while it saves
    checkpoint.publish = killed(checkpoint.publish, lambda *_: True)
if (rank, restart) == (1, 2):  # at the start
    trainer.Trainer.resume = killed(trainer.Trainer.resume, lambda *_: True)
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_of_which_processes_were_killed_three_times(tmp_path, data):
    script = tmp_path / "killed_thrice.py"
    script.write_text(KILLED_THRICE)
    printed = []
    for run, what in ((tmp_path / "undisturbed", ["-m", "vologan_fast.train"]), (tmp_path / "run", [script])):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3", *what]
        arguments = command(run, data, "--train.batch", 4)
        done = subprocess.run([*map(str, torchrun), *arguments], env=ONE_THREAD, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "resuming" not in printed[0] and printed[1].count("resuming after step 2") == 2
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_finished_run_says_so_and_does_nothing_twice(tmp_path, data, undisturbed, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    assert main(command(undisturbed, data)) == 0
    assert "the run has finished: no steps are left" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")} == before
    assert [line["step"] for line in metrics(undisturbed, "held_out")] == [3, 6]


# What a repeated command may say


@pytest.fixture(scope="module")
def begun(tmp_path_factory, data):
    """A run folder after one step."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("begun") / "run"
    assert main(command(run, data, "--max-steps", 1)) == 0
    return run


def test_the_data_set_may_be_named_in_another_way(begun, data, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(data.parent)
    for name in (tmp_path / "link", "data", f"../{data.parent.name}/data/"):
        assert main(command(begun, name, "--max-steps", 1)) == 0
        assert json.loads((begun / "config.json").read_text())["data"] == str(data.resolve())


def test_what_is_open_in_the_command_stays_as_recorded(tmp_path, data):
    """The settings of a preset leave the depth open. The run has found it, or an option has set it."""
    run = tmp_path / "run"
    assert main(command(run, data, "--max-steps", 1, "--data.real.far", 2)) == 0
    recorded = (run / "config.json").read_text()
    assert main(command(run, data, "--max-steps", 2)) == 0
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "2"]) == 0
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "2", "--config", str(run / "config.json")]) == 0
    assert (run / "config.json").read_text() == recorded


def test_the_command_of_an_older_version_goes_on_with_its_run(tmp_path, data):
    """Its record lacks newer settings, and has other defaults. A command without options may follow it."""
    run = tmp_path / "run"
    assert main(command(run, data, "--max-steps", 1)) == 0
    record = json.loads((run / "config.json").read_text())
    del record["crc32"]  # it has no checksum either
    for section, field in (
        ("generator", "attention_size"),
        ("generator", "attention_eps"),
        ("generator", "dropout_levels"),
        ("generator", "output_bias"),
        ("discriminator", "attention_eps"),
        ("discriminator", "branch_dropouts"),
        ("generator_optimizer", "nesterov"),
        ("schedule", "constant_epochs"),
        ("train", "memory_format"),
    ):
        del record["config"][section][field]
    record["config"]["train"]["precision"] = "auto"
    for section in ("generator_optimizer", "discriminator_optimizer"):
        record["config"][section]["switch_learning_rate"] = 1e-4
    (run / "config.json").write_text(json.dumps(record))
    for _ in range(2):
        assert main(command(run, data, "--max-steps", 2)) == 0
        assert read_config(run / "config.json")[1].generator_optimizer.switch_learning_rate == 1e-4
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "3"]) == 0
    assert main(command(run, data, "--loss.cycle", "5")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.cycle", "5"], "--loss.cycle: 5.0 in this command, 1.0 in RUN/config.json; a resumed run may only"),
        (["--preset", "vologan-64"], "--discriminator.branch-dropouts: 2 in this command, 1 in RUN/config.json"),
        (["--data.real.near", "0.5"], "--data.real.near: 0.5 in this command, -1.0 in RUN/config.json"),
        (["--train.seed", "1"], "--train.seed: 1 in this command, 0 in RUN/config.json"),
    ],
)
def test_other_settings_are_refused(begun, data, capsys, options, message):
    assert main(command(begun, data, *options)) == 1
    error = capsys.readouterr().err
    assert message.replace("RUN", str(begun)) in error and error.count("\n") == 1


def test_another_data_set_is_refused(begun, data, tmp_path, capsys):
    other = make_demo(tmp_path / "other", count=5, size=64)
    assert main(command(begun, other)) == 1
    assert f"{other}: these are not the images that {begun} was trained on" in capsys.readouterr().err
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((begun / "config.json").read_bytes())
    assert main(command(run, other)) == 1
    expected = f"--data: {other} in this command, {data.resolve()} in {run}/config.json; without"
    assert expected in capsys.readouterr().err
    assert main(command(run, data, "--max-steps", 1)) == 0


def test_settings_that_change_no_result_may_change(begun, data):
    assert main(command(begun, data, "--max-steps", 1, "--train.keep-checkpoints", 7)) == 0
    assert json.loads((begun / "config.json").read_text())["config"]["train"]["keep_checkpoints"] == 7


def test_nothing_recorded_and_nothing_to_start_from(tmp_path, capsys):
    assert main(["--run-dir", str(tmp_path), "--resume"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/config.json: no such file; expected a run to go on with, or --data or --preset" in error


def test_folders_of_others_are_refused(tmp_path, data, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").touch()
    assert main(command(run, data)) == 1
    assert f"--run-dir {run}: has thesis.tex but no config.json; expected a run, or" in capsys.readouterr().err
    (run / "thesis.tex").unlink()
    (run / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert main(command(run, data)) == 1
    assert "step-00000007: found without config.json" in capsys.readouterr().err
    assert (run / "checkpoints" / "step-00000007").is_dir()
    assert main(command(data / "training_paths.json", data)) == 1
    assert "cannot be read (Not a directory)" in capsys.readouterr().err


def test_first_weights_belong_to_the_start(tmp_path, data, begun, capsys):
    """A start that was killed is repeated. A run with a checkpoint of its own needs the old weights no more."""
    source = begun / "checkpoints" / "step-00000001"
    assert main(command(tmp_path / "whole", data, "--max-steps", 1, "--init-from", source)) == 0
    run = tmp_path / "run"
    arguments = command(run, data, "--max-steps", 1, "--init-from", source)
    kills, _, errors = kill(run, (12, 20), arguments)
    assert kills == 2, errors
    assert main(arguments) == 0
    assert metrics(run) == metrics(tmp_path / "whole")
    capsys.readouterr()
    gone = command(run, data, "--max-steps", 2, "--init-from", tmp_path / "gone")
    assert main(gone) == 0
    printed = capsys.readouterr().out
    assert "resuming after step 1; --init-from is ignored, as the run has weights of its own" in printed


def test_first_weights_of_a_start_that_was_killed_are_not_those_of_another_start(tmp_path, data, begun):
    """The first command wrote step 0, but no record. The second starts without old weights."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000000").symlink_to(begun / "checkpoints" / "step-00000001")
    assert main(command(run, data, "--max-steps", 1)) == 0
    assert [path.name for path in Path(run / "checkpoints").iterdir()] == ["step-00000001"]
    assert metrics(run) == metrics(begun)
