"""What is drawn from quantities: curves, packed clouds, grids that fit, text that plotly.js shows as it is."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vologan_fast.config import Config
from vologan_fast.quantities.clouds import Cloud
from vologan_fast.report import sections
from vologan_fast.report.figures import POINTS, array, curve, label, packed_cloud
from vologan_fast.report.page import ReportError, Slider
from vologan_fast.report.record import RunRecord, find_grids, read_lines, read_tables


def unpacked(packed: dict[str, object]) -> np.ndarray:
    places = np.frombuffer(base64.b64decode(str(packed["points"])), "<u2").reshape(-1, 3)
    return np.array(packed["low"]) + np.array(packed["size"]) * places / 65535


def test_a_packed_cloud_stands_upright_and_is_not_mirrored() -> None:
    points = np.array([[0.5, -1.0, 2.0], [-0.5, 1.0, 3.0]], np.float32)  # right and above; left, below and behind
    packed = packed_cloud(Cloud(points, np.array([[1, 2, 3], [4, 5, 6]], np.uint8)))
    assert unpacked(packed) == pytest.approx(np.array([[0.5, 2, 1], [-0.5, 3, -1]]), abs=1e-4)
    assert base64.b64decode(packed["colors"]) == bytes([1, 2, 3, 4, 5, 6])
    assert packed_cloud(Cloud(points[:0], np.zeros((0, 3), np.uint8)))["points"] == ""


def test_long_curves_are_averaged_and_gaps_of_other_lines_left_out() -> None:
    lines = [{"step": i, "split": "train", "loss": float(i % 2)} for i in range(1, 4 * POINTS + 1)]
    steps, values = curve(lines, "loss")
    assert len(steps) == POINTS and steps[-1] == 4 * POINTS and set(values) == {0.5}
    assert curve([{"step": 1}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": "x"}], "loss") == ([2], [3.0])


def test_numbers_are_packed_with_their_gaps() -> None:
    found = np.frombuffer(base64.b64decode(array([1.0, np.nan, -2.5])["bdata"]), "<f4")
    assert found[[0, 2]].tolist() == [1, -2.5] and np.isnan(found[1])


def test_html_in_labels_is_text() -> None:
    assert label("<b>&amp;\x1b") == "&lt;b&gt;&amp;amp;\\x1b"


def test_a_log_that_is_being_written_is_read_up_to_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == [] and read_tables(tmp_path / "none") == []
    path.write_text('{"step": 1, "split": "train"}\n7\n{"step": "x", "split": "train"}\n{"step": 2, "sp')
    assert read_lines(path) == [{"step": 1, "split": "train"}]


def record(folder: Path) -> RunRecord:
    return RunRecord("run", folder, "data", Config(), [], find_grids(folder), [], None, [])


def test_grids_of_many_steps_fit_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 240, 3), np.uint8)
    for step in range(1, 41):
        Image.fromarray(np.roll(noise, step)).save(tmp_path / f"step-{step:08d}.png")
    whole = sections.grids([record(tmp_path)])
    assert whole is not None and isinstance(whole.parts[0], Slider)
    assert len(whole.parts[0].frames) == sections.GRIDS and "24 of 40 steps" in whole.how
    assert [whole.parts[0].frames[i][0] for i in (0, -1)] == [1, 40]
    one = len(whole.parts[0].frames[0][1][0][1])
    monkeypatch.setattr(sections, "GRID_BYTES", 6 * one)
    few = sections.grids([record(tmp_path)])
    assert few is not None and isinstance(few.parts[0], Slider)
    steps = [step for step, _ in few.parts[0].frames]
    assert 1 < len(steps) <= 6 and (steps[0], steps[-1]) == (1, 40) and f"{len(steps)} of 40 steps" in few.how


def test_a_grid_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.png").write_bytes(b"no picture")
    with pytest.raises(ReportError, match=r"step-00000001\.png: not a JPEG or PNG image"):
        sections.grids([record(tmp_path)])
    assert sections.grids([record(tmp_path / "nothing")]) is None
