"""`--data.on-error skip` in whole runs: the record of the bad images, resumed runs, ranks, and the report."""

import html
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from vologan_fast import evaluate
from vologan_fast.checksums import unsigned_line
from vologan_fast.config import DataConfig
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.report import __main__ as report
from vologan_fast.train import main
from vologan_fast.training.run_folder import read_config

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 4 --train.log-every 1 --train.validate-every 4
    --generator.width 4 --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8
    --discriminator.down-widths 4 4 8 --data.on-error skip --train.report-every -1
""")


@pytest.fixture
def whole_data(tmp_path):
    return make_demo(tmp_path / "demo", count=16, size=32)


@pytest.fixture
def data(whole_data):
    return damaged(whole_data)


def damaged(root):
    """Damage a training image of each domain, and a held-out one."""
    sets = load_dataset(root, DataConfig(size=32), 0)
    for record in (sets.train["synthetic"][3], sets.held_out["real"][0]):
        os.truncate(record.color, record.color.stat().st_size // 2)
    depth = sets.train["real"][5].depth
    depth.write_bytes(depth.read_bytes()[:-9])
    return root


def lines(path):
    return [unsigned_line(line) for line in path.read_bytes().splitlines(keepends=True)]


def losses(run):
    times = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in times} for line in lines(run / "metrics.jsonl")]


def weights(run, step):
    folder = run / f"checkpoints/step-{step:08d}"
    return {f"{path.stem}.{k}": v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def train(run, data, *options):
    return main([*TINY, "--run-dir", str(run), "--data", str(data), *options])


def test_a_resumed_run_replaces_the_same(tmp_path, data, capsys):
    """Its numbers, its weights and its record are those of a run that was not interrupted."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, data, "--max-steps", "8") == 0
    said = capsys.readouterr().err
    named = lines(whole / "skipped.jsonl")
    assert {(bad["split"], bad["domain"]) for bad in named} == {
        ("train", "synthetic"),
        ("train", "real"),
        ("held_out", "real"),
    }
    assert len(named) == 3 and said.count("bad image, replaced by another: ") == 3
    for bad in named:
        assert 1 <= bad["step"] <= 8 and str(data / bad["file"].rsplit("/", 2)[0]) in bad["reason"]
    for line in lines(whole / "metrics.jsonl"):
        known = [bad for bad in named if bad["step"] <= line["step"]]
        if line["split"] == "train":  # its step is validated after it
            known = [bad for bad in known if bad["split"] == "train" or bad["step"] < line["step"]]
        assert line["skipped"] == len(known), line

    assert train(parts, data, "--max-steps", "3") == 0
    assert main(["--resume", "--run-dir", str(parts), "--max-steps", "6"]) == 0
    # A killed process may leave lines of steps that are made again.
    with (parts / "skipped.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "split": "train", "domain": "real", "file": "x", "reason": "y"}) + "\n{cut")
    assert main(["--resume", "--run-dir", str(parts), "--max-steps", "8"]) == 0
    assert ".jsonl" not in capsys.readouterr().err  # no line is called lost
    again = lines(parts / "skipped.jsonl")
    assert {bad["file"] for bad in again} == {bad["file"] for bad in named} and len(again) == 3
    training = [[bad for bad in found if bad["split"] == "train"] for found in (named, again)]
    assert training[0] == training[1]  # the others are found when a part ends, which validates
    training = [
        [{k: v for k, v in line.items() if k != "skipped"} for line in losses(run) if line["split"] == "train"]
        for run in (whole, parts)
    ]
    assert training[0] == training[1]
    expected, found = weights(whole, 8), weights(parts, 8)
    assert expected.keys() == found.keys() and all(v.equal(found[k]) for k, v in expected.items())


def test_the_report_names_them(tmp_path, data):
    run = tmp_path / "run"
    assert train(run, data, "--max-steps", "4", "--train.report-every", "0") == 0
    page = html.unescape((run / "report.html").read_text())
    named = lines(run / "skipped.jsonl")
    assert len(named) >= 2
    assert f"{len(named)}, which others replaced" in page and f"{len(named)} bad images, which others replace" in page
    assert all(bad["reason"] in page for bad in named)


def test_evaluate_and_report_say_how_many(tmp_path, whole_data, capsys, monkeypatch):
    """The images broke after the training, so that only these commands can say so."""
    run = tmp_path / "run"
    assert train(run, whole_data, "--max-steps", "2") == 0
    bad = load_dataset(whole_data, read_config(run / "config.json")[1].data, 0).held_out["real"][0].color
    os.truncate(bad, bad.stat().st_size // 2)
    capsys.readouterr()
    baselines = {"affine(S)": lambda images: images}
    monkeypatch.setattr(evaluate, "_baselines", lambda *_: baselines)
    assert evaluate.main([str(run), "--bootstrap", "0", "--device", "cpu"]) == 0
    count = "1 image is bad and replaced by others (--data.on-error skip)"
    said = capsys.readouterr().err.splitlines()
    assert count in said and any(line.startswith(f"bad image, replaced by another: {bad}: ") for line in said)
    (named,) = json.loads((run / "evaluation" / "evaluation.json").read_text())["bad_images"]
    assert whole_data / named["file"] == bad and named["reason"].startswith(f"{bad}: ")
    assert "1 of the images that were read are bad." in (run / "evaluation" / "evaluation.md").read_text()
    assert report.main([str(run), "--device", "cpu"]) == 0
    assert count in capsys.readouterr().err.splitlines()
    assert "1 bad image" in html.unescape((run / "report.html").read_text())


def test_too_many_end_the_run_with_its_steps_and_the_record(tmp_path, data, capsys):
    """The resumed run may allow more."""
    run = tmp_path / "run"
    assert train(run, data, "--max-steps", "8", "--data.max-skipped", "1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 images are bad, more than --data.max-skipped 1; the last one: " in error, error
    assert len(lines(run / "skipped.jsonl")) == 2
    resumed = ["--resume"] if (run / "config.json").exists() else []
    assert main([*resumed, "--run-dir", str(run), "--max-steps", "8", "--data.max-skipped", "5"]) == 0


def test_a_run_that_a_bad_image_ended_goes_on_with_skip(tmp_path, whole_data, capsys):
    run = tmp_path / "run"
    assert train(run, whole_data, "--max-steps", "2", "--data.on-error", "raise") == 0
    damaged(whole_data)
    assert main(["--resume", "--run-dir", str(run), "--max-steps", "8"]) == 1
    assert "error: " in capsys.readouterr().err and not (run / "skipped.jsonl").exists()
    assert all("skipped" not in line for line in lines(run / "metrics.jsonl"))
    assert main(["--resume", "--run-dir", str(run), "--max-steps", "8", "--data.on-error", "skip"]) == 0
    assert len(lines(run / "skipped.jsonl")) == 3


@pytest.mark.slow
def test_two_processes_replace_the_same_and_name_each_file_once(tmp_path, data):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, data, "--max-steps", "8", "--train.precision", "float32") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vologan_fast.train", *TINY]
    command += ["--run-dir", str(two), "--data", str(data), "--max-steps", "8", "--train.precision", "float32"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr

    def named(run):
        return sorted((bad["file"], bad["step"], bad["reason"]) for bad in lines(run / "skipped.jsonl"))

    assert named(two) == named(one)
    first = [next(line["generator_st/total"] for line in losses(run) if line["split"] == "train") for run in (one, two)]
    np.testing.assert_allclose(*first, rtol=1e-4)  # the ranks round other sums
