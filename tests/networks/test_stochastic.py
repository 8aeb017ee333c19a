"""Noise in the generator's input, and the head for depth that is not measured."""

import dataclasses
import math

import pytest
import torch

from vologan_fast.config import CHANNELS, Config, ConfigError, DataConfig, GeneratorConfig, check
from vologan_fast.networks import GENERATORS, Networks, build_generator, generator_of
from vologan_fast.networks.stochastic import NOISE, as_measured, at_scales, hole_share, measured, normal, with_holes

CONFIG = GeneratorConfig(
    width=4, max_width=8, levels=2, residual_blocks=2, cardinality=2, noise_channels=2, hole_head=True, dropout=0.0
)


def generator_of_kind(network, **options):
    torch.manual_seed(0)
    return build_generator(dataclasses.replace(CONFIG, network=network, **options), 4, 4).double()


def image(n=2, seed=1):
    return torch.rand(n, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_noise_is_normal_and_white():
    """Moments, tails, and correlations of 2 · 64² numbers of 40 keys. Each bound is five standard deviations."""
    x = normal(torch.arange(40) + 2**40, 2, 64, 64).double()
    n = x.numel()
    assert x.shape == (40, 2, 64, 64) and x.abs().max() < 5.77
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**moment).mean() - expected) < 5 * math.sqrt(variance / n), moment
    for limit in (1, 2, 3):
        p = math.erfc(limit / math.sqrt(2))
        assert abs((x.abs() > limit).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    pairs = [(x[:, 0], x[:, 1]), (x[:-1], x[1:]), (x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :])]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())


def test_noise_is_box_and_muller_on_the_hash():
    from vologan_fast.networks.dropout import random_bits

    keys = torch.tensor([3, 2**50])
    bits = random_bits(keys, NOISE, 2 * 3 * 4 * 5).tolist()
    for row, found in zip(bits, normal(keys, 3, 4, 5).flatten(1).tolist(), strict=True):
        for i, value in enumerate(found):
            u, v = 1 - row[i] / 2**24, row[60 + i] / 2**24
            assert value == pytest.approx(math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v), abs=2e-6)


@pytest.mark.parametrize("network", GENERATORS)
def test_the_draw_depends_on_the_key_alone(network):
    generator = generator_of_kind(network)
    x, keys = image(3), torch.tensor([5, 6, 7])
    y = generator(x, keys)
    assert y.shape == (3, 4, 16, 16)
    for i in range(3):
        torch.testing.assert_close(generator(x[i : i + 1], keys[i : i + 1]), y[i : i + 1], rtol=0, atol=1e-12)
    assert not torch.allclose(generator(x, keys + 1), y, atol=1e-6)
    given = normal(keys, 2, 16, 16)
    torch.testing.assert_close(generator(x, noise=given), y, rtol=0, atol=0)
    torch.manual_seed(1)
    one = generator(x)
    torch.manual_seed(1)
    assert torch.equal(one, generator(x)) and not torch.equal(one, generator(x))


@pytest.mark.parametrize("network", GENERATORS)
def test_features_show_the_image_without_its_noise_first(network):
    generator = generator_of_kind(network)
    x, keys = image(), torch.tensor([5, 6])
    translation, features = generator(x, keys, "also")
    assert torch.equal(translation, generator(x, keys)) and features[0] is x
    assert [of_level.shape[1] for of_level in features] == generator.feature_widths
    assert all(map(torch.equal, features, generator(x, keys, "only")))


@pytest.mark.parametrize("network", GENERATORS)
@pytest.mark.parametrize("output", ["hard_sigmoid", "residual"])
def test_the_image_has_the_holes_of_the_plane(network, output):
    generator = generator_of_kind(network, output=output, spectral_norm=False)
    with torch.no_grad():  # logits of both signs
        generator.hole_head.blocks[-1].bias.zero_()
    x, keys = image(), torch.tensor([5, 6])
    with_plane, y = generator(x, keys, hole_plane=True), generator(x, keys)
    assert with_plane.shape[1] == 5 and set(with_plane[:, 4].unique().tolist()) == {0.0, 1.0}
    hole = with_plane[:, 4] == 1
    assert torch.equal(y[:, :3], with_plane[:, :3])
    assert (y[:, 3][hole] == 0).all() and torch.equal(y[:, 3][~hole], with_plane[:, 3][~hole])


@pytest.mark.parametrize("network", GENERATORS)
def test_holes_teach_the_head_alone(network):
    generator = generator_of_kind(network)
    translation = generator(image(), torch.tensor([5, 6]), hole_plane=True)
    translation[:, 4].sum().backward()
    learns = {
        name for name, parameter in generator.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert learns == {name for name, _ in generator.named_parameters() if name.startswith("hole_head.")}


def test_the_head_sees_noise_at_every_scale():
    """At scale k, the mean over a square of 2^k pixels a side times 2^k has variance 1, and neighbours are alike."""
    noise = normal(torch.arange(60), 1, 64, 64).double()
    for scale, seen in enumerate(at_scales(noise, 4)):
        side = 2**scale
        squares = side * noise.unfold(2, side, side).unfold(3, side, side).mean((4, 5))
        assert seen.shape == noise.shape
        assert abs(squares.var() - 1) < 5 * math.sqrt(2 / squares.numel())
        # The four pixels about a square's middle are nearest to its mean. Their mean has these weights.
        inner = 1 - 1 / (2 * side) if scale else 1
        middle = seen.unfold(2, side, side).unfold(3, side, side)[..., (side - 1) // 2, (side - 1) // 2]
        expected = inner**2
        assert middle[:, :, 1:, 1:].mul(squares[:, :, 1:, 1:]).mean() == pytest.approx(expected, abs=0.02)
    assert (at_scales(noise, 4)[3].diff(dim=-1).abs() < 0.8).all()


def test_the_gradients_are_those_of_the_straight_through_estimator():
    """∂/∂d = 1 − m and ∂/∂h = −d σ′(h), with σ′ by central differences of 1 / (1 + e^−x)."""
    torch.manual_seed(0)
    picture = torch.rand(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    logits = (3 * torch.randn(2, 1, 5, 6, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    y = measured(with_holes(picture, logits))
    of_picture, of_logits = torch.autograd.grad((weights * y).sum(), (picture, logits))
    for n in range(2):
        for r in range(5):
            for c in range(6):
                h, d = float(logits[n, 0, r, c].detach()), float(picture[n, 3, r, c].detach())
                m, step = float(h > 0), 1e-5
                slope = (1 / (1 + math.exp(-h - step)) - 1 / (1 + math.exp(-h + step))) / (2 * step)
                w = float(weights[n, 3, r, c])
                assert float(y[n, 3, r, c].detach()) == d * (1 - m)
                assert float(of_picture[n, 3, r, c]) == w * (1 - m)
                assert float(of_logits[n, 0, r, c]) == pytest.approx(-w * d * slope, rel=1e-8, abs=1e-12)
    assert torch.equal(of_picture[:, :3], weights[:, :3])
    fixed = measured(with_holes(picture, logits), learn_holes=False)
    assert torch.equal(fixed, y)
    of_picture, of_logits = torch.autograd.grad((weights * fixed).sum(), (picture, logits))
    assert of_picture.any() and not of_logits.any()


def test_the_depth_of_a_generator_has_the_gradient_of_the_relaxed_holes():
    """gradcheck of the smooth twin: with the sigmoid itself as hole, the backward is the estimator's where m is 0."""

    def smooth(picture, logits):
        hole = torch.sigmoid(logits)
        return torch.cat((picture[:, :-1], picture[:, -1:] * (1 - hole)), 1)

    torch.manual_seed(0)
    picture = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, (picture, logits))
    weights = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad((weights * smooth(picture, logits)).sum(), logits)
    (found,) = torch.autograd.grad((weights * measured(with_holes(picture, logits))).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", ["rgbd", "grey+depth", "depth"])
def test_a_remade_image_has_the_holes_of_the_original(channels):
    count = CHANNELS[channels].number
    like = torch.rand(2, count, 6, 6) + 0.01
    like[:, :, :2] = 0.0  # background
    like[:, -1, 3] = 0.0  # holes
    translation = torch.cat((torch.rand(2, count, 6, 6) + 0.01, torch.ones(2, 1, 6, 6)), 1).requires_grad_()
    y = as_measured(translation, like)
    hole = torch.zeros(2, 6, 6, dtype=torch.bool)
    hole[:, 3] = True
    if channels == "depth":  # without a colour, background is no different from a hole
        hole[:, :2] = True
    assert torch.equal(y[:, :-1], translation[:, : count - 1])
    assert (y[:, -1][hole] == 0).all() and torch.equal(y[:, -1][~hole], translation[:, count - 1][~hole])
    (gradient,) = torch.autograd.grad((y - like).abs().sum(), translation)
    assert not gradient[:, -1].any() and not gradient[:, -2][hole].any() and gradient[:, -2][~hole].all()


@pytest.mark.parametrize("channels", ["rgbd", "depth"])
def test_the_share_of_holes(channels):
    """Four of eight pixels of the figure against one of four. In depth alone, background counts as hole."""
    count = CHANNELS[channels].number
    source, real = torch.full((1, count, 4, 4), 0.5), torch.full((1, count, 4, 4), 0.5)
    source[:, :, :2], real[:, :, :3] = 0.0, 0.0  # background
    real[:, -1, 3, 0] = 0.0  # a hole
    plane = torch.zeros(1, 1, 4, 4)
    plane[:, :, 2] = 1.0
    plane[:, :, 0] = 1.0  # in the background, where it means nothing
    found = hole_share(torch.cat((source, plane), 1), source, real)
    share, share_of_t = (12 / 16, 13 / 16) if channels == "depth" else (4 / 8, 1 / 4)
    assert float(found) == pytest.approx((share - share_of_t) ** 2)


def test_only_the_generator_to_the_sensor_draws():
    config = Config(data=DataConfig(channels=("rgb", "grey+depth")), generator=CONFIG)
    networks = Networks(config)
    assert networks.generator_st.config == CONFIG
    plain = dataclasses.replace(CONFIG, noise_channels=0, hole_head=False)
    assert networks.generator_ts.config == plain == generator_of(config, "ts").config
    x = torch.rand(1, 2, 16, 16)
    assert torch.equal(networks.generator_ts(x), networks.generator_ts(x))
    assert networks.generator_st(torch.rand(1, 3, 16, 16)).shape == (1, 2, 16, 16)


def test_noise_of_a_wrong_shape_is_refused():
    generator = generator_of_kind("unet")
    with pytest.raises(ValueError, match=r"noise: expected \(2, 2, 16, 16\), found \(2, 1, 16, 16\)"):
        generator(image(), noise=torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="noise: expected None, because the generator has no noise channels"):
        generator_of_kind("unet", noise_channels=0)(image(), noise=torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            Config(generator=GeneratorConfig(noise_channels=-1)),
            r"--generator.noise-channels is -1: expected at least 0",
        ),
        (
            Config(data=DataConfig(channels="rgb"), generator=GeneratorConfig(hole_head=True)),
            r"--generator.hole-head is True: expected --generator.no-hole-head for a real domain without depth \(rgb\)",
        ),
    ],
)
def test_settings_that_cannot_work(config, said):
    with pytest.raises(ConfigError, match=said):
        check(config)


def test_old_records_have_neither():
    from vologan_fast.config import from_record, to_dict

    values = to_dict(Config(generator=CONFIG))
    del values["generator"]["noise_channels"], values["generator"]["hole_head"]
    read = from_record(values).generator
    assert (read.noise_channels, read.hole_head) == (0, False)


@pytest.mark.parametrize(
    "network", ["unet_zhu", *(pytest.param(name, marks=pytest.mark.slow) for name in GENERATORS if name != "unet_zhu")]
)
def test_torch_compile_makes_one_graph(network):
    """aot_eager traces forward and backward as the inductor does, without its minutes."""
    generator = generator_of_kind(network, levels=1, residual_blocks=1).float()
    x, keys = image().float(), torch.tensor([5, 6])
    expected = generator(x, keys, "also", hole_plane=True)[0]
    compiled = torch.compile(generator, fullgraph=True, dynamic=False, backend="aot_eager")
    found = compiled(x, keys, "also", hole_plane=True)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found[:, :4].sum().backward()
