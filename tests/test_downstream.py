"""Test of bench/downstream.py from a translator to the figure, with a few images and steps."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vologan_fast.data.demo import make_demo
from vologan_fast.train import main

TINY = {
    "--preset": ["demo"],
    "--device": ["cpu"],
    "--max-steps": ["2"],
    "--data.size": ["32"],
    "--train.batch": ["2"],
    "--generator.width": ["4"],
    "--generator.max-width": ["8"],
    "--generator.levels": ["2"],
    "--discriminator.widths": ["4", "4", "8"],
    "--discriminator.down-widths": ["4", "4", "8"],
    "--train.report-every": ["-1"],
}
BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def downstream() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # it imports bench/learn.py
    spec = importlib.util.spec_from_file_location("downstream", BENCH / "downstream.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(BENCH))
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two steps with tiny networks, on a demo of 10 images."""
    folder = tmp_path_factory.mktemp("downstream")
    data = make_demo(folder / "data", count=10, size=32)
    tiny = [word for option, values in TINY.items() for word in (option, *values)]
    assert main([*tiny, "--data", str(data), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def test_all_kinds_are_trained_and_judged(
    downstream: ModuleType,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"TEST": 2, "STEPS": 3, "BATCH": 2, "BOOTSTRAP": 20}.items():
        monkeypatch.setattr(downstream, name, value)
    figure = tmp_path / "figure.png"
    arguments = [str(run), "--folder", str(tmp_path), "--seeds", "0", "1", "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["downstream.py", *arguments])
    assert downstream.main() == 0
    assert figure.read_bytes()[:4] == b"\x89PNG"
    result = json.loads((tmp_path / "downstream.json").read_text())
    assert set(result["measures"]) == {"the sensor itself", "S", "noise(S)", "G(S)", "T"}
    for measures in result["measures"].values():
        for name in ("error", "rmse", "edges", "inside"):
            value, low, high = measures[name]
            assert 0 < low <= value * 1.001 and value <= high * 1.001
    assert result["settings"]["training images"] == 8
    assert "| G(S) - noise(S) |" in capsys.readouterr().out


def test_a_run_that_is_missing_has_the_name_of_a_seed(downstream: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a run folder, or a name seed-N"):
        downstream.train_translator(tmp_path / "mine")


def test_errors_are_those_of_known_depth(downstream: ModuleType) -> None:
    """A surface that is 1 cm too far everywhere, and one hole that is 10 cm too far."""
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 0.5  # 3 m
    images = torch.cat([(truth > 0).float().expand(-1, 3, -1, -1), truth], 1)
    images[0, 3, 8, 8] = 0
    depth = truth + 0.005
    depth[0, 0, 8, 8] = 0.55
    sums = downstream.error_sums(images, truth, depth)[None]
    found = dict(zip(downstream.MEASURES, downstream.measure(sums, np.arange(1), np.arange(1)), strict=True))
    assert found["error"] == pytest.approx((63 * 1 + 10) / 64, rel=1e-3)
    assert found["rmse"] == pytest.approx(((63 * 1 + 100) / 64) ** 0.5, rel=1e-3)
    assert found["in 1 %"] == pytest.approx(63 / 64)  # 1 % is 3 cm
    assert found["in 2 cm"] == pytest.approx(63 / 64)
    assert found["holes"] == pytest.approx(10, rel=1e-3)
    assert found["edges"] == pytest.approx(1, rel=1e-3)
    inside = downstream.surface(images, truth) & ~downstream.near_edges(truth)
    assert int(inside.sum()) == 4 * 4  # two pixels less on each side
    assert found["inside"] == pytest.approx((15 * 1 + 10) / 16, rel=1e-3)


def test_an_interval_covers_the_scatter_of_images_and_seeds(downstream: ModuleType) -> None:
    rng = np.random.default_rng(1)
    per_image = rng.normal(3, 1, 50) + np.array([-0.5, 0, 0.5]).reshape(3, 1, 1, 1)
    sums = np.concatenate([np.broadcast_to(per_image, (3, 7, 1, 50)), np.ones((3, 7, 1, 50))], 2)
    found = downstream.judge(dict.fromkeys(("S", "noise(S)", "G(S)", "T"), sums))
    value, low, high = found["measures"]["S"]["error"]
    assert value == pytest.approx(per_image.mean())
    # Deviations of the mean: of 50 images 1 / √50 = 0.14, of three seeds 0.41 / √3 = 0.24; together 0.27.
    assert (high - low) / 4 == pytest.approx(0.27, rel=0.25)
    assert found["differences"]["G(S) - S"] == [0, 0, 0]
