"""`fuse` on the three kinds of network that image-to-image GANs use, and the things that it must not change."""

import contextlib
import copy
import importlib
import inspect
import io
import pickle
import random
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from vologan_kernels import InstanceNormAct2d, fuse, unfuse
from vologan_kernels.fuse import fused_call, sites
from vologan_kernels.instance_norm import operation

pytestmark = pytest.mark.usefixtures("no_image_is_small")

# ---- networks written without the kernels ---------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x):
        return x + self.layers(x)


def cyclegan_generator(width=4):
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, width, 7),
        nn.InstanceNorm2d(width),
        nn.ReLU(True),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.InstanceNorm2d(2 * width),
        nn.ReLU(True),
        ResidualBlock(2 * width),
        ResidualBlock(2 * width),
        nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(width),
        nn.ReLU(True),
        nn.ReflectionPad2d(3),
        nn.Conv2d(width, 3, 7),
        nn.Tanh(),
    )


class Pix2PixUNet(nn.Module):
    """A U-Net with functional activations. A skip goes to two places, to one of them activated."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Conv2d(3, width, 4, 2, 1)
        self.down = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.down_norm = nn.InstanceNorm2d(2 * width, affine=True)
        self.bottom = nn.Conv2d(2 * width, 2 * width, 4, 2, 1)
        self.up = nn.ConvTranspose2d(2 * width, 2 * width, 4, 2, 1)
        self.up_norm = nn.InstanceNorm2d(2 * width, affine=True)
        self.activation = nn.ReLU()
        self.up2 = nn.ConvTranspose2d(4 * width, width, 4, 2, 1)
        self.up2_norm = nn.InstanceNorm2d(width, affine=True)
        self.last = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)

    def forward(self, x):
        first = F.leaky_relu(self.first(x), 0.2)
        down = self.down_norm(self.down(first))
        bottom = F.relu(self.bottom(F.leaky_relu(down, 0.2)))
        up = F.dropout(self.activation(self.up_norm(self.up(bottom))), 0.0, self.training)
        up2 = self.activation(self.up2_norm(self.up2(torch.cat([up, down], 1))))
        return torch.tanh(self.last(torch.cat([up2, first], 1)))


class UNetLevel(nn.Module):
    """The U-Net of nested levels. The first layer of the inner level writes into a tensor that the outer level uses."""

    def __init__(self, outer, inner, within=None):
        super().__init__()
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, inner, 4, 2, 1)]
        down += [nn.InstanceNorm2d(inner), within] if within else []
        up = nn.ConvTranspose2d(2 * inner if within else inner, outer, 4, 2, 1)
        self.model = nn.Sequential(*down, nn.ReLU(True), up, nn.InstanceNorm2d(outer))

    def forward(self, x):
        return torch.cat([x, self.model(x)], 1)


def nested_unet(width=4):
    within = UNetLevel(width, 2 * width, UNetLevel(2 * width, 2 * width))
    return nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), within, nn.ReLU(True), nn.ConvTranspose2d(2 * width, 3, 4, 2, 1))


def patch_discriminator(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(2 * width),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * width, 4 * width, 4, 1, 1, bias=False),
        nn.InstanceNorm2d(4 * width),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(4 * width, 1, 4, 1, 1),
    )


class FunctionalBlock(nn.Module):
    """Residual sums, a functional norm, a functional padding, and a second method that uses the same layers."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        self.act = nn.LeakyReLU(0.1)

    def encode(self, x):
        return self.act(self.norm(self.conv(x)))

    def forward(self, x):
        y = self.encode(x)
        y = F.relu(self.norm(self.conv(y)) + x)
        y = F.pad(F.silu(F.instance_norm(y, eps=1e-3)), (1, 1, 1, 1), mode="reflect")
        y = F.instance_norm(self.conv2(y))
        y += x
        return y


def functional_blocks():
    return nn.Sequential(nn.Conv2d(3, 4, 1), FunctionalBlock(), FunctionalBlock())


MODELS = [cyclegan_generator, Pix2PixUNet, nested_unet, patch_discriminator, functional_blocks]
FUSED = [7, 3, 3, 2, 8]
ALL = pytest.mark.parametrize("make", MODELS)


def images(**options):
    return torch.randn(2, 3, 16, 16, **options)


# ---- the same numbers -----------------------------------------------------------------------------------------------


def results(model, x, upstream):
    """The output, the gradient of x and the gradients of all parameters: three vectors, in float64."""
    x = x.clone().requires_grad_()
    y = model(x)
    gradients = torch.autograd.grad(y, [x, *model.parameters()], upstream.to(y), allow_unused=True)
    dx, *of_parameters = (torch.zeros(1) if gradient is None else gradient for gradient in gradients)
    return [torch.cat([t.detach().double().flatten() for t in group]) for group in ([y], [dx], of_parameters)]


def assert_as_good(plain, fused, x):
    """Compare both with float64: the fused model may err twice as much as the plain one, plus a few roundings.

    The models must have parameters, whose gradients are compared, too.
    """
    exact = copy.deepcopy(plain).double()
    upstream = torch.randn_like(exact(x.double()))
    for truth, before, after in zip(
        results(exact, x.double(), upstream), results(plain, x, upstream), results(fused, x, upstream), strict=True
    ):
        roundings = 4 * torch.finfo(x.dtype).eps * truth.norm()
        assert (after - truth).norm() <= 2 * (before - truth).norm() + roundings


@pytest.mark.parametrize(("make", "count"), [*zip(MODELS, FUSED, strict=True)])
def test_counts_of_fused_norms(make, count):
    _, report = fuse(make())
    assert len(report.fused) == count


def layers(report):
    return [finding.name for finding in report.fused]


@ALL
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_stay_as_good(make, memory_format, training):
    plain = make().to(memory_format=memory_format).train(training)
    fused, _ = fuse(copy.deepcopy(plain))
    assert_as_good(plain, fused, images().contiguous(memory_format=memory_format))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(0.3), nn.SiLU(), nn.GELU(), nn.ELU(), nn.Tanh(), nn.PReLU(), nn.PReLU(4), nn.ReLU(True)],
    ids=repr,
)
@pytest.mark.parametrize("affine", [True, False])
def test_every_activation(activation, affine):
    layers_before = [nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=affine), activation, nn.ReflectionPad2d(2)]
    plain = nn.Sequential(*layers_before, nn.Conv2d(4, 1, 3))
    fused, report = fuse(copy.deepcopy(plain))
    assert layers(report) == ["1"]
    assert_as_good(plain, fused, images())


FUNCTIONS = {
    "relu": [F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"],
    "leaky_relu": [F.leaky_relu, F.leaky_relu_],
    "silu": [F.silu],
    "gelu": [F.gelu],
    "elu": [F.elu, F.elu_],
    "tanh": [torch.tanh, torch.tanh_, "tanh", "tanh_"],
}
"""The functions, and the names of the methods of a tensor, that `fuse` must find."""


class Applies(nn.Module):
    """A norm with a function behind it."""

    def __init__(self, function):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3, affine=True)
        self.function = function

    def forward(self, x):
        u = self.norm(x)
        return (getattr(u, self.function)() if isinstance(self.function, str) else self.function(u)) * 1


@pytest.mark.parametrize(("name", "function"), [(name, each) for name, all_ in FUNCTIONS.items() for each in all_])
def test_every_function(name, function):
    plain = Applies(function)
    fused, report = fuse(copy.deepcopy(plain))
    assert layers(report) == ["norm"]
    assert f"instance norm + {name}" in report.fused[0].detail
    assert_as_good(plain, fused, images())


def test_every_function_that_fuse_finds_is_tested():
    found = {(each, name) for name, all_ in FUNCTIONS.items() for each in all_}
    assert found == set(sites._FUNCTIONS.items())


@pytest.mark.parametrize("functional", [True, False])
def test_a_norm_with_a_weight_and_no_bias(functional):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = without_bias()

        def forward(self, x):
            return F.relu(self.norm(x)) * 1

    def without_bias():
        norm = nn.InstanceNorm2d(3, affine=True)
        norm.register_parameter("bias", None)  # as torch's own bias=False, from 2.13 on
        nn.init.normal_(norm.weight)
        return norm

    plain = Functional() if functional else nn.Sequential(without_bias(), nn.ReLU(), nn.Conv2d(3, 1, 1))
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == 1
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert_as_good(plain, fused, images())


def test_the_fused_operation_runs_once_for_each_norm(monkeypatch):
    calls = []
    original = operation._forward

    def counted(*arguments):
        calls.append(arguments[6])
        return original(*arguments)

    model, _ = fuse(cyclegan_generator())
    monkeypatch.setattr(operation, "_forward", counted)
    model(images())
    assert calls == ["relu", "relu", *["relu", "identity"] * 2, "relu"]


def calls_of(model, x, monkeypatch):
    """How often the fused operation runs."""
    calls = []
    original = operation._forward
    with monkeypatch.context() as changed:
        changed.setattr(operation, "_forward", lambda *given: calls.append(1) or original(*given))
        model(x)
    return len(calls)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_images_are_left_to_torch(dtype, layout, monkeypatch):
    monkeypatch.setattr(fused_call, "SMALL", dict.fromkeys(fused_call.SMALL, 2 * 4 * 8 * 8))
    model, _ = fuse(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU()))
    model.to(dtype, memory_format=layout)
    small, large = (torch.rand(2, 4, 8, w, dtype=dtype).contiguous(memory_format=layout) for w in (8, 9))
    assert calls_of(model, small, monkeypatch) == 0
    assert calls_of(model, large, monkeypatch) == 1
    assert calls_of(model, torch.rand(2, 4, 1, 1, dtype=dtype), monkeypatch) == 1  # which torch refuses
    for x in (small, large):
        assert model(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("affine", [False, True])
def test_small_images_far_from_zero_keep_their_digits(n, affine, layout, monkeypatch):
    """torch's instance norm has wrong gradients here for one sample, and its group norm loses digits (torch 2.13)."""
    monkeypatch.undo()  # small images are small again
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    plain = nn.Sequential(nn.InstanceNorm2d(3, affine=affine), nn.ReLU(), convolution).double()
    x = (torch.randn(n, 3, 8, 8, dtype=torch.float64) + 3000).float()
    exact = x.double().requires_grad_()
    weights = torch.randn(n, 3, 8, 8)
    (plain(exact) * weights).sum().backward()
    fused, _ = fuse(copy.deepcopy(plain).float().to(memory_format=layout))
    found = x.contiguous(memory_format=layout).requires_grad_()
    (fused(found) * weights.contiguous(memory_format=layout)).sum().backward()
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=0, atol=2e-3 * exact.grad.abs().max().item())


@pytest.mark.parametrize("name", ["weight", "parametrized", "old spectral norm"])
@pytest.mark.parametrize("small", [False, True])
def test_a_model_in_channels_last_stays_in_it(name, small, monkeypatch):
    if small:
        monkeypatch.undo()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4)).eval()
    if name == "parametrized":
        parametrizations.spectral_norm(model[0])
    if name == "old spectral norm":
        nn.utils.spectral_norm(model[0])
    fuse(model)
    x = images().contiguous(memory_format=torch.channels_last)
    assert model(x).is_contiguous()
    model.to(memory_format=torch.channels_last)
    assert model(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")], ids="-".join)
@pytest.mark.parametrize("buffer", [False, True])
def test_parameters_of_a_norm_that_became_tensors(names, buffer):
    """As in a copy by nn.DataParallel, and in code that computes them."""
    plain = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.ReLU())
    fused, _ = fuse(copy.deepcopy(plain))
    for name in names:
        values = torch.rand(3)
        for model in (plain, fused):
            delattr(model[0], name)
            model[0].register_buffer(name, values) if buffer else setattr(model[0], name, values)
    assert type(fused)._holds(fused)
    x = images()
    torch.testing.assert_close(fused(x), plain(x))


class Children(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("name", "other"),
    [("conv", nn.Conv2d(3, 4, 5)), ("norm", nn.InstanceNorm2d(4, eps=1.0)), ("act", nn.Tanh())],
)
@pytest.mark.parametrize("of_class", [False, True])
def test_an_attribute_that_hides_a_child(name, other, of_class):
    """Python finds it before nn.Module finds the child."""
    kind = type("Children", (Children,), {})  # which no other test uses
    plain = kind()
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == 1
    for model in (plain, fused):
        if of_class:
            setattr(kind, name, other)
        else:
            vars(model)[name] = other
    x = images()
    torch.testing.assert_close(fused(x), plain(x))


class Summed(nn.Module):
    """A discriminator's head: its pixels are summed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.2).sum((2, 3))


class SummedAndRead(Summed):
    def forward(self, x):
        y = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        return y.mean((2, 3)), self.next(y)


class Normed(Summed):
    """Two norms, one after the other. Only the first one's result need not have the layout of the model."""

    def forward(self, x):
        return self.next(F.instance_norm(F.leaky_relu(self.norm(self.conv(x)), 0.2)))


CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize(
    ("kind", "layouts"), [(Summed, [CONTIGUOUS]), (SummedAndRead, [LAST]), (Normed, [CONTIGUOUS, LAST])]
)
def test_a_small_result_that_only_sums_and_norms_read_is_contiguous(kind, layouts, monkeypatch):
    monkeypatch.undo()  # small images are small again
    plain = kind().to(memory_format=torch.channels_last)
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == len(layouts)
    x, found = images().contiguous(memory_format=torch.channels_last), []
    original = fused_call._after_norm
    monkeypatch.setattr(fused_call, "_after_norm", lambda *given: found.append(original(*given)) or found[-1])
    torch.testing.assert_close(fused(x), plain(x))
    assert [y.is_contiguous(memory_format=layout) for y, layout in zip(found, layouts, strict=True)] == [
        True for _ in layouts
    ]


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 3, 1, 4, 4), (2, 3, 3, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_volumes_and_sequences(shape, dtype, monkeypatch):
    """F.instance_norm takes images of any number of dimensions, and so does the small path."""
    monkeypatch.undo()

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))

        def forward(self, x):
            return F.relu(F.instance_norm(x, weight=self.weight, bias=self.bias, eps=1e-3))

    plain = Functional().to(dtype)
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == 1
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    found = []
    for model in (plain, fused):
        given = x.clone().requires_grad_()
        y = model(given)
        y.square().sum().backward()
        found.append((y, given.grad, model.weight.grad, model.bias.grad))
    torch.testing.assert_close(*found)
    pixel = torch.rand((*shape[:2], *[1] * (len(shape) - 2)), dtype=dtype)
    for model in (plain, fused):
        with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
            model(pixel)


def test_a_view_in_the_models_own_code_gets_contiguous_results():
    class Views(Owner):
        def forward(self, x):
            return flattened(F.relu(self.norm(x)))

    plain = nn.Sequential(nn.Conv2d(3, 3, 3), Views()).to(memory_format=torch.channels_last)
    fused, report = fuse(copy.deepcopy(plain))
    assert "contiguous, because flattened depends on strides" in report.fused[0].detail
    x = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(x), plain(x))


def flattened(x):
    return x.view(x.shape[0], -1)


def test_half_precision_and_autocast_keep_their_dtypes():
    plain = patch_discriminator()
    fused, _ = fuse(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(images()).dtype == plain(images()).dtype == torch.bfloat16
    assert fused.bfloat16()(images(dtype=torch.bfloat16)).dtype == torch.bfloat16


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act, self.pad = nn.InstanceNorm2d(3), nn.ReLU(), nn.ReflectionPad2d(1)

    def forward(self, input, other):
        return self.pad(input=self.act(input=torch.add(input=self.norm(input=input), other=other)))


@pytest.mark.parametrize(
    "operation", ["+=", "-=", "*=", "/=", "//=", "%=", "**=", "@=", "&=", "|=", "^=", "<<=", ">>="]
)
def test_writing_into_a_tensor_is_seen_by_its_other_names(operation):
    source = (
        f"def forward(self, x, y):\n    z = w = x * 3\n    w {operation} y\n    return F.relu(self.norm(x)), z, w\n"
    )
    variables = {"F": F}
    exec(source, variables)
    kind = type("Writes", (Owner,), {"forward": variables["forward"]})
    plain = kind()
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    for y in (torch.rand(2, 3, 8, 8) + 1, torch.ones(2, 3, 8, 8, dtype=torch.int64)):
        x = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
        results = []
        for model in (plain, fused):
            try:
                results.append(model(x, y))
            except RuntimeError:  # floating-point numbers have no bits, say both
                results.append(())
        torch.testing.assert_close(*results)


def test_arguments_by_name():
    plain = Named()
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    x = images()
    torch.testing.assert_close(fused(other=x * 2, input=x), plain(input=x, other=x * 2))


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x, other):
        return F.relu(self.norm(x) + other)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 3, 1, 1), (3, 1, 1), (8,), ()])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_a_residual_is_broadcast_and_promoted_as_in_a_sum(shape, dtypes):
    plain = Sum()
    fused, report = fuse(copy.deepcopy(plain))
    assert "residual" in report.fused[0].detail
    x, other = torch.randn(2, 3, 8, 8, dtype=dtypes[0]), torch.randn(shape, dtype=dtypes[1])
    y, expected = fused(x, other), plain(x, other)
    assert y.dtype == expected.dtype
    eps = torch.finfo(x.dtype).eps  # the plain norm rounds to x's dtype, values of magnitude 4 at most
    assert (y - expected).abs().max() <= 4 * eps


def test_one_image_without_a_batch():
    plain = patch_discriminator()
    fused, _ = fuse(copy.deepcopy(plain))
    x = images()
    assert_as_good(plain, fused, x[0])
    torch.testing.assert_close(fused(x[0]), fused(x)[0])


# ---- parameters and state -------------------------------------------------------------------------------------------


@ALL
def test_states_load_strictly_both_ways(make):
    old, (new, _) = make(), fuse(make())
    x = images()
    assert list(new.state_dict()) == list(old.state_dict())
    new.load_state_dict(old.state_dict(), strict=True)
    again = make()
    again.load_state_dict(new.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), old.parameters(), strict=True))
    torch.testing.assert_close(new(x), old(x))


@ALL
def test_parameters_are_the_same_objects_under_the_same_names(make):
    model = make()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    returned, _ = fuse(model)
    assert returned is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert {name: id(module) for name, module in model.named_modules()} == modules


def test_an_optimizer_built_before_trains_the_fused_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), nn.Conv2d(4, 1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fuse(model)
    x, before = images(), [parameter.clone() for parameter in model.parameters()]
    y = model(x)
    y.square().mean().backward()
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    # A convolution's bias in front of a norm has no gradient; all others move, the PReLU's slopes among them.
    assert changed[0]
    assert all(changed[2:])
    assert not torch.equal(model(x), y)


def test_assigned_and_moved_parameters_are_the_ones_in_use():
    model, _ = fuse(nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.PReLU(), nn.Conv2d(3, 1, 1)))
    state = {name: torch.rand_like(value, dtype=torch.float64) for name, value in model.state_dict().items()}
    model.double().load_state_dict(state, assign=True)
    plain = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.PReLU(), nn.Conv2d(3, 1, 1)).double()
    plain.load_state_dict(state)
    x = images(dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x))


@ALL
def test_a_copy_is_fused_and_independent(make):
    model, _ = fuse(make())
    x = images()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert repr(copied) == repr(model)
    assert not fuse(copied)[1].fused
    assert [*map(type, copied.modules())] == [*map(type, model.modules())]
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.equal(copied(x), model(x))


@ALL
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_holds_the_plain_model(make, protocol):
    plain = make()
    model, _ = fuse(copy.deepcopy(plain))
    content = pickle.dumps(model, protocol)
    assert b"vologan_kernels" not in content
    buffer = io.BytesIO()
    torch.save(model, buffer, pickle_protocol=max(protocol, 2))
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    x = images()
    for other in (pickle.loads(content), loaded):
        assert [*map(type, other.modules())] == [*map(type, plain.modules())]
        assert torch.equal(other(x), plain(x))
        assert fuse(other)[1] == fuse(copy.deepcopy(plain))[1]
        assert torch.equal(other(x), model(x))


@ALL
def test_a_second_time_changes_nothing(make):
    model, first = fuse(make())
    classes, text = [type(module) for module in model.modules()], repr(model)
    _, second = fuse(model)
    assert [type(module) for module in model.modules()] == classes
    assert repr(model) == text
    assert not second.fused
    assert {finding.name for finding in second.left if finding.detail == "is fused already"} >= {
        finding.name for finding in first.fused if ":" not in finding.name
    }


@ALL
def test_unfuse_gives_the_plain_model_back(make):
    plain = make()
    model = copy.deepcopy(plain)
    before = {name: (id(module), type(module)) for name, module in model.named_modules()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    fuse(model)
    assert unfuse(model) is model
    assert {name: (id(module), type(module)) for name, module in model.named_modules()} == before
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert repr(model) == repr(plain)
    x = images()
    assert torch.equal(model(x), plain(x))
    assert fuse(model)[1].fused


def test_unfuse_below_a_class_that_another_library_made():
    model = FunctionalBlock()
    fuse(model)
    parametrizations.weight_norm(model.conv)
    model.scale = nn.Parameter(torch.ones(()))
    nn.utils.parametrize.register_parametrization(model, "scale", nn.Identity())
    unfuse(model)
    assert type(model).__mro__[1] is FunctionalBlock
    assert type(model).__name__ == "ParametrizedFunctionalBlock"


def test_compiles_without_a_graph_break():
    model, _ = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2), FunctionalBlock()))
    x = images(requires_grad=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strict", [True, False])
def test_an_export_holds_the_plain_operations(strict):
    model, _ = fuse(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(3, 1, 3)))
    x = images()
    program = torch.export.export(model, (x,), strict=strict)
    assert "vologan_kernels" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x), model(x))


def test_wrapped_models_are_fused_inside():
    model = nn.DataParallel(patch_discriminator())
    assert layers(fuse(model)[1]) == ["module.3", "module.6"]


def test_copies_that_data_parallel_makes_use_their_own_parameters():
    model, _ = fuse(nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.PReLU()))
    replica = model._replicate_for_data_parallel()
    for name, child in model.named_children():
        other = copy.deepcopy(child)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        setattr(replica, name, other)
    x = images()
    torch.testing.assert_close(
        replica(x), F.prelu(F.instance_norm(x, weight=torch.full((3,), 2.0)) + 1, torch.tensor([1.25]))
    )


# ---- what keeps its meaning -----------------------------------------------------------------------------------------


def test_slices_single_layers_and_changed_sequentials_mean_what_they_say():
    plain = patch_discriminator()
    model, _ = fuse(copy.deepcopy(plain))
    x = images()
    torch.testing.assert_close(model[:4](x), plain[:4](x))  # ends between a norm and its activation
    value, expected = x, x
    for layer, layer_before in zip(model, plain, strict=True):
        value, expected = layer(value), layer_before(expected)
        torch.testing.assert_close(value, expected)
    model[4] = nn.ReLU()
    plain[4] = nn.ReLU()
    torch.testing.assert_close(model(x), plain(x))
    model.append(nn.Sigmoid())
    torch.testing.assert_close(model(x), plain(x).sigmoid())


def test_other_methods_see_the_layers_unfused():
    plain = FunctionalBlock()
    model, _ = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(model.encode(x), plain.encode(x))


def test_hooks_added_later_are_called():
    plain = patch_discriminator()
    model, _ = fuse(copy.deepcopy(plain))
    seen = []
    for network in (plain, model):
        network[3].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        network(images(generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(*seen)


def test_a_loss_may_look_at_features_inside_a_generator():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = cyclegan_generator()

        def forward(self, x, taps=(), offset=0.0):
            if not taps:
                return self.model(x) + offset
            features = []
            for i, layer in enumerate(self.model):
                x = layer(x)
                if i in taps:
                    features.append(x.clone())
            return features

    plain = Encoder()
    model, report = fuse(copy.deepcopy(plain))
    assert "model.2" in layers(report)
    x = images()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x, (2, 5)), plain(x, (2, 5)), rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x, offset=1.0), model(x) + 1.0)


class Fading(nn.Module):
    """Reads an attribute that training changes, and takes arguments that may be absent."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)
        self.alpha = 0.0

    def forward(self, x, skip=None):
        y = F.relu(self.norm(x)) * self.alpha
        return y if skip is None else y + skip


def test_attributes_and_arguments_that_change_are_respected():
    plain = Fading()
    model, report = fuse(copy.deepcopy(plain))
    assert layers(report) == ["norm"]
    x = images()
    for alpha in (0.0, 0.5):
        plain.alpha = model.alpha = alpha
        torch.testing.assert_close(model(x), plain(x))
        torch.testing.assert_close(model(x, x), plain(x, x))
        torch.testing.assert_close(model(x, skip=x), plain(x, skip=x))


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x):
        return F.dropout(F.relu(self.norm(x)), 0.5, self.training)


class Joining(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x, skip):
        y = F.relu(self.norm(x))
        return y if skip is None else torch.cat([y, skip], 1)


def test_an_argument_that_is_none_takes_the_branch_for_none():
    model, report = fuse(Joining())
    assert layers(report) == ["norm"]
    x = images()
    assert model(x, x).shape == (2, 6, 16, 16)
    assert model(x, None).shape == (2, 3, 16, 16)


def test_training_mode_is_read_at_each_call():
    plain = Dropping()
    model, report = fuse(copy.deepcopy(plain))
    assert layers(report) == ["norm"]
    x = images()
    for training in (True, False, True):
        outputs = []
        for network in (plain, model):
            torch.manual_seed(1)
            outputs.append(network.train(training)(x))
        torch.testing.assert_close(*outputs)


def test_running_statistics_move_as_before():
    plain = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True, affine=True), nn.ReLU())
    model, report = fuse(copy.deepcopy(plain))
    assert "running statistics" in report.left[0].detail
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


class Squares(torch.overrides.TorchFunctionMode):
    """Exchanges one function for another."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return args[0].square() if function is F.leaky_relu else function(*args, **(kwargs or {}))


def test_a_mode_sees_the_single_functions():
    plain = patch_discriminator()
    model, _ = fuse(copy.deepcopy(plain))
    x = images()
    with Squares():
        assert torch.equal(model(x), plain(x))
    with torch.device("cpu"):
        torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("device", [False, True])
def test_a_default_device_keeps_the_fused_operation(device, monkeypatch):
    model, _ = fuse(cyclegan_generator())
    calls = []
    original = operation._forward
    monkeypatch.setattr(operation, "_forward", lambda *given: calls.append(1) or original(*given))
    with torch.device("cpu") if device else contextlib.nullcontext():
        model(images())
    assert len(calls) == 7


# ---- what is left, and why ------------------------------------------------------------------------------------------


class OwnNorm(nn.InstanceNorm2d):
    def forward(self, input):
        return super().forward(input) + 1


class Owner(nn.Module):
    """One norm; subclasses call it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)
        self.act = nn.ReLU()


class Branches(Owner):
    def forward(self, x):
        y = self.norm(x)
        return F.relu(y) if x.mean() > 0 else y


class Training(Owner):
    def forward(self, x):
        return F.relu(self.norm(x)) if self.training else x


class Counts(Owner):
    def forward(self, x):
        self.last = x
        return F.relu(self.norm(x))


class Collects(Owner):
    def __init__(self):
        super().__init__()
        self.features = []

    def forward(self, x):
        y = F.relu(self.norm(x))
        self.features.append(y)
        return y


class Constant(Owner):
    def forward(self, x):
        return F.relu(self.norm(x)) + torch.ones(3, 1, 1)


class Random(Owner):
    def forward(self, x):
        return F.relu(self.norm(x)) * random.random()


class Autocast(Owner):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return F.relu(self.norm(x))


class NoGrad(Owner):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(self.norm(x))


class Checkpointed(Owner):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda y: F.relu(self.norm(y)), x, use_reentrant=False)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class GradientReversal(Owner):
    def forward(self, x):
        return Reversed.apply(F.relu(self.norm(x)))


class KeywordOnly(Owner):
    def forward(self, x, *, shift):
        return F.relu(self.norm(x)) + shift


class InPlaceIntoSkip(Owner):
    def forward(self, x):
        skip = x * 2
        skip += self.norm(x)
        return skip


class WritesBetween(Owner):
    def forward(self, x):
        y = x * 2
        normed = self.norm(y)
        y += 1
        return F.relu(normed + x)


class Unpicklable(Owner):
    def forward(self, x):
        return F.relu(self.norm(x))

    def __reduce__(self):
        raise TypeError("holds an open file")

    def __deepcopy__(self, memo):
        return type(self)()


class Unused(Owner):
    def forward(self, x):
        return self.act(x)


def with_forward_of_its_own(module):
    module.forward = Unused().forward
    return module


def hooked(model, index):
    model[index].register_forward_hook(lambda *arguments: None)
    return model


LEFT = [
    (Branches(), "cannot be traced (symbolically traced variables cannot be used as inputs to control flow)"),
    (Training(), "cannot be traced (symbolically traced variables cannot be used as inputs to control flow)"),
    (Counts(), "assigns self.last"),
    (Collects(), "changes self.features"),
    (Constant(), "uses torch.ones"),
    (Random(), "uses random.random"),
    (Autocast(), "uses torch.autocast"),
    (NoGrad(), "has a forward with a decorator"),
    (GradientReversal(), "uses Reversed.apply"),
    (Checkpointed(), "uses torch.utils.checkpoint.checkpoint"),
    (KeywordOnly(), "has a keyword-only argument without a default"),
    (with_forward_of_its_own(Owner()), "has a forward of its own on the object"),
    (Unused(), "no forward that can be read calls it"),
    (Unpicklable(), "is copied and pickled in a way of its own"),
    (hooked(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()), 0), "has hooks, which see its result"),
]


@pytest.mark.parametrize(
    ("model", "reason"), LEFT, ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else ""
)
def test_norms_left_as_they_were(model, reason):
    plain = copy.deepcopy(model)
    random_state = random.getstate()
    (_, report) = fuse(model)
    assert random.getstate() == random_state
    assert getattr(model, "features", []) == []
    assert not report.fused
    (finding,) = report.left
    assert reason in finding.detail
    assert type(model.get_submodule(finding.name)) is nn.InstanceNorm2d
    assert str(finding) in str(report)
    arguments = {"shift": 1} if isinstance(model, KeywordOnly) else {}
    x = images()
    random.seed(0)
    expected = plain(x, **arguments)
    random.seed(0)
    torch.testing.assert_close(model(x, **arguments), expected)


class Twice(Owner):
    def forward(self, x):
        y = self.norm(x)
        return F.relu(y) + y


@pytest.mark.parametrize(
    "model",
    [
        Twice(),
        InPlaceIntoSkip(),
        WritesBetween(),
        nn.Sequential(nn.InstanceNorm2d(3)),
        nn.Sequential(nn.Sequential(nn.InstanceNorm2d(3)), nn.ReLU()),
        nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)),
        nn.Sequential(nn.InstanceNorm2d(3), nn.GELU("tanh")),
        nn.Sequential(nn.InstanceNorm2d(3), nn.ELU(0.5)),
        nn.Sequential(nn.InstanceNorm2d(3), nn.ReflectionPad2d((1, 1, 2, 2))),
        hooked(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()), 1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_norms_that_run_without_what_follows(model):
    plain = copy.deepcopy(model)
    _, report = fuse(model)
    (finding,) = report.fused
    assert finding.detail.startswith("instance norm; ")
    x = images()
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (OwnNorm(3), "is a subclass, OwnNorm"),
        (nn.LazyInstanceNorm2d(), "is lazy and does not know its channels yet"),
        (parametrizations.weight_norm(nn.InstanceNorm2d(3, affine=True), dim=None), "has a parametrization"),
        (InstanceNormAct2d(3), "is an InstanceNormAct2d already"),
    ],
    ids=["subclass", "lazy", "parametrized", "fused by hand"],
)
def test_norms_of_other_kinds_are_left(norm, reason):
    kind = type(norm)
    model = nn.Sequential(norm, nn.ReLU())
    _, report = fuse(model)
    assert type(model[0]) is kind
    (finding,) = report.left
    assert finding.name == "0"
    assert reason in finding.detail
    assert not report.fused


class RunningFunctional(nn.Module):
    def forward(self, x):
        return F.relu(F.instance_norm(x, torch.zeros(3), torch.ones(3)))


class BranchingFunctional(nn.Module):
    def forward(self, x):
        return F.relu(F.instance_norm(x)) if x.mean() > 0 else x


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (RunningFunctional(), "RunningFunctional uses torch.zeros"),
        (BranchingFunctional(), "BranchingFunctional cannot be traced"),
    ],
)
def test_calls_of_the_functional_norm_left_as_they_were(model, reason):
    _, report = fuse(model)
    (finding,) = report.left
    assert reason in finding.detail


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_compiled_and_scripted_models_are_refused_unchanged():
    model = patch_discriminator()
    with pytest.raises(ValueError, match="the model is compiled: fuse first"):
        fuse(torch.compile(model))
    with pytest.raises(ValueError, match="2 is compiled: fuse first"):
        part = patch_discriminator()
        part.compile()
        fuse(nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), part))
    with pytest.raises(ValueError, match="the model is scripted"):
        fuse(torch.jit.trace(model, images()))
    assert type(model[3]) is nn.InstanceNorm2d


def test_other_threads_run_models_and_fuse_at_the_same_time():
    other, x = functional_blocks(), images()
    expected, wrong, stop = other(x), [], threading.Event()

    def run():
        while not stop.is_set():
            try:
                if not torch.equal(other(x), expected):
                    wrong.append("another result")
                if len(fuse(functional_blocks())[1].fused) != 8:
                    wrong.append("less is fused")
            except Exception as error:  # a test must see what a thread raises
                wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert len(fuse(functional_blocks())[1].fused) == 8
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert "__getattribute__" not in vars(nn.Module)


# ---- in-place code, and what is kept --------------------------------------------------------------------------------


def test_the_output_is_kept_only_where_a_convolution_keeps_it_too():
    conv, norm, act = nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), nn.LeakyReLU(0.2)
    kept = {
        "output": [norm, act, conv],
        "input": [norm, act, nn.Dropout(0.0), nn.ReLU(True)],  # in eval mode a dropout passes its input on
    }
    for what, children in kept.items():
        model, report = fuse(nn.Sequential(*copy.deepcopy(children)).eval())
        assert f"the backward keeps its {what}" in report.fused[0].detail
        model(images(requires_grad=True)).sum().backward()  # raises if a kept tensor was written into


def test_writing_into_a_kept_output_is_an_error():
    norm = InstanceNormAct2d(3, activation="leaky_relu", negative_slope=0.2)
    y = nn.ReLU(True)(norm(images(requires_grad=True)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("module", ["vologan_kernels.rewriting", "vologan_kernels.fuse.rewriting"])
def test_a_model_that_an_earlier_version_pickled_while_fused_is_plain(module):
    earlier = importlib.import_module(module)

    class Pickled:
        def __reduce__(self):
            return earlier._unpickle, (nn.Sequential, object.__new__(earlier.Rewrite)), vars(plain)

    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())
    loaded = pickle.loads(pickle.dumps(Pickled()))
    x = images()
    assert type(loaded) is nn.Sequential
    assert torch.equal(loaded(x), plain(x))
    assert fuse(loaded)[1].fused


def test_report_reads_well():
    model = nn.Sequential(patch_discriminator(), Twice(), OwnNorm(3))
    assert str(fuse(model)[1]) == "\n".join(
        [
            "Fused (3):",
            "  0.3: instance norm + leaky_relu(0.2); the backward keeps its output",
            "  0.6: instance norm + leaky_relu(0.2); the backward keeps its output",
            "  1.norm: instance norm; the backward keeps its input",
            "Left as they were (1):",
            "  2: is a subclass, OwnNorm",
        ]
    )
    assert str(fuse(nn.Conv2d(3, 3, 1))[1]) == "No instance norm was found."


def test_a_fused_module_says_so():
    model, _ = fuse(cyclegan_generator())
    assert "fused: 10 = instance norm + relu + reflection_pad(3)" in repr(model)
    assert type(model).__name__ == "Sequential"
    assert isinstance(model[7], ResidualBlock)


# ---- whatever the plain model does, the fused one does --------------------------------------------------------------


class Registering(nn.Module):
    gain = 1.0

    def __init_subclass__(cls, gain=1.0, **options):
        super().__init_subclass__(**options)
        cls.gain = gain


class Registered(Registering, Owner, gain=3.0):
    def forward(self, x):
        return F.relu(self.norm(x)) * self.gain


class Meta(type):
    pass


class WithMetaclass(Owner, metaclass=Meta):
    def forward(self, x):
        return F.relu(self.norm(x))


@pytest.mark.parametrize("model", [Registered(), WithMetaclass()], ids=lambda model: type(model).__name__)
def test_a_class_with_code_for_its_subclasses_is_left(model):
    x = images()
    expected = model(x)
    _, report = fuse(model)
    assert not report.fused
    assert "has code that runs when a subclass of it is made" in report.left[0].detail
    torch.testing.assert_close(model(x), expected)


STRIDES = {
    "flatten": "y.flatten(1)[:, ::2] = 0",
    "reshape": "y.reshape(len(y), -1)[:, ::2] = 0",
    "torch.flatten": "torch.flatten(y, 1)[:, ::2] = 0",
    "ravel": "y.ravel()[::2] = 0",
    "contiguous": "y.contiguous().mul_(2)",
    "stride": "y = y * y.stride(1)",
    "is_contiguous": "y = y * (2 if y.is_contiguous() else 3)",
    "view_as_complex": "y = torch.view_as_complex(y.unflatten(3, (-1, 2))).abs()",
    "as_strided": "y = y.as_strided((2, 3), (1, 2))",
    "numpy": "y = y * y.detach().numpy().strides[1]",
}


@pytest.mark.parametrize("name", STRIDES)
def test_code_that_depends_on_strides_gives_the_same_in_channels_last(name):
    variables = {"torch": torch}
    exec(f"def forward(self, x):\n    y = self.net(x)\n    {STRIDES[name]}\n    return y\n", variables)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())

        forward = variables["forward"]

    plain = Model().to(memory_format=torch.channels_last)
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    x = images().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))


class ActivatingConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.relu_(x))


def test_a_convolution_of_another_class_may_write_into_its_input():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), ActivatingConv(4, 4, 3))
    fused, report = fuse(copy.deepcopy(plain))
    assert "keeps its input" in report.fused[0].detail
    assert_as_good(plain, fused, images())


def test_a_lazy_convolution_behind_a_norm():
    plain = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.LazyConv2d(4, 3))
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    x = images()
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    torch.testing.assert_close(fused(x), expected)


WRITES = {
    "view of the residual": "y = F.relu(self.norm(h) + s[:, :]); s.mul_(3); return y",
    "residual, by a view": "v = s[:, :1]; y = F.relu(self.norm(h) + s); v.mul_(3); return y",
    "residual, by a function": "y = F.relu(self.norm(h) + s); z = F.relu(s, True); return y + z",
    "residual, by out=": "y = F.relu(self.norm(h) + s.detach()); torch.neg(h.detach(), out=s.data); return y",
    "residual, by a child": "y = F.relu(self.norm(h) + s); self.writes(s); return y",
    "view of the residual, by a child": "y = F.relu(self.norm(h) + s.view(s.shape)); self.writes(s); return y",
    "residual, by +=": "y = F.relu(self.norm(h) + s[:]); s += 1; return y + s",
    "norm's input, by an older view": "v = h[:, :2]; n = self.norm(h); v.zero_(); return n + s",
    "norm's input, by a child": "v = h[:, :2]; n = self.norm(h); self.writes(v); return n + s",
}


class Writes(nn.Module):
    def forward(self, x):
        x.mul_(3)


@pytest.mark.parametrize("name", WRITES)
def test_a_tensor_that_is_written_under_another_name_is_in_no_fused_sum(name):
    variables = {"F": F, "torch": torch}
    exec(f"def forward(self, x):\n    h, s = self.a(x), self.b(x)\n    {WRITES[name]}\n", variables)

    class Model(Owner):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.writes = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Writes()

        forward = variables["forward"]

    plain = Model()
    fused, report = fuse(copy.deepcopy(plain))
    assert "residual" not in report.fused[0].detail
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
    if not name.startswith("norm's input"):
        assert_as_good(plain, fused, x)


def test_a_norm_appended_later_is_fused_by_a_second_fuse():
    model, _ = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()))
    model.append(nn.InstanceNorm2d(4))
    _, report = fuse(model)
    assert layers(report) == ["1", "3"]
    assert "fused: 3" in repr(model)


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 4, 8, 8)])
def test_the_module_takes_no_other_dimensions(shape):
    plain = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
    fused, _ = fuse(copy.deepcopy(plain))
    with pytest.raises(ValueError, match="expected 3D or 4D") as expected:
        plain(torch.ones(shape))
    with pytest.raises(ValueError, match="expected 3D or 4D") as found:
        fused(torch.ones(shape))
    assert str(found.value) == str(expected.value)


class CallsForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.block = nn.InstanceNorm2d(3), Applies(F.relu)

    def forward(self, x):
        return self.block.forward(F.relu(self.norm(x)))


def test_a_report_of_a_forward_that_calls_a_fused_forward_is_true(monkeypatch):
    plain = CallsForward()
    plain.block.function = "relu"
    model, report = fuse(copy.deepcopy(plain))
    calls = []
    original = operation._forward
    monkeypatch.setattr(operation, "_forward", lambda *given: calls.append(1) or original(*given))
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    assert len(calls) == len(report.fused) == 1
    assert "calls the forward of a module that is fused itself" in report.left[0].detail


def test_the_arguments_of_forward_stay_visible():
    plain = Named()
    expected = inspect.getfullargspec(plain.forward), inspect.signature(plain.forward)
    fuse(plain)
    assert (inspect.getfullargspec(plain.forward), inspect.signature(plain.forward)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [[], [nn.ReflectionPad2d(1)]], ids=["", "padding"])
@pytest.mark.parametrize("activation", [nn.PReLU, nn.GELU, nn.ReLU, nn.SiLU, nn.ELU, nn.Tanh, nn.LeakyReLU])
def test_autocast_gives_the_dtypes_of_the_plain_model(activation, padding, dtype):
    plain = nn.Sequential(nn.InstanceNorm2d(3), activation(), *padding)
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    x = images(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(x), plain(x), rtol=2**-7, atol=2**-7)  # a unit or two of bfloat16


@pytest.mark.parametrize("normalise", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrized_convolutions_compile_without_a_graph_break(normalise):
    model, _ = fuse(nn.Sequential(normalise(nn.Conv2d(3, 4, 3)), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2)).eval())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images()
    torch.testing.assert_close(compiled(x), model(x))
