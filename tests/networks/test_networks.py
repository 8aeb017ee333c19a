"""The networks: sizes and costs of the published ones, and all options."""

import copy
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from vologan_kernels import InstanceNormAct2d

from vologan_fast.config import (
    PRESETS,
    Config,
    ConfigError,
    DiscriminatorConfig,
    GeneratorConfig,
    TrainConfig,
)
from vologan_fast.networks import Networks, OneShotDiscriminator, UNetGenerator
from vologan_fast.networks.blocks import reflected
from vologan_fast.networks.initializers import initialize

SMALL_G = GeneratorConfig(width=8, max_width=16, levels=2)
SMALL_D = DiscriminatorConfig(widths=(8, 8, 16), down_widths=(8, 16, 16))


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("preset", "generator", "generator_gflop", "discriminator", "discriminator_gflop"),
    [
        ("vologan-512", 39_244_160, 515, 5_304_481, 132),
        # The published counts of the discriminators include 2,048 of the norms of the blind content branch
        # (test_published_forms.py).
        ("vologan-64", 38_906_240, 402, 2_122_145, 59),
    ],
)
def test_parameters_and_cost_at_512(preset, generator, generator_gflop, discriminator, discriminator_gflop):
    config = PRESETS[preset]
    with FakeTensorMode(), torch.no_grad():
        image = torch.empty(1, 4, 512, 512)
        for network, count, gflop in (
            (UNetGenerator(dataclasses.replace(config.generator, attention="none")), generator, generator_gflop),
            (
                OneShotDiscriminator(dataclasses.replace(config.discriminator, attention="none")),
                discriminator,
                discriminator_gflop,
            ),
        ):
            with FlopCounterMode(display=False) as counter:
                network.eval()(image)
            assert parameters(network) == count
            assert round(counter.get_total_flops() / 1e9) == gflop


@pytest.mark.slow
def test_attention_adds_its_parameters_to_each_network_of_vologan_512():
    config = PRESETS["vologan-512"]
    with FakeTensorMode():
        for build, network in ((UNetGenerator, config.generator), (OneShotDiscriminator, config.discriminator)):
            size = {"height": config.data.size} if build is UNetGenerator else {}
            without = build(dataclasses.replace(network, attention="none"))
            assert parameters(build(network, **size)) - parameters(without) == 132_481


@pytest.mark.parametrize("output", ["hard_sigmoid", "sigmoid", "tanh", "residual"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "reflection", "first_kernel": 7},
        {"down": "max_pooling"},
        {"down": "average_pooling"},
        {"down": "space_to_depth"},
        {"up": "bilinear"},
        {"join": "add"},
        {"attention": "elementwise_untransposed", "attention_size": 0},
        {"attention": "matrix", "attention_size": 8},
        {"output_bias": True},
        {"activation": "prelu"},
        {"activation": "gelu"},
        {"activation": "elu"},
        {"activation": "relu"},
        {"spectral_norm": False},
        {"norm_gamma": "random"},
    ],
    ids=str,
)
def test_every_generator_option_gives_an_image_and_trains_all_parameters(options, output):
    network = UNetGenerator(dataclasses.replace(SMALL_G, output=output, **options), height=16)
    image = network(torch.rand(2, 4, 16, 24))
    assert image.shape == (2, 4, 16, 24)
    assert image.min() >= 0 and image.max() <= 1
    (image * torch.rand_like(image)).sum().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused


@pytest.mark.parametrize("side", [15, 2, 4])
def test_a_side_that_cannot_be_halved_is_refused(side):
    with pytest.raises(ConfigError, match=f"multiples of 4 and larger than it, found {side} × 16"):
        UNetGenerator(SMALL_G)(torch.rand(1, 4, side, 16))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"down": "conv_stride_2", "padding": "reflection", "first_kernel": 7},
        {"attention": "elementwise"},
        {"attention": "matrix"},
        {"content_norm": "instance"},
        {"activation": "prelu"},
    ],
    ids=str,
)
def test_discriminator_outputs(options):
    network = OneShotDiscriminator(dataclasses.replace(SMALL_D, **options))
    low_level, content, layout = network(torch.rand(2, 4, 32, 32))
    assert low_level.shape == (2, 8, 32, 32)
    assert content.shape == (2, 16, 1, 1)
    assert layout.shape == (2, 1, 4, 4)
    (low_level.mean() + content.mean() + layout.mean()).backward()


def test_the_content_branch_sees_the_image_and_the_published_form_does_not():
    one, other = torch.rand(2, 1, 4, 32, 32).unbind()
    for norm, sees in (("none", True), ("instance", False)):
        network = OneShotDiscriminator(dataclasses.replace(SMALL_D, content_norm=norm)).eval()
        difference = (network(one)[1] - network(other)[1]).abs().max()
        assert (difference > 1e-6) == sees  # the blind branch differs only by roundings of its zeros


def test_no_randomness_and_no_change_in_eval():
    network = UNetGenerator(SMALL_G).eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before = torch.get_rng_state()
    image = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(image), network(image))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_hard_sigmoid_is_keras():
    """Keras has clip(0.2 x + 0.5, 0, 1), and torch has clip(x / 6 + 0.5, 0, 1)."""
    network = UNetGenerator(SMALL_G).eval()
    before = []
    network.to_image.register_forward_hook(lambda _module, _input, output: before.append(output))
    image = network(torch.rand(1, 4, 16, 16))
    torch.testing.assert_close(image, (0.2 * before[0] + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("name", "limit", "std"),
    [
        ("he_alpha_uniform", (6 / (1.09 * 288)) ** 0.5, (2 / (1.09 * 288)) ** 0.5),
        ("he_uniform", (6 / 288) ** 0.5, (2 / 288) ** 0.5),
        ("glorot_uniform", (6 / (288 + 576)) ** 0.5, (2 / (288 + 576)) ** 0.5),
        ("he_alpha_normal", 2 * (2 / (1.09 * 288)) ** 0.5, 0.88 * (2 / (1.09 * 288)) ** 0.5),
        ("glorot_normal_small", None, 0.02 * (2 / (288 + 576)) ** 0.5),
        ("normal", None, 0.02),
        ("uniform", 0.05, 0.05 / 3**0.5),
    ],
)
def test_initial_weights(name, limit, std):
    """Here fan_in = 32 · 3 · 3 and fan_out = 64 · 3 · 3. A normal distribution cut at 2 σ keeps 0.88 of its σ."""
    weight = initialize(torch.empty(64, 32, 3, 3), name, negative_slope=0.3)
    assert limit is None or weight.abs().max() <= limit
    assert abs(weight.std().item() / std - 1) < 0.02


def test_averages_follow_the_generators():
    networks = Networks(Config(generator=SMALL_G, discriminator=SMALL_D, train=TrainConfig(average=0.5)))
    weights = list(networks.generators.parameters())
    expected = [weight.detach().clone() for weight in weights]
    for step, decay in [(1, 1 / 10), (2, 2 / 11), (100, 0.5)]:
        for i, weight in enumerate(weights):
            torch.nn.init.normal_(weight)
            expected[i] = decay * expected[i] + (1 - decay) * weight.detach()
        networks.update_averages(step)
        torch.testing.assert_close(list(networks.translators.parameters()), expected)
    assert not any(average.requires_grad for average in networks.translators.parameters())
    networks.update_averages(0)
    assert all(map(torch.equal, networks.translators.parameters(), weights))


def test_without_averages_the_generators_translate():
    networks = Networks(Config(generator=SMALL_G, discriminator=SMALL_D))
    assert list(networks.translators) == [networks.generator_st, networks.generator_ts]
    assert len(list(networks.children())) == 4


@pytest.mark.parametrize("down", ["conv_stride_2", "average_pooling"])
@pytest.mark.parametrize("join", ["concat", "add"])
@pytest.mark.parametrize(("first_kernel", "kernel"), [(7, 3), (3, 5)])  # a skip has more or less padding than the join
def test_padding_in_the_norm_is_padding_before_the_convolution(down, join, first_kernel, kernel):
    options = {"padding": "reflection", "first_kernel": first_kernel, "kernel": kernel, "down": down}
    generator = UNetGenerator(dataclasses.replace(SMALL_G, join=join, **options))
    discriminator = OneShotDiscriminator(dataclasses.replace(SMALL_D, **options))
    image = torch.rand(2, 4, 64, 64)
    for network in (generator.eval(), discriminator.eval()):
        plain = copy.deepcopy(network)
        plain.skip_pads, plain.join_pad = [0] * len(getattr(network, "skip_pads", [])), 0
        fused = 0
        for module in plain.modules():
            if isinstance(module, InstanceNormAct2d) and module.reflection_pad:
                module.reflection_pad = 0
                fused += 1
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size > (1, 1):
                module.padding, module.padding_mode = (module.kernel_size[0] // 2,) * 2, "reflect"
                module._reversed_padding_repeated_twice = [module.padding[0]] * 4
        assert fused >= 1
        found, expected = network(image), plain(image)
        torch.testing.assert_close(found, expected)


def test_a_generator_keeps_one_tensor_a_layer():
    """The norms keep only their outputs for the backward, which the convolutions keep as inputs anyway."""
    network = UNetGenerator(dataclasses.replace(SMALL_G, padding="reflection", dropout=0.0))
    outputs, kept = {}, {}
    for module in network.modules():
        if isinstance(module, InstanceNormAct2d):
            module.register_forward_hook(lambda module, inputs, y: outputs.update({y.data_ptr(): inputs[0]}))

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.rand(1, 4, 32, 32))
    assert len(outputs) > 10
    assert not {x.data_ptr() for x in outputs.values()} & set(kept)


@pytest.mark.parametrize("padding", ["zero", "reflection"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_convolutions_for_cudnns_sake_are_the_same_function(padding, spectral_norm):
    """Split 7 × 7 kernels, also with stride 2, and images of 8 channels give equal outputs and gradients in float64."""
    config = Config(
        generator=dataclasses.replace(SMALL_G, first_kernel=7, padding=padding, spectral_norm=spectral_norm, dropout=0),
        discriminator=dataclasses.replace(SMALL_D, first_kernel=7, padding=padding, spectral_norm=spectral_norm),
    )
    otherwise = dataclasses.replace(config, train=TrainConfig(split_kernels=True, pad_channels=True))
    plain, other = (Networks(c).double().eval() for c in (config, otherwise))
    other.load_state_dict(plain.state_dict())
    x = torch.rand(1, 4, 32, 32, dtype=torch.float64, requires_grad=True)
    for name in ("generator_st", "discriminator_s"):
        results = []
        for networks in (plain, other):
            network = networks.get_submodule(name)
            outputs = network(x)
            loss = sum(y.square().mean() for y in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))
            results.append([loss.detach(), *torch.autograd.grad(loss, [x, *network.parameters()])])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reflected_border_keeps_the_type_under_autocast(dtype):
    """torch's own padding returns float32 on the CPU, and all that is joined to it follows."""
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded = reflected(x, 2)
    assert padded.dtype == dtype
    assert torch.equal(padded, torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"))
