"""The command `python -m vologan_fast.translate` on real runs, and what becomes of it when it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_run

import vologan_fast
from vologan_fast import depth as depth_files
from vologan_fast import train
from vologan_fast.config import ConfigError
from vologan_fast.data.demo import make_demo
from vologan_fast.data.pack import pack
from vologan_fast.training.checkpoint import CheckpointError
from vologan_fast.translate import main
from vologan_fast.translation.inputs import find_inputs
from vologan_fast.translation.job import claimed, translate_files

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = [
    "--preset",
    "demo",
    "--device",
    "cpu",
    "--data.size",
    "32",
    "--train.batch",
    "2",
    "--generator.width",
    "4",
    "--generator.max-width",
    "8",
    "--generator.levels",
    "2",
    "--discriminator.widths",
    "4",
    "4",
    "8",
    "--discriminator.down-widths",
    "4",
    "4",
    "8",
    "--max-steps",
    "2",
    "--train.save-every",
    "1",
    "--train.report-every",
    "-1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=48)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main([*TINY, "--run-dir", str(folder), "--data", str(data)]) == 0
    return folder


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".jpg", ".exr")}


def test_a_run_translates_its_own_data(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--out", str(tmp_path / "out"), "--direction", "both"]) == 0
    assert "s2t: 6 written, 0 kept, 0 broken" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a child that this process forks can be ended
    written = files(tmp_path / "out")
    assert list(written) == [name for name in files(data) if name.split("/")[0] in ("synthetic", "real")]
    for name in written:
        if name.endswith(".exr"):
            before, after = depth_files.decode(data / name), depth_files.decode(tmp_path / "out" / name)
            assert depth_files.probe(tmp_path / "out" / name).channels == depth_files.probe(data / name).channels
            assert ((before == -1) == (after == -1)).all()  # background
            assert np.isfinite(after[before != -1]).any()
    lines = [json.loads(line) for line in (tmp_path / "out/translated.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0]["from"]["color"] == str(data / lines[0]["color"])
    assert lines[0]["weights"] == str(run / "checkpoints/step-00000002/average_st.safetensors")


def test_a_module_says_what_its_images_mean(run: Path) -> None:
    model = vologan_fast.load(run, device="cpu")
    assert (model.channels, model.source.near, model.source.far, model.source.unit) == (4, -1.0, 1.0, "normalized")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x = torch.rand(2, 4, 37, 5)
    assert model(x).shape == x.shape and model(x).dtype == torch.float32
    whole = torch.rand(1, 4, 32, 16)
    assert torch.equal(model(whole), model.generator(whole))
    with pytest.raises(ValueError, match="expected \\(N, 4, H, W\\)"):
        model(x[0])
    other = vologan_fast.load(run / "checkpoints/step-00000002/generator_ts.safetensors", device="cpu")
    assert other.direction == "t2s"
    assert vologan_fast.load(run / "checkpoints/step-00000001", averages=False).weights.parent.name == "step-00000001"


def test_paths_without_weights(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty", run / "config.json"):
        with pytest.raises(CheckpointError, match=str(path)):
            vologan_fast.load(path)
    with pytest.raises(ConfigError, match="direction is 'x'"):
        vologan_fast.load(run, "x")  # type: ignore[arg-type]


def test_only_what_is_missing_or_changed_is_made_again(run: Path, data: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    subprocess.run(["cp", "-r", str(data), str(source)], check=True)

    def again() -> tuple[int, int]:
        before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
        assert main([str(run), "--data", str(source), "--out", str(out)]) == 0
        same = sum((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
        return len(files(out)), same

    assert again() == (12, 0)
    assert again() == (12, 12)
    names = list(files(out))
    (out / names[0]).unlink()
    assert again() == (12, 10)  # both files of the image
    (out / names[0]).write_bytes(b"cut")
    assert again() == (12, 10)
    changed = Image.open(source / names[1]).rotate(180)
    changed.save(source / names[1])
    assert again() == (12, 10)
    log = out / "translated.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # a line that was cut off
    assert again() == (12, 10)
    assert again() == (12, 12)
    assert main([str(run / "checkpoints/step-00000001"), "--data", str(source), "--out", str(out)]) == 0
    assert again() == (12, 0)  # other weights


def test_shards_and_a_manifest_give_the_same_files(run: Path, data: Path, tmp_path: Path) -> None:
    pack(data, tmp_path / "shards", shard_size=4)
    for source in (data, tmp_path / "shards"):
        assert main([str(run), "--data", str(source), "--out", str(tmp_path / f"out-{source.name}")]) == 0
    expected, found = (sorted(files(tmp_path / f"out-{name}").values()) for name in (data.name, "shards"))
    assert expected == found


def test_broken_files_are_named_and_the_others_translated(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(data), str(source)], check=True)
    depth = next(name for name in files(source) if name.startswith("synthetic/") and name.endswith(".exr"))
    (source / depth).write_bytes((source / depth).read_bytes()[:-100])
    assert main([str(run), "--data", str(source), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "5 written, 0 kept, 1 broken" in captured.out
    assert f"broken: {source / depth}: " in captured.err


def test_depth_of_another_kind_than_the_run_s_is_named(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    color = next((data / "synthetic").rglob("*.jpg"))
    Image.fromarray(np.full((48, 48), 2000, np.uint16)).save(tmp_path / "depth.png")
    options = ["--data", str(color), "--depth", str(tmp_path / "depth.png"), "--out", str(tmp_path / "out")]
    assert main([str(run), *options]) == 1
    expected = (
        f"broken: {tmp_path / 'depth.png'}: found uint16 depth, expected float values, as the synthetic images of the "
        "run have them (is it the right --direction?)"
    )
    assert expected in capsys.readouterr().err


def command(run: Path, data: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "vologan_fast.translate", str(run), "--data", str(data), "--out", str(out)]


@pytest.mark.slow
def test_30_kills_leave_no_broken_file(run: Path, data: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(0)
    assert subprocess.run(command(run, data, tmp_path / "whole"), env=ONE_THREAD).returncode == 0
    expected = files(tmp_path / "whole")
    for _ in range(30):
        running = subprocess.Popen(command(run, data, out), env=ONE_THREAD, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (out / "translated.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        running.send_signal(signal.SIGKILL)
        running.wait()
        found = files(out)
        assert found == {name: expected[name] for name in found}
        if len(found) == len(expected):
            subprocess.run(["rm", "-r", str(out)], check=True)
    assert subprocess.run(command(run, data, out), env=ONE_THREAD).returncode == 0
    assert files(out) == expected


@pytest.mark.slow
def test_several_processes_write_each_file_once(run: Path, data: Path, tmp_path: Path) -> None:
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        *command(run, data, tmp_path / "two")[1:],
    ]
    assert subprocess.run(two, env=ONE_THREAD).returncode == 0
    assert main([str(run), "--data", str(data), "--out", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
    names = [json.loads(line)["color"] for line in (tmp_path / "two/translated.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names)) == 6


def test_one_image_whose_files_have_equal_names(tmp_path: Path) -> None:
    for folder, image in (("color", np.zeros((32, 32, 3), np.uint8)), ("depth", np.full((32, 32), 2000, np.uint16))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / folder / "000.png")
    found = find_inputs(str(tmp_path / "data" / "color" / "000.png"), "synthetic")
    assert [(input_.color, input_.depth) for input_ in found] == [("000.png", "000.depth.png")]


def manifest(data: Path, folder: Path, pairs: list[tuple[int, int]]) -> Path:
    """Write a manifest whose synthetic images are pairs of a colour and a depth file of `data`."""
    listed = json.loads((data / "training_paths.json").read_text())
    colors, depths = ([item[f"{part}_path"] for item in listed["synthetic_data"]] for part in ("color", "depth"))
    subprocess.run(["cp", "-r", str(data), str(folder)], check=True)
    listed["synthetic_data"] = [{"color_path": colors[c], "depth_path": depths[d]} for c, d in pairs]
    (folder / "training_paths.json").write_text(json.dumps(listed))
    return folder


def test_an_image_that_is_listed_twice_is_translated_once(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = manifest(data, tmp_path / "source", [(0, 0), (1, 1), (0, 0), (0, 0)])
    assert main([str(run), "--data", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "s2t: 2 written, 0 kept, 0 broken" in capsys.readouterr().out


@pytest.mark.parametrize("pairs", [[(0, 0), (0, 1)], [(0, 0), (1, 1), (2, 1)]])
def test_two_images_that_share_a_file_are_refused(
    run: Path, data: Path, tmp_path: Path, pairs: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = manifest(data, tmp_path / "source", pairs)
    assert main([str(run), "--data", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "two images share this file" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_written(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    subprocess.run(["cp", "-r", str(data), str(theirs)], check=True)
    before = files(theirs)
    assert main([str(run), "--data", str(data), "--out", str(theirs)]) == 1
    assert "and no translated.jsonl; expected a new folder" in capsys.readouterr().err
    assert files(theirs) == before and not (theirs / "translated.jsonl").exists()


def test_one_command_at_a_time_writes_a_folder(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "out"):
        assert main([str(run), "--data", str(data), "--out", str(tmp_path / "out")]) == 1
        assert "another command is writing into it" in capsys.readouterr().err
    assert main([str(run), "--data", str(data), "--out", str(tmp_path / "out")]) == 0


def test_the_other_direction_never_replaces_a_translation(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, suffix in (("color", ".jpg"), ("depth", ".exr")):
        (tmp_path / "one" / part).mkdir(parents=True)
        for path in (data / "synthetic").glob(f"*{suffix}"):
            (tmp_path / "one" / part / path.name).write_bytes(path.read_bytes())
    command = [str(run), "--data", str(tmp_path / "one"), "--out", str(tmp_path / "out")]
    assert main([*command, "--direction", "both"]) == 1
    assert "would both be translated" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(command) == 0
    before = files(tmp_path / "out")
    assert main([*command, "--direction", "t2s"]) == 1
    assert "holds a translation in the other direction" in capsys.readouterr().err
    assert files(tmp_path / "out") == before and len(before) == 12


def test_a_stop_is_noticed_where_nothing_is_to_do(run: Path, data: Path, tmp_path: Path) -> None:
    assert main([str(run), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    model = vologan_fast.load(run, device="cpu")
    done = translate_files(model, find_inputs(str(data), "synthetic"), tmp_path / "out", stop=lambda: True)
    assert (done.stopped, done.kept, done.written) == (True, 0, 0)


def test_an_image_that_cannot_be_written_does_not_end_the_job(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name is too long for the file under which it is first written."""
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(data), str(source)], check=True)
    listed = json.loads((source / "training_paths.json").read_text())
    item = listed["synthetic_data"][0]
    long = f"{'n' * 247}.jpg"
    (source / item["color_path"]).rename(source / long)
    item["color_path"] = long
    (source / "training_paths.json").write_text(json.dumps(listed))
    assert main([str(run), "--data", str(source), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "s2t: 5 written, 0 kept, 1 broken" in captured.out
    assert f"broken: {tmp_path / 'out' / long}: cannot be written (File name too long)" in captured.err


@pytest.fixture
def metres(tmp_path: Path) -> Path:
    """Return a model that was trained on depth from 0.5 to 4.5 m."""
    return make_run(tmp_path / "metres")


@pytest.mark.parametrize("scale", [1000.0, 0.01], ids=["millimetres", "hundreds of metres"])
def test_depth_of_another_unit_is_said(
    metres: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float
) -> None:
    """The network sees nothing but near or far there, so the translations mean nothing."""
    folder = tmp_path / "images"
    for part in ("color", "depth"):
        (folder / part).mkdir(parents=True)
    for i in range(3):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "color" / f"{i}.png")
        np.save(folder / "depth" / f"{i}.npy", rng.uniform(1, 4, (32, 32)).astype(np.float32))
    command = [str(metres), "--data", str(folder), "--out"]
    assert main([*command, str(tmp_path / "right"), "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("warning: --seed has no effect, because the generator has no noise")
    odd = [folder / "depth" / f"{i}.npy" for i in (2, 1, 0)]
    np.save(odd[0], np.load(odd[0]) * np.float32(scale))
    assert main([*command, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err.startswith("warning: 1 of 3 images have depth far beyond near 0.5 and far 4.5")
    for path in odd[1:]:
        np.save(path, np.load(path) * np.float32(scale))
    for _ in range(2):  # now they are written, then they are there already
        assert main([*command, str(tmp_path / "all")]) == 1
        assert capsys.readouterr().err.startswith("error: 3 of 3 images have depth far beyond near")
