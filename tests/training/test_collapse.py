"""A validation says once that a generator has collapsed, and says nothing about one that has not."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_train import ONE_THREAD, TINY

from vologan_fast.data.demo import make_demo


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=8, size=32)


def train(run, data, *options):
    """Train in another process. Return what it says on its standard error output."""
    command = [sys.executable, "-m", "vologan_fast.train", *TINY, "--run-dir", run, "--data", data, *options]
    command += ["--train.validate-every", "1", "--data.held-out", "0.5"]
    done = subprocess.run(list(map(str, command)), env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def paint_all_alike(checkpoint: Path) -> None:
    """Let the generator S → T make the same image of all images."""
    path = checkpoint / "generator_st.safetensors"
    weights = load_file(path)
    weights["to_image.bias"].fill_(-20.0)  # the output is clamped to 0, as the background is
    save_file(weights, path)
    (checkpoint / "checksums.json").unlink()  # it is changed on purpose


def test_a_collapsed_generator_is_said_once(tmp_path, data):
    assert "collapsed" not in train(tmp_path / "first", data, "--max-steps", 1)
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000001"
    paint_all_alike(checkpoint)
    options = ["--max-steps", 3, "--init-from", checkpoint, "--generator-optimizer.learning-rate", 1e-12]
    said = train(tmp_path / "second", data, *options)
    assert said.count("warning: step 1: G(S) has collapsed: two translations differ by 0.0000 on average") == 1, said
    assert said.count("collapsed") == 1 and "F(T)" not in said
    assert "Try a larger --loss.cycle" in said
