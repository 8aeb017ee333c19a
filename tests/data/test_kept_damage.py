"""Damage of the packed file with kept images: flipped bytes, and a file that shrinks while a run reads it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import MakeDataset
from test_loader import same, take
from test_resident import dataset, kept, kept_files, own_cache_folder  # noqa: F401  a fixture

from vologan_fast.data import DataError, Dataset, open_loader
from vologan_fast.data.loaders.packed_file import ArraySpec, PackedFile, make_packed, open_packed
from vologan_fast.files import cache_folder
from vologan_fast.train import main

SPECS = {"real/color": ArraySpec((5, 40, 3), "uint8"), "real/depth": ArraySpec((5, 40), "float32")}


def packed(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Make a packed file, and return its arrays."""
    rng = np.random.default_rng(0)
    values = {name: rng.integers(0, 255, spec.shape).astype(spec.dtype) for name, spec in SPECS.items()}

    def fill(write: Any) -> None:
        for name, array in values.items():
            for i, entry in enumerate(array):
                write(name, i, entry)

    make_packed(path, {"kept_as": "é"}, SPECS, fill)
    return values


def is_noticed(path: Path) -> bool:
    """Return whether opening the file, or reading its entries, says that it is damaged."""
    file = open_packed(path)
    if file is None:
        return True
    try:
        read_all(file)
    except DataError as error:
        assert re.match(
            rf"{path}: entry \d of real/(color|depth) is damaged \(expected .*, found .*\)$",
            str(error),
        )
        return True
    return False


def read_all(file: PackedFile) -> dict[str, np.ndarray[Any, Any]]:
    found = {name: np.empty(spec.shape, spec.dtype) for name, spec in SPECS.items()}
    for name, array in found.items():
        for i, entry in enumerate(array):
            file.read(name, i, entry)
    return found


def test_no_flip_and_no_truncation_is_accepted_in_silence(tmp_path: Path) -> None:
    """1,000 flips of a bit and 300 truncations, in all parts of the file that are read."""
    path = tmp_path / "file"
    values = packed(path)
    whole = path.read_bytes()
    file = open_packed(path)
    assert file is not None and all(np.array_equal(a, values[name]) for name, a in read_all(file).items())
    of_arrays = [4096 + np.arange(5 * 120), 2 * 4096 + np.arange(5 * 160)]
    checksums = np.arange(3 * 4096, len(whole))
    assert len(checksums) == 4 * 10
    read = np.concatenate([np.arange(4096), *of_arrays, checksums])
    rng = np.random.default_rng(1)
    places = [*checksums, *rng.choice(np.arange(4096), 300), *rng.choice(read, 660)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert is_noticed(path), place
    for length in rng.integers(0, len(whole), 300):
        path.write_bytes(whole[:length])
        assert is_noticed(path), length


def test_what_is_no_packed_file_is_no_error(tmp_path: Path) -> None:
    for content in (
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"json": 1, "arrays": {"a": [[1e99], "u1"]}}',
        b"[" * 4096,
        b"\xff" * 9000,
    ):
        (tmp_path / "file").write_bytes(content.ljust(4096, b"\0"))
        assert open_packed(tmp_path / "file") is None
    os.mkfifo(tmp_path / "pipe")  # opening it must not wait
    with pytest.raises(DataError, match="pipe: cannot be read"):
        open_packed(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["color", "depth"])
def test_a_flipped_byte_names_the_packed_file_and_the_image(make_dataset: MakeDataset, kind: str) -> None:
    data = dataset(make_dataset())
    with open_loader(kept(data, "disk"), 2) as loader:
        expected = take(loader, 4)
    path = the_file()
    whole = path.read_bytes()
    at = place_of(data, path, "real", kind, 1)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with open_loader(kept(data, "disk"), 2) as loader, pytest.raises(DataError) as error:
        take(loader, 8)
    name = data.train["real"][1].color
    assert str(error.value).startswith(f"{path}: entry 1 of real/{kind} is damaged (expected checksum ")
    assert str(error.value).endswith(f"): {name}; remove the packed file, and it is made again")
    path.unlink()
    with open_loader(kept(data, "disk"), 2) as loader:
        assert same(take(loader, 4), expected)


def the_file() -> Path:
    (name,) = kept_files()
    return cache_folder("images") / name


def place_of(data: Dataset, path: Path, domain: str, kind: str, entry: int) -> int:
    """Return the place of the bytes of an entry that has the file's content, found by its values."""
    file = open_packed(path)
    assert file is not None
    spec = file.specs[f"{domain}/{kind}"]
    values = np.empty(spec.shape[1:], spec.dtype)
    file.read(f"{domain}/{kind}", entry, values)
    return path.read_bytes().index(values.tobytes()) + values.nbytes // 2


def test_a_file_that_is_damaged_later_is_noticed_in_the_same_process(make_dataset: MakeDataset) -> None:
    data = dataset(make_dataset())
    with open_loader(kept(data, "disk"), 2) as loader:
        take(loader, 12)  # all images were read before
        path = the_file()
        at = place_of(data, path, "real", "color", 0)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\x80\x7f\x80\x7f")
        with pytest.raises(DataError, match="entry 0 of real/color is damaged"):
            take(loader, 12)


def train(root: Path, run: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vologan_fast.train", "--preset", "demo", "--data", root, "--run-dir", run]
    command += ["--data.size", "32", "--data.cache", "disk", "--data.backend", "torch", "--device", "cpu"]
    command += ["--train.batch", "2", "--train.report-every", "-1", "--log", "none", "--generator.width", "4"]
    command += ["--generator.max-width", "8", "--generator.levels", "2", "--discriminator.widths", "4", "4", "8"]
    command += ["--discriminator.down-widths", "4", "4", "8", "--train.compile", "none", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 4096 + 40 * 1024])
def test_a_file_that_shrinks_under_a_run_is_one_sentence(
    make_dataset: MakeDataset, tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run saves its steps, names the file, and goes on once the file was removed."""
    root, run = make_dataset(), tmp_path / "run"
    process = train(root, run, "--train.log-every", "1", "--max-steps", "100000")
    assert process.stdout is not None
    try:
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None, process.stdout.read()
        path = the_file()
        os.truncate(path, length)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    last = said.splitlines()[-1]
    assert process.returncode == 1, said
    matched = re.fullmatch(
        rf"error: step (\d+): {path}: entry \d of (real|synthetic)/(color|depth) is damaged \(expected \d+ bytes or "
        rf"more, found {length}\): {root}/.*; remove the packed file, and it is made again; saved up to step (\d+)",
        last,
    )
    assert matched and int(matched[1]) == int(matched[4]) + 1, said
    path.unlink()
    steps = int(matched[4]) + 2
    assert main(["--resume", "--run-dir", str(run), "--max-steps", str(steps)]) == 0
    assert f"resuming after step {steps - 2}" in capsys.readouterr().out
