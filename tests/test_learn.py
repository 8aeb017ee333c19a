"""Test of bench/learn.py from the data to the exit code, with a few images and steps."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def learn() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learn", Path(__file__).parents[1] / "bench" / "learn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scored(change: float, **other: float) -> dict[str, dict[str, float]]:
    """Return the result of a run whose numbers all change by `change`, and some by another factor."""
    before = dict.fromkeys(("colour", "depth", "depth_gradient", "paired_error"), 1.0)
    after = {name: 1 + other.get(name, change) for name in before}
    return {"S": before, "affine(S)": before, "G(S)": after}


def test_goals_hold_for_each_seed_and_for_the_mean(learn: ModuleType) -> None:
    assert learn.missed([scored(-0.9)]) == learn.missed([scored(-0.9), scored(-0.85)]) == []
    assert learn.missed([scored(-0.9), scored(-0.9, colour=-0.25)]) == ["colour"]
    assert learn.missed([scored(-0.9), scored(-0.9, depth_gradient=-0.65)]) == ["mean of depth_gradient"]
    assert learn.missed([scored(-0.9), scored(-0.9, depth_gradient=-0.5)]) == [
        "depth_gradient",
        "mean of depth_gradient",
    ]
    assert learn.missed([scored(-0.9, depth_gradient=-0.65)]) == []  # one seed has no mean
    assert learn.missed([scored(-0.9, paired_error=-0.05)]) == ["paired error, against affine"]


@pytest.mark.slow
def test_a_run_is_trained_scored_and_judged(
    learn: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learn, "IMAGES", 10)
    monkeypatch.setattr(learn, "PAIRED", 2)
    monkeypatch.setattr(learn, "SIZE", 32)
    monkeypatch.setattr(learn, "best_affine", functools.partial(learn.best_affine, steps=2))
    settings = ["--max-steps", "2", "--train.batch", "2", "--data.size", "32"]
    monkeypatch.setattr(sys, "argv", ["learn.py", "--seeds", "0", "--folder", str(tmp_path), *settings])
    assert learn.main() == 1  # two steps teach nothing
    assert "GOALS MISSED" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "learn.json").read_text())
    assert set(result) == {"S", "affine(S)", "G(S)", "noise floor"}
    assert all(result[name]["paired_error"] > 0 for name in ("S", "affine(S)", "G(S)"))
