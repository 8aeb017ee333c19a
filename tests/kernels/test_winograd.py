"""Winograd's convolution is torch's, and `fuse` takes it where it is faster."""

import contextlib
import copy

import foreign_gans
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from vologan_kernels import fuse, native_library, winograd

LEVELS = native_library.levels()
EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.skipif("avx2" not in LEVELS, reason="the library has no fast level here")


@contextlib.contextmanager
def level(name):
    native_library.use_level(name)
    try:
        yield
    finally:
        native_library.use_level(LEVELS[0])


def last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def made(n=1, channels=(3, 4), sides=(9, 10), bias=True):
    """An image, a weight and a bias that need gradients."""
    torch.manual_seed(0)
    tensors = [last(n, channels[0], *sides), last(channels[1], channels[0], 3, 3)]
    return [t.requires_grad_() for t in (*tensors, *([torch.randn(channels[1])] if bias else []))]


def torchs(x, weight, bias, padding):
    return F.conv2d(x, weight, bias, padding=padding)


def everything(convolve, tensors, padding, dtype=torch.float32):
    """The result and the gradients of a convolution of `tensors`."""
    tensors = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = convolve(*tensors, *[None] * (3 - len(tensors)), padding)
    torch.manual_seed(1)
    upstream = torch.randn(y.shape, dtype=torch.float32)
    return [y.detach(), *torch.autograd.grad(y, tensors, upstream.to(dtype))]


def bounds(tensors, padding):
    """The sums of the absolute values of all products: a rounding error is some roundings of it."""
    x, weight, *bias = (t.detach().abs().double() for t in tensors)
    upstream = torch.ones(1)
    y = F.conv2d(x, weight, *bias, padding=padding)
    torch.manual_seed(1)
    upstream = torch.randn(y.shape).abs().double()
    gradients = torch.ops.aten.convolution_backward(
        upstream, x, weight, [len(weight)], [1, 1], [*padding], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    return [y, *gradients][: 1 + len(tensors)]


def assert_close(found, truths, allowed):
    for a, truth, bound in zip(found, truths, allowed, strict=True):
        assert a.shape == truth.shape
        assert (a - truth).abs().max() <= 16 * EPS * bound.max()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sides=st.tuples(st.integers(3, 23), st.integers(3, 23)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    name=st.sampled_from(LEVELS),
    at_once=st.sampled_from([1, 7, 256]),
)
def test_values_and_gradients(n, channels, sides, padding, bias, name, at_once):
    tensors = made(n, channels, sides, bias)
    with pytest.MonkeyPatch.context() as patched, level(name):
        patched.setattr(winograd, "_AT_ONCE", at_once)
        found = everything(winograd.convolve, tensors, padding)
    truths = everything(torchs, tensors, padding, torch.float64)
    assert_close(found, truths, bounds(tensors, padding))


def test_many_channels():
    """Errors grow with the channels as torch's do."""
    tensors = made(2, (256, 128), (32, 30))
    truths = everything(torchs, tensors, (1, 1), torch.float64)
    found, plain = (everything(f, tensors, (1, 1)) for f in (winograd.convolve, torchs))
    for a, b, truth in zip(found, plain, truths, strict=True):
        assert (a - truth).norm() <= 6 * (b - truth).norm() + 4 * EPS * truth.norm()
        assert a.stride() == b.stride()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_only_some_gradients(wanted):
    tensors = made()
    expected = everything(torchs, tensors, (1, 1))
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in wanted)
    y = winograd.convolve(*tensors, (1, 1))
    torch.manual_seed(1)
    gradients = torch.autograd.grad(y, [tensors[i] for i in wanted], torch.randn(y.shape))
    for i, gradient in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[i + 1], rtol=1e-4, atol=1e-4)


def test_gradients_in_any_layout():
    tensors = made(2)
    y = winograd.convolve(*tensors, (1, 1))
    expected = torchs(*tensors, (1, 1))
    for upstream in (torch.ones(()).expand(y.shape), torch.randn(y.shape), last(*y.shape), last(*y.shape)[:, :, ::2]):
        upstream = upstream if upstream.shape == y.shape else upstream.repeat(1, 1, 2, 1)[:, :, : y.shape[2]]
        found, truth = (torch.autograd.grad(result, tensors, upstream, retain_graph=True) for result in (y, expected))
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-3)


def test_second_derivatives():
    tensors = made()
    found = []
    for convolve in (winograd.convolve, torchs):
        gradients = torch.autograd.grad(convolve(*tensors, (1, 1)).sin().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_batched_gradients():
    tensors = made()
    found = []
    for convolve in (winograd.convolve, torchs):
        y = convolve(*tensors, (1, 1))
        torch.manual_seed(1)
        found.append(torch.autograd.grad(y, tensors, torch.randn(3, *y.shape), is_grads_batched=True))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_changed_image_is_an_error_in_the_backward():
    x, weight, bias = made()
    x = x * 1
    y = winograd.convolve(x, weight, bias, (1, 1))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_defaults_of_dtype_and_device_change_nothing():
    tensors = made()
    expected = everything(winograd.convolve, tensors, (1, 1))
    torch.set_default_dtype(torch.float64)
    try:
        y = winograd.convolve(*tensors, (1, 1))
        with torch.device("meta"):
            z = winograd.convolve(*tensors, (1, 1))
        gradient = torch.autograd.grad(y.sum() + z.sum(), tensors[0])[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected[0])
    assert torch.equal(z, y)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_again(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = made(2, (64, 65), (20, 21))
        a, b = (everything(winograd.convolve, tensors, (1, 0)) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_pixel_that_is_not_finite_spoils_only_its_patches():
    x, weight, bias = made(sides=(20, 20))
    with torch.no_grad():
        x[0, 0, 10, 10] = float("inf")
        y = winograd.convolve(x, weight, bias, (0, 0))
    spoilt = ~y.isfinite().all(1)[0]
    rows, columns = spoilt.nonzero().unbind(1)
    assert spoilt[8:11, 8:11].all()
    assert rows.min() >= 8 - 3 and rows.max() <= 10 + 3
    assert columns.min() >= 8 - 3 and columns.max() <= 10 + 3


def test_the_memory_of_a_large_image_is_bounded():
    """Three times 36 numbers for each of about 256 patches, and each channel."""
    y = torch.empty(2, 5, 1000, 1100, device="meta")
    patches = winograd._Patches.of(y, (1, 1))
    parts = list(patches.parts())
    assert sum(part.count for part in parts) == patches.count == 2 * 250
    assert [part.first for part in parts] == [sum(p.count for p in parts[:i]) for i in range(len(parts))]
    assert max(part.count * part.columns for part in parts) <= 275  # a row


@pytest.mark.parametrize("given", ["contiguous", "float64", "other shape"])
def test_hooks_that_change_what_is_saved(given):
    """What hooks return for a saved tensor may lie otherwise. Another dtype or shape is torch's error."""
    tensors = made(sides=(12, 12))
    changes = {
        "contiguous": lambda t: t.clone(memory_format=torch.contiguous_format),
        "float64": lambda t: t.double(),
        "other shape": lambda t: t[:, :1],
    }
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, changes[given]):
        y = winograd.convolve(*tensors, (1, 1))
    torch.manual_seed(1)
    upstream = torch.randn(y.shape)
    if given != "contiguous":
        with pytest.raises(RuntimeError):
            torch.autograd.grad(y, tensors, upstream)
        return
    found = torch.autograd.grad(y, tensors, upstream)
    torch.testing.assert_close(found, tuple(everything(torchs, tensors, (1, 1))[1:]), rtol=1e-4, atol=1e-3)


def test_transforms_of_a_backward_alone():
    """The forward ran before the transform began."""
    tensors = made(sides=(12, 12))
    found = []
    for convolve in (winograd.convolve, torchs):
        y = convolve(*tensors, (1, 1))
        torch.manual_seed(1)
        upstream = torch.randn(2, *y.shape)
        batched = torch.func.vmap(lambda g, y=y: torch.autograd.grad(y, tensors, g, retain_graph=True))(upstream)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(upstream[0], upstream[1])
            (gradient,) = torch.autograd.grad(y, tensors[0], dual, retain_graph=True)
            tangent = forward_ad.unpack_dual(gradient).tangent
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(y, tensors, upstream[0])
        found.append([*batched, tangent, torch.tensor(counter.get_total_flops())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


# ---- fuse -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The images that Winograd's convolution has got. It takes small ones here."""
    monkeypatch.setattr(winograd, "CHANNELS", 64)
    monkeypatch.setattr(winograd, "PATCHES", 64)
    found, original = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda x, *rest: found.append(x) or original(x, *rest))
    return found


def block(**options):
    torch.manual_seed(0)
    options = {"padding": 1, **options}
    return nn.Sequential(nn.Conv2d(64, 64, 3, **options), nn.InstanceNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3))


def image(side=34):
    torch.manual_seed(1)
    return torch.randn(1, 64, side, side)


def test_the_smallest_convolutions_that_use_it():
    x, weight, bias = last(1, 128, 64, 64), last(128, 128, 3, 3), torch.randn(128)
    assert winograd.is_faster(x, weight, bias, (1, 1))
    for others in (
        (last(1, 128, 60, 64), weight, bias, (1, 1)),
        (x, last(127, 128, 3, 3), torch.randn(127), (1, 1)),
        (x, last(128, 128, 3, 1), bias, (1, 1)),
        (x.contiguous(), weight, bias, (1, 1)),
        (x, weight, bias.double(), (1, 1)),
        (last(1, 128, 1, 4097), weight, bias, (1, 1)),  # a row would take too much memory
    ):
        assert not winograd.is_faster(*others)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_not_where_products_of_matrices_are_less_exact(precision):
    arguments = last(1, 128, 64, 64), last(128, 128, 3, 3), None, (1, 1)
    assert winograd.is_faster(*arguments)
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = precision
    try:
        assert not winograd.is_faster(*arguments)
    finally:
        torch.backends.fp32_precision = before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_blocks_use_it(layout, calls):
    torch.manual_seed(0)
    plain = foreign_gans.ResnetBlock(64, foreign_gans.get_norm_layer()).to(memory_format=layout)
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    x = image().contiguous(memory_format=layout)
    models = plain, fused, copy.deepcopy(plain).double()
    found = []
    for model in models:
        given_ = x.to(next(model.parameters()).dtype).requires_grad_()
        y = model(given_)
        # contiguous, because torch's own norm has wrong gradients for one channels_last gradient (docs/log.md)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append([y, *torch.autograd.grad(y, [given_, *model.parameters()], upstream)])
    assert len(calls) == 2
    largest = max(truth.norm() for truth in found[2][1:])
    for a, b, truth in zip(*found, strict=True):
        assert b.stride() == a.stride()
        assert (b - truth).norm() <= 6 * (a - truth).norm() + 4 * EPS * (truth.norm() + largest)


def test_it_is_called_without_gradients_and_in_a_profiler(calls):
    fused, _ = fuse(block())
    with torch.inference_mode():
        fused(image())
    with torch.profiler.profile() as profile:
        fused(image())
    assert len(calls) == 4
    assert any(event.key == "aten::bmm" for event in profile.key_averages())


OTHERS = {
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "padding mode": {"padding_mode": "reflect"},
    "padding by name": {"padding": "same"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_torchs(name, calls):
    plain = block(**OTHERS[name])
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    torch.testing.assert_close(fused(image()), plain(image()), rtol=1e-4, atol=1e-4)
    assert len(calls) == (0 if name == "stride" else 1)  # after a stride of 2, the image is small


@pytest.mark.parametrize("name", ["autocast", "double", "bfloat16", "counted", "small", "few channels", "compiled"])
def test_where_it_is_not_faster_or_not_possible(name, calls):
    model, x = block(), image(20 if name == "small" else 34)
    if name == "few channels":
        model = nn.Sequential(nn.Conv2d(64, 63, 3), nn.InstanceNorm2d(63), nn.ReLU(), nn.Conv2d(63, 64, 3))
    if name in ("double", "bfloat16"):
        model, x = model.to(getattr(torch, name)), x.to(getattr(torch, name))
    fused, report = fuse(model)
    assert report.fused
    if name == "compiled":
        torch.compile(fused, backend="eager", fullgraph=True)(x)
    elif name == "counted":
        with FlopCounterMode(display=False) as counter:
            fused(x)
        assert counter.get_total_flops() == 2 * 64 * 64 * 9 * (34**2 + 32**2)
    else:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
            fused(x)
    assert not calls


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model[0], "bias", nn.Parameter(torch.zeros(63))), "bias"),
        (lambda model: setattr(model[0], "padding", (-1, -1)), "negative padding"),
        (lambda model: setattr(model[0], "padding", (1, 1, 1)), "padding"),
        (lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(64, 64))), "stride|dim|weight"),
        (lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(64, 65, 3, 3))), "channels"),
        (lambda model: setattr(model[0], "bias", nn.Parameter(torch.zeros(64, dtype=torch.float64))), "type"),
    ],
    ids=["bias", "padding", "three paddings", "matrix", "weight", "type"],
)
def test_wrong_modules_are_torchs_errors(change, words, calls):
    fused, _ = fuse(block())
    change(fused)
    with pytest.raises(RuntimeError, match=words):
        fused(image())
    assert not calls


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.relu = nn.Conv2d(64, 64, 3, padding=1), nn.InstanceNorm2d(64), nn.SiLU()

    def forward(self, x):
        return self.relu(self.norm(self.convolution(x)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.block, self.reentrant = Block(), reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_of_a_fused_forward(reentrant, calls):
    """In its second run, the block is the outermost fused forward, and not inside of another one."""
    torch.manual_seed(0)
    inner = [Checkpointed(reentrant), Checkpointed(reentrant)]
    plain = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.InstanceNorm2d(64), *inner, nn.Conv2d(64, 64, 3))
    fused, _ = fuse(copy.deepcopy(plain))
    found = []
    for model, dtype in (
        (plain, torch.float32),
        (fused, torch.float32),
        (copy.deepcopy(plain).double(), torch.float64),
    ):
        x = image().to(dtype).requires_grad_()
        y = model(x)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        (y * upstream).sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    assert calls
    largest = max(truth.norm() for truth in found[2])
    for a, b, truth in zip(*found, strict=True):
        assert (b - truth).norm() <= 10 * (a - truth).norm() + 4 * EPS * (truth.norm() + largest)


@pytest.mark.parametrize("name", ["_conv_forward", "conv2d"])
def test_patched_convolutions_are_called(name, calls, monkeypatch):
    plain = block()
    fused, _ = fuse(copy.deepcopy(plain))
    if name == "conv2d":
        original = F.conv2d
        monkeypatch.setattr(F, "conv2d", lambda x, weight, *rest: original(x, 2 * weight, *rest))
    else:
        original = nn.Conv2d._conv_forward
        monkeypatch.setattr(nn.Conv2d, name, lambda self, x, weight, bias: original(self, x, 2 * weight, bias))
    torch.testing.assert_close(fused(image()), plain(image()), rtol=1e-4, atol=1e-4)
    assert not calls
