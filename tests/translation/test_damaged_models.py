"""Model folders and config.json whose bytes changed: every reader says so, unless it was on purpose."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from editors import EDITED
from runs import make_run

import vologan_fast
from vologan_fast import export
from vologan_fast.config import ConfigError
from vologan_fast.training.checkpoint import CheckpointError
from vologan_fast.training.run_folder import read_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    assert export.main([str(run), "--out", str(out), "--format", "safetensors"]) == 0
    return out


def faults(content: bytes, count: int, seed: int) -> list[bytes]:
    """Flipped bits, cleared parts and truncations of a file."""
    rng, found = random.Random(seed), []
    for k in range(count):
        place = rng.randrange(len(content))
        flipped = content[place] ^ (1 << rng.randrange(8))
        cleared = bytes(min(64, len(content) - place))
        parts = (bytes([flipped]) + content[place + 1 :], cleared + content[place + len(cleared) :], b"")
        found.append(content[:place] + parts[k % 3])
    return [damaged for damaged in found if damaged not in (content, content[:-1])]  # without the last newline


@pytest.mark.parametrize("name", ["config.json", "checksums.json"])
@pytest.mark.parametrize("edited", EDITED)
def test_ends_of_lines_of_an_editor_are_no_damage(folder: Path, name: str, edited: str) -> None:
    file, whole = folder / name, (folder / name).read_bytes()
    try:
        file.write_bytes(EDITED[edited](whole))
        vologan_fast.load(folder, device="cpu")
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_no_damage_of_a_model_folder_is_accepted(folder: Path, name: str) -> None:
    file, whole = folder / name, (folder / name).read_bytes()
    damages = faults(whole, 120, seed=1)
    try:
        for damaged in damages:
            file.write_bytes(damaged)
            with pytest.raises((CheckpointError, ConfigError)) as error:
                vologan_fast.load(folder, device="cpu")
            assert str(file) in str(error.value) or name == "checksums.json"
    finally:
        file.write_bytes(whole)
    vologan_fast.load(folder, device="cpu")
    assert len(damages) > 100


def test_no_damage_of_a_record_is_accepted(run: Path) -> None:
    file, whole = run / "config.json", (run / "config.json").read_bytes()
    try:
        for damaged in faults(whole, 500, seed=2):
            file.write_bytes(damaged)
            with pytest.raises(ConfigError, match=r"config\.json"):
                read_config(file)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("command", ["translate", "evaluate", "report", "export", "train"])
def test_commands_name_the_record(run: Path, tmp_path: Path, command: str) -> None:
    """A real process of each command reads a config.json in which one digit of a setting was changed."""
    file, whole = run / "config.json", (run / "config.json").read_bytes()
    arguments = {
        "translate": [str(run), "--out", str(tmp_path / "out")],
        "evaluate": [str(run)],
        "report": [str(run)],
        "export": [str(run), "--out", str(tmp_path / "out")],
        "train": ["--run-dir", str(run), "--resume"],
    }[command]
    assert b'"cycle": 1.0' in whole
    file.write_bytes(whole.replace(b'"cycle": 1.0', b'"cycle": 3.0'))
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"vologan_fast.{command}", *arguments], capture_output=True, text=True
        )
    finally:
        file.write_bytes(whole)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {file}: damaged, or changed: its checksum is of another content; if you changed it on purpose, remove "
        'its last entry, "crc32"\n'
    )


def test_a_record_may_be_changed_on_purpose(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "config.json").read_text())
    assert list(record) == ["data", "config", "crc32"]
    del record["crc32"]
    record["config"]["loss"]["cycle"] = 3.0
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert read_config(tmp_path / "config.json")[1].loss.cycle == 3.0


def test_a_folder_of_a_former_version_is_read(folder: Path, tmp_path: Path) -> None:
    """It has no checksums."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    record = json.loads((tmp_path / "config.json").read_text())
    del record["crc32"]
    (tmp_path / "config.json").write_text(json.dumps(record, indent=2))
    vologan_fast.load(tmp_path, device="cpu")
