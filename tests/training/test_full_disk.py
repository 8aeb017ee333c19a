"""A disk that becomes full while a run trains: one sentence, and no step is lost. The disk is a real one, of memory."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest
from test_train import ONE_THREAD, TINY, metrics, resume, wait_for_the_first_step

from vologan_fast.data.demo import make_demo
from vologan_fast.training.checkpoint import list_checkpoints, step_of

OPTIONS = ["--schedule.epochs", "100000", "--train.save-every", "40", "--train.validate-every", "15"]


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--log", "none"], marks=pytest.mark.slow)], ids=["tensorboard", "none"]
)
def test_no_step_is_lost_when_the_disk_becomes_full(tmp_path, disk, options):
    run = disk / "run"
    data = make_demo(tmp_path / "data", count=6, size=64)
    command = [sys.executable, "-m", "vologan_fast.train", *TINY, "--run-dir", run, "--data", data, *OPTIONS, *options]
    running = subprocess.Popen(
        [*map(str, command)], env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_the_first_step(run)
    while not list_checkpoints(run / "checkpoints"):
        time.sleep(0.05)
    time.sleep(0.5)
    filler = disk / "filler"
    fill(filler)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 1
    reason = r"cannot be written \(No space left on device\); saved up to step (\d+)"
    found = re.fullmatch(rf"(?:warning: .*\n)*error: .*{run}: {reason}\n", errors)
    assert found, errors
    last = step_of(list_checkpoints(run / "checkpoints")[-1])
    assert int(found[1]) == last and last % 40
    os.unlink(filler)  # noqa: PTH108
    assert resume(run, "--max-steps", str(last + 2)) == 0
    steps = [line["step"] for line in metrics(run)]
    assert len(steps) >= last + 1 and set(steps) >= {1, last - 2, last + 1, last + 2}
    assert not (run / "metrics.damaged.jsonl").exists()


def test_every_nth_checkpoint_is_kept(tmp_path):
    data, run = make_demo(tmp_path / "data", count=6, size=64), tmp_path / "run"
    options = ["--train.save-every", "1", "--train.keep-checkpoints", "2", "--train.keep-every", "3"]
    assert resume(run, *TINY, "--data", str(data), "--max-steps", "7", *options) == 0
    assert [step_of(path) for path in list_checkpoints(run / "checkpoints")] == [3, 6, 7]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {f"step-{step:08d}" for step in (3, 6, 7)}
