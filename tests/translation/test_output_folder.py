"""Rules of the folder that `translate` writes: what it may replace or refuses, and what a failure leaves there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from editors import EDITED
from PIL import Image
from runs import error, make_run, tiny

from vologan_fast.data.pack import pack
from vologan_fast.export import main as export
from vologan_fast.hub import main as hub
from vologan_fast.translate import main
from vologan_fast.translation import job
from vologan_fast.translation.job import claimed

FILE = "checkpoints/step-00000007/average_st.safetensors"


def add_image(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for part, values in (("color", rng.integers(0, 256, (32, 32, 3), np.uint8)), ("depth", depth(rng))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / part / f"{name}.png")


def depth(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(500, 4500, (32, 32), np.uint16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import dataclasses

    from vologan_fast.config import DepthSpec

    spec = DepthSpec("mm", None, 0.5, 4.5, (0.0,), None, None, "integer")
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=spec, real=spec))
    return make_run(tmp_path_factory.mktemp("run"), config)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data set with two images in each domain, of the same names."""
    for number, domain in enumerate(("synthetic", "real")):
        for i in range(2):
            add_image(tmp_path / "data" / domain, f"{i}", 2 * number + i)
    return tmp_path / "data"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def translated(run: Path, data: Path, out: Path, *options: str) -> int:
    return main([str(run), "--data", str(data), "--out", str(out), *options])


# Which path


@pytest.mark.parametrize("path", ["../data", "../data/synthetic", "../here/../data", "../data/synthetic/color/0.png"])
@pytest.mark.parametrize("linked", [False, True])
def test_paths_with_two_dots(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, linked: bool
) -> None:
    (tmp_path / "here").mkdir()
    if linked:
        data.rename(tmp_path / "elsewhere")
        data.symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path / "here")
    options = ["--depth", "../data/synthetic/depth/1.png"] if path.endswith(".png") else []
    for out in ("../out", str(tmp_path / "out")):
        assert main([str(run), "--data", path, "--out", out, *options]) == 0
    assert translated(run, tmp_path / "here" / path, tmp_path / "plain", *options) == 0
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    pictures = [
        {name: content for name, content in everything(tmp_path / out).items() if name.endswith(".png")}
        for out in ("out", "plain")
    ]
    assert pictures[0] == pictures[1] and pictures[0]


@pytest.mark.parametrize("name", ["n" * 248 + ".png", "ü" * 124 + ".png", "n" * 300, "n" * 5000])
def test_a_long_name_gives_one_sentence(
    run: Path, data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if len(os.fsencode(name)) < 256:
        (tmp_path / name).write_bytes(b"x")
    error(main, capsys, str(run), "--data", str(tmp_path / name), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_empty_data_set_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = error(main, capsys, str(run), "--data", "", "--out", str(tmp_path / "out"))
    assert sentence == "error: --data is empty; expected a data set, a folder or a file, or no --data"


# Which direction


@pytest.mark.parametrize("own", ["s2t", "t2s"])
@pytest.mark.parametrize("kind", ["file", "folder", "file of a folder"])
def test_a_file_knows_its_direction(
    run: Path, data: Path, tmp_path: Path, own: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = run / FILE.replace("_st", "_st" if own == "s2t" else "_ts")
    if kind != "file":
        exporting = [str(run), "--out", str(tmp_path / "model"), "--format", "safetensors", "--direction", own]
        assert export(exporting) == 0
        source = tmp_path / "model"
    if kind == "file of a folder":
        source /= "model.safetensors"
    other = "t2s" if own == "s2t" else "s2t"
    command = [str(source), "--data", str(data), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    for direction in (other, "both"):
        sentence = error(main, capsys, *command, "--direction", direction)
        assert sentence.endswith(f".safetensors: holds {own}; expected --direction {own}")
    refused: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (export, [str(source), "--out", str(tmp_path / "exported"), "--direction", other]),
        (hub, ["push", str(source), "me/model", "--direction", other]),
    ]
    for program, arguments in refused:
        assert f"holds {own}; expected --direction {own}" in error(program, capsys, *arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "exported").exists()
    assert main([*command, "--direction", own]) == 0
    assert main(command) == 0
    assert f"{own}: 0 written, 2 kept" in capsys.readouterr().out


# What a failure leaves


@pytest.mark.parametrize("wrong", ["run", "data", "depth", "direction"])
def test_a_failure_before_the_first_image_writes_nothing(
    run: Path, data: Path, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"run": str(run), "data": str(data), "depth": "", "direction": "s2t"}
    arguments[wrong] = {"direction": "both", "depth": str(data / "synthetic/depth/0.png")}.get(wrong, "/no/such")
    if wrong == "direction":
        arguments["run"] = str(run / FILE)
    options = ["--direction", arguments["direction"], *(["--depth", arguments["depth"]] if arguments["depth"] else [])]
    error(main, capsys, arguments["run"], "--data", arguments["data"], "--out", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_a_fresh_disk_is_a_new_folder(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "disk" / ".hidden").write_text("mine")
    assert translated(run, data, tmp_path / "disk") == 0


# What may be replaced


def one_scene(tmp_path: Path, name: str, seed: int) -> Path:
    add_image(tmp_path / name, "0", seed)
    return tmp_path / name


PAIRS = {
    "two folders": ("a", "b"),
    "two single images": ("a/color/0.png", "b/color/0.png"),
    "a folder, then shards": ("set", "shards"),
    "shards, then a folder": ("shards", "set"),
    "two sets of shards": ("shards", "others"),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("moved", [False, True])
def test_a_second_data_set_never_replaces_the_first(
    run: Path, data: Path, tmp_path: Path, pair: str, moved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may replace it if the first one no longer exists."""
    for seed, name in enumerate("ab"):
        one_scene(tmp_path, name, seed)
    if "shards" in pair:
        for name in ("shards", "others"):
            pack(data, tmp_path / name)
        for i, domain in itertools.product(range(2), ("synthetic", "real")):  # with the names of the shards' images
            add_image(tmp_path / "set" / domain, f"{i:08d}-{i}", i)
    first, second = PAIRS[pair]
    out = tmp_path / "out"
    assert translated(run, tmp_path / first, out) == 0
    before = everything(out)
    if moved:
        (tmp_path / first.split("/")[0]).rename(tmp_path / "elsewhere")
        assert translated(run, tmp_path / second, out) == 0
        return
    assert translated(run, tmp_path / second, out) == 1
    assert "holds the translation of " in (message := capsys.readouterr().err) and message.count("\n") == 1
    assert str(tmp_path / first) in message and "expected another --out" in message
    assert everything(out) == before
    assert translated(run, tmp_path / first, out) == 0 and everything(out) == before


def test_links_to_a_data_set_are_the_data_set(run: Path, data: Path, tmp_path: Path) -> None:
    pack(data, tmp_path / "shards")
    for name in ("data", "shards"):
        (tmp_path / f"link-{name}").symlink_to(name)
        for source in (name, f"link-{name}", name):
            assert translated(run, tmp_path / source, tmp_path / f"out-{name}") == 0


@pytest.mark.parametrize("name", ["translated.jsonl", ".translated.begun", "synthetic", "synthetic/color"])
def test_links_in_an_output_folder_lead_nowhere(
    run: Path, data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else may have made the folder. Its log names the outputs, so that they may be replaced."""
    ours, out = tmp_path / "ours", tmp_path / "out"
    assert translated(run, data, out) == 0
    if "." in name:
        ours.write_bytes(b"")
        (out / name).unlink(missing_ok=True)
        (out / "synthetic/color/0.png").unlink()  # is made again
    else:
        (out / name).rename(ours)
        for picture in ours.rglob("*.png"):
            picture.write_bytes(b"ours")
    (out / name).symlink_to(ours)
    before = everything(ours) if ours.is_dir() else ours.read_bytes()
    capsys.readouterr()
    assert translated(run, data, out) == 1
    assert "link" in capsys.readouterr().err
    assert (everything(ours) if ours.is_dir() else ours.read_bytes()) == before


@pytest.mark.parametrize("direction", ["s2t", "t2s"])
def test_one_image_with_two_depths(
    run: Path, data: Path, tmp_path: Path, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(run), "--data", str(data / "synthetic/color/0.png"), "--out", str(tmp_path / "out")]
    command += ["--direction", direction, "--depth"]
    assert main([*command, str(data / "synthetic/depth/0.png")]) == 0
    before = everything(tmp_path / "out")
    sentence = error(main, capsys, *command, str(data / "synthetic/depth/1.png"))
    assert f"holds the translation of {data}/synthetic/depth/0.png; expected another --out" in sentence
    assert everything(tmp_path / "out") == before


def test_a_colour_image_never_replaces_a_depth_image(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The depth of 0.png is written as 0.depth.png, and another colour image has this name."""
    out = tmp_path / "out"
    assert translated(run, data / "synthetic/color/0.png", out) == 0
    before = everything(out)
    shutil.copy(data / "synthetic/color/1.png", tmp_path / "0.depth.png")
    assert translated(run, tmp_path / "0.depth.png", out, "--depth", str(data / "synthetic/depth/1.png")) == 1
    assert f"{out}/0.depth.png: holds the translation of " in capsys.readouterr().err
    assert everything(out) == before


@pytest.mark.parametrize("shared", ["color", "depth", "both"])
def test_both_directions_never_write_one_file(
    run: Path, data: Path, tmp_path: Path, shared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def pair(domain: str, number: int) -> dict[str, str]:
        return {f"{part}_path": f"{domain}/{part}/{number}.png" for part in ("color", "depth")}

    real, synthetic = pair("real", 1), pair("synthetic", 0)
    for part in ("color", "depth"):
        if shared in (part, "both"):
            real[f"{part}_path"] = synthetic[f"{part}_path"]
    listed = {"synthetic_data": [pair("synthetic", 1), synthetic], "real_data": [pair("real", 0), real]}
    (data / "training_paths.json").write_text(json.dumps(listed))
    out = tmp_path / "out"
    command = [str(run), "--data", str(data), "--out", str(out), "--direction"]
    sentence = error(main, capsys, *command, "both")
    assert str(data / synthetic["color_path"]) in sentence and str(data / real["color_path"]) in sentence
    assert not out.exists()
    assert main([*command, "s2t"]) == 0
    before = everything(out)
    sentence = error(main, capsys, *command, "t2s")
    assert "holds a translation in the other direction; expected another --out" in sentence
    assert everything(out) == before
    for part in ("color", "depth"):  # the folder is free again once these outputs are gone
        (out / synthetic[f"{part}_path"]).unlink()
    assert main([*command, "t2s"]) == 0


@pytest.mark.parametrize("name", ["synthetic/color/0.png", "synthetic/depth/1.png"])
def test_a_folder_in_the_way_of_an_output_is_named(
    run: Path, data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert translated(run, data, out) == 0
    (out / name).unlink()
    (out / name).mkdir()
    assert translated(run, data, out) == 1
    captured = capsys.readouterr()
    assert f"broken: {out / name}: cannot be written (it is a folder)" in captured.err
    assert "0 written, 1 kept, 1 broken" in captured.out


@pytest.mark.parametrize("name", ["synthetic/color/0.png", "synthetic/depth/1.png"])
@pytest.mark.parametrize("log", ["", "[1, 2]\n", "ours"])
def test_files_that_the_log_does_not_name_stay(
    run: Path, data: Path, tmp_path: Path, name: str, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if log == "ours":
        assert translated(run, data / "synthetic/color/0.png", out) == 0
    else:
        out.mkdir()
        (out / "translated.jsonl").write_text(log)
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    for written, kept in ((1, 0), (0, 1)):
        assert translated(run, data, out) == 1
        captured = capsys.readouterr()
        assert f"broken: {out / name}: exists, and translated.jsonl does not name it" in captured.err
        assert f"s2t: {written} written, {kept} kept, 1 broken" in captured.out
        assert (out / name).read_text() == "mine"
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_a_line_of_the_log_that_has_changed_names_nothing(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says of what the files are made, and whether their depth seemed to have another unit."""
    out = tmp_path / "out"
    assert translated(run, data, out) == 0
    log = out / "translated.jsonl"
    whole = log.read_bytes()
    before = whole.index(b', "crc32"')
    capsys.readouterr()
    for place in range(before % 50, before, 50):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert translated(run, data, out) == 1
        said = capsys.readouterr()
        assert "exists, and translated.jsonl does not name it" in said.err and "1 kept, 1 broken" in said.out
    log.write_bytes(whole)
    assert translated(run, data, out) == 0
    assert "0 written, 2 kept" in capsys.readouterr().out


def test_the_advice_about_a_line_that_has_changed_makes_its_files_again(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, color, depth = (tmp_path / "out" / name for name in ("", "synthetic/color/0.png", "synthetic/depth/0.png"))
    assert translated(run, data, out) == 0
    log, expected = out / "translated.jsonl", everything(out)
    log.write_bytes(log.read_bytes().replace(b"0.png", b"2.png", 1))
    capsys.readouterr()
    assert translated(run, data, out) == 1
    warning, broken = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {log}: line 1 is no record and left out"
    advice = f"if it was made here, remove {color} and {depth} to make it again, or else expected another --out"
    assert broken == f"broken: {color}: exists, and translated.jsonl does not name it; {advice}"
    color.unlink()
    depth.unlink()
    assert translated(run, data, out) == 0
    assert "1 written, 1 kept" in capsys.readouterr().out
    del expected[log.name]
    assert {name: content for name, content in everything(out).items() if name != log.name} == expected


@pytest.mark.parametrize("edited", EDITED)
def test_ends_of_lines_of_an_editor_translate_nothing_again(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], edited: str
) -> None:
    """The log can be appended to, and read again."""
    out = tmp_path / "out"
    assert translated(run, data, out) == 0
    log = out / "translated.jsonl"
    lines = sorted(log.read_bytes().splitlines(keepends=True), key=lambda line: b"/1.png" in line)  # threads write them
    for left, said in ((2, "0 written, 2 kept"), (1, "1 written, 1 kept"), (0, "0 written, 2 kept")):
        if left == 1:
            for file in out.glob("synthetic/*/1.png"):
                file.unlink()
        if left:
            log.write_bytes(EDITED[edited](b"".join(lines[:left])))
        capsys.readouterr()
        assert translated(run, data, out) == 0
        captured = capsys.readouterr()
        assert said in captured.out and not captured.err


def test_a_line_that_a_kill_has_cut_off_is_removed(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert translated(run, data, out) == 0
    log = out / "translated.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:50])
    capsys.readouterr()
    assert translated(run, data, out) == 0
    captured = capsys.readouterr()
    assert "0 written, 2 kept" in captured.out and not captured.err
    assert log.read_bytes() == whole


def test_files_that_a_killed_command_has_published_are_replaced(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed after the files have their names, and before they are in the log."""
    out, command = tmp_path / "out", [str(run), "--data", str(data)]

    class Killed(BaseException):
        pass

    def killed(self: job._Log, images: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(job._Log, "add", killed)
        main([*command, "--out", str(out)])
    assert list(out.rglob("*.png")) and (out / "translated.jsonl").read_text() == ""
    assert main([*command, "--out", str(out)]) == 0 and main([*command, "--out", str(tmp_path / "whole")]) == 0
    found, whole = (everything(folder) for folder in (out, tmp_path / "whole"))
    assert found.keys() == whole.keys()
    assert all(found[name] == whole[name] for name in found if name.endswith(".png"))


def test_the_claim_holds_until_all_processes_have_written(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last meeting of the processes, another command cannot claim the folder."""
    from vologan_fast.data import DataError
    from vologan_fast.training.distributed import World

    meet = World._meet
    refused = []

    def meeting(self: World, *state: object) -> None:
        try:
            with claimed(tmp_path / "out"):
                refused.append(False)
        except DataError:
            refused.append(True)
        meet(self, *state)  # type: ignore[arg-type]

    monkeypatch.setattr(World, "_meet", meeting)
    for _ in range(2):
        refused.clear()
        assert translated(run, data, tmp_path / "out", "--direction", "both") == 0
        assert refused[-1] and refused == sorted(refused)


def test_logs_of_absurd_size_and_content_are_read_in_little_memory(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(run), "--data", str(data), "--out", str(out)]) == 0
    log = out / "translated.jsonl"
    lines = log.read_bytes()
    strange = [b"[" * 100_000, b"{}", b'{"color": 5}', b'{"color": {}, "from": 1e999}', b"9" * 10_000, b"\xff\0"]
    log.write_bytes(b"".join(line + b"\n" for line in strange) + b"x" * (3 << 20) + b"\n" + lines)
    with log.open("ab") as file:
        file.truncate(1 << 31)  # takes no room, and has no line's end
    capsys.readouterr()
    assert main([str(run), "--data", str(data), "--out", str(out)]) == 0
    assert "0 written, 2 kept" in capsys.readouterr().out
    os.truncate(log, 1 << 22)
    os.mkfifo(out / ".translated.begun")
    assert "not a regular file" in error(main, capsys, str(run), "--data", str(data), "--out", str(out))


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_a_model_folder_of_pipes_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    os.mkfifo(weights) if kind == "pipe" else weights.symlink_to("/dev/zero")
    said = error(export, capsys, str(run), "--out", str(weights.parent), "--format", "safetensors")
    assert f"{weights}: not a regular file" in said
