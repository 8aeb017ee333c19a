"""All networks of the registry: shapes, options, parameter counts, and equality with independent plain networks."""

import copy
import dataclasses
from typing import get_args, get_type_hints

import plain_gans
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from vologan_kernels import InstanceNormAct2d

from vologan_fast.config import (
    Config,
    ConfigError,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    TrainConfig,
    check,
    from_dict,
)
from vologan_fast.networks import DISCRIMINATORS, GENERATORS, Networks, build_discriminator, build_generator
from vologan_fast.networks.blocks import convolution
from vologan_fast.networks.dropout import Dropout
from vologan_fast.networks.resampling import Blur, double, halve, halved_channels
from vologan_fast.networks.residual import ResidualBlock, ResidualBottleneckBlock

SMALL_G = GeneratorConfig(width=8, max_width=16, levels=2, residual_blocks=2, cardinality=2, attention_size=0)
SMALL_D = DiscriminatorConfig(widths=(8, 8, 16), down_widths=(8, 16, 16), width=8, max_width=16, levels=2)
ZHU = {
    "activation": "relu",
    "bias": True,
    "dropout": 0.0,
    "initializer": "normal",
    "input_range": "signed",
    "norm_affine": False,
    "norm_eps": 1e-5,
    "spectral_norm": False,
}
ZHU_G = GeneratorConfig(
    network="resnet",
    max_width=256,
    levels=2,
    first_kernel=7,
    padding="reflection",
    up="transposed_convolution",
    output="tanh",
    output_bias=True,
    **ZHU,
)
ZHU_U = dataclasses.replace(
    ZHU_G,
    network="unet_zhu",
    levels=8,
    max_width=512,
    padding="zero",
    activation="leaky_relu",
    negative_slope=0.2,
)
ZHU_D = DiscriminatorConfig(network="patch", **(ZHU | {"activation": "leaky_relu", "negative_slope": 0.2}))
GENERATOR_NAMES, DISCRIMINATOR_NAMES = sorted(GENERATORS), sorted(DISCRIMINATORS)


def test_the_configuration_names_every_network():
    for names, config in ((GENERATORS, GeneratorConfig), (DISCRIMINATORS, DiscriminatorConfig)):
        assert set(get_args(get_type_hints(config)["network"])) == set(names)


def test_a_configuration_without_names_means_the_networks_of_before():
    config = from_dict({"generator": {"levels": 3}, "discriminator": {}})
    assert (config.generator.network, config.discriminator.network) == ("unet", "one_shot")


@pytest.mark.parametrize(
    ("build", "config", "count"),
    [
        # Zhu et al., 3 channels: 11.378 M, 7.838 M and 2.765 M. The numbers are counted by hand from the layers.
        (build_generator, ZHU_G, 11_378_179),
        (build_generator, dataclasses.replace(ZHU_G, residual_blocks=6), 7_837_699),
        (build_generator, ZHU_U, 54_409_603),
        (build_discriminator, ZHU_D, 2_764_737),
        (build_discriminator, dataclasses.replace(ZHU_D, network="pixel"), 3 * 64 + 64 + 64 * 128 + 128 + 128 + 1),
    ],
)
def test_published_parameter_counts(build, config, count):
    with FakeTensorMode():
        assert sum(parameter.numel() for parameter in build(config, 3).parameters()) == count


@pytest.mark.parametrize("network", GENERATOR_NAMES)
@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
def test_generators_map_images_of_one_channel_count_to_another(network, shape):
    generator = build_generator(dataclasses.replace(SMALL_G, network=network), 2, 3)
    image = generator(torch.rand(2, 2, *shape))
    assert image.shape == (2, 3, *shape) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        ("one_shot", [(8, 32, 48), (16, 1, 1), (1, 4, 6)]),
        ("patch", [(1, 6, 10)]),
        ("patch_vologan", [(1, 8, 12)]),
        ("pixel", [(1, 32, 48)]),
        ("unet", [(1, 1, 1), (1, 32, 48)]),
    ],
)
def test_discriminators_give_logits(network, shapes):
    discriminator = build_discriminator(dataclasses.replace(SMALL_D, network=network), 3)
    assert [logits.shape[1:] for logits in discriminator(torch.rand(2, 3, 32, 48))] == shapes


OPTIONS = [
    {"blocks": 1},
    {"blocks": 3},
    {"bias": True},
    {"factorized_kernels": True, "padding": "reflection"},
    {"padding": "reflection", "first_kernel": 7},
    {"norm": "batch"},
    {"norm": "none", "bias": True, "padding": "reflection", "activation": "prelu"},
    {"norm_affine": False},
    {"input_range": "signed"},
    {"attention": "matrix"},
    {"down": "conv_stride_2"},
    {"down": "max_pooling"},
    {"down": "average_pooling"},
    {"down": "space_to_depth"},
    {"down": "bare_space_to_depth"},
    {"down": "antialiased"},
    {"up": "transposed_convolution"},
    {"up": "bilinear"},
    {"up": "bilinear_residual"},
    {"up": "antialiased"},
    {"join": "add"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_all_parameters_of_every_network(options):
    for network in GENERATOR_NAMES:
        generator = build_generator(dataclasses.replace(SMALL_G, network=network, **options))
        image = generator(torch.rand(2, 4, 16, 24))
        assert image.shape == (2, 4, 16, 24)
        (image * torch.rand_like(image)).sum().backward()
        assert not [name for name, parameter in generator.named_parameters() if parameter.grad is None], network
    for network in DISCRIMINATOR_NAMES:
        if network == "pixel" and "attention" in options:
            continue
        discriminator = build_discriminator(dataclasses.replace(SMALL_D, network=network, **options))
        logits = discriminator(torch.rand(2, 4, 16, 16))
        sum(z.square().mean() for z in logits).backward()
        assert not [name for name, parameter in discriminator.named_parameters() if parameter.grad is None], network


@pytest.mark.parametrize("network", sorted({*GENERATOR_NAMES} - {"unet_zhu"}))
def test_a_side_that_cannot_be_halved_is_refused(network):
    with pytest.raises(ConfigError, match="multiples of 4 and larger than it, found 18 × 16"):
        build_generator(dataclasses.replace(SMALL_G, network=network))(torch.rand(1, 4, 18, 16))
    with pytest.raises(ConfigError, match="the discriminator halves the image 2 times"):
        build_discriminator(dataclasses.replace(SMALL_D, network="unet"))(torch.rand(1, 4, 18, 16))


# ---- equality with plain networks -----------------------------------------------------------------------------------


def assert_same_function(ours, plain, channels, side=32, wider=8):
    """Both networks have equal outputs and gradients in float64, for the images and for all parameters."""
    ours, plain = ours.double(), plain.double()
    plain_gans.copy_weights(ours, plain)
    x = torch.rand(2, channels, side, side + wider, dtype=torch.float64, requires_grad=True)
    results = []
    for network in (ours, plain):
        outputs = network(x)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        # Weights that differ from pixel to pixel, because the sum of a norm's outputs does not depend on its input.
        weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin() for y in outputs]
        loss = sum((weight * y).sum() + y.square().mean() for weight, y in zip(weights, outputs, strict=True))
        results.append([*outputs, *torch.autograd.grad(loss, [x, *network.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)
    assert all(gradient.abs().max() > 0 for gradient in results[1][:2])


def with_range(network, output=False):
    """A plain network for images in [-1, 1], with images in [0, 1]."""

    class Ranged(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            y = self.network(2 * x - 1)
            return (y + 1) / 2 if output else y

    return Ranged()


@pytest.mark.parametrize("blocks", [6, 9])
def test_the_resnet_is_the_one_of_zhu_et_al(blocks):
    config = dataclasses.replace(ZHU_G, width=4, residual_blocks=blocks)
    plain = with_range(plain_gans.zhu_resnet(3, 2, 4, blocks), output=True)
    assert_same_function(build_generator(config, 3, 2), plain, channels=3)


@pytest.mark.parametrize("size", [16, 24])
def test_the_antialiased_networks_are_those_of_cut(size):
    config = dataclasses.replace(ZHU_G, width=4, residual_blocks=3, down="antialiased", up="antialiased")
    plain = with_range(plain_gans.cut_resnet(3, 2, 4, 3), output=True)
    assert_same_function(build_generator(config, 3, 2), plain, channels=3, side=size, wider=size + 8)
    config = dataclasses.replace(ZHU_D, width=4, down="antialiased")
    plain = with_range(plain_gans.cut_patch(3, 4))
    assert_same_function(build_discriminator(config, 3), plain, channels=3, side=2 * size, wider=2 * size + 3)


def test_the_features_of_an_antialiased_level_are_those_of_its_convolution():
    """CUT compares the results of layers 0, 4, 8, 12 and 16 of its generator; layer 0 is the padded image."""
    config = dataclasses.replace(ZHU_G, width=4, down="antialiased", up="antialiased")
    generator = build_generator(config, 3).double()
    plain = plain_gans.cut_resnet(3, 3, 4, 9).double()
    plain_gans.copy_weights(generator, plain)
    x = torch.rand(1, 3, 24, 32, dtype=torch.float64)
    found, y = generator(x, features="only"), 2 * x - 1
    expected = []
    for number, layer in enumerate(plain):
        y = layer(y)
        if number in (4, 8, 12, 16):
            expected.append(y)
    assert [f.shape[1] for f in found] == generator.feature_widths
    torch.testing.assert_close(found[1:], expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(found[0], x)


@pytest.mark.parametrize("levels", [5, 6])
def test_the_unet_is_the_one_of_zhu_et_al(levels):
    """Also for images of the least size, whose lowest level has one pixel."""
    config = dataclasses.replace(ZHU_U, width=2, levels=levels, max_width=16)
    plain = with_range(plain_gans.ZhuUNet(3, 2, 2, levels), output=True)
    assert_same_function(build_generator(config, 3, 2), plain, channels=3, side=2**levels, wider=2**levels)


def test_the_dropout_of_the_unet_of_zhu_et_al():
    """It is in the three levels above the lowest of eight."""
    config = dataclasses.replace(ZHU_U, width=2, max_width=16, dropout=0.5)
    generator = build_generator(config, 3)
    assert [norm.dropout is not None for norm in generator.up_norm] == [False, True, True, True, False, False, False]
    x = torch.rand(2, 3, 256, 256)
    keys = torch.tensor([1, 2])
    assert torch.equal(generator(x, keys), generator(x, keys))
    assert not torch.equal(generator(x, keys), generator(x, keys + 2))


def test_the_patch_discriminator_is_the_one_of_zhu_et_al():
    config = dataclasses.replace(ZHU_D, width=4)
    assert_same_function(build_discriminator(config, 3), with_range(plain_gans.zhu_patch(3, 4)), channels=3)


def test_each_logit_of_the_patch_discriminator_sees_70_pixels():
    """Without norms, which see the whole image."""
    network = build_discriminator(dataclasses.replace(ZHU_D, width=2, norm="none"), 3).double()
    x = torch.rand(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    (logits,) = network(x)
    logits[0, 0, 9, 9].backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (70, 70)


def test_the_pixel_discriminator_is_the_one_of_isola_et_al():
    config = dataclasses.replace(ZHU_D, network="pixel", width=4)
    assert_same_function(build_discriminator(config, 3), with_range(plain_gans.isola_pixel(3, 4)), channels=3)


@pytest.mark.parametrize(
    ("network", "plain"), [("unet", plain_gans.UNetDiscriminator), ("patch_vologan", plain_gans.PatchOfLevels)]
)
def test_discriminators_of_levels(network, plain):
    config = DiscriminatorConfig(network=network, width=4, levels=2, dropout=0.0, spectral_norm=False)
    assert_same_function(build_discriminator(config, 4), plain(4, 4), channels=4)


@pytest.mark.parametrize("cardinality", [1, 2, 4])
def test_a_residual_bottleneck_block_is_a_sum_of_parallel_paths(cardinality):
    """The grouped convolution computes each path by itself. γ and β of the inner norms are still 1 and 0 here."""
    config = GeneratorConfig(cardinality=cardinality, spectral_norm=False)
    block = ResidualBottleneckBlock(128, 128, config).double()
    weights = [layer.weight for layer in (block.reduce.convolution, block.convolve.convolution, block.expand)]
    width = {1: 32, 2: 2, 4: 2}[cardinality]  # 128 / 4 for a single path, else 128 / 64
    assert [tuple(w.shape[:2]) for w in weights] == [(cardinality * width, 128), (cardinality * width, width),
                                                     (128, cardinality * width)]  # fmt: skip
    paths = zip(weights[0].split(width), weights[1].split(width), weights[2].split(width, dim=1), strict=True)
    x = torch.rand(2, 128, 6, 8, dtype=torch.float64)
    torch.nn.init.uniform_(block.norm.weight, 0.5, 2.0)
    expected = plain_gans.residual_bottleneck(x, paths, (block.norm.weight, block.norm.bias))
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


def test_a_residual_bottleneck_block_changes_the_width_first():
    block = ResidualBottleneckBlock(4, 8, SMALL_G)
    torch.testing.assert_close(block(x := torch.rand(1, 4, 6, 6)), block(x))
    block.norm.weight.data.zero_()
    block.norm.min_scale = 0.0
    torch.testing.assert_close(block(x), block.project(x))


@pytest.mark.parametrize("padding", ["zero", "reflection"])
@pytest.mark.parametrize("stride", [1, 2])
def test_factorized_kernels_are_two_convolutions(padding, stride):
    """Together they are one k × k convolution whose kernel is the product of the two."""
    config = GeneratorConfig(factorized_kernels=True, padding=padding, spectral_norm=False)
    layer = convolution(1, 1, 5, config, stride=stride).double()
    row, column = layer[0].weight, layer[1].weight
    assert (row.shape, column.shape) == ((1, 1, 1, 5), (1, 1, 5, 1))
    x = torch.rand(1, 1, 16, 24, dtype=torch.float64)
    padded = F.pad(x, (2,) * 4, mode="constant" if padding == "zero" else "reflect")
    torch.testing.assert_close(layer(x), F.conv2d(padded, column * row, stride=stride))


# ---- layers between the levels --------------------------------------------------------------------------------------


def test_bare_space_to_depth_is_the_block_of_pixels_alone():
    config = GeneratorConfig(down="bare_space_to_depth")
    layer = halve(3, 8, 3, config)
    x = torch.rand(2, 3, 4, 6)
    expected = x.view(2, 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    assert torch.equal(layer(x), expected) and not list(layer.parameters())
    assert halved_channels(3, 8, config) == 12


def test_bilinear_residual_adds_two_paths():
    config = GeneratorConfig(up="bilinear_residual", spectral_norm=False)
    layer = double(4, 6, config).double()
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64)
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear")

    def block(y, of):
        normed = F.instance_norm(F.conv2d(y, of.convolution.weight, padding="same"), eps=1e-3)
        return F.leaky_relu(normed, 0.3)

    expected = block(doubled, layer.short) + block(block(doubled, layer.long[0]), layer.long[1])
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


def test_the_weights_of_a_transposed_convolution_count_its_inputs():
    """He uniform: ± sqrt(6 / (channels in · 9)), which is not ± sqrt(6 / (channels out · 9)) here."""
    config = GeneratorConfig(up="transposed_convolution", initializer="he_uniform", spectral_norm=False)
    weight = double(64, 16, config).convolution.weight
    limit = (6 / (64 * 9)) ** 0.5
    assert weight.shape == (64, 16, 3, 3)
    assert 0.99 * limit < weight.abs().max() <= limit


# ---- padding, dropout, norms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": 3, "kernel": 5, "factorized_kernels": True},
        {"down": "average_pooling", "up": "bilinear"},
        {"down": "average_pooling", "up": "bilinear_residual", "blocks": 3, "kernel": 5, "factorized_kernels": True},
        {"up": "transposed_convolution"},
        {"down": "antialiased", "up": "antialiased"},
    ],
    ids=str,
)
def test_padding_in_the_norm_is_padding_before_the_convolution(options):
    options = {"padding": "reflection", "first_kernel": 7, "down": "conv_stride_2", "dropout": 0.0} | options
    networks = [build_generator(dataclasses.replace(SMALL_G, network=name, **options)) for name in GENERATOR_NAMES]
    networks += [
        build_discriminator(dataclasses.replace(SMALL_D, network=name, **options)) for name in DISCRIMINATOR_NAMES
    ]
    image, fused = torch.rand(2, 4, 32, 32, dtype=torch.float64), 0
    for network in networks:
        plain = copy.deepcopy(network.double().eval())
        plain.skip_pads, plain.join_pad = [0] * len(getattr(network, "skip_pads", [])), 0
        for module in plain.modules():
            if isinstance(module, InstanceNormAct2d) and module.reflection_pad:
                module.reflection_pad = 0
                fused += 1
            if isinstance(module, (ResidualBlock, ResidualBottleneckBlock)):
                module.border = 0
            if isinstance(module, Blur):
                module.padded = False
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size > (1, 1) and module.padding == (0, 0):
                module.padding = tuple((side - 1) // 2 for side in module.kernel_size)
                module.padding_mode = "reflect"
                module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]
        torch.testing.assert_close(network(image), plain(image), rtol=1e-9, atol=1e-9)
    assert fused > 10


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_residual_blocks_are_the_same_on_the_kernels(layout):
    """The residual is a view into a padded tensor there, so its rows do not follow one another in memory."""
    pytest.importorskip("triton")
    config = dataclasses.replace(SMALL_G, padding="reflection", dropout=0.0)
    blocks = torch.nn.Sequential(
        ResidualBlock(8, config, 0, next_kernel=3),
        ResidualBlock(8, config, 1, padded=True, next_kernel=3),
        ResidualBottleneckBlock(8, 8, config, padded=True),
    ).double()
    x = torch.rand(2, 8, 6, 10, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    results = []
    for impl in ("reference", "triton"):
        for module in blocks.modules():
            if isinstance(module, InstanceNormAct2d):
                module.impl = impl
        y = blocks(x)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
        results.append([y, *torch.autograd.grad(loss, [x, *blocks.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_every_dropout_of_a_network_has_a_number_of_its_own_and_gets_the_keys():
    for network in GENERATOR_NAMES:
        generator = build_generator(
            dataclasses.replace(SMALL_G, network=network, levels=3, dropout=0.5, dropout_levels=1)
        ).train()
        layers = [module.layer for module in generator.modules() if isinstance(module, Dropout)]
        assert layers and len(set(layers)) == len(layers)
        image, before = torch.rand(1, 4, 16, 16), torch.get_rng_state()
        generator(image, torch.tensor([3]))
        assert torch.equal(before, torch.get_rng_state()), f"{network} draws a mask from torch's generator"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "config", "network"),
    [
        *((build_generator, SMALL_G, name) for name in GENERATOR_NAMES),
        *((build_discriminator, SMALL_D, name) for name in DISCRIMINATOR_NAMES),
    ],
)
def test_each_network_compiles_as_one_graph(build, config, network):
    """Forward and backward, with dropout of given keys and padding in the norms. `fullgraph` refuses graph breaks."""
    options = {"network": network, "padding": "reflection", "dropout": 0.3}
    eager = build(dataclasses.replace(config, **options)).double()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="aot_eager")
    image, keys = torch.rand(2, 4, 16, 16, dtype=torch.float64), torch.tensor([5, 6])
    results = []
    for model in (eager, compiled):
        outputs = model(image, keys)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        loss = sum(y.square().mean() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_averages_copy_the_running_statistics_of_batch_norms():
    config = Config(
        generator=dataclasses.replace(SMALL_G, norm="batch"), train=TrainConfig(average=0.5), discriminator=SMALL_D
    )
    networks = Networks(config)
    networks.generator_st(torch.rand(2, 4, 16, 16))
    networks.update_averages(3)
    norms = [
        [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for network in (networks.generator_st, networks.average_st)
    ]
    assert len(norms[0]) > 5
    for norm, average in zip(*norms, strict=True):
        assert norm.running_mean.abs().max() > 0 and torch.equal(norm.running_mean, average.running_mean)
        assert torch.equal(norm.num_batches_tracked, average.num_batches_tracked)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"generator": {"norm": "batch"}}, "--train.step is fast: expected plain with --generator.norm batch"),
        ({"discriminator": {"norm": "batch"}}, "--train.step is fast: expected plain with --discriminator.norm batch"),
        ({"generator": {"network": "resnet"}, "train": {"recompute": 1}}, "0 with --generator.network resnet"),
        ({"generator": {"norm": "batch"}, "train": {"recompute": 1}}, "would count a batch twice"),
        ({"generator": {"blocks": 4}}, "--generator.blocks is 4: expected 1, 2 or 3"),
        ({"generator": {"residual_blocks": 0}}, "--generator.residual-blocks is 0"),
        ({"generator": {"cardinality": 0}}, "--generator.cardinality is 0"),
        ({"discriminator": {"network": "unet", "levels": 6}, "data": {"size": 32}}, "expected a multiple of 64"),
        ({"discriminator": {"network": "patch", "levels": 5}, "data": {"size": 64}}, "3 of the image's 64 pixels"),
        ({"discriminator": {"network": "pixel", "attention": "matrix"}}, "none with --discriminator.network pixel"),
    ],
)
def test_what_cannot_work_is_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(from_dict(values))


def test_the_discriminator_of_levels_needs_no_multiple():
    """Only the U-Net's decoder needs sides that it can double again."""
    check(Config(data=DataConfig(size=96), generator=SMALL_G, discriminator=dataclasses.replace(SMALL_D, levels=4)))


@pytest.mark.parametrize("network", GENERATORS)
@pytest.mark.parametrize("output", ["hard_sigmoid", "residual"])
def test_background_can_stay_background(network, output):
    """The rest of the image is that of the same network without the option, also dark colour and holes of depth."""
    config = dataclasses.replace(SMALL_G, network=network, output=output, dropout=0.0, spectral_norm=False)
    plain = build_generator(config).eval()
    keeping = build_generator(dataclasses.replace(config, keep_background=True)).eval()
    keeping.load_state_dict(plain.state_dict())
    x = torch.rand(2, 4, 16, 16) + 0.01
    x[:, :, :5] = 0.0
    x[:, :3, 8], x[:, 3, 9] = 0.0, 0.0
    expected = plain(x)
    assert expected[:, :, :5].any()
    expected[:, :, :5] = 0.0
    assert torch.equal(keeping(x), expected)
