"""Model folders: what they hold, that they load, and that their cards are what Hugging Face reads."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import KILLED, Killer
from runs import make_run, tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vologan_fast
from vologan_fast.config import PRESETS, Config
from vologan_fast.data import Dataset, load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.evaluation.inputs import load_inputs
from vologan_fast.export import main
from vologan_fast.files import write_whole
from vologan_fast.training.checkpoint import CheckpointError
from vologan_fast.training.run_folder import read_config
from vologan_fast.translate import main as translate
from vologan_fast.translation.card import data_name
from vologan_fast.translation.job import file_digest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def export(run: Path, out: Path, *options: str) -> int:
    return main([str(run), "--out", str(out), "--format", "safetensors", *options])


def on(dataset: Dataset) -> Config:
    """Return the configuration of a run on this data set."""
    return dataclasses.replace(tiny(), data=dataclasses.replace(dataset.config, size=32))


def front_matter(folder: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    start, front, body = (folder / "README.md").read_text().split("---\n", 2)
    assert start == "" and body.startswith("\n# ")
    return yaml.safe_load(front)


@pytest.mark.parametrize("direction", ["s2t", "t2s"])
@pytest.mark.parametrize("weights", ["average", "trained"])
def test_a_model_folder_is_the_generator(run: Path, tmp_path: Path, direction: Any, weights: str) -> None:
    out = tmp_path / "out"
    assert export(run, out, "--direction", direction, "--weights", weights) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    expected = vologan_fast.load(run, direction, device="cpu", averages=weights == "average")
    x = torch.rand(2, 4, 33, 18)
    (out / "model.safetensors").rename(tmp_path / "blob")  # as in the cache of huggingface_hub
    (out / "model.safetensors").symlink_to(tmp_path / "blob")
    for path in (out, out / "model.safetensors"):
        found = vologan_fast.load(path, device="cpu")
        assert (found.direction, found.domain, found.source) == (direction, expected.domain, expected.source)
        assert torch.equal(found(x), expected(x))
    assert read_config(out / "config.json") == ("rooms", read_config(run / "config.json")[1])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata()["direction"] == direction
    assert export(run, out, "--direction", direction) == 0  # again


def test_a_folder_without_averages(tmp_path: Path) -> None:
    config = tiny()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, average=0.0))
    run = make_run(tmp_path / "run", config)
    assert export(run, tmp_path / "out") == 0
    x = torch.rand(1, 4, 32, 32)
    assert torch.equal(vologan_fast.load(tmp_path / "out", device="cpu")(x), vologan_fast.load(run, device="cpu")(x))


def test_links_to_a_checkpoint(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 4, 32, 32)
    expected = vologan_fast.load(run, device="cpu")(x)
    (run / "checkpoints" / "best").symlink_to("step-00000007")
    (tmp_path / "link").symlink_to(run / "checkpoints" / "best")
    (tmp_path / "file" / "of").mkdir(parents=True)
    file = tmp_path / "file" / "of" / "average_st.safetensors"
    file.symlink_to(run / "checkpoints" / "best" / "average_st.safetensors")
    monkeypatch.chdir(run / "checkpoints")
    for path in (run / "checkpoints" / "best", tmp_path / "link", file, "best", "../checkpoints/best", ".."):
        assert torch.equal(vologan_fast.load(path, device="cpu")(x), expected)
    assert export(tmp_path / "link", tmp_path / "out") == 0
    assert "| training steps | 7 |" in (tmp_path / "out" / "README.md").read_text()


def test_translate_takes_a_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_demo(tmp_path / "data", count=2, size=32)
    run = make_run(tmp_path / "run", on(load_dataset(data, PRESETS["demo"].data, seed=0)))
    assert export(run, tmp_path / "model", "--direction", "t2s") == 0
    capsys.readouterr()
    assert translate([str(tmp_path / "model"), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    assert "t2s: 2 written" in capsys.readouterr().out
    assert translate([str(run), "--data", str(data), "--out", str(tmp_path / "same"), "--direction", "t2s"]) == 0
    names = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.exr")]
    assert len(names) == 2
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes() for name in names)


def test_the_card_is_what_hugging_face_reads(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    out = tmp_path / "out"
    assert export(run, out) == 0
    front = front_matter(out)
    assert (front["license"], front["license_name"]) == ("other", "unspecified")
    assert (front["library_name"], front["pipeline_tag"]) == ("vologan-fast", "image-to-image")
    card = hub.ModelCard.load(out / "README.md")
    assert "No licence was chosen" in card.text
    assert "near = 0.5, far = 4.5, in metres" in card.text
    assert "| training steps | 7 |" in card.text and "f" * 64 in card.text
    (result,) = card.data.eval_results
    # The last held-out line up to the checkpoint's step, and only the terms of this generator.
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("cycle", 0.5, "rooms")
    assert "| loss: cycle | 0.5 |" in card.text
    assert export(run, out, "--license", "cc-by-4.0") == 0
    assert hub.ModelCard.load(out / "README.md").data.license == "cc-by-4.0"
    assert "license_name" not in front_matter(out)


@pytest.mark.parametrize("direction", ["s2t", "t2s"])
def test_the_card_takes_the_evaluation_of_its_weights(run: Path, tmp_path: Path, direction: str) -> None:
    generator = "average_st.safetensors" if direction == "s2t" else "average_ts.safetensors"
    weights = file_digest(run / "checkpoints" / "step-00000007" / generator)

    def row(depth: float) -> dict[str, Any]:
        measures = {
            "depth": {"distance": [depth, depth - 0.1, depth + 0.1], "number": [9, 9, 9]},
            "holes": {"distance": [None, None, None]},
        }
        scores = {"score": [0.75, 0.5, 1.0], "patches": [0.5, 0.25, 0.75]}
        return {"score": scores, "measures": measures, "errors": {"paired depth": [1, None, None]}}

    record = {
        "data": "/data/of/somebody/other_set",
        "part": "all images",
        "images": {"synthetic": 12, "real": 15},
        "weights": {"5": {"sha256": "0" * 64}, "7": {"sha256": weights}},
        "checkpoints": {"5": row(8.0), "7": row(2.0)},
        "rows": {"T": row(0.125), "S": row(4.0)},
    }
    evaluation = run / ("evaluation" if direction == "s2t" else "evaluation-t2s") / "evaluation.json"
    evaluation.parent.mkdir()
    evaluation.write_text(json.dumps(record))
    out, options = tmp_path / "out", ("--direction", direction)
    assert export(run, out, *options) == 0
    (result,) = front_matter(out)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "other_set", "type": "other_set"}
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("score", "score", 0.75),
        ("patches", "score: patches", 0.5),
        ("depth", "distance: depth", 2.0),
    ]
    card = (out / "README.md").read_text()
    assert "| distance: depth | 2 | 1.9 … 2.1 | 4 |" in card
    assert "| error: paired depth | 1 |  | 1 |" in card and "Paired errors are of other images" in card
    assert "on 12 synthetic and 15 real images, from all images of `other_set`." in card
    assert f"# vologan_fast 32-{direction}, trained on rooms\n" in card and "/data/of" not in card
    other = json.dumps(record).replace(weights, "1" * 64)
    without_data = json.dumps({key: value for key, value in record.items() if key != "data"})
    for text in ("", "{", "[]", "3", "{}", '{"weights": 3}', other, '{"weights": {"7": 1}}', without_data):
        evaluation.write_text(text)  # not about these weights: the held-out losses are taken
        assert export(run, out, *options) == 0
        (result,) = front_matter(out)["model-index"][0]["results"]
        assert [m["name"] for m in result["metrics"]] == ["loss: cycle"]
        assert result["dataset"]["name"] == "rooms"


def test_the_card_says_which_images_were_evaluated(tmp_path: Path) -> None:
    data, other = make_demo(tmp_path / "rooms", count=8, size=32), make_demo(tmp_path / "other_set", count=5, size=32)
    dataset = load_dataset(data, dataclasses.replace(PRESETS["demo"].data, held_out=0.5), seed=0)
    run = make_run(tmp_path / "run", on(dataset), str(data), dataset.fingerprint())
    weights = file_digest(run / "checkpoints" / "step-00000007" / "average_st.safetensors")
    without_interval = {"score": {"score": [1, None, None]}, "measures": {}, "errors": {"cycle depth": [2, None, None]}}
    for evaluated, count, name, images in (
        (str(other), 256, "other_set", "5 synthetic and 5 real images, from all images"),
        (str(other), 3, "other_set", "3 synthetic and 3 real images, from all images"),
        (None, 256, "rooms", "4 synthetic and 4 real held-out images"),
    ):
        record = {
            **load_inputs(dataset, evaluated, 0, count).record,
            "weights": {"7": {"sha256": weights}},
            "checkpoints": {"7": without_interval},
            "rows": {"S": without_interval},
        }
        (run / "evaluation").mkdir(exist_ok=True)
        (run / "evaluation" / "evaluation.json").write_text(json.dumps(record))
        assert export(run, tmp_path / "out") == 0
        (result,) = front_matter(tmp_path / "out")["model-index"][0]["results"]
        assert result["dataset"]["name"] == name
        assert [(m["name"], m["value"]) for m in result["metrics"]] == [("score", 1), ("error: cycle depth", 2)]
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"on {images} of `{name}`." in card
        assert "| error: cycle depth | 2 |  | 2 |" in card  # --bootstrap 0 gives no interval


def test_the_card_counts_the_images_of_the_data_set_that_was_used(tmp_path: Path) -> None:
    data = make_demo(tmp_path / "data", count=5, size=32)
    dataset = load_dataset(data, PRESETS["demo"].data, seed=0)
    run = make_run(tmp_path / "run", on(dataset), str(data), dataset.fingerprint())
    assert export(run, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- synthetic: 4 training images, 1 held out\n- real: 4 training images, 1 held out" in card
    assert dataset.fingerprint() in card and str(tmp_path) not in card
    shutil.rmtree(data)
    make_demo(data, count=6, size=32)  # another one at the same place
    assert export(run, tmp_path / "out") == 0
    assert "The images were not counted" in (tmp_path / "out" / "README.md").read_text()


PLACES = [
    (place.format(name), name)
    for name in ("data", "my rooms", "données")
    for place in (
        "/home/me/secret/{}",
        "/home/me/secret/{}/",
        "C:\\Users\\me\\secret\\{}",
        "\\\\secret\\share\\{}\\",
        "C:/Users/secret\\{}",
        *(
            f"{scheme}://{host}/{{}}{end}"
            for scheme in ("https", "HTTP", "s3", "gs", "hf")
            for host in ("secret", "user:secret@host", "user:secret@host:80/secret")
            for end in ("", "/", "?token=secret", "/?a=b/c&token=secret", "#secret", ";key=secret", "/?x=/secret/")
        ),
    )
]


def test_the_name_of_a_data_set_tells_no_secrets() -> None:
    for place, name in PLACES:
        assert data_name(place) == name, place
    for place, name in {
        "s3://bucket": "bucket",
        "s3://key:secret@bucket/?x=secret": "bucket",
        "https://secret": "data",
        "https://user:secret@host/": "data",
        "https://user:secret@host?token=secret": "data",
        "https://[secret": "data",
        "/": "data",
        "": "data",
        "/home/a\nb`c": "a�b�c",
    }.items():
        assert data_name(place) == name, place


def test_a_model_folder_tells_no_secrets(tmp_path: Path) -> None:
    for i, (place, name) in enumerate(PLACES[::40]):
        run = make_run(tmp_path / f"run-{i}", data=place)
        assert export(run, tmp_path / f"out-{i}") == 0
        assert read_config(tmp_path / f"out-{i}" / "config.json")[0] == name
        for file in (tmp_path / f"out-{i}").iterdir():
            assert b"secret" not in file.read_bytes(), (place, file.name)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", data=os.fsdecode(b"/data/r\xe4ume")), tmp_path / "out"
    out.mkdir()
    if sys.platform == "linux":
        (out / os.fsdecode(b"m\xe4.onnx")).touch()
    assert export(run, out) == 0
    assert front_matter(out)["model-index"][0]["results"][0]["dataset"]["name"] == "r�ume"
    assert read_config(out / "config.json")[0] == "r�ume"


def error(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Return the one sentence with which the command fails."""
    capsys.readouterr()
    assert export(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_nothing_else_is_replaced(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = (run / "config.json").read_bytes()
    assert f"{run / 'config.json'}: exists" in error(capsys, run, run)
    assert (run / "config.json").read_bytes() == recorded
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine")
    assert "README.md: exists" in error(capsys, run, project)
    assert [(path.name, path.read_text()) for path in project.iterdir()] == [("README.md", "mine")]
    assert export(run, tmp_path / "out") == 0
    assert "holds the weights of s2t" in error(capsys, run, tmp_path / "out", "--direction", "t2s")
    assert "in a model folder already" in error(capsys, tmp_path / "out", tmp_path / "copy")
    assert "expected an identifier" in error(capsys, run, tmp_path / "new", "--license", "My own!")
    assert not (tmp_path / "copy").exists() and not (tmp_path / "new").exists()


def test_an_interrupted_export_is_finished_by_the_next(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    assert export(run, whole) == 0
    for name in ("model.safetensors", "config.json", "README.md"):

        def interrupted(path: Path, data: bytes, *, name: str = name, **options: bool) -> None:
            if path.name == name:
                raise OSError(28, "No space left on device")
            write_whole(path, data, **options)

        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr("vologan_fast.translation.model_folder.write_whole", interrupted)
            patch.setattr("vologan_fast.training.run_folder.write_whole", interrupted)
            assert "No space left on device" in error(capsys, run, out)
        assert export(run, out) == 0
        assert all((out / file.name).read_bytes() == file.read_bytes() for file in whole.iterdir())


@pytest.mark.slow
def test_a_killed_export_mixes_no_runs(run: Path, tmp_path: Path) -> None:
    """Two runs have networks of the same shapes. At each file operation, the second export into a folder is killed."""
    other, work = tmp_path / "other", tmp_path / "work"
    config = tiny()
    nearer = dataclasses.replace(config.data.synthetic, near=0.25)
    make_run(other, dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=nearer)))
    weights = next(other.glob("checkpoints/*/average_st.safetensors"))
    (weights.parent / "checksums.json").unlink()
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert export(run, work) == 0
    first = everything(work)
    with Killer("vologan_fast.export", work) as killer:
        command = [other, "--out", work, "--format", "safetensors"]
        whole = killer.run(command)
        second = everything(work)
        assert whole.code == 0 and second["config.json"] != first["config.json"]
        refused = 0
        for operation in whole.changes:
            for name, content in first.items():
                (work / name).write_bytes(content)
            assert killer.run(command, operation=operation).code == KILLED
            found = everything(work)
            both = ("model.safetensors", "config.json")
            pure = any(all(found[name] == of[name] for name in both) for of in (first, second))
            try:
                vologan_fast.load(work, device="cpu")
            except CheckpointError:
                refused += 1
            else:
                assert pure
            assert killer.run(command).code == 0 and everything(work) == second
        assert refused > 0


def test_a_checkpoint_is_no_place_for_an_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run / "checkpoints" / "step-00000007"
    before = everything(checkpoint)
    assert "checksums.json: exists" in error(capsys, run, checkpoint)
    assert everything(checkpoint) == before


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_damaged_model_folders(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(run, out) == 0
    data = (out / "model.safetensors").read_bytes()
    for damaged in (b"", data[:100], data.replace(b'"direction":"s2t"', b'"direction":"t3s"'), data[:-4]):
        (out / "model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            vologan_fast.load(out, device="cpu")


def test_names_in_a_record_are_text_in_the_card(run: Path, tmp_path: Path) -> None:
    """A stranger's evaluation cannot put HTML, or other rows, into a card that will be published."""
    weights = file_digest(vologan_fast.load(run, "s2t", device="cpu").weights)
    row = {
        "score": {"<script>alert(1)</script>|\n# Buy": [1.0, 0.5, 2.0], "big": [10**400]},
        "measures": {},
        "errors": {},
    }
    record = {
        "weights": {"7": {"sha256": weights}},
        "checkpoints": {"7": row},
        "rows": {"S": {"score": {}, "measures": {}, "errors": {}}},
        "data": "data",
        "images": {"synthetic": "1", "real": 2},
        "part": "held-out images",
    }
    (run / "evaluation").mkdir()
    for change in (lambda: None, lambda: row["score"].pop("big")):
        change()
        (run / "evaluation" / "evaluation.json").write_text(json.dumps(record))
        out = tmp_path / f"out{len(row['score'])}"
        assert export(run, out) == 0
        card = (out / "README.md").read_text()
        assert "<script" not in card.split("---\n", 2)[2] and "\n# Buy" not in card
    assert "| score: &lt;script&gt;alert(1)&lt;/script&gt;&#124;\\n# Buy | 1 |" in card
