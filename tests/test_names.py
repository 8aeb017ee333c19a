"""Names that would clear a terminal, rename its window or turn text around: no command prints them as they are.

The data set, the run folder and the outputs have such names, and each command is made to name a broken file.
"""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vologan_fast import evaluate, export, train, translate
from vologan_fast.config import DataConfig
from vologan_fast.data import __main__ as data_command
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.report import __main__ as report_command
from vologan_fast.words import printable

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r[bold]"
TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --generator.width 4 --generator.max-width 8
    --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8 --data.held-out 0.5
    --train.report-every -1 --train.log-every 1
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data in a folder, and with files, of evil names."""
    demo = make_demo(tmp_path_factory.mktemp("demo") / "data", count=8, size=32)
    folder = tmp_path_factory.mktemp("evil") / f"data{EVIL}"
    pairs = {}
    for domain in ("synthetic", "real"):
        place = folder / domain / EVIL
        place.mkdir(parents=True)
        pairs[f"{domain}_data"] = []
        for color in sorted((demo / domain).glob("*.jpg")):
            names = {}
            for kind, file in (("color_path", color), ("depth_path", color.with_suffix(".exr"))):
                target = place / f"{EVIL}{file.name}"
                shutil.copy(file, target)
                names[kind] = str(target.relative_to(folder))
            pairs[f"{domain}_data"].append(names)
    (folder / "training_paths.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / f"run{EVIL}"
    assert train.main([*TINY, "--run-dir", str(folder), "--data", str(data), "--max-steps", "1"]) == 0
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Return a function that returns what was printed, and checks that a terminal shows it as text."""
    capsys.readouterr()

    def read() -> str:
        out, err = capsys.readouterr()
        bad = {c for c in out + err if not (c.isprintable() or c == "\n")}
        assert not bad, (bad, out, err)
        return out + err

    yield read


def broken(data: Path, tmp_path: Path, held_out: bool = False) -> Path:
    """Return a copy of the data set, under another evil name, with a file of each domain that is cut."""
    copy = tmp_path / f"cut{EVIL}"
    shutil.copytree(data, copy)
    sets = load_dataset(copy, DataConfig(size=32, held_out=0.5), 0)
    for records in (sets.held_out if held_out else sets.train).values():
        os.truncate(records[0].color, 300)  # type: ignore[arg-type]
    return copy


def test_train(data: Path, run: Path, tmp_path: Path, said: Callable[[], str]) -> None:
    again = tmp_path / EVIL
    assert train.main([*TINY, "--run-dir", str(again), "--data", str(data), "--max-steps", "1"]) == 0
    assert printable(EVIL) in said()
    bad = broken(data, tmp_path)
    assert train.main([*TINY, "--run-dir", str(tmp_path / "a"), "--data", str(bad), "--max-steps", "9"]) == 1
    assert printable(EVIL) in said()
    options = ["--max-steps", "9", "--data.on-error", "skip"]
    assert train.main([*TINY, "--run-dir", str(tmp_path / "b"), "--data", str(bad), *options]) == 0
    assert f"bad image, replaced by another: {printable(bad)}" in said()
    shutil.copytree(run, tmp_path / f"damaged{EVIL}")
    for file in tmp_path.glob(f"damaged{EVIL.replace('[', '[[]')}/checkpoints/*/state.pt"):
        file.write_bytes(b"")
    assert train.main(["--resume", "--run-dir", str(tmp_path / f"damaged{EVIL}")]) == 1
    assert printable(EVIL) in said()


def test_inspect_pack_and_convert(
    data: Path, tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        return data_command.main()

    bad = broken(data, tmp_path)
    assert run("inspect", bad, "--data.size", 32, "--picture", tmp_path / f"{EVIL}.png") == 1
    assert printable(EVIL) in said()
    assert run("pack", data, tmp_path / f"shards{EVIL}") == 0
    assert printable(EVIL) in said()
    (tmp_path / EVIL).mkdir()
    (tmp_path / EVIL / "file").touch()
    assert run("pack", data, tmp_path / EVIL) == 2
    assert printable(EVIL) in said()
    assert run("convert", "tum", tmp_path / EVIL, tmp_path / "set", "--domain", "real") == 2
    assert printable(EVIL) in said()
    (tmp_path / EVIL / f"{EVIL}.r3d").write_bytes(b"no archive")
    assert run("convert", "record3d", tmp_path / EVIL, tmp_path / f"set{EVIL}", "--domain", "real") == 1
    assert printable(EVIL) in said()


def test_translate(data: Path, run: Path, tmp_path: Path, said: Callable[[], str]) -> None:
    bad = broken(data, tmp_path)
    out = tmp_path / f"out{EVIL}"
    assert translate.main([str(run), "--data", str(bad), "--out", str(out), "--device", "cpu"]) == 1
    found = said()
    assert f"broken: {printable(bad)}" in found and printable(out) in found
    assert translate.main([str(tmp_path / EVIL), "--out", str(out)]) == 1
    assert printable(EVIL) in said()


@pytest.mark.slow  # it trains, and judges each checkpoint
def test_evaluate(data: Path, run: Path, tmp_path: Path, said: Callable[[], str]) -> None:
    assert evaluate.main([str(run), "--device", "cpu", "--bootstrap", "3"]) == 0
    assert printable(EVIL) in said()
    bad = broken(data, tmp_path)
    assert evaluate.main([str(run), "--data", str(bad), "--device", "cpu"]) == 1
    assert printable(EVIL) in said()


def test_export(run: Path, tmp_path: Path, said: Callable[[], str]) -> None:
    assert export.main([str(run), "--out", str(tmp_path / f"model{EVIL}"), "--format", "safetensors"]) == 0
    assert printable(EVIL) in said()
    assert export.main([str(tmp_path / EVIL), "--out", str(tmp_path / "a")]) == 1
    assert printable(EVIL) in said()


def test_report(run: Path, tmp_path: Path, said: Callable[[], str]) -> None:
    assert report_command.main([str(run), "--output", str(tmp_path / f"{EVIL}.html"), "--device", "cpu"]) == 0
    assert printable(EVIL) in said()
    assert report_command.main([str(tmp_path / EVIL)]) == 1
    assert printable(EVIL) in said()


def test_one_way_to_print() -> None:
    """All lines go through `words`, which shows what a terminal would obey. A print elsewhere forgets it some day."""
    package = Path(train.__file__).parent
    printing = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path != package / "words.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, f"expected say, say_lines or say_error of vologan_fast.words in {', '.join(printing)}"


def test_errors_that_nobody_catches(run: Path, tmp_path: Path) -> None:
    """Those that the end of every command prints, in a process of its own."""
    code = f"from vologan_fast import stopping\nstopping.run(lambda: open({str(tmp_path / EVIL)!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and printable(EVIL) in done.stderr and "\x1b" not in done.stderr
