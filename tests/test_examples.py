"""The scripts in examples/, run as a reader runs them. Their results must be as described."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vologan_fast import depth
from vologan_fast.data.demo import make_demo

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run a script on one thread, since the tensors are small. Return its standard output and its errors."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=10, size=32)


def test_every_example_has_a_test():
    tested = Path(__file__).read_text()
    assert not [script.name for script in EXAMPLES.glob("*.py") if f'run("{script.name}"' not in tested]


def test_kernels_in_another_gan_learns():
    printed, _ = run("kernels_in_another_gan.py")
    distances = [float(value) for value in re.findall(r"L1 (\S+),", printed)]
    assert len(distances) == 30
    assert distances[-1] < 0.1 < 0.3 < distances[0]


def test_fuse_a_model_keeps_less_and_is_as_exact():
    printed, _ = run("fuse_a_model.py")
    assert printed.startswith("Fused (3):\n  1: instance norm + leaky_relu(0.2)")
    assert "3.norms.1: instance norm + residual" in printed
    found = re.findall(r"^(original|fused): error (\S+), keeps (\S+) MiB, (\S+) ms$", printed, re.MULTILINE)
    (_, error, kept, _), (_, fused_error, fused_kept, _) = found
    # Errors of a float32 network with five layers, against float64. The bound of `fuse`: twice the plain error, plus 4
    # roundings.
    assert float(fused_error) <= 2 * float(error) + 4 * 2**-23
    assert float(fused_kept) < 0.7 * float(kept)


def test_own_training_loop_learns_from_a_data_set(demo):
    printed, _ = run("own_training_loop.py", demo, "--size", 32, "--steps", 40)
    assert "synthetic: 8 training and 2 held-out images" in printed
    losses = [float(value) for value in re.findall(r"step \d+: loss (\S+)", printed)]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert "{'step': 40}" in printed
    assert len(re.findall(r"held-out (?:synthetic|real): loss 0\.\d+", printed)) == 2


def test_own_training_loop_refuses_a_folder_without_images(tmp_path):
    _, errors = run("own_training_loop.py", tmp_path, code=1)
    assert "no images found" in errors


def test_decode_depth_gives_arrays_and_a_line_for_each_file(demo, tmp_path):
    folder = tmp_path / "depth"
    (folder / "phone").mkdir(parents=True)
    shutil.copy(demo / "real" / "0003.exr", folder / "phone" / "scan.exr")
    metres = np.array([[0.5, 2], [np.nan, 4]], np.float32)
    np.save(folder / "metres.npy", metres)
    Image.fromarray(np.full((3, 5), 1500, np.uint16)).save(folder / "millimetres.png")
    (folder / "notes.txt").write_text("no depth")
    saved = tmp_path / "depth.npz"
    printed, _ = run("decode_depth.py", folder, "--save", saved)
    lines = printed.splitlines()
    assert lines[0] == "metres.npy: npy none, 2 × 2, Y float32: 0.5 to 4, 25.0% not finite"
    assert lines[1] == "millimetres.png: png deflate, 5 × 3, Y uint16: 1500 to 1500, 0.0% not finite"
    assert lines[2].startswith("phone/scan.exr: exr zip, 32 × 32, Z float16: -1 to ")
    assert lines[3] == "3 decoded, 0 broken"
    with np.load(saved) as images:
        assert set(images) == {"metres.npy", "millimetres.png", "phone/scan.exr"}
        np.testing.assert_array_equal(images["metres.npy"], metres)
        np.testing.assert_array_equal(images["phone/scan.exr"], depth.decode(folder / "phone" / "scan.exr"))


def test_decode_depth_names_broken_files_and_goes_on(demo, tmp_path):
    (tmp_path / "a.exr").write_bytes((demo / "real" / "0000.exr").read_bytes()[:-100])
    np.save(tmp_path / "b.npy", np.zeros((2, 2), np.float32))
    printed, errors = run("decode_depth.py", tmp_path, code=1)
    assert printed.splitlines() == ["b.npy: npy none, 2 × 2, Y float32: 0 to 0, 0.0% not finite", "1 decoded, 1 broken"]
    assert errors.startswith(f"broken: {tmp_path / 'a.exr'}: ")


def test_decode_depth_says_when_there_is_nothing(tmp_path):
    _, errors = run("decode_depth.py", tmp_path, code=1)
    assert errors == f"{tmp_path}: expected files that end with .exr, .png, .npy, .pfm, .tif, .tiff, .npz, found none\n"
