"""Files and folders that may not be read: each command names them in one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.data.inspection import inspect_dataset

COMMAND = """
import ctypes, os, sys
from importlib import import_module
from vologan_fast import stopping
if os.geteuid() == 0:  # root may read all files, unless it drops its capabilities
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
stopping.run(import_module(sys.argv.pop(1)).main)
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=4, size=64)


def run(*arguments: object) -> str:
    """Run a command without the rights of root, and return its error."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("vologan_fast.data.__main__", ["inspect"]),
        ("vologan_fast.translate", ["--out", "out"]),
        pytest.param("vologan_fast.evaluate", [], marks=pytest.mark.slow),
        pytest.param("vologan_fast.export", ["--out", "out"], marks=pytest.mark.slow),
        pytest.param("vologan_fast.train", ["--preset", "demo", "--device", "cpu", "--data"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("closed", [".", "training_paths.json"])
def test_a_closed_folder_or_file_is_named(
    demo: Path, tmp_path: Path, module: str, arguments: list[str], closed: str
) -> None:
    folder = shutil.copytree(demo, tmp_path / "closed")
    (folder / closed).chmod(0)
    try:
        error = run(module, *arguments, folder)
    finally:
        (folder / closed).chmod(0o755)
    if closed == "." or module.endswith(("train", "__main__")):
        assert f"error: {folder}" in error
    if "no weights" not in error and "expected a run folder" not in error:
        assert "Permission denied" in error


@pytest.mark.parametrize("place", ["", "synthetic", "synthetic/color"])
def test_a_name_that_is_too_long_is_a_data_error(tmp_path: Path, place: str) -> None:
    """The system refuses to look at such a path. So this fault needs no rights."""
    folder = tmp_path / "data"
    (folder / place).mkdir(parents=True)
    if place:
        (folder / place / "inner").symlink_to("x" * 255 + "/" + "y" * 300)
        (folder / "real").symlink_to("z" * 300)
    else:
        folder = folder / ("x" * 300)
    with pytest.raises(DataError):
        load_dataset(str(folder), DataConfig(size=32), 0)
    with pytest.raises(DataError):
        inspect_dataset(folder, DataConfig(size=32), 4)
