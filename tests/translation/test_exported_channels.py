"""Generators of every set of channels as programs and as model folders: what they say, and what they compute."""

from __future__ import annotations

import dataclasses
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import DEPTH, make_run, tiny

import vologan_fast
from vologan_fast.config import CHANNELS, Config
from vologan_fast.export import main
from vologan_fast.translation.programs import describe, how_to_run

PAIRS = list(itertools.product(CHANNELS, CHANNELS))
FEW = [("rgb", "rgb"), ("depth", "depth"), ("rgb", "grey+depth")]
OTHERS = list(zip(CHANNELS, [*CHANNELS][2:] + [*CHANNELS][:2], strict=True))
"""Pairs with each set as source and as target."""
UNRESOLVED = type(DEPTH)()


def of_channels(source: str, target: str) -> Config:
    """Return the settings of a tiny run, whose domains without depth have no near and far, as a run records them."""
    output = {} if source == target else {"output": "hard_sigmoid"}
    config = tiny(**output)
    specs = [DEPTH if CHANNELS[name].depth else UNRESOLVED for name in (source, target)]
    names = source if source == target else (source, target)
    data = dataclasses.replace(config.data, channels=names, synthetic=specs[0], real=specs[1])
    return dataclasses.replace(config, data=data, loss=dataclasses.replace(config.loss, identity=0.0))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_files_say_their_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str) -> None:
    run, (reads, makes) = make_run(tmp_path / "run", of_channels(source, target)), (CHANNELS[source], CHANNELS[target])
    model = vologan_fast.load(run, device="cpu")
    found = describe(model, "fp32", "0")
    assert found["channels"].startswith(f"{', '.join(reads.names)}; all in [0, 1]")
    assert found.get("output_channels", found["channels"]).startswith(", ".join(makes.names))
    depth = {name: found.get(name) for name in ("near", "far", "output_near", "output_far")}
    limits = {True: (0.5, 4.5), False: (None, None)}
    assert tuple(depth.values()) == (*limits[reads.depth], *limits[makes.depth and not reads.depth])
    for suffix in (".onnx", ".pt2"):
        compile(how_to_run(Path(f"s2t{suffix}"), model), suffix, "exec")
    assert main([str(run), "--out", str(tmp_path / "model"), "--format", "safetensors"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"(N, {reads.number}, H, W), float32, in [0, 1]: {', '.join(reads.names)}." in card
    assert f"(N, {makes.number}, H, W), float32, in [0, 1]: {', '.join(makes.names)}." in card
    assert ("near = 0.5, far = 4.5, in metres" in card) == (reads.depth or makes.depth)
    again = vologan_fast.load(tmp_path / "model", device="cpu")
    x = torch.rand(1, reads.number, 19, 30)
    assert again(x).shape == (1, makes.number, 19, 30) and torch.equal(again(x), model(x))
    (line,) = [line for line in card.splitlines() if "translate_image(" in line]
    images = {"color": np.zeros((19, 30, 3), np.uint8), "depth": np.full((19, 30), 1.5, np.float32)}
    names = {"model": again, "vologan_fast": vologan_fast, **images}
    exec(line, names)
    assert all(
        names[part].shape[:2] == (19, 30) for part, there in (("color", makes.color), ("depth", makes.depth)) if there
    )


@pytest.mark.parametrize(
    ("source", "target", "format_"),
    [
        *((*pair, "onnx") for pair in FEW),
        *(pytest.param(*pair, format_, marks=pytest.mark.slow) for pair in OTHERS for format_ in ("onnx", "torch")),
    ],
)
def test_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str, format_: str) -> None:
    run, (reads, makes) = make_run(tmp_path / "run", of_channels(source, target)), (CHANNELS[source], CHANNELS[target])
    assert main([str(run), "--out", str(tmp_path), "--format", format_]) == 0
    text = capsys.readouterr().out
    assert f"1 × {makes.number} × 32 × 32: " in text  # compared with the network before it was written
    (program,) = [block for block in text.split("\n\n") if block.startswith("import ")]
    exec(program, {})
    printed = capsys.readouterr().out
    assert printed.count("480, 640") == bool(makes.color) + makes.depth
    if format_ == "torch":
        with zipfile.ZipFile(tmp_path / "s2t.pt2") as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("metadata.json")]
            metadata = json.loads(archive.read(name))
    else:
        import onnx

        file = onnx.load(tmp_path / "s2t.onnx")
        metadata = {entry.key: entry.value for entry in file.metadata_props}
        shapes = [value.type.tensor_type.shape.dim[1].dim_value for value in (*file.graph.input, *file.graph.output)]
        assert shapes == [reads.number, makes.number]
    assert metadata["channels"].split(";")[0] == ", ".join(reads.names)
