"""Commands that are killed (-9) at file operations and at any time: the same command again ends with the same files.

Files that have their names are whole at any time. Training has such tests in tests/training/test_restart.py.

    VOLOGAN_KILLS=50 make test-slow ARGS=tests/test_kills.py    # 50 kills of each kind for each command
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import KILLED, Killer, moments
from PIL import Image

from vologan_fast import train
from vologan_fast.checksums import unsigned_line
from vologan_fast.data.demo import make_demo

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --generator.width 4 --generator.max-width 8
    --generator.levels 1 --discriminator.widths 4 8 --discriminator.down-widths 4 8 --data.held-out 0.5
    --train.report-every -1 --train.log-every 1
""")
EACH = int(os.environ.get("VOLOGAN_KILLS", "25"))
"""Kills at file operations, and as many at random times."""
LOG = "translated.jsonl"
TIMES = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=12, size=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--max-steps", "2", "--train.save-every", "1"]
    assert train.main([*TINY, "--run-dir", str(folder), "--data", str(data), *options]) == 0
    return folder


def files(folder: Path) -> Files:
    """The bytes of all files. For a link, where it leads. A folder is a name that ends with a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.is_dir():
            found[f"{name}/"] = b""
        else:
            found[name] = path.read_bytes()
    return found


def check(
    killer: Killer,
    arguments: Sequence[object],
    work: Path,
    start: Path | None = None,
    kills: int = EACH,
    in_a_row: int = 1,
    logs: str = "$^",
    as_result: Callable[[Files], dict[str, Any]] = lambda found: found,
) -> None:
    """Kill a command that works in the folder `work`, and repeat it, until it has been killed 2 · `kills` times.

    It begins with a copy of `start`. After each `in_a_row` kills, the command goes on to its end. Then `as_result` of
    the files must be as without kills. `logs` is a pattern for the names of files that change bit by bit.
    """

    def begin() -> Files:
        shutil.rmtree(work, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, work, symlinks=True)
        return files(work) if start is not None else {}

    before = begin()
    for _ in range(2):  # the first start imports
        begin()
        whole = killer.run(arguments)
        assert whole.code == 0, whole.said
    expected = files(work)
    count = 0
    for number, moment in enumerate([*moments(whole, kills), *moments(whole, kills, 1)]):
        if number % in_a_row == 0:
            begin()
        ended = killer.run(arguments, **moment)
        assert ended.code in (KILLED, 0), ended.said
        count += ended.code == KILLED
        for name, content in files(work).items():
            hidden = any(part.startswith(".") for part in Path(name).parts)
            if not hidden and not re.fullmatch(logs, name):
                assert content in (expected.get(name), before.get(name)), f"{name} after {moment}"
        if (number + 1) % in_a_row == 0 or count == 2 * kills:
            again = killer.run(arguments)
            assert again.code == 0, f"{again.said} after {moment}"
            found, wanted = as_result(files(work)), as_result(expected)
            assert found.keys() == wanted.keys(), f"after {moment}: {found.keys() ^ wanted.keys()}"
            assert found == wanted, f"after {moment}"
        if count == 2 * kills:
            break
    assert count == 2 * kills


@pytest.mark.parametrize("kills", [2, pytest.param(EACH, marks=pytest.mark.slow)])
def test_pack(tmp_path: Path, data: Path, kills: int) -> None:
    work = tmp_path / "work"
    with Killer("vologan_fast.data.__main__", work) as killer:
        arguments = ["pack", data, work / "packed", "--shard-size", 6]
        check(killer, arguments, work, kills=kills, logs="packed/pack.jsonl")


@pytest.mark.slow
def test_convert(tmp_path: Path) -> None:
    source, work = tmp_path / "recording", tmp_path / "work"
    for name in ("rgb", "depth"):
        (source / name).mkdir(parents=True)
        for i in range(8):
            image = (
                Image.new("RGB", (48, 36), (i, 100, 200)) if name == "rgb" else Image.new("I;16", (48, 36), 9000 + i)
            )
            image.save(source / name / f"{i}.png")
        listed = "".join(f"{i}.0 {name}/{i}.png\n" for i in range(8))
        (source / f"{name}.txt").write_text(f"# images\n{listed}")
    with Killer("vologan_fast.data.__main__", work) as killer:
        check(killer, ["convert", "tum", source, work, "--domain", "real"], work)


def translated(found: Files) -> dict[str, Any]:
    """The files, and what the log says last about each. The order of its lines is that of the threads."""
    entries = [json.loads(line) for line in found[LOG].splitlines()]
    return found | {LOG: {entry["color"]: entry for entry in entries}}


@pytest.mark.slow
def test_translate(tmp_path: Path, run: Path) -> None:
    work = tmp_path / "work"
    with Killer("vologan_fast.translate", work) as killer:
        arguments = [run, "--out", work, "--device", "cpu", "--direction", "both", "--threads", 2]
        check(killer, arguments, work, logs=LOG, as_result=translated)


QUICK_BASELINES = """
from vologan_fast import evaluate
from vologan_fast.evaluation.distances import quantile_affine, sliced_wasserstein
from vologan_fast.evaluation.noise_model import NoiseModel
evaluate._baselines = lambda s, t, seed: {"affine(S)": quantile_affine(s.pixels, t.pixels), "noise(S)": NoiseModel()}
sliced_wasserstein.__kwdefaults__["patches"] = 128
"""
"""The true ones are fitted for a minute, and few patches are compared sooner."""


@pytest.mark.slow
def test_evaluate(tmp_path: Path, run: Path) -> None:
    work = tmp_path / "work"
    with Killer("vologan_fast.evaluate", work, QUICK_BASELINES) as killer:
        check(killer, [work, "--device", "cpu", "--bootstrap", 5, "--images", 4], work, start=run, in_a_row=10)


@pytest.mark.slow
def test_report(tmp_path: Path, run: Path) -> None:
    work = tmp_path / "work"
    with Killer("vologan_fast.report.__main__", work) as killer:
        check(killer, [work, "--device", "cpu"], work, start=run, in_a_row=5)


FORKED_TRAININGS = """
import types
from vologan_fast.sweeping import trial
from vologan_fast import train
import vologan_fast.training.trainer, torch.utils.tensorboard
trial.subprocess = types.SimpleNamespace(**vars(trial.subprocess) | {"Popen": Forked})
torch.set_num_threads(1)
"""
"""Each training is a fork of the sweep, because a start of Python would take longer than the training."""


CHANGING = r"sweep\.(db.*|html)|trials/.*\.(log|jsonl)|.*tensorboard/.*|.*state\.pt"
"""Files of a sweep that are not the same in two sweeps, or that change bit by bit."""


def swept(found: Files) -> dict[str, Any]:
    """What a sweep has found. Of the metrics, without times. Of files that change, the names, except TensorBoard's."""
    result: dict[str, Any] = {}
    for name, content in found.items():
        if name.endswith("/metrics.jsonl"):
            logged = map(unsigned_line, content.splitlines(keepends=True))
            result[name] = [{k: v for k, v in line.items() if k not in TIMES} for line in logged]
        elif "tfevents" not in name:
            result[name] = None if re.fullmatch(CHANGING, name) else content
    return result


@pytest.fixture
def space(tmp_path: Path, data: Path) -> Path:
    """The file of a sweep with three trials."""
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("optuna")
    file = tmp_path / "sweep.yaml"
    options = {
        "preset": "demo",
        "device": "cpu",
        "data": str(data),
        "data.size": 32,
        "train.batch": 1,
        "generator.width": 4,
        "generator.max-width": 8,
        "generator.levels": 1,
        "discriminator.widths": [4, 8],
        "discriminator.down-widths": [4, 8],
        "train.log-every": 1,
        "train.report-every": -1,
        "max-steps": 2,
    }
    rates = {"low": 1e-4, "high": 1e-3, "log": True}
    space = {"generator-optimizer.learning-rate": rates, "discriminator-optimizer.learning-rate": rates}
    settings = {"trials": 3, "objective": "train/generator_ts/cycle", "startup-trials": 2}
    settings["warmup-steps"] = 100  # whether a trial is pruned depends on the time at which it is looked at
    file.write_text(yaml.safe_dump({"train": options, "space": space, "sweep": settings}))
    return file


@pytest.mark.slow
def test_sweep(tmp_path: Path, space: Path) -> None:
    work = tmp_path / "work"
    with Killer("vologan_fast.sweep", work, FORKED_TRAININGS) as killer:
        check(killer, [space, "--out", work], work, in_a_row=5, logs=CHANGING, as_result=swept)


@pytest.mark.slow
def test_the_database_of_a_sweep_is_whole_or_absent(tmp_path: Path, space: Path) -> None:
    work = tmp_path / "work"

    def schema() -> list[tuple[str]]:
        with contextlib.closing(sqlite3.connect(work / "sweep.db")) as database:
            return database.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()

    with Killer("vologan_fast.sweep", work, FORKED_TRAININGS) as killer:
        assert killer.run([space, "--out", work]).code == 0
        expected, operation, with_database = schema(), 0, 0
        while with_database < 3:
            shutil.rmtree(work, ignore_errors=True)
            operation += 1
            assert killer.run([space, "--out", work], operation=operation).code == KILLED
            if (work / "sweep.db").exists():
                with_database += 1
                assert schema() == expected, f"killed at operation {operation}"
    assert operation > 20
