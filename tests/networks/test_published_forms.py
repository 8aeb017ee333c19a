"""The published forms of attention, dropout, initialisers and the last convolution, and what older versions did.

The formulas here are written from the paper's description, in float64 and without the code under test.
"""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vologan_fast.config import (
    PRESETS,
    BlockConfig,
    ConfigError,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    ScheduleConfig,
    check,
    from_record,
    to_dict,
)
from vologan_fast.networks import Networks, OneShotDiscriminator, UNetGenerator
from vologan_fast.networks.blocks import ConvBlock, GatedAttention
from vologan_fast.networks.dropout import Dropout
from vologan_fast.networks.initializers import initialize
from vologan_fast.training.run_folder import read_config
from vologan_fast.training.schedules import learning_rate_factor

FORMER = Path(__file__).parent / "config_of_7ec6044.json"
SMALL_G = GeneratorConfig(width=4, max_width=16, levels=4)
SMALL_D = DiscriminatorConfig(widths=(4, 4, 8), down_widths=(4, 8, 8))


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# ---- attention -------------------------------------------------------------------------------------------------------


def projected(x, projection, eps):
    """Return a 1×1 convolution of x (N, H, W, C) and the layer norm over its channels."""
    convolution, norm = projection
    y = x @ convolution.weight.detach()[:, :, 0, 0].T
    centred = y - y.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def attended(block, x, kind, eps=1e-3):
    """Return x + gate · attention, position by position. The gate is 1 at first."""
    x = x.permute(0, 2, 3, 1)
    q, k, v = (projected(x, each, eps) for each in (block.query, block.key, block.value))
    result = torch.zeros_like(v)
    n, height, width, inner = v.shape
    for image in range(n):
        for column in range(width):
            for channel in range(inner):
                if kind == "elementwise":
                    products = [q[image, column, i, channel] * k[image, i, column, channel] for i in range(height)]
                else:
                    products = [q[image, i, column, channel] * k[image, i, column, channel] for i in range(height)]
                weights = [math.exp(product) for product in products]
                for i in range(height):
                    result[image, i, column, channel] = weights[i] / sum(weights) * v[image, i, column, channel]
    if kind == "matrix":
        q, k, v = (t.reshape(n, -1, inner) for t in (q, k, v))
        scores = torch.softmax(q @ k.transpose(1, 2) / inner**0.5, dim=2)
        result = (scores @ v).view(n, height, width, inner)
    return (x + projected(result, block.out, eps)).permute(0, 3, 1, 2)


def attention_block(kind, **options):
    torch.manual_seed(0)
    block = GatedAttention(16, BlockConfig(attention=kind, spectral_norm=False, **options)).double()
    for projection in (block.query, block.key, block.value, block.out):
        torch.nn.init.normal_(projection[0].weight)
        torch.nn.init.normal_(projection[1].weight)
        torch.nn.init.normal_(projection[1].bias)
    assert abs(torch.nn.functional.softplus(block.gate) - 1) < 1e-7  # rounded to float32
    block.gate.data = torch.ones((), dtype=torch.float64).expm1().log()
    return block


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


KINDS = ["elementwise", "elementwise_untransposed", "matrix"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_attention_is_its_formula_and_no_other(kind):
    block, x = attention_block(kind), torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert [close(block(x), attended(block, x, each)) for each in KINDS] == [each == kind for each in KINDS]


@torch.no_grad()
def test_the_layer_norms_have_the_epsilon_of_keras():
    block, x = attention_block("elementwise"), torch.randn(1, 16, 4, 4, dtype=torch.float64)
    assert not close(block(x), attended(block, x, "elementwise", eps=1e-5))
    former = attention_block("elementwise", attention_eps=1e-5)
    assert close(former(x), attended(former, x, "elementwise", eps=1e-5))


def test_the_published_attention_takes_square_images_only():
    x = torch.rand(1, 16, 4, 5, dtype=torch.float64)
    with pytest.raises(ConfigError, match="expected square images, found features of 4 × 5"):
        attention_block("elementwise")(x)
    for kind in KINDS[1:]:
        assert attention_block(kind)(x).shape == x.shape


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_generators_attention_is_where_the_height_is_32_behind_the_dropout(size):
    network = UNetGenerator(dataclasses.replace(SMALL_G, attention="elementwise", dropout_levels=4), height=size)
    shapes = []
    for module in network.modules():
        if isinstance(module, GatedAttention):
            module.register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape[2:]))
    network(torch.rand(1, 4, size, size))
    assert shapes == [(32, 32)]
    (level,) = (level for level in network.decoder if any(isinstance(module, GatedAttention) for module in level))
    assert [type(module) for module in level] == [ConvBlock, ConvBlock, Dropout, GatedAttention]


def test_size_0_is_the_lowest_level_before_the_dropout():
    network = UNetGenerator(dataclasses.replace(SMALL_G, attention="matrix", attention_size=0))
    kinds = [[type(module) for module in level] for level in network.decoder]
    assert kinds[0] == [ConvBlock, ConvBlock, GatedAttention, Dropout]
    assert all(GatedAttention not in level for level in kinds[1:])


def test_a_height_that_no_level_has_is_refused():
    config = dataclasses.replace(PRESETS["vologan-512"], data=DataConfig(size=96))
    with pytest.raises(ConfigError, match=r"--generator.attention-size is 32: .* \(96, 48, 24, 12, 6\), or 0"):
        check(config)
    check(dataclasses.replace(config, generator=dataclasses.replace(config.generator, attention_size=24)))
    with pytest.raises(ConfigError, match=r"generator.attention_size is 32: .*\(96, 48, 24, 12, 6\)"):
        UNetGenerator(config.generator, height=96)
    with pytest.raises(ConfigError, match=r"attention_size is 32: expected the height of the images too, found none"):
        UNetGenerator(config.generator)


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_half_of_the_decoder_levels_have_dropout(levels):
    network = UNetGenerator(dataclasses.replace(SMALL_G, levels=levels))
    dropped = [any(isinstance(module, Dropout) for module in level) for level in network.decoder]  # lowest first
    assert dropped == [True] * (levels // 2) + [False] * (levels - levels // 2)
    assert any(isinstance(module, Dropout) for module in network.bottleneck)
    former = UNetGenerator(dataclasses.replace(SMALL_G, levels=levels, dropout_levels=2))
    dropped = [any(isinstance(module, Dropout) for module in level) for level in former.decoder]
    assert dropped == [True] * min(levels, 2) + [False] * max(levels - 2, 0)


@pytest.mark.parametrize("padding", ["zero", "reflection"])
@pytest.mark.parametrize("dropouts", [1, 2])
def test_each_branch_of_the_discriminator_keeps_0_8_twice(dropouts, padding):
    """The share that is kept lies within 5 standard deviations of a binomial. Dropout acts before the padding."""
    network = OneShotDiscriminator(dataclasses.replace(SMALL_D, branch_dropouts=dropouts, padding=padding))
    kept = []

    def hook(_module, inputs, output):
        there = inputs[0] != 0
        assert inputs[0].shape[1:] in [(8, 1, 1), (1, 8, 8)]
        kept.append((int((output != 0).sum()), int(there.sum())))

    for branch in (network.content, network.layout):
        for module in branch:
            if isinstance(module, Dropout):
                module.register_forward_hook(hook)
    network(torch.rand(64, 4, 64, 64), torch.arange(64))
    assert len(kept) == 2 * dropouts
    for count, of in kept:
        assert abs(count / of - 0.8) < 5 * (0.8 * 0.2 / of) ** 0.5
    layers = [
        [module.layer for module in branch if isinstance(module, Dropout)]
        for branch in (network.content, network.layout)
    ]
    assert layers == ([[2, 0], [3, 1]] if dropouts == 2 else [[0], [1]])  # a layer's number decides its masks


def test_the_dropouts_of_the_discriminator_stand_before_its_last_two_convolutions():
    network = OneShotDiscriminator(SMALL_D)
    for branch, first in ((network.content, 2), (network.layout, 2)):
        assert [isinstance(module, Dropout) for module in branch][first:] == [True, False, True, False]


# ---- initialisers ----------------------------------------------------------------------------------------------------

FAN_IN, FAN_OUT, SLOPE = 64 * 9, 128 * 9, 0.3
CUT = 0.87962566103423978


@pytest.mark.parametrize(
    ("name", "variance", "left"),
    [
        ("he_normal", 2 / FAN_IN, 1.0),
        ("glorot_normal", 2 / (FAN_IN + FAN_OUT), 1.0),
        ("he_alpha_normal", 2 / ((1 + SLOPE**2) * FAN_IN), CUT),
        ("he_normal_uncorrected", 2 / FAN_IN, CUT),
        ("glorot_normal_uncorrected", 2 / (FAN_IN + FAN_OUT), CUT),
    ],
)
def test_measured_moments_of_the_truncated_normal_initialisers(name, variance, left):
    """The deviation of n values has a relative error of about 1/√(2n). The bounds are five of them."""
    torch.manual_seed(0)
    weight = initialize(torch.empty(128, 64, 3, 3), name, SLOPE).double()
    std, error = left * variance**0.5, 5 / weight.numel() ** 0.5
    assert abs(weight.std() / std - 1) < error / 2**0.5
    assert abs(weight.mean()) < error * std
    limit = 2 * std / CUT  # the cut is at 2 σ of the distribution before it
    assert 0.99 * limit < weight.abs().max() <= limit * (1 + 1e-6)
    kurtosis = (weight / std).pow(4).mean()
    assert abs(kurtosis - 2.3654) < 0.03  # of a normal distribution that is cut at ±2 σ; a whole one has 3


def test_the_correction_is_the_deviation_of_the_cut_normal_distribution():
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    assert math.sqrt(1 - 4 * density / math.erf(math.sqrt(2))) == pytest.approx(CUT, rel=1e-12)


# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "blind", "working"),
    [("vologan-512", 5_306_529, 5_304_481), ("vologan-64", 2_124_193, 2_122_145)],
)
def test_parameters_with_and_without_the_norms_of_the_content_branch(preset, blind, working):
    config = dataclasses.replace(PRESETS[preset].discriminator, attention="none")
    assert config.content_norm == "none"
    with FakeTensorMode():
        assert parameters(OneShotDiscriminator(config)) == working
        assert parameters(OneShotDiscriminator(dataclasses.replace(config, content_norm="instance"))) == blind


def test_the_last_convolution_of_the_generator_has_no_bias():
    """test_networks.py has the whole numbers of parameters."""
    network, former = UNetGenerator(SMALL_G), UNetGenerator(dataclasses.replace(SMALL_G, output_bias=True))
    assert network.to_image.bias is None and former.to_image.bias.tolist() == [0.0] * 4
    assert parameters(former) - parameters(network) == 4


# ---- records of older versions ---------------------------------------------------------------------------------------


def test_a_record_of_7ec6044_keeps_its_meaning():
    """The record and the numbers come from that commit: they are the outputs of its networks, with the same seed."""
    data, config = read_config(FORMER)
    assert data == "people"
    assert config.generator.attention == config.discriminator.attention == "elementwise_untransposed"
    assert config.generator.attention_eps == config.discriminator.attention_eps == 1e-5
    assert (config.generator.attention_size, config.generator.dropout_levels) == (0, 2)
    assert config.generator.output_bias and config.discriminator.branch_dropouts == 1
    assert config.generator.initializer == "he_normal_uncorrected"
    assert config.discriminator.initializer == "glorot_normal_uncorrected"
    assert not config.generator_optimizer.nesterov and config.generator_optimizer.switch_learning_rate == 1e-4
    check(config)

    torch.manual_seed(0)
    networks = Networks(config).double().train()
    x = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keys = torch.tensor([5, 6])
    found = networks.generator_st(x, keys), *networks.discriminator_t(x, keys)
    digests = [(t * torch.arange(t.numel(), dtype=t.dtype).view(t.shape).cos()).sum().item() for t in found]
    expected = [-0.0576609413822351, -7.345964124339822, 0.03233721103636657, -4.229649294624489]
    # The weights are drawn in float32, whose last bits depend on the processor; another meaning changes whole digits.
    assert digests == pytest.approx(expected, rel=1e-6)
    rates = [learning_rate_factor(epoch, config.schedule) for epoch in (0, 10, 19)]
    assert rates == pytest.approx([1.0, 0.1, 0.012589254117941675])


def test_what_is_recorded_today_means_what_it_says():
    for config in PRESETS.values():
        config = dataclasses.replace(config, schedule=ScheduleConfig(decay="exponential"))
        assert from_record(to_dict(config)) == config


def test_the_demo_preset_is_what_it_was():
    """bench/learn.py has its scores."""
    former = to_dict(PRESETS["demo"])
    for section, fields in (
        ("generator", ("attention_size", "attention_eps", "output_bias")),
        ("discriminator", ("attention_eps", "branch_dropouts")),
    ):
        for field in fields:
            del former[section][field]
    read = from_record(former)
    demo = PRESETS["demo"]
    unused = {"attention_size": 32, "attention_eps": 1e-3}  # without attention
    assert dataclasses.replace(read.generator, **unused) == demo.generator
    assert dataclasses.replace(read.discriminator, attention_eps=1e-3) == demo.discriminator


@pytest.mark.parametrize("damaged", [None, 3, {"generator": 3}, {"generator": {"initializer": ["he_normal"]}}])
def test_a_damaged_record_is_a_config_error(damaged):
    with pytest.raises(ConfigError):
        from_record(damaged)
