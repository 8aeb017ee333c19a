"""Digits, in the plain form and in the kernels: small variances beside large means, small numbers, NaN, huge values.

The truth is float64. Where a value is infinite or NaN, the truth is PyTorch's own composition of operations.
"""

import math

import pytest
import torch
from exactness import assert_as_exact
from torch import nn
from torch.nn import functional as F
from vologan_kernels import (
    ACTIVATIONS,
    InstanceNormAct2d,
    NAdam,
    adversarial_losses,
    global_ssim,
    instance_norm_act,
    launch,
    pixel_losses,
    weighted_l1,
    weighted_l2,
    windowed_ssim,
)

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMPLEMENTATIONS = ("reference", "triton")
EPS32 = torch.finfo(torch.float32).eps


@pytest.fixture(params=["plain", "one kernel", "two kernels"])
def impl(request, monkeypatch):
    """The plain form; kernels for planes that fit a tile; and kernels for planes in several parts of several tiles."""
    if request.param == "plain":
        return "reference"
    if request.param == "two kernels":
        for name, value in {"SINGLE_FORWARD": 0, "SINGLE_BACKWARD": 0, "STREAM": 256, "LEAST_TILES": 1}.items():
            monkeypatch.setattr(launch, name, value)
    return "triton"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def with_gradients(function, inputs, grad):
    """y, and the gradients of the inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype))]


# ---- the norm: a mean far above the deviation ------------------------------------------------------------------------


def plain(x, weight, bias):
    """torch's norm. It gets contiguous tensors, because its gradients of one channels_last sample are wrong."""
    return F.silu(F.instance_norm(x.contiguous(), None, None, weight, bias))


@pytest.mark.parametrize("ratio", [0, 10, 1e3, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.float32, (2, 8, 12, 16)), *((dtype, (1, 6, 20, 9)) for dtype in DTYPES)], ids=str
)
def test_the_norm_keeps_the_bound_at_any_ratio_of_mean_and_deviation(impl, dtype, layout, shape, ratio):
    x = (randn(*shape) / (ratio or 1) + (1 if ratio else 0)).to(dtype).contiguous(memory_format=layout)
    grad = (randn(*shape, seed=1) + 1).to(dtype).contiguous(memory_format=layout)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = [(randn(shape[1], seed=i) + 1).to(accumulator) for i in (2, 3)]

    def norm(x, weight, bias):
        return instance_norm_act(x, weight, bias, activation="silu", impl=impl)

    ours = with_gradients(norm, [x, *parameters], grad)
    torchs = with_gradients(plain, [x.to(accumulator), *parameters], grad.contiguous())
    exact = [tensor.double() for tensor in (x, *parameters)]
    truth = with_gradients(plain, exact, grad.double().contiguous())
    # A rounding of the mean μ moves x̂ by μ / sqrt(σ² + ε) roundings, and Σ g x̂ by as many of Σ g.
    mean, deviation = x.double().mean((2, 3)), (x.double().var((2, 3), correction=0) + 1e-5).sqrt()
    roundings = 4 + float((mean.abs() / deviation).max())
    for found, theirs, true in zip(ours, torchs, truth, strict=True):
        scale = grad.double().abs().sum() if true.dim() == 1 else true.abs().max()
        if dtype == torch.float64:  # whose own form is the truth
            assert (found - true).abs().max() <= 16 * roundings * torch.finfo(dtype).eps * scale
        else:
            assert_as_exact(found, theirs.to(found.dtype), true, ulps=roundings, scale=scale)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_large_plane_on_the_cpu(layout):
    """Sums over 65536 values, one after the other in float32, would err by 10⁻⁵."""
    x = (1 + randn(1, 4, 256, 256) / 10).float().contiguous(memory_format=layout)
    grad = (randn(1, 4, 256, 256, seed=1) + 2).float().contiguous(memory_format=layout)
    ours = with_gradients(lambda x: instance_norm_act(x, impl="reference"), [x], grad)
    torchs = with_gradients(lambda x: F.instance_norm(x.contiguous()), [x], grad.contiguous())
    truth = with_gradients(lambda x: F.instance_norm(x.contiguous()), [x.double()], grad.double().contiguous())
    for found, theirs, true in zip(ours, torchs, truth, strict=True):
        assert_as_exact(found, theirs, true, ulps=10)  # a rounding of the mean is 10 of x̂


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_running_statistics_keep_their_digits(layout):
    x = (1000 + randn(2, 5, 16, 16)).float().contiguous(memory_format=layout)
    ours = InstanceNormAct2d(5, momentum=1.0, track_running_stats=True).to(DEVICE)
    theirs = nn.InstanceNorm2d(5, momentum=1.0, track_running_stats=True).to(DEVICE)
    truth = nn.InstanceNorm2d(5, momentum=1.0, track_running_stats=True).to(DEVICE).double()
    for norm, image in ((ours, x), (theirs, x.contiguous()), (truth, x.double().contiguous())):
        norm(image)
    for name in ("running_mean", "running_var"):
        assert_as_exact(getattr(ours, name), getattr(theirs, name), getattr(truth, name), ulps=4)
    assert_as_exact(ours.eval()(x), theirs.eval()(x.contiguous()), truth.eval()(x.double()), ulps=4 + 1000)


@pytest.mark.parametrize("value", [3.7, 0.1, 1e4 / 3, -1e30])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_constant_plane_gives_the_bias(impl, layout, value):
    """To the bit; but torch's group norm, the plain form of contiguous planes, rounds the mean, as its others do."""
    x = torch.full((2, 3, 13, 11), value, device=DEVICE).contiguous(memory_format=layout)
    weight, bias = randn(3, seed=1).float(), randn(3, seed=2).float()
    inputs, grad = [x, weight, bias], torch.ones_like(x)
    y, dx, d_weight, _ = with_gradients(lambda *t: instance_norm_act(*t, impl=impl), inputs, grad)
    exact = impl == "triton" or layout == torch.channels_last
    limit = 0.0 if exact else 4 * EPS32 * abs(value) * 1e-5**-0.5 * float(weight.abs().max())
    torch.testing.assert_close(y, bias[None, :, None, None].expand_as(y), rtol=0, atol=limit)
    assert torch.isfinite(dx).all() and (d_weight.abs().max() == 0 or not exact)


@pytest.mark.parametrize("save", ["input", "output"])
@pytest.mark.parametrize("deviation", [1e-6, 1e-9])
def test_the_gradient_of_gamma_where_the_variance_is_far_below_epsilon(save, deviation):
    """x̂ is tiny there. With the input kept, its digits are kept. The output has them only down to a rounding of β."""
    x, grad = randn(2, 3, 8, 8) * deviation, randn(2, 3, 8, 8, seed=1)
    parameters = [torch.full((3,), value, dtype=torch.float64, device=DEVICE) for value in (0.5, 1.0)]
    function = lambda *t: instance_norm_act(*t, save=save, impl="reference")  # noqa: E731
    truth = with_gradients(lambda *t: F.instance_norm(t[0], None, None, *t[1:]), [x, *parameters], grad)[2]
    found = with_gradients(function, [tensor.float() for tensor in (x, *parameters)], grad)[2]
    terms = grad.abs().sum((0, 2, 3)).max()
    limit = EPS32 * terms * (4 * deviation / 1e-5**0.5 * 10 if save == "input" else 4 * 1.0 / 0.5)
    assert (found - truth).abs().max() <= limit


# ---- the norm: huge values, infinities, NaN --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e18, 1e30])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("place", [(0, 0), (12, 10)])
def test_one_huge_value_in_a_plane_gives_what_torch_gives(impl, layout, value, place):
    x = randn(1, 3, 13, 11).float()
    x[:, :, place[0], place[1]] = value
    grad = randn(1, 3, 13, 11, seed=1).float()
    found = with_gradients(lambda x: instance_norm_act(x, impl=impl), [x.contiguous(memory_format=layout)], grad)
    expected = with_gradients(F.instance_norm, [x], grad)
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)


FUNCTIONS = {
    "identity": lambda u: u,
    "relu": F.relu,
    "leaky_relu": lambda u: F.leaky_relu(u, 0.2),
    "prelu": lambda u: F.prelu(u, torch.full((2,), 0.2, device=u.device)),
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("where", ["x", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_go_where_torch_lets_them_go(impl, activation, where, value):
    inputs = {name: randn(1, 2, 4, 6, seed=i).float() for i, name in enumerate(("x", "residual"))}
    inputs |= {name: randn(2, seed=i).float() for i, name in enumerate(("weight", "bias"), 2)}
    inputs[where].view(-1)[1] = value
    slope = torch.full((2,), 0.2, device=DEVICE) if activation == "prelu" else 0.2

    def ours(x, residual, weight, bias):
        options = {"activation": activation, "negative_slope": slope, "residual": residual, "impl": impl}
        return instance_norm_act(x, weight, bias, **options)

    def torchs(x, residual, weight, bias):
        return FUNCTIONS[activation](F.instance_norm(x, None, None, weight, bias) + residual)

    grad = randn(1, 2, 4, 6, seed=3).float()
    found, expected = (with_gradients(f, inputs.values(), grad) for f in (ours, torchs))
    for name, ours_, torchs_ in zip(("y", *inputs), found, expected, strict=True):
        assert torch.equal(ours_.isfinite(), torchs_.isfinite()), name
        ok = torchs_.isfinite()
        torch.testing.assert_close(ours_[ok], torchs_[ok], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("u", [5.0, 0.0, -5.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_infinite_gradient_goes_where_torch_lets_it_go(impl, activation, u, value):
    """relu has 0 for it where u ≤ 0, and the slope of prelu where u > 0."""
    x = randn(1, 2, 4, 6).float()
    x[:, 0] = 0  # so that u is the residual
    grad = randn(1, 2, 4, 6, seed=3).float()
    grad[0, 0, 1, 2] = value
    residual = torch.full((1, 2, 4, 6), u, device=DEVICE)
    inputs = [x, residual, *(torch.full((2,), number, device=DEVICE) for number in (1.5, 0.0, 0.2))]

    def ours(x, residual, weight, bias, slope):
        options = {"activation": activation, "negative_slope": slope if activation == "prelu" else 0.2}
        return instance_norm_act(x, weight, bias, residual=residual, impl=impl, **options) + 0 * slope.sum()

    def torchs(x, residual, weight, bias, slope):
        functions = FUNCTIONS | {"prelu": lambda u: F.prelu(u, slope)}
        return functions[activation](F.instance_norm(x, None, None, weight, bias) + residual) + 0 * slope.sum()

    found, expected = (with_gradients(f, inputs, grad) for f in (ours, torchs))
    names = ("y", "x", "residual", "weight", "bias", "slope")[: 6 if activation == "prelu" else 5]
    for name, ours_, torchs_ in zip(names, found, expected, strict=False):
        assert torch.equal(ours_.isfinite(), torchs_.isfinite()), name
        ok = torchs_.isfinite()
        torch.testing.assert_close(ours_[ok], torchs_[ok], rtol=1e-4, atol=1e-5)


NUMBERS = {
    "eps": {"eps": 0.1},
    "min_scale": {"min_scale": 0.1, "parameters": (0.01, -0.02)},
    "negative_slope": {"activation": "leaky_relu", "negative_slope": 0.1},
}


@pytest.mark.parametrize("options", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_float64_where_the_tensors_are(impl, options):
    """0.1 as a float32 is off by 10⁻⁹."""
    x = randn(1, 2, 4, 6)
    options = dict(options)
    weight = torch.tensor(options.pop("parameters", (1.0, -2.0)), dtype=torch.float64, device=DEVICE)
    found = with_gradients(lambda x, w: instance_norm_act(x, w, impl=impl, **options), [x, weight], x.cos())
    slope = options.get("negative_slope", 1.0)
    least = torch.full_like(weight, options.get("min_scale", 0.0))

    def composed(x, weight):
        gamma = weight + (torch.where(weight.abs() < least, least.copysign(weight), weight) - weight).detach()
        return F.leaky_relu(F.instance_norm(x, None, None, gamma, eps=options.get("eps", 1e-5)), slope)

    torch.testing.assert_close(found, with_gradients(composed, [x, weight], x.cos()), rtol=1e-13, atol=1e-13)


# ---- adversarial losses ----------------------------------------------------------------------------------------------

COMPOSED = {
    ("lsgan", "real"): lambda z: (z - 1).square(),
    ("lsgan", "fake"): lambda z: z.square(),
    ("lsgan", "generator"): lambda z: (z - 1).square(),
    ("bce", "real"): lambda z: -F.logsigmoid(z),
    ("bce", "fake"): lambda z: -F.logsigmoid(-z),
    ("bce", "generator"): lambda z: -F.logsigmoid(z),
    ("hinge", "real"): lambda z: F.relu(1 - z),
    ("hinge", "fake"): lambda z: F.relu(1 + z),
    ("hinge", "generator"): lambda z: -z,
    ("hinge_both", "real"): lambda z: F.relu(1 - z),
    ("hinge_both", "fake"): lambda z: F.relu(1 + z),
    ("hinge_both", "generator"): lambda z: F.relu(1 - z),
    ("wgan", "real"): lambda z: -z,
    ("wgan", "fake"): lambda z: z,
    ("wgan", "generator"): lambda z: -z,
}
LOGITS = [math.nan, math.inf, -math.inf, 1e30, -1e30, 1.0, -1.0, 0.0, 500.0, -500.0, 21.0, -21.0, 1e-8]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "role"), COMPOSED)
def test_every_logit_has_the_loss_and_gradient_of_torch(kind, role, dtype, implementation):
    for value in LOGITS:
        z = torch.tensor([[value]], dtype=dtype, device=DEVICE)
        one = torch.ones((), dtype=dtype, device=DEVICE)
        found = with_gradients(lambda z: adversarial_losses([z], [role], kind, impl=implementation)[0], [z], one)
        expected = with_gradients(lambda z: COMPOSED[kind, role](z).mean(), [z], one)
        tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bce_keeps_its_relative_digits(implementation):
    """From e⁻⁷⁰⁰ to 700, each way. The log1p of one side is the other side minus z."""
    for z in [-700.0, -60.0, -38.0, -20.5, -19.5, -3.0, 0.0, 3.0, 19.5, 20.5, 36.0, 38.0, 60.0, 700.0]:
        logit = torch.tensor([z], dtype=torch.float64, device=DEVICE)
        expected = max(z, 0) + math.log1p(math.exp(-abs(z)))
        found = adversarial_losses([logit], ["fake"], "bce", impl=implementation)[0]
        assert abs(found.item() - expected) <= 8 * torch.finfo(torch.float64).eps * expected


# ---- pixel losses and SSIM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ssim_of_equal_and_nearly_equal_images_is_not_negative(layout, implementation):
    for seed, scale in enumerate((1.0, 1e-3, 0.0)):
        a = (0.3 + scale * randn(2, 3, 9, 7, seed=seed) / 4).float().contiguous(memory_format=layout)
        assert global_ssim(a, a, impl=implementation) == 0
        for ulps in (1, 100):
            b = a + ulps * EPS32 * randn(2, 3, 9, 7, seed=seed + 50).sign().float() * a
            found, truth = global_ssim(a, b, impl=implementation), global_ssim(a.double(), b.double(), impl="reference")
            assert 0 <= found <= 2 * 3
            # Means are off by a rounding u, so deviations of a − b by 2 u, and their squares by 4 u² + 4 u · ulps u.
            assert abs(found - truth) <= 3 * (4 + 4 * ulps) * EPS32**2 / 9e-4
        assert windowed_ssim(a, a, window=3) == 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", [weighted_l1, weighted_l2], ids=["l1", "l2"])
@pytest.mark.parametrize("value", [1e15, 1e30, math.inf, -math.inf, math.nan])
def test_l1_and_l2_of_huge_values_are_torchs(loss, value, implementation):
    if loss is weighted_l2 and value == 1e30:
        value = 1e18  # its square is finite
    a, b = randn(1, 1, 4, 4).float(), randn(1, 1, 4, 4, seed=1).float()
    a[0, 0, 1, 2] = value
    one = torch.ones((), device=DEVICE)
    composed = {weighted_l1: F.l1_loss, weighted_l2: F.mse_loss}[loss]
    found = with_gradients(lambda a, b: loss(a, b, impl=implementation), [a, b], one)
    expected = with_gradients(composed, [a, b], one)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_in_one_image_stays_in_it(implementation):
    a, b = randn(2, 2, 4, 4).float(), randn(2, 2, 4, 4, seed=1).float()
    a[0, 1, 1, 2] = math.nan
    inputs = [a.requires_grad_(), b.requires_grad_()]
    loss, metrics = pixel_losses([(a, b)], [(1.0, 1.0, 1.0)], impl=implementation)
    assert loss.isnan() and metrics[0, :, 1].isnan().all() and metrics[0, :, 0].isfinite().all()
    for gradient in torch.autograd.grad(loss, inputs):
        assert gradient[0, 1].isnan().all() and gradient[1].isfinite().all() and gradient[0, 0].isfinite().all()


DERIVATIVES = {
    "backward": lambda f, a: torch.autograd.grad(f(a.requires_grad_()), a)[0],
    "create_graph": lambda f, a: torch.autograd.grad(f(a.requires_grad_()), a, create_graph=True)[0].detach(),
    "func.grad": lambda f, a: torch.func.grad(f)(a),
    "func.jvp": lambda f, a: torch.func.jvp(f, (a,), (torch.ones_like(a),))[1],
    "second": lambda f, a: torch.autograd.functional.hvp(f, a, torch.ones_like(a))[1],
    "grad of grad": lambda f, a: torch.func.grad(lambda a: torch.func.grad(f)(a).square().sum())(a),
}
HOW = [("backward", "triton"), *((how, "reference") for how in DERIVATIVES)]
"""With how a derivative is computed, the implementation. The kernels only have the first."""


@pytest.mark.parametrize("statistics", ["image", "batch"])
@pytest.mark.parametrize(("how", "implementation"), HOW)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e20, 1e38])
def test_a_channel_of_weight_0_has_no_part_in_any_derivative(value, how, statistics, implementation):
    a, b = randn(2, 2, 4, 4).float(), randn(2, 2, 4, 4, seed=1).float()
    found, expected = [], []
    for results, content in ((found, value), (expected, 0.0)):
        image = a.clone()
        image[:, 1, 1:3] = content

        def loss(a):
            pairs, weights = [(a, b), (b, a)], [(2.0, 1.0, 3.0), (0.0, 0.5, 0.0)]
            return pixel_losses(pairs, weights, (1.5, 0.0), statistics=statistics, impl=implementation)[0]

        results += [loss(image), DERIVATIVES[how](loss, image)]
    assert expected[1].abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("how", "implementation"), HOW)
@pytest.mark.parametrize(
    ("loss", "composed", "scale"),
    [(weighted_l1, F.l1_loss, 1e20), (weighted_l1, F.l1_loss, 1e38), (weighted_l2, F.mse_loss, 1e18)],
    ids=["l1, 1e20", "l1, 1e38", "l2"],
)
def test_a_metric_of_weight_0_has_no_part_in_any_derivative(loss, composed, scale, how, implementation):
    """SSIM of these values overflows. The loss asked for does not."""
    a, b = (torch.rand(1, 1, 4, 4, device=DEVICE) * scale for _ in range(2))
    found = DERIVATIVES[how](lambda a: loss(a, b, impl=implementation), a.clone())
    expected = DERIVATIVES[how](lambda a: composed(a, b), a.clone())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", DERIVATIVES)
def test_a_loss_without_any_weight_has_derivatives_of_0(how):
    a, b = randn(1, 1, 4, 4).float(), randn(1, 1, 4, 4, seed=1).float()
    a[0, 0, 1] = math.nan
    derivative = DERIVATIVES[how](lambda a: pixel_losses([(a, b)], [(0, 0, 0)])[0], a)
    assert (derivative == 0).all()


# ---- NAdam -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_nadam_computes_half_types_in_float32(dtype, size, implementation):
    """A step with moments of 0 is the float32 step, rounded once. In float16 itself, ε = 1e-8 is 0."""
    start, grad = randn(40).to(dtype), (randn(40, seed=1) * size).to(dtype)
    grad[:3] = 0
    parameters = [nn.Parameter(start.clone()), nn.Parameter(start.float())]
    for parameter in parameters:
        parameter.grad = grad.to(parameter.dtype)
        NAdam([parameter], lr=1e-2, impl=implementation).step()
    half, single = parameters
    torch.testing.assert_close(half.detach(), single.detach().to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
