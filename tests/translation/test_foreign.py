"""Generators of the PyTorch CycleGAN and of CUT: the same images as plain PyTorch modules give with the same file."""

import collections
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from foreign_layouts import ResNet, UNet, randomized
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vologan_fast
from vologan_fast.config import PRESETS, ConfigError, DataConfig, DepthSpec, check
from vologan_fast.export import main as export
from vologan_fast.training.checkpoint import CheckpointError
from vologan_fast.translate import main as translate

NORMS = ("instance", "batch", "none")
LAYOUTS = {
    **{
        f"resnet, {blocks} blocks, {norm}, dropout {dropout}, blur {'+'.join(blur) or 'none'}": (
            lambda blocks=blocks, norm=norm, dropout=dropout, blur=blur: ResNet(
                blocks=blocks, norm=norm, dropout=dropout, blur=blur
            )
        )
        for (norm, dropout, blur), blocks in zip(
            itertools.product(NORMS, (False, True), ((), ("down",), ("up",), ("down", "up"))),
            itertools.cycle((6, 9, 1)),
            strict=False,
        )
    },
    **{
        f"unet, {levels} levels, {norm}, dropout {dropout}": (
            lambda levels=levels, norm=norm, dropout=dropout: UNet(levels=levels, norm=norm, dropout=dropout)
        )
        for levels, norm, dropout in [
            (7, "instance", False),
            (7, "batch", True),
            (7, "none", False),
            (8, "batch", False),
            (5, "instance", True),
        ]
    },
}


def saved(network, file):
    torch.save(network.state_dict(), file)
    return file


def expected(network, x):
    """The translation of images in [0, 1]."""
    with torch.no_grad():
        return (network(2 * x - 1) + 1) / 2


def assert_same(model, network, x):
    """Compare in float64. Both modules are float64 afterwards."""
    found, truth = model.double()(x.double()), expected(network.double(), x.double())
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_are_those_of_plain_modules(name, tmp_path):
    network = randomized(LAYOUTS[name]())
    model = vologan_fast.load_foreign(saved(network, tmp_path / "latest_net_G_A.pth"), device="cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert (model.channels, model.direction, model.size) == (3, "s2t", 256)
    side = model.least_side
    x = torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(1))
    found, own = model(x), expected(network, x)
    assert_same(model, network, x)
    truth = expected(network, x.double())
    # The same sums, in another order: twice the error of the plain modules, and some roundings of the largest value.
    allowed = 2 * (own - truth).abs().max() + 16 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (found - truth).abs().max() <= allowed and truth.std() > 0.02


def test_the_layers_of_the_file_have_the_names_of_the_authors():
    """Some names of published files, so that the modules of this test cannot change together with ours."""
    names = set(ResNet(blocks=9).state_dict())
    assert {"model.1.weight", "model.7.bias", "model.10.conv_block.5.weight", "model.18.conv_block.1.bias"} < names
    assert {"model.19.weight", "model.22.bias", "model.26.weight", "model.26.bias"} < names and len(names) == 48
    assert "model.10.conv_block.6.weight" in ResNet(dropout=True).state_dict()
    names = set(ResNet(blocks=9, blur=("down", "up")).state_dict())
    assert {"model.4.weight", "model.7.filt", "model.8.weight", "model.11.filt", "model.12.conv_block.1.weight"} < names
    assert {"model.21.filt", "model.22.weight", "model.25.filt", "model.26.bias", "model.30.weight"} < names
    names = set(UNet(levels=8, dropout=True).state_dict())
    assert {"model.model.0.weight", "model.model.3.bias", "model.model.1.model.2.running_var"} < names
    assert {"model.model.1.model.3.model.1.weight", "model.model.1.model.5.weight"} < names
    deepest = "model.model.1.model" + 6 * ".3.model"
    assert {f"{deepest}.1.weight", f"{deepest}.3.weight", f"{deepest}.4.bias"} < names


@pytest.mark.parametrize("levels", [7, 8])
def test_a_unet_takes_images_of_its_own_size(levels, tmp_path):
    """The lowest level has one pixel then, and no norm."""
    network = randomized(UNet(levels=levels))
    model = vologan_fast.load_foreign(saved(network, tmp_path / "g.pth"), device="cpu")
    x = torch.rand(1, 3, 2**levels, 2**levels)
    assert model.least_side == model.size_multiple == 2**levels
    assert_same(model, network, x)


@pytest.mark.parametrize("change", ["parallel", "old", "half", "safetensors", "legacy", "parameters"])
def test_other_kinds_of_files(change, tmp_path):
    network = randomized(ResNet())
    state, file = network.state_dict(), tmp_path / "g.pth"
    if change == "parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    if change == "old":  # before PyTorch 0.4, also instance norms had statistics
        for number, of in ((2, 4), (5, 8)):
            state |= {f"model.{number}.running_mean": torch.rand(of), f"model.{number}.running_var": torch.rand(of)}
        state["model.10.conv_block.2.num_batches_tracked"] = torch.tensor(7)
    if change == "half":
        network.half().float()
        state = {name: value.half() for name, value in state.items()}
    if change == "parameters":
        state = collections.OrderedDict((name, nn.Parameter(value)) for name, value in state.items())
    if change == "safetensors":
        file = tmp_path / "g.safetensors"
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=change != "legacy")
    assert_same(vologan_fast.load_foreign(file, device="cpu"), network, torch.rand(1, 3, 16, 16))


def test_an_old_batch_norm_has_no_counter(tmp_path):
    network = randomized(ResNet(norm="batch"))
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("tracked")}
    torch.save(state, tmp_path / "g.pth")
    assert_same(vologan_fast.load_foreign(tmp_path / "g.pth", device="cpu"), network, torch.rand(1, 3, 16, 16))


DEPTH = DepthSpec(unit="mm", near=400.0, far=5000.0, invalid=(0.0,))


@pytest.mark.parametrize(
    ("channels", "name", "data", "direction"),
    [
        ((1, 1), "latest_net_G_A.pth", None, "s2t"),
        ((3, 1), "latest_net_G_A.pth", None, "s2t"),
        ((3, 1), "latest_net_G_B.pth", None, "t2s"),
        ((4, 4), "100_net_G.pth", DataConfig(size=64, synthetic=DEPTH, real=DEPTH), "s2t"),
        ((4, 1), "g_net_G_B.pth", DataConfig(channels=("depth", "rgbd"), synthetic=DEPTH, real=DEPTH), "t2s"),
    ],
)
def test_channels_and_direction(channels, name, data, direction, tmp_path):
    network = randomized(ResNet(*channels))
    model = vologan_fast.load_foreign(saved(network, tmp_path / name), data=data, device="cpu")
    assert (model.direction, model.channels) == (direction, channels[0])
    assert model.domain == {"s2t": "synthetic", "t2s": "real"}[direction]
    assert (model.source_channels.number, model.target_channels.number) == channels
    if data is not None:
        assert model.data == data and model.source == DEPTH
    x = torch.rand(1, channels[0], 13, 17)  # needs padding
    assert model(x).shape == (1, channels[1], 13, 17)


@pytest.mark.parametrize(
    ("channels", "data", "sentence"),
    [
        ((4, 4), None, "translates 4 to 4 channels: expected load_foreign"),
        ((5, 3), None, "translates 5 to 3 channels: expected load_foreign"),
        ((3, 3), DataConfig(), "has 3 channels for synthetic images.*found rgbd"),
        ((4, 4), DataConfig(), "translates depth: expected data.synthetic with unit, near, far and invalid"),
    ],
)
def test_channels_without_a_meaning_are_refused(channels, data, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        vologan_fast.load_foreign(saved(ResNet(*channels), tmp_path / "g.pth"), data=data)


def test_an_unknown_direction(tmp_path):
    with pytest.raises(ConfigError, match="direction is 'a2b'; expected s2t or t2s"):
        vologan_fast.load_foreign(tmp_path / "g.pth", "a2b")


# ---- files that are something else ----------------------------------------------------------------------------------


class Code:
    def __reduce__(self):
        return (print, ("this code ran",))


def changed(network=None, **changes):
    """A state with `changes`: None removes an entry. "__" stands for "."."""
    state = (network or ResNet()).state_dict()
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    return {name: value for name, value in state.items() if value is not None}


def discriminator():
    layers = [nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 8, 4, 2, 1), nn.InstanceNorm2d(8)]
    return {f"model.{name}": value for name, value in nn.Sequential(*layers).state_dict().items()}


NAN = torch.full((4,), torch.nan)
DAMAGED = {
    "no weight": (changed(model__4__weight=None), r"expected model\.4\.weight, found no such weight"),
    "no bias": (changed(model__23__bias=None), r"expected model\.23\.bias, found no such weight"),
    "no first weight": (changed(model__1__weight=None), "expected the names of a generator"),
    "no last weight": (changed(model__23__weight=None), r"expected model\.23\.weight, found no such weight"),
    "one more": (changed(model__99__weight=torch.ones(1)), r"model\.99\.weight: found, but a generator of this form"),
    "other shape": (changed(model__7__bias=torch.ones(3)), r"model\.7\.bias: expected the shape \(16,\), found \(3,\)"),
    "no convolution": (
        changed(model__1__weight=torch.ones(3)),
        "expected the weight of a convolution, found the shape",
    ),
    "no channels": (changed(model__1__weight=torch.ones(4, 0, 7, 7)), "expected the weight of a convolution"),
    "other kernel": (changed(model__1__weight=torch.ones(4, 3, 5, 5)), r"expected the shape \(4, 3, 7, 7\)"),
    "a block is missing": (
        {name: value for name, value in changed().items() if not name.startswith("model.12.")},
        "expected the names of a generator",
    ),
    "other filter": (
        changed(ResNet(blur=("down",)), model__7__filt=torch.ones(8, 1, 3, 3) / 9),
        r"model\.7\.filt: expected the filter 1 2 1 in 8 channels",
    ),
    "zero padding": (
        {name.replace("block.1.", "block.0.").replace("block.5.", "block.3."): v for name, v in changed().items()},
        "expected residual blocks with padding by reflection",
    ),
    "nan": (changed(model__1__bias=NAN), r"model\.1\.bias: expected finite weights of 16 to 64 bits, found NaN"),
    "integers": (changed(model__1__bias=torch.ones(4, dtype=torch.int64)), r"found a torch\.int64 tensor"),
    "complex": (changed(model__1__bias=torch.ones(4, dtype=torch.complex64)), r"found a torch\.complex64 tensor"),
    "sparse": (changed(model__1__bias=torch.ones(4).to_sparse()), r"layout torch\.sparse_coo"),
    "meta": (changed(model__1__bias=torch.ones(4, device="meta")), "on meta"),
    "expanded": (changed(model__1__weight=torch.ones(1).expand(10**5, 10**4, 7, 7)), "numbers in 4 bytes"),
    "wide": (changed(model__1__weight=torch.ones(400, 3, 7, 7)), r"model\.1\.bias: expected the shape \(400,\)"),
    "a discriminator": (discriminator(), r"found 4 others, such as model\.0\.bias, model\.0\.weight"),
    "a U-Net without a level": (
        {n: v for n, v in UNet().state_dict().items() if ".3.model.3." not in n},
        "expected model",
    ),
    "deep names": (
        changed(UNet()) | {f"model.model.1.model{400 * '.3.model'}.1.weight": torch.ones(1)},
        "found, but a generator of this form has no such weight",
    ),
    "nested": ({"state_dict": changed()}, "state_dict with a dict of 36 entries"),
    "optimiser": ({"step": 3, "epoch": 1}, "step with a int"),
    "a name for a terminal": (changed() | {"\x1b[2J\n\ud800": torch.ones(1)}, r"\\x1b\[2J\\n\\ud800'?: found, but"),
    "numbers as names": ({1: torch.ones(1)}, "found 1 with a Tensor"),
    "a list": ([torch.ones(1)], "expected a state_dict, found a list"),
    "nothing": ({}, "expected a state_dict, found a dict of 0 entries"),
    "a module": (nn.Conv2d(1, 1, 1), "which is not loaded because it may run code"),
    "code": ({"model.1.weight": Code()}, "which is not loaded because it may run code"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_other_contents_get_one_sentence(name, tmp_path, capsys):
    content, sentence = DAMAGED[name]
    torch.save(content, tmp_path / "g.pth")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        vologan_fast.load_foreign(tmp_path / "g.pth")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'g.pth'}: ") and "\n" not in message and len(message) < 500
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4", b"text", pickle.dumps(Code()), pickle.dumps([1, 2])])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_files_get_one_sentence(content, suffix, tmp_path, capsys):
    file = tmp_path / f"g.{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(file)) as caught:
        vologan_fast.load_foreign(file)
    assert "\n" not in str(caught.value) and "this code ran" not in capsys.readouterr().out


def test_a_cut_file_and_no_file(tmp_path):
    whole = saved(ResNet(), tmp_path / "g.pth").read_bytes()
    for length in (len(whole) // 2, len(whole) - 100):
        (tmp_path / "g.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"expected a file of torch\.save"):
            vologan_fast.load_foreign(tmp_path / "g.pth")
    for path, found in ((tmp_path, "a folder"), (tmp_path / "nothing.pth", "no such file")):
        with pytest.raises(CheckpointError, match=f"{found}; expected a generator's weights"):
            vologan_fast.load_foreign(path)


def test_the_configuration_can_be_trained_on(tmp_path):
    """It is the preset's but for the form of the generator, and passes the checks of a training."""
    preset = PRESETS["cyclegan-256"]
    whole = vologan_fast.load_foreign(saved(ResNet(blocks=9, width=64), tmp_path / "g.pth"), device="cpu")
    assert whole.config == preset
    for network in (ResNet(norm="batch", blur=("down", "up")), UNet(norm="instance")):
        config = vologan_fast.load_foreign(saved(network, tmp_path / "g.pth"), device="cpu").config
        check(config)
        assert dataclasses.replace(config, generator=preset.generator, train=preset.train) == preset


# ---- the model folder -----------------------------------------------------------------------------------------------


def test_a_model_folder_translates_files_to_the_same_images(tmp_path, capsys):
    network = randomized(ResNet(blur=("down", "up")))
    file, folder, images = tmp_path / "latest_net_G_B.pth", tmp_path / "model", tmp_path / "images"
    assert export([str(saved(network, file)), "--foreign", "--out", str(folder), "--format", "safetensors"]) == 0
    card, model = (folder / "README.md").read_text(), vologan_fast.load(folder, device="cpu")
    assert file.name in card and "batch" not in card and "(N, 3, H, W)" in card
    assert model.direction == "t2s"

    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(images / "a.png")
    assert translate([str(folder), "--data", str(images), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    truth = expected(network.double(), x.double())[0].permute(1, 2, 0).numpy() * 255
    (made,) = (tmp_path / "out").rglob("a.png")
    assert np.abs(np.asarray(Image.open(made)) - truth).max() < 0.501  # rounded to the nearest level
    color = vologan_fast.translate_image(vologan_fast.load_foreign(file, device="cpu"), pixels).color
    assert np.array_equal(color, np.asarray(Image.open(made)))


def test_the_export_command_refuses_other_files(tmp_path, capsys):
    torch.save(discriminator(), tmp_path / "d.pth")
    assert export([str(tmp_path / "d.pth"), "--foreign", "--out", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'd.pth'}: expected the names of a generator")
    assert not (tmp_path / "model").exists()


PROGRAMS = {"batch norm": ResNet(norm="batch"), "blurs": ResNet(blur=("down", "up")), "U-Net": UNet(levels=5)}


@pytest.mark.slow
@pytest.mark.parametrize("network", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_compute_the_same(network, tmp_path, capsys):
    """The command compares the programs with the network, for sizes that need padding too."""
    pytest.importorskip("onnxruntime")
    file = saved(randomized(network), tmp_path / "g.pth")
    assert export([str(file), "--foreign", "--out", str(tmp_path / "model")]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["s2t.onnx", "s2t.pt2"]
