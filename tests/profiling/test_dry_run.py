"""`train --dry-run`: what it says about memory, disk and time is what the run then takes."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("tyro")  # the command needs it
from vologan_fast.config import Config, ScheduleConfig, TrainConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.profiling.dry_run import EVALUATE, REPORT, SAVE, VALIDATE, events_of, used_by

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --generator.width 4 --generator.max-width 8
    --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8 --train.log-every 1
    --train.save-every 10 --train.validate-every 5 --max-steps 40
""")
CONFIGURATIONS = {
    "demo": shlex.split("--preset demo --train.save-every 20 --train.validate-every 20 --max-steps 80"),
    "vologan-64 of width 16, with evaluations": shlex.split("""
        --preset vologan-64 --generator.width 16 --discriminator.widths 16 32 64 --discriminator.down-widths 32 64 128
        --train.batch 4 --train.evaluate-every 20 --train.save-every 20 --train.keep-checkpoints 5 --max-steps 40
    """),
    "cut-256 at 128², with kept images": shlex.split("""
        --preset cut-256 --data.size 128 --generator.width 16 --discriminator.widths 16 32 64 --loss.pool 10
        --data.cache host --train.save-every 15 --train.validate-every 15 --max-steps 45
    """),
}


class Said(NamedTuple):
    """What a dry run says: bytes, bytes, seconds, steps."""

    memory: float
    disk: float
    step: float
    steps: int


def said(text: str) -> Said:
    size, units = r"([\d.]+) ([GM])B", {"G": 1e9, "M": 1e6}
    memory, disk, seconds = (
        re.search(rf"^{pattern}", text, re.MULTILINE)
        for pattern in (f"memory: {size}", f"disk: {size}", r"time: ([\d.e-]+) s .*, (\d+) steps:")
    )
    assert memory and disk and seconds, text
    bytes_of = (float(found[1]) * units[found[2]] for found in (memory, disk))
    return Said(*bytes_of, float(seconds[1]), int(seconds[2]))


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vologan_fast.train", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, cwd="/")


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    with start(*arguments) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def dry(*arguments: object) -> Said:
    ended = train(*arguments, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    return said(ended.stdout)


def really(run: Path, *arguments: object) -> Said:
    """Train in a process, and watch the peak of its resident memory."""
    command = [sys.executable, "-m", "vologan_fast.train", "--run-dir", str(run), *map(str, arguments)]
    peak = 0
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    ) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                peak = max(peak, 1024 * int(found[1]))
            time.sleep(0.02)
    assert process.returncode == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["seconds"] for line in lines if line["split"] == "train"]
    return Said(peak, used_by(run), statistics.median(steps), len(steps))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=20, size=64)


def test_a_dry_run_says_what_the_run_takes_and_leaves_nothing(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "runs" / "first"
    forecast = dry(*TINY, "--data", data, "--run-dir", run)
    assert list(tmp_path.iterdir()) == []
    real = really(run, *TINY, "--data", data)
    assert forecast.steps == real.steps == 40
    assert forecast.memory == pytest.approx(real.memory, rel=0.2)
    assert forecast.disk == pytest.approx(real.disk, rel=0.2)
    assert used_by(run) == 1024 * int(subprocess.run(["du", "-sk", run], capture_output=True).stdout.split()[0])
    before = sorted(run.rglob("*"))
    resumed = dry("--run-dir", run, "--resume", "--max-steps", 100)
    assert resumed.steps == 60 and sorted(run.rglob("*")) == before


def test_what_cannot_run_is_an_error_before(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    ended = train(*TINY, "--data", data, "--run-dir", tmp_path / "run", "--dry-run")
    assert ended.returncode == 1
    assert ended.stderr == f"error: --run-dir {tmp_path}/run: exists and is not empty; expected a new folder, or " + (
        "--resume to go on\n"
    )


def test_events_are_counted_as_the_trainer_makes_them() -> None:
    config = Config(
        train=TrainConfig(log_every=4, save_every=3, validate_every=0, evaluate_every=5, report_every=4, keep_every=3),
        schedule=ScheduleConfig(decay="none"),
    )
    events = events_of(config, steps_per_epoch=6, finished=5, end=13)
    # 3 5 6 9 10 12 13; 6 12 13; 5 10 13; 4 8 12 13
    assert events.whole == {SAVE: 7, VALIDATE: 3, EVALUATE: 3, REPORT: 4}
    assert events.left == {SAVE: 5, VALIDATE: 3, EVALUATE: 2, REPORT: 3}
    assert events.multiples == 3  # 3 6 9, beside the latest 10 12 13
    assert events.logged == 5  # 1 4 8 12 13


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_forecasts_are_within_a_fifth(tmp_path: Path, name: str) -> None:
    """Both run at once, so that whatever else the machine does slows both. Times are printed: a test has no clock."""
    options = ["--device", "cpu", "--train.log-every", "1", *CONFIGURATIONS[name]]
    with start(*options, "--run-dir", tmp_path / "dry", "--dry-run") as process:
        real = really(tmp_path / "real", *options)
        forecast = said(process.communicate()[0])
    print(f"\n{name}: forecast {forecast}, real {real}", flush=True)
    assert forecast.memory == pytest.approx(real.memory, rel=0.2)
    assert forecast.disk == pytest.approx(real.disk, rel=0.2)
    assert forecast.steps == real.steps
