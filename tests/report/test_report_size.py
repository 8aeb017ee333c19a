"""A report fits into its limits of bytes and of points, whatever the steps, the runs, and the size of the images."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("plotly")
from vologan_fast.quantities.observation import Observation
from vologan_fast.report.__main__ import main
from vologan_fast.report.page import LIMIT, Clouds
from vologan_fast.report.record import RunRecord
from vologan_fast.report.sections import clouds
from vologan_fast.training import run_report
from vologan_fast.training.run_report import write_report

HEIGHT, WIDTH = 480, 512
RANDOM = np.random.default_rng(0)


@pytest.fixture
def looked_at(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunRecord, Observation]:
    """Return what a report shows of a small run."""
    kept: list[tuple[RunRecord, Observation]] = []

    def keep(path: Path, runs: list[tuple[RunRecord, Observation]], *more: object) -> Path:
        kept.extend(runs)
        path.touch()
        return path

    monkeypatch.setattr(run_report, "write_report", keep)
    assert main([str(run), "--output", str(tmp_path / "kept"), "--device", "cpu"]) == 0
    return kept[0]


def enlarged(value: Any) -> Any:
    """Return an observation in which all images and maps are large and full of noise, so that nothing compresses."""
    if isinstance(value, np.ndarray) and value.ndim >= 2 and value.dtype == np.float32:
        return RANDOM.uniform(0.01, 0.99, (*value.shape[:-2], HEIGHT, WIDTH)).astype(np.float32)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: enlarged(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if hasattr(value, "_fields"):  # a named tuple, such as Channels
        return value
    if isinstance(value, dict):
        return {name: enlarged(found) for name, found in value.items()}
    return tuple(enlarged(found) for found in value) if isinstance(value, tuple) else value


def noisy(observation: Observation) -> Observation:
    names = "directions", "verdicts", "hole_maps"
    return dataclasses.replace(observation, **{name: enlarged(getattr(observation, name)) for name in names})


@pytest.mark.parametrize("runs", [1, 6])
def test_a_report_of_many_steps_and_of_large_images_is_small_enough(
    looked_at: tuple[RunRecord, Observation], tmp_path: Path, runs: int
) -> None:
    record, observation = looked_at
    grid = tmp_path / "grid.png"
    Image.fromarray(RANDOM.integers(0, 256, (450, 800, 3), np.uint8)).save(grid, compress_level=0)
    steps = 5000
    lines = [
        {**line, "step": step} | {name: step / 7 for name in line if name not in ("step", "split")}
        for line in (record.of("train")[-1], record.of("held_out")[-1])
        for step in range(1, steps + 1)
    ]
    long = dataclasses.replace(record, lines=lines, grids=[(step, grid) for step in range(100, steps, 100)])
    large = noisy(observation)
    many = [(dataclasses.replace(long, name=f"run {i}"), large) for i in range(runs)]
    path = write_report(tmp_path / "report.html", many)
    print(f"{runs} runs: {path.stat().st_size / 1e6:.1f} MB")
    assert path.stat().st_size < LIMIT


@pytest.mark.parametrize("runs", [1, 6])
def test_a_turn_draws_a_limited_number_of_points(looked_at: tuple[RunRecord, Observation], runs: int) -> None:
    record, observation = looked_at
    section = clouds([(record, noisy(observation))] * runs, 60.0)
    assert section is not None
    (part,) = section.parts
    assert isinstance(part, Clouds)
    for beside in part.choices.values():
        points = [len(base64.b64decode(found["points"])) // 6 for found in beside]
        assert len(points) == (3 if runs == 1 else runs + 1)
        assert min(points) > 1000 and sum(points) <= 24_000
