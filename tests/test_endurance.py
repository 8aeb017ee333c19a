"""bench/endurance.py notices what grows, and says so of a real run."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def endurance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "endurance.py"
    spec = importlib.util.spec_from_file_location("endurance", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "endurance", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["memory", "handles", "threads", "fixed_disk", "left"])
def test_what_grows_is_named(endurance: ModuleType, name: str) -> None:
    flat = [endurance.Sample(step, 500, 6, 5, step, 100, 0) for step in range(1, 81)]
    assert endurance.grown(endurance.summary(flat, 80)) == []
    growing = [dataclasses.replace(s, **{name: getattr(s, name) + s.step}) for s in flat]
    (found,) = endurance.grown(endurance.summary(growing, 80))
    assert found.startswith(f"{name} from ")


@pytest.mark.slow
def test_a_short_run(
    endurance: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two validations, reports and checkpoints. So few steps say nothing about memory."""
    monkeypatch.setattr(endurance, "SLACK", 10.0)
    monkeypatch.setattr(endurance, "ROWS", 4)
    options = ["--train.validate-every", "10", "--train.save-every", "10", "--train.log-every", "1"]
    monkeypatch.setattr(sys, "argv", ["endurance.py", "--steps", "40", *options])
    endurance.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == ["| up to step", "| 10", "| 20", "| 30", "| 40"]
