"""Files that never come: each wait is named, has an end, and one SIGTERM ends it within ten seconds with a save."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from stalled_disk import StalledDisk
from test_train import ONE_THREAD, TINY, metrics, resume, wait_for_the_first_step

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset, open_loader
from vologan_fast.data.demo import make_demo
from vologan_fast.data.pack import pack

ENDLESS = ["--schedule.epochs", "100000"]


@pytest.fixture
def demo(tmp_path):
    return make_demo(tmp_path / "demo", count=6, size=64)


def start(run, demo, disk, *options):
    command = [sys.executable, "-m", "vologan_fast.train", *TINY, "--run-dir", run, "--data", demo, *ENDLESS, *options]
    return subprocess.Popen(
        [*map(str, command)],
        env=ONE_THREAD | disk.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def waits(run):
    """Wait until the run does no steps any more."""
    log, seen = run / "metrics.jsonl", -1
    while log.stat().st_size != seen:
        seen = log.stat().st_size
        time.sleep(1.5)


def saved(run):
    return int(sorted((run / "checkpoints").glob("step-*"))[-1].name.removeprefix("step-"))


@pytest.mark.parametrize(
    "options",
    [
        ["--data.backend", "torch"],
        pytest.param(["--data.backend", "dali"], marks=pytest.mark.slow),
        pytest.param(["--train.validate-every", "3"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_sigterm_ends_the_wait_for_a_stalled_disk(tmp_path, demo, options):
    if "dali" in options:
        pytest.importorskip("nvidia.dali")
    run, disk = tmp_path / "run", StalledDisk(tmp_path, demo)
    running = start(run, demo, disk, *options)
    wait_for_the_first_step(run)
    disk.stall()
    waits(run)
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 10 and running.returncode == 130, errors
    assert "go on with: " in output
    assert [line["step"] for line in metrics(run)] == list(range(1, saved(run) + 1))
    assert resume(run, "--max-steps", str(saved(run) + 1)) == 0


@pytest.mark.slow
def test_a_stalled_disk_is_named_and_ends_the_run_after_patience(tmp_path, demo):
    run, disk = tmp_path / "run", StalledDisk(tmp_path, "/real/")
    running = start(run, demo, disk, "--data.patience", "4")
    wait_for_the_first_step(run)
    disk.stall()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    named, error = errors.splitlines()
    waits = r"waiting for it since [234] s; it counts as broken after 4 s of this \(--data.patience\)"
    file = rf"{demo}/real/\d{{4}}\.(jpg|exr)"
    assert re.fullmatch(f"{file}: {waits}", named)
    ended = "not read within 4 s, which is --data.patience; saved up to step"
    found = re.fullmatch(rf"error: (step|validation after step) \d+: {file}: {ended} (\d+)", error)
    assert found and int(found[3]) == saved(run)
    assert resume(run, "--max-steps", str(saved(run) + 1)) == 0


# What is no regular file


def fifo(path):
    os.mkfifo(path)


def zero(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [fifo, zero])
@pytest.mark.parametrize("name", ["0000.jpg", "0000.exr"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("dali", marks=pytest.mark.slow)])
def test_only_regular_files_are_read(demo, put, name, backend):
    """This ends at once, and takes no memory."""
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    dataset = load_dataset(demo, DataConfig(size=32, backend=backend, held_out=0.2), 0)
    path = next(file for file in dataset.train["real"][0].files if file.suffix == Path(name).suffix)
    path.unlink()
    put(path)
    with open_loader(dataset, 2) as loader, pytest.raises(DataError, match=f"{path}: not a regular file"):
        for _ in range(10):
            next(loader)


@pytest.mark.parametrize("put", [fifo, zero])
@pytest.mark.parametrize("name", ["training_paths.json", "shards.json"])
def test_a_list_of_images_is_a_regular_file(tmp_path, demo, put, name):
    data = demo
    if name == "shards.json":
        data = tmp_path / "packed"
        pack(demo, data, 3)
        (index := data / "real-000000.idx").unlink()
        put(index)
        with pytest.raises(DataError, match=f"{index}: not a regular file"):
            load_dataset(data, DataConfig(size=32), 0)
    (data / name).unlink()
    put(data / name)
    with pytest.raises(DataError):
        load_dataset(data, DataConfig(size=32), 0)


@pytest.mark.parametrize("put", [fifo, pytest.param(zero, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "state.pt",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("metrics.jsonl", "checksums.json")),
    ],
)
def test_a_run_folder_with_something_else_is_refused(tmp_path, demo, put, name, capsys):
    run = tmp_path / "run"
    torch.set_num_threads(1)
    assert resume(run, *TINY, "--data", str(demo), "--max-steps", "1") == 0
    (path,) = run.rglob(name)
    path.unlink()
    put(path)
    assert resume(run) == 1
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", pytest.param("held_out", marks=pytest.mark.slow)])
def test_an_image_that_does_not_come_is_replaced(tmp_path, part):
    """With `--data.on-error skip`. A resumed run replaces it too, although it can be read again."""
    demo = make_demo(tmp_path / "demo", count=12, size=64)
    sets = load_dataset(demo, DataConfig(size=32), 0)
    file = getattr(sets, part)["real"][0].color
    run, disk = tmp_path / "run", StalledDisk(tmp_path, file)
    options = ["--data.patience", "3", "--data.on-error", "skip", "--train.validate-every", "20"]
    running = start(run, demo, disk, *options, "--max-steps", "60")
    wait_for_the_first_step(run)
    disk.stall()
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    (bad,) = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    assert bad["file"] == str(file.relative_to(demo)) and bad["split"] == part and bad["step"] > 0
    assert bad["reason"] == f"{file}: not read within 3 s, which is --data.patience"
    assert [line["step"] for line in metrics(run)] == list(range(1, 61))
    assert resume(run, "--max-steps", "62") == 0
    assert len((run / "skipped.jsonl").read_text().splitlines()) == 1
