"""`--log`: what a run writes for TensorBoard, Weights & Biases, Trackio, and the recording for Rerun."""

from __future__ import annotations

import importlib.util
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import EVIL, TINY, trained

from vologan_fast import train
from vologan_fast.report.__main__ import main
from vologan_fast.training import loggers
from vologan_fast.words import printable


def test_tensorboard_has_the_quantities_of_the_report(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"histograms": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {"samples", "holes/G(S)", "discriminators/D_T/0", "best/S to T/0", "worst/T to S/0"} <= set(tags["images"])
    assert {"depth/S", "depth/F(T)", "red/G(S)", "weights/generator_st"} <= set(tags["histograms"])
    assert any(name.startswith("sigma/discriminator_t/") for name in tags["scalars"])
    (histogram,) = events.Histograms("weights/generator_st")
    assert histogram.step == 3 and histogram.histogram_value.num == sum(histogram.histogram_value.bucket)


def test_names_of_files_are_text_in_tensorboard(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugin_util import markdown_to_safe_html

    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"tensors": 0})
    events.Reload()
    (event,) = events.Tensors("report/pictures/text_summary")
    (text,) = event.tensor_proto.string_val
    shown = markdown_to_safe_html(text)
    assert "<script" not in shown and "<img" not in shown and "\x1b" not in shown
    assert "&lt;/script&gt;&lt;script&gt;window.hacked=1;&lt;img src=x" in shown and "<pre><code>" in shown
    assert printable(EVIL)[-10:] in shown


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_logs_to_other_clients_on_this_machine(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip(name)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vologan_fast.train", *TINY, "--data", str(demo), "--run-dir", str(run)]
    command += ["--max-steps", "2", "--log", name]
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "the run goes on without it" not in done.stderr, done.stderr
    assert not (run / "tensorboard").exists() and (run / "report.html").exists()
    if name == "wandb":
        (offline,) = (run / "wandb").glob("offline-run-*")
        (log,) = offline.glob("*.wandb")
        content = log.read_bytes()
        assert b"train/generator_st/cycle" in content and b"weights/generator_st" in content
        assert list((offline / "files" / "media" / "images" / "holes").glob("*.png"))
    else:
        (database,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(database) as opened:
            rows = [str(row) for row in opened.execute("select * from metrics")]
        for metric in ("train/generator_st/cycle", "weights/generator_st"):
            assert any(metric in row for row in rows)


def test_an_unknown_and_a_missing_logger_are_refused_before_training(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(log: str) -> str:
        assert train.main([*TINY, "--data", str(demo), "--run-dir", str(tmp_path / "run"), "--log", log]) == 1
        assert not (tmp_path / "run").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert error("tensorboard,\x1bmlflow") == (
        "error: --log tensorboard,\\x1bmlflow: found '\\\\x1bmlflow', expected names of tensorboard, wandb, trackio "
        "with commas between them, or none"
    )
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    assert error("wandb") == (
        "error: --log wandb: the package wandb is not installed; pip install 'vologan-fast[wandb]'"
    )


def test_a_logger_that_fails_is_left_out_with_a_sentence(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("the server\nis away")

    monkeypatch.setattr(loggers.TensorBoard, "scalars", fail)
    trained(tmp_path / "run", demo, "--max-steps", "2", "--train.report-every", "-1")
    assert capsys.readouterr().err == "--log tensorboard: the server; the run goes on without it\n"


def test_without_loggers_a_run_writes_metrics_alone(demo: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", demo, "--max-steps", "1", "--log", "none", "--train.report-every", "-1")
    assert not (run / "tensorboard").exists() and (run / "metrics.jsonl").read_text().count("\n") == 2


def test_a_recording_for_rerun_has_images_pinhole_and_clouds_along_the_steps(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rerun")
    path = tmp_path / "deep" / "run.rrd"
    assert main([str(run), "--rerun", str(path), "--device", "cpu"]) == 0
    assert f"recording: {path}" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]
    assert subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)]).returncode == 0
    printed = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "print", "-vv", str(path)], capture_output=True, text=True, check=True
    ).stdout
    for entity in ("input/camera/color", "translation/camera/depth", "cycle/points"):
        assert printed.count(f"/S_to_T/0/{entity}") >= 3, entity  # once a step
    for component in ("Pinhole", "DepthImage", "Points3D", "step"):
        assert component in printed


def test_a_recording_without_rerun_and_of_two_runs_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(run), str(run), "--rerun", str(tmp_path / "a.rrd")]) == 1
    assert capsys.readouterr().err == "error: --rerun: expected one run folder and no --output\n"
    assert main([str(run), "--rerun", str(tmp_path / "a.rrd"), "--checkpoint", "best"]) == 1
    assert "expected no such option with --rerun" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main([str(run), "--rerun", str(tmp_path / "a.rrd")]) == 1
    expected = "error: --rerun: the package rerun-sdk is not installed; pip install 'vologan-fast[rerun]'\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []
