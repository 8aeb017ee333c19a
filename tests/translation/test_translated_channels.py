"""Every set of channels translates to every other: in memory and in files, with networks whose results are known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_run, tiny
from torch import Tensor, nn

from vologan_fast import depth as depth_files
from vologan_fast.config import CHANNELS, DOMAINS, PRESETS, Channels, DepthSpec, GeneratorConfig
from vologan_fast.data import DataError
from vologan_fast.data.manifest import find_records, read_folder
from vologan_fast.data.pack import pack
from vologan_fast.data.pixels import DepthRule, grey, normalize_depth
from vologan_fast.networks.generator import Generator
from vologan_fast.translate import main
from vologan_fast.translation.encoding import encode_depth
from vologan_fast.translation.images import translate_image
from vologan_fast.translation.inputs import Parts, find_inputs
from vologan_fast.translation.job import Done, translate_files
from vologan_fast.translation.translator import Translator, load

PAIRS = list(itertools.product(CHANNELS, CHANNELS))
METRES = DepthSpec("m", None, 0.5, 4.5, (), None, None, "float")
MILLIMETRES = DepthSpec("mm", None, 0.5, 4.5, (0.0,), 65535.0, None, "integer")
H, W = 37, 50


class Carry(Generator):
    """Keeps the channels that both sets have. Grey becomes equal colours, and colour its first channel.

    Depth is shown as colour, and the first channel of colour becomes depth.
    """

    config = GeneratorConfig()
    size_multiple = 8

    def __init__(self, reads: Channels, makes: Channels) -> None:
        super().__init__()
        self.reads, self.makes, self.weight = reads, makes, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        color, depth = x[:, : self.reads.color], x[:, self.reads.color :]
        color, depth = (color if self.reads.color else depth), (depth if self.reads.depth else color[:, :1])
        shown = color if color.shape[1] == self.makes.color else color[:, :1].expand(-1, self.makes.color, -1, -1)
        return torch.cat([shown, depth[:, : int(self.makes.depth)]], 1)


def carrier(source: str, target: str, synthetic: DepthSpec = MILLIMETRES, real: DepthSpec = MILLIMETRES) -> Translator:
    config = PRESETS["demo"]
    data = dataclasses.replace(config.data, channels=(source, target), synthetic=synthetic, real=real)
    network = Carry(CHANNELS[source], CHANNELS[target])
    return Translator(network, dataclasses.replace(config, data=data), "s2t", Path(__file__))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (H, W, 3), np.uint8)


def plane(seed: int = 0, spec: DepthSpec = MILLIMETRES) -> np.ndarray:
    """Return depth with holes at the left and background at the right, if the files have a value for it."""
    depth = np.random.default_rng(seed).uniform(0.6, 4.4, (H, W))
    depth = (1000 * depth).astype(np.uint16) if spec is MILLIMETRES else depth.astype(np.float32)
    depth[:, :5] = 0
    if spec.background is not None:
        depth[:, -7:] = spec.background
    return depth


def known(source: str, target: str, color: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray | None, Tensor | None]:
    """Return the colour that `Carry` makes, and its normalised depth if it is not the depth that comes in."""
    reads, makes = CHANNELS[source], CHANNELS[target]
    seen = (depth != 65535) if reads.depth else np.ones((H, W), bool)
    luma = grey(color)
    z = np.where((depth != 0) & seen, (depth / 1000 - 0.5) / 4, 0).clip(0, 1)
    first = {3: color[..., 0] * seen, 1: luma * seen, 0: np.floor(z * 255 + 0.5).astype(np.uint8)}[reads.color]
    made = None
    if makes.color == 3:
        made = color if reads.color == 3 else np.repeat(first[..., None], 3, 2)
        made = np.where(seen[..., None], made, color if reads.color else 0)
    elif makes.color == 1:
        made = np.where(seen, first, luma if reads.color else 0)
    return made, None if reads.depth or not makes.depth else first / np.float32(255)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_an_image_in_memory(source: str, target: str) -> None:
    model, color, depth = carrier(source, target), picture(), plane()
    reads, makes = CHANNELS[source], CHANNELS[target]
    assert (model.source_channels, model.target_channels, model.channels) == (reads, makes, reads.number)
    assert (model.source, model.target) == (MILLIMETRES if reads.depth else None, MILLIMETRES if makes.depth else None)
    given = {"color": color} if reads.color else {}
    given |= {"depth": depth} if reads.depth else {}
    found = translate_image(model, **given)
    expected, z = known(source, target, color, depth)
    if expected is None:
        assert found.color is None
    else:  # normalised depth has other roundings here
        assert found.color.shape == expected.shape and found.color.dtype == np.uint8
        assert np.abs(found.color.astype(int) - expected).max() <= (0 if reads.color else 1)
    if not makes.depth:
        assert found.depth is None
    elif z is None:
        assert np.array_equal(found.depth, depth) and found.depth.dtype == depth.dtype
    else:
        assert found.depth.dtype == np.uint16
        assert np.abs(found.depth - np.where(z < 1 / 2048, 0, 500 + 4000 * z)).max() <= 0.5 + 1e-3
    if reads.color == 1 and makes.color != 3:  # colour would keep the colour of the background
        again = translate_image(model, **(given | {"color": grey(color)}))
        assert all(np.array_equal(a, b) for a, b in zip(again, found, strict=True) if a is not None)
    for part, image in (("color", color), ("depth", depth)):
        with pytest.raises(ValueError, match=f"^{part}: expected "):
            if part in given:
                translate_image(model, **{name: value for name, value in given.items() if name != part})
            else:
                translate_image(model, **given, **{part: image})


def write(folder: Path, layout: str, part: str, name: str, image: np.ndarray, suffix: str) -> Path:
    """Write colour or depth where a layout has it."""
    file = folder / part / f"{name}{suffix}" if layout == "folders" else folder / f"{name}{suffix}"
    if part == "depth" and layout != "folders":
        file = folder / f"{name}.depth{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if part == "color":
        Image.fromarray(image).save(file, **({"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}))
    else:
        file.write_bytes(encode_depth(image, suffix[1:]))
    return file


KINDS = [("folders", ".png", ".png"), ("flat", ".jpg", ".exr"), ("flat", ".png", ".npy"), ("folders", ".jpg", ".tiff")]


def spec_of(suffix: str) -> DepthSpec:
    return METRES if suffix in (".exr", ".npy") else MILLIMETRES


@pytest.mark.parametrize(
    ("source", "target", "there", "kind"),
    [(*pair, ("needed", "both")[(i + k) // 2 % 2], KINDS[(i + k) % 4]) for i, pair in enumerate(PAIRS) for k in (0, 2)],
    ids=str,
)
def test_files(tmp_path: Path, source: str, target: str, there: str, kind: tuple[str, str, str]) -> None:
    layout, color_suffix, depth_suffix = kind
    spec = spec_of(depth_suffix)
    model, reads, makes = carrier(source, target, spec, spec), CHANNELS[source], CHANNELS[target]
    folder, out = tmp_path / "in" / "synthetic", tmp_path / "out"
    given: dict[str, list[Path]] = {"color": [], "depth": []}
    for i in range(2):
        if reads.color or there == "both":
            given["color"].append(write(folder, layout, "color", f"im {i}", picture(i), color_suffix))
        if reads.depth or there == "both":
            given["depth"].append(write(folder, layout, "depth", f"im {i}", plane(i, spec), depth_suffix))

    def translate() -> Done:
        inputs = find_inputs(str(tmp_path / "in"), "synthetic", parts=Parts.of(model))
        return translate_files(model, inputs, out, threads=2, batch=2)

    done = translate()
    assert (done.written, done.broken) == (2, [])
    assert (translate().kept, translate().written) == (2, 0)
    records = read_folder(out / "synthetic")
    assert [r.color_file is not None for r in records] == [bool(makes.color or given["color"])] * 2
    assert [r.depth_file is not None for r in records] == [bool(makes.depth or given["depth"])] * 2
    lines = [json.loads(line) for line in (out / "translated.jsonl").read_text().splitlines()]
    assert sum(len(line["bytes"]) for line in lines) == sum(len(record.files) for record in records)
    for i, record in enumerate(records):
        color_before = np.asarray(Image.open(given["color"][i])) if given["color"] else None
        if record.color_file is not None:
            image = Image.open(record.color_file)
            assert image.format == ("PNG" if color_suffix == ".png" or (not reads.color and makes.color) else "JPEG")
            if not makes.color:
                assert record.color_file.read_bytes() == given["color"][i].read_bytes()
            else:
                assert image.mode == ("L" if makes.color == 1 else "RGB") and image.size == (W, H)
                if reads.color:
                    from_png = color_suffix == ".png"
                    luma = grey(np.asarray(color_before))
                    expected = luma if makes.color == 1 else color_before
                    if reads.color == makes.color:
                        assert np.abs(np.asarray(image).astype(int) - expected).mean() <= (0 if from_png else 1.5)
        if record.depth_file is not None:
            if not makes.depth:
                assert record.depth_file.read_bytes() == given["depth"][i].read_bytes()
            elif reads.depth:
                assert record.depth_file.suffix == depth_suffix
                assert np.array_equal(depth_files.decode(record.depth_file), plane(i, spec).astype(np.float32))
            else:
                assert record.depth_file.suffix == (".exr" if spec is METRES else ".png")
                info = depth_files.probe(record.depth_file)
                assert info.channel.dtype == ("float32" if spec is METRES else "uint16")
                assert (info.width, info.height) == (W, H)


@pytest.mark.parametrize(
    ("source", "target"), [("rgb", "depth"), ("depth", "rgb"), ("grey", "grey"), ("depth", "depth")]
)
def test_shards(tmp_path: Path, source: str, target: str) -> None:
    model, reads = carrier(source, target), CHANNELS[source]
    for domain in ("synthetic", "real"):
        for i in range(3):
            if reads.color:
                write(tmp_path / "in" / domain, "flat", "color", f"{i}", picture(i), ".png")
            if reads.depth:
                write(tmp_path / "in" / domain, "flat", "depth", f"{i}", plane(i), ".png")
    pack(tmp_path / "in", tmp_path / "packed", shard_size=2)
    records = find_records(tmp_path / "packed")["synthetic"]
    assert [file.name.split(".", 1)[1] for file in records[0].files] == ["png" if reads.color else "depth.png"]
    inputs = find_inputs(str(tmp_path / "packed"), "synthetic", parts=Parts.of(model))
    done = translate_files(model, inputs, tmp_path / "out", threads=2)
    assert (done.written, done.broken) == (3, [])
    makes = CHANNELS[target]
    names = {path.relative_to(tmp_path / "out").parts[:2] for path in (tmp_path / "out").rglob("*.png")}
    expected = {"color": reads.color or makes.color, "depth": reads.depth or makes.depth}  # what is not made is copied
    assert names == {("synthetic", part) for part, there in expected.items() if there}


def test_one_file(tmp_path: Path) -> None:
    color = write(tmp_path / "in", "flat", "color", "a", picture(), ".png")
    depth = write(tmp_path / "in", "flat", "depth", "b", plane(), ".png")

    def names(source: str, target: str, file: Path, beside: Path | None = None) -> list[str]:
        parts = Parts.of(carrier(source, target))
        return [name for i in find_inputs(str(file), "synthetic", beside, parts) for name in i.names.values()]

    assert names("rgb", "rgb", color) == ["a.png"]
    assert names("rgb", "grey+depth", color) == ["a.png", "a.depth.png"]
    assert names("depth", "depth", depth) == ["b.depth.png"]
    assert names("depth", "rgb", depth) == ["b.png", "b.depth.png"]  # the depth is copied
    assert names("rgbd", "depth", color, depth) == ["a.png", "b.depth.png"]
    plain = write(tmp_path / "in", "folders", "depth", "c", plane(), ".png")
    assert names("depth", "rgbd", plain) == ["c.color.png", "c.png"]
    with pytest.raises(DataError, match=r"--depth .*: expected none, because the model reads one file"):
        names("rgb", "rgb", color, depth)
    jpeg = write(tmp_path / "in", "flat", "color", "d", picture(), ".jpg")
    with pytest.raises(DataError, match=r"d\.jpg: expected a depth file, one of \.exr, "):
        names("depth", "depth", jpeg)


def test_files_of_one_new_name_are_refused(tmp_path: Path) -> None:
    items = [{"color_path": f"a.{suffix}"} for suffix in ("jpg", "png")]
    for item in items:
        Image.fromarray(picture()).save(tmp_path / item["color_path"])
    (tmp_path / "training_paths.json").write_text(json.dumps({"synthetic_data": items, "real_data": items[:1]}))
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png: both would be translated to a\.depth\.png"):
        find_inputs(str(tmp_path), "synthetic", parts=Parts.of(carrier("rgb", "depth")))


def test_the_folders_of_cyclegan_with_their_tests(tmp_path: Path) -> None:
    for name in ("trainA", "trainB", "testA"):
        write(tmp_path / "set" / name, "flat", "color", name, picture(), ".jpg")
    parts = Parts.of(carrier("rgb", "depth"))
    found = find_inputs(str(tmp_path / "set"), "synthetic", parts=parts)
    assert [i.names for i in found] == [
        {"color": f"{n}/{n}.jpg", "depth": f"{n}/{n}.depth.png"} for n in ("trainA", "testA")
    ]
    (tmp_path / "set/trainA/trainA.jpg").unlink()
    (tmp_path / "set/trainB/trainB.jpg").unlink()
    assert [i.depth for i in find_inputs(str(tmp_path / "set"), "synthetic", parts=parts)] == ["testA/testA.depth.png"]
    assert [i.depth for i in find_inputs(str(tmp_path / "set/testA"), "real", parts=parts)] == ["testA.depth.png"]


@pytest.mark.parametrize(
    ("spec", "suffix", "kind"),
    [
        (METRES, ".exr", np.float32),
        (MILLIMETRES, ".png", np.uint16),
        (dataclasses.replace(MILLIMETRES, values="8-bit"), ".png", np.uint16),
        (dataclasses.replace(MILLIMETRES, far=80.0), ".tiff", np.int32),
        (dataclasses.replace(MILLIMETRES, scale=-0.001), ".tiff", np.int32),
        (DepthSpec("normalized", None, -1.0, 1.0, (), -1.0, None, "float"), ".exr", np.float32),
    ],
)
def test_depth_without_a_file_to_follow(spec: DepthSpec, suffix: str, kind: type) -> None:
    model = carrier("rgb", "depth", real=spec)
    assert Parts.of(model).depth_suffix == suffix
    color = np.full((H, W, 3), 128, np.uint8)
    color[:9] = 0
    _, depth = translate_image(model, color)
    assert depth.dtype == kind
    file = encode_depth(depth, suffix[1:])
    read = depth_files.decode(file)
    assert np.array_equal(read, depth.astype(np.float32), equal_nan=True)
    z = normalize_depth(read, DepthRule.of(spec))
    assert (z[:9] == 0).all() and np.abs(z[9:] - 128 / 255).max() < 2e-4


@pytest.mark.parametrize(
    ("source", "target"),
    [("rgb", "rgb"), ("depth", "depth"), ("grey", "grey"), ("grey+depth", "rgbd"), ("rgb", "depth"), ("rgbd", "grey")],
)
def test_the_command_with_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str
) -> None:
    reads, makes = CHANNELS[source], CHANNELS[target]
    config = tiny(**({"width": 16, "max_width": 16} | ({} if source == target else {"output": "hard_sigmoid"})))
    specs = {
        domain: METRES if CHANNELS[name].depth else DepthSpec()
        for domain, name in zip(DOMAINS, (source, target), strict=True)
    }
    data = dataclasses.replace(config.data, channels=(source, target), **specs)
    loss = dataclasses.replace(config.loss, identity=0.0)
    run = make_run(tmp_path / "run", dataclasses.replace(config, data=data, loss=loss))
    for i in range(2):
        if reads.color:
            write(tmp_path / "in/synthetic", "folders", "color", f"{i}", picture(i), ".png")
        if reads.depth:
            write(tmp_path / "in/synthetic", "folders", "depth", f"{i}", plane(i, METRES), ".npy")
    options = [str(run), "--data", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(options) == 0 and main(options) == 0
    assert "s2t: 0 written, 2 kept, 0 broken" in capsys.readouterr().out
    model = load(run, device="cpu")
    for i in range(2):
        given = {"color": picture(i)} if reads.color else {}
        given |= {"depth": plane(i, METRES)} if reads.depth else {}
        color, depth = translate_image(model, **given)
        if makes.color:
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/synthetic/color/{i}.png")), color)
        if makes.depth:
            file = tmp_path / f"out/synthetic/depth/{i}{'.npy' if reads.depth else '.exr'}"
            assert np.array_equal(depth_files.decode(file), depth, equal_nan=True)
    missing = tmp_path / "missing/synthetic"
    if reads.depth and reads.color:
        write(missing, "flat", "color", "0", picture(), ".png")
        assert main([str(run), "--data", str(tmp_path / "missing"), "--out", str(tmp_path / "other")]) == 1
        assert "expected one, or a model that was trained with --data.channels rgb or grey" in capsys.readouterr().err
