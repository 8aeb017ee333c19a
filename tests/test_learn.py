"""Test of bench/learn.py from the data to the exit code, with a few images and steps."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_is_trained_scored_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("learn", Path(__file__).parents[1] / "bench" / "learn.py")
    assert spec is not None and spec.loader is not None
    learn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(learn)
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
