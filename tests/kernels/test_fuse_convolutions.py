"""`fuse` and the convolutions on a CPU: channels_last inside, and as torch has it outside."""

import copy
import threading

import foreign_gans
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from vologan_kernels import fuse, instance_norm_act
from vologan_kernels.fuse import convolutions

pytestmark = [
    pytest.mark.usefixtures("no_image_is_small"),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here"),
]

CHANNELS_LAST = torch.channels_last


def generator():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 8, 7),
        nn.InstanceNorm2d(8),
        nn.ReLU(True),
        foreign_gans.ResnetBlock(8, foreign_gans.get_norm_layer()),
        nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1),
        nn.InstanceNorm2d(4, affine=True),
        nn.LeakyReLU(0.2),
        nn.ReflectionPad2d(3),
        nn.Conv2d(4, 3, 7),
        nn.Tanh(),
    )


def images(side=12):
    torch.manual_seed(1)
    return torch.randn(2, 3, side, side)


def layouts(monkeypatch):
    """The layouts in which torch's convolutions get their images from now on."""
    found = []

    def recording(function):
        def call(x, *arguments, **options):
            found.append("last" if x.is_contiguous(memory_format=CHANNELS_LAST) else "first")
            return function(x, *arguments, **options)

        return call

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, recording(getattr(F, name)))
    return found


def everything(model, x, autocast=False):
    """Results, and gradients of the inputs and the parameters, as `autograd.grad` gives them."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = [y for y in tree_leaves(model(x)) if isinstance(y, torch.Tensor)]
    loss = sum(
        (y.double() * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum() for y in results if y.is_floating_point()
    )
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return results, [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]


def assert_as_good(plain, fused, x, autocast=False):
    """The fused model errs no more than three times as much as the plain one, and its tensors lie as that one's."""
    (values, gradients), (truths, true_gradients) = (
        everything(plain, x, autocast),
        everything(copy.deepcopy(plain).double(), x.double()),
    )
    found, found_gradients = everything(fused, x, autocast)
    largest = max(truth.norm() for truth in true_gradients)
    roundings = torch.finfo(torch.bfloat16 if autocast else torch.float32).eps
    for a, b, truth in zip([*found, *found_gradients], [*values, *gradients], [*truths, *true_gradients], strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert (a - truth).norm() <= 3 * (b - truth).norm() + roundings * (truth.norm() + largest)


@pytest.mark.parametrize("autocast", [False, True])
def test_images_are_channels_last_inside_and_contiguous_outside(autocast, monkeypatch):
    plain = generator()
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == 4
    assert_as_good(plain, fused, images(), autocast)
    found = layouts(monkeypatch)
    plain(images())
    assert found == ["first"] * 5
    found.clear()
    assert fused(images()).is_contiguous()
    assert found == ["last"] * 5


def test_a_block_inside_of_another_fused_forward_stays_channels_last():
    fused, _ = fuse(generator())
    found = []
    fused[4].register_forward_hook(lambda module, given, y: found.append((given[0].stride(1), y.stride(1))))
    x = images()
    assert fused(x).is_contiguous()
    assert found == [(1, 1)]
    assert fused[4](torch.randn(2, 8, 6, 6)).is_contiguous()  # called by itself
    assert found[1] == (36, 36)


def test_all_convolutions_of_a_large_model_get_the_layout_and_no_others(monkeypatch):
    monkeypatch.undo()  # small images are small again
    fused, _ = fuse(generator())
    found = layouts(monkeypatch)
    fused(images())
    assert found == ["first"] * 5
    found.clear()
    fused(images(128))
    assert found == ["last"] * 5


@pytest.mark.parametrize("name", foreign_gans.NETWORKS)
def test_tensors_of_other_networks_lie_as_before(name):
    """Whatever a network computes in between, its results and gradients have the strides that torch gives them."""
    plain, arguments = foreign_gans.make(name)
    plain = plain.float().eval()
    arguments = [a.float() for a in arguments]
    fused, report = fuse(copy.deepcopy(plain))
    if not report.fused:
        pytest.skip("has nothing to fuse")
    strides = []
    for model in (plain, fused):
        given_ = [a.clone().requires_grad_() for a in arguments]
        try:
            results = [y for y in tree_leaves(model(*given_)) if isinstance(y, torch.Tensor) and y.requires_grad]
        except RuntimeError:
            pytest.skip("does not work in float32")
        wanted = [*given_, *(p for p in model.parameters() if p.requires_grad)]
        grads = torch.autograd.grad([y.sum() for y in results], wanted, allow_unused=True)
        strides.append([tuple(t.stride()) for t in (*results, *(g for g in grads if g is not None))])
    assert strides[1] == strides[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_without_gradients_and_in_eval(autocast):
    plain = generator().eval()
    fused, _ = fuse(copy.deepcopy(plain))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        a, b = fused(images()), plain(images())
    assert a.stride() == b.stride()
    torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0.05} if autocast else {}))


def test_second_derivatives():
    plain = generator()[:-1].double().float()
    plain = nn.Sequential(*plain[:3], nn.SiLU(), *plain[4:])
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    found = []
    for model in (plain, fused):
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        penalty = (gradient.view(2, -1).norm(dim=1) - 1).square().mean()  # as WGAN-GP code has it
        found.append(torch.autograd.grad(penalty, [x, model[1].weight, model[-1].weight]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * found[0][0].abs().max().item())


# ---- what keeps its layout ------------------------------------------------------------------------------------------


def small(first=nn.Conv2d):
    torch.manual_seed(0)
    return nn.Sequential(first(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU()).eval()


class Subclass(nn.Conv2d):
    pass


class Reflects(nn.Conv2d):
    def __new__(cls, *sizes, **options):
        return nn.Conv2d(*sizes, **options, padding_mode="reflect")


def assert_kept(fused, plain, x, monkeypatch):
    with monkeypatch.context() as patched:
        found = layouts(patched)
        a, b = fused(x), plain(x)
    assert found == ["first", "first"]
    assert a.stride() == b.stride()
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [Subclass, Reflects])
def test_other_convolutions_are_called_as_before(kind, monkeypatch):
    plain = small(kind)
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    assert_kept(fused, plain, images(), monkeypatch)


def _own_forward(model):
    original = model[0].forward
    model[0].forward = lambda x: original(x)


class Quantised(torch.Tensor):
    """A weight with operations of its own, of which `flatten` is none."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function not in (torch.Tensor.flatten, torch.Tensor.view, torch.Tensor.contiguous)
        return super().__torch_function__(function, types, args, kwargs)


def _of_a_subclass(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Quantised))


CHANGES = {
    "subclass of Tensor": _of_a_subclass,
    "hook": lambda model: model[0].register_forward_hook(lambda *given: None),
    "own forward": _own_forward,
    "double": nn.Module.double,
    "parametrized": lambda model: nn.utils.parametrizations.weight_norm(model[0]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_changed_convolutions_are_called_as_before(name, when, monkeypatch):
    plain, fused = small(), small()
    for model in (plain, fused):
        if model is fused and when == "after":
            fuse(fused)
        CHANGES[name](model)
    if when == "before":
        fuse(fused)
    assert_kept(fused, plain, images().double() if name == "double" else images(), monkeypatch)


def test_permuted_images_keep_the_layout_of_the_caller():
    plain = generator()
    fused, _ = fuse(copy.deepcopy(plain))
    x = images().contiguous(memory_format=CHANNELS_LAST)
    a, b = fused(x), plain(x)
    assert a.stride() == b.stride()
    torch.testing.assert_close(a, b)


def test_without_onednn(monkeypatch):
    plain = generator()
    fused, _ = fuse(copy.deepcopy(plain))
    found = layouts(monkeypatch)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(fused(images()), plain(images()))
    assert found == ["first"] * 10


def test_function_transforms_and_forward_mode():
    plain = generator().eval()
    fused, _ = fuse(copy.deepcopy(plain))
    x = images()
    for model in (plain, fused):
        model.found = [
            torch.func.vmap(lambda one, model=model: model(one[None])[0])(x),
            torch.func.jvp(model, (x,), (x,))[1],
            torch.func.grad(lambda x, model=model: model(x).sum())(x),
        ]
    torch.testing.assert_close(fused.found, plain.found, rtol=1e-3, atol=1e-4)


def test_compiled(monkeypatch):
    plain = generator().eval()
    fused, _ = fuse(copy.deepcopy(plain))
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-4, atol=1e-4)


# ---- calls that end otherwise ---------------------------------------------------------------------------------------


class Fails(nn.Module):
    fails = False

    def forward(self, x):
        if self.fails:
            raise RuntimeError("as asked")
        return x


def test_after_an_error_and_in_other_threads():
    fused, _ = fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), Fails()))
    fused[3].fails = True
    with pytest.raises(RuntimeError, match="as asked"):
        fused(images())
    assert not convolutions.converted()
    fused[3].fails = False
    assert fused(images()).is_contiguous()
    inside, found = threading.Event(), []
    done = threading.Event()

    def wait(module, given, y):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert done.wait(60)

    fused[3].register_forward_hook(wait)
    other = threading.Thread(target=lambda: found.append(fused(images())))
    other.start()
    assert inside.wait(60)  # the other thread is inside of the forward
    assert fused(images()).is_contiguous()
    done.set()
    other.join()
    assert found[0].is_contiguous()


# ---- few outputs ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 4),
    channels=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 8), st.integers(7, 9)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    rows=st.integers(8, 10),
    fours=st.integers(1, 3),
    samples=st.integers(1, 2),
    bias=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, CHANNELS_LAST]),
)
def test_four_at_once(out, channels, kernel, padding, rows, fours, samples, bias, layout):
    width = 4 * fours + kernel[1] - 1 - 2 * padding[1]
    if width < 1:
        return
    torch.manual_seed(0)
    x = (
        torch.randn(samples, channels, rows, width, dtype=torch.float64)
        .contiguous(memory_format=layout)
        .requires_grad_()
    )
    weight = torch.randn(out, channels, *kernel, dtype=torch.float64).requires_grad_()
    b = torch.randn(out, dtype=torch.float64).requires_grad_() if bias else None
    wanted = [x, weight] + ([b] if bias else [])
    found = []
    for convolve in (
        lambda: convolutions._four_at_once(x, weight, b, padding),
        lambda: F.conv2d(x, weight, b, 1, padding),
    ):
        y = convolve()
        factors = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
        gradients = torch.autograd.grad((y * factors).sin().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), wanted)
        found.append([y, *gradients, *second])
    torch.testing.assert_close(*found, check_stride=False)


@pytest.mark.parametrize("width", [12, 13, 14, 15])
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 3}, {"padding": "same"}, {"stride": 2}, {"stride": (1, 2)}, {"dilation": 2}, {"bias": False}],
    ids=str,
)
def test_convolutions_with_few_outputs(width, options):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 7, **options))
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    torch.manual_seed(1)
    assert_as_good(plain, fused, torch.randn(2, 4, 16, width + 6))


def test_groups():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 7, groups=4))
    fused, _ = fuse(copy.deepcopy(plain))
    torch.manual_seed(1)
    assert_as_good(plain, fused, torch.randn(2, 4, 16, 18))


def test_a_padding_before_a_convolution_stays_in_bfloat16(monkeypatch):
    """torch's own padding is float32 under autocast, and the convolution converts it back."""
    block = foreign_gans.ResnetBlock(4, foreign_gans.get_norm_layer())
    fused, _ = fuse(block)
    types = []
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest, **options: types.append(x.dtype) or original(x, *rest, **options))
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(torch.randn(2, 4, 8, 8).bfloat16())
    assert types == [torch.bfloat16] * 2
    assert y.dtype == torch.bfloat16


# ---- transposed convolutions ----------------------------------------------------------------------------------------


def small_image():
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", ["trained", "frozen", "none"])
def test_the_bias_of_a_transposed_convolution(autocast, bias):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, bias=bias != "none")
    plain = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), up, nn.Tanh())
    if bias == "frozen":
        up.bias.requires_grad_(False)
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    assert_as_good(plain, fused, small_image(), autocast)


def test_second_derivatives_through_the_bias_of_a_transposed_convolution():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.InstanceNorm2d(4), nn.SiLU(), nn.ConvTranspose2d(4, 6, 3, 2, 1), nn.Tanh())
    fused, _ = fuse(copy.deepcopy(plain))
    found = []
    for model in (plain, fused):
        (gradient,) = torch.autograd.grad(model(small_image()).square().sum(), model[2].bias, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [model[2].weight, model[2].bias]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


# ---- results --------------------------------------------------------------------------------------------------------


class Returning(nn.Module):
    """A convolution and a norm, and what a forward may return of them."""

    def __init__(self, results):
        super().__init__()
        self.convolution, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU()
        self.results = results

    def forward(self, x):
        return self.results(self.relu(self.norm(self.convolution(x))), x)


RESULTS = {
    "permuted": lambda h, x: h.permute(0, 2, 3, 1),
    "slice": lambda h, x: h[:, :5],
    "transposed": lambda h, x: h.transpose(2, 3),
    "chunks": lambda h, x: torch.chunk(h, 2, 1),
    "expanded": lambda h, x: h.mean((2, 3), keepdim=True).expand_as(h),
    "twice": lambda h, x: (h, h),
    "with a view": lambda h, x: (h, h[:, :1]),
    "with its input": lambda h, x: {"h": h, "x": x},
    "clamped": lambda h, x: torch.clamp(h, 0, 1),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_results_of_every_kind_lie_and_share_memory_as_before(name, layout):
    torch.manual_seed(0)
    plain = Returning(RESULTS[name])
    fused, _ = fuse(copy.deepcopy(plain))
    x = images().contiguous(memory_format=layout)
    found, expected = tree_leaves(fused(x)), tree_leaves(plain(x))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b)
        assert (a is found[0]) == (b is expected[0])
        assert (a is x) == (b is x)
        shares = [
            p.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()
            for p, q in ((a, found[0]), (b, expected[0]))
        ]
        assert shares[0] == shares[1], i


def test_gradients_of_small_images_behind_large_ones_are_contiguous(monkeypatch):
    monkeypatch.undo()  # small images are small again
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.InstanceNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, 4, 1),
        nn.InstanceNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    fused, _ = fuse(copy.deepcopy(plain))
    torch.manual_seed(1)
    assert_as_good(plain, fused, torch.randn(1, 8, 80, 80))


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :, ::2], lambda x: x.transpose(2, 3), lambda x: x[:, :1].expand_as(x)]
)
def test_images_that_lie_in_other_ways(change):
    plain = generator()
    fused, _ = fuse(copy.deepcopy(plain))
    x = change(images(24)).detach().requires_grad_()
    found = []
    for model in (plain, fused):
        y = model(x)
        wanted = [x, *model.parameters()]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    assert [t.stride() for t in found[1]] == [t.stride() for t in found[0]]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-4)


class Inside(nn.Module):
    """A module without norms, which `fuse` leaves alone."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        return torch.tanh(self.convolution(x))


class Functional(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.first, self.norm = nn.Conv2d(65, 65, 3, padding=1), nn.InstanceNorm2d(65)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x):
        return torch.tanh(F.conv2d(self.norm(self.first(x)), self.weight, self.bias, 1, 2, 2))


def hooked(convolution):
    convolution.register_forward_hook(lambda *given: None)
    return convolution


DILATED = {"as it is": lambda c: c, "in a module": Inside, "hooked": hooked, "functional": Functional}


@pytest.mark.parametrize("name", DILATED)
def test_dilated_convolutions_keep_their_layout_in_bfloat16(name):
    """For channels_last images, oneDNN (torch 2.13) leaves parts of such gradients of weights unwritten."""
    torch.manual_seed(0)
    dilated = DILATED[name](nn.Conv2d(65, 32, 3, padding=2, dilation=2))
    first = nn.Conv2d(65, 65, 3, padding=1), nn.InstanceNorm2d(65), nn.SiLU()
    plain = nn.Sequential(*first, dilated, nn.InstanceNorm2d(32), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1))
    fused, report = fuse(copy.deepcopy(plain))
    assert report.fused
    torch.manual_seed(1)
    x = torch.randn(1, 65, 32, 31)
    for _ in range(3):
        dirty = torch.full((4 << 20,), float("nan"))
        del dirty
        assert_as_good(plain, fused, x, autocast=True)


@pytest.mark.parametrize(
    ("padding", "weight"), [((3,), None), ((3, 3, 3), None), ((), None), ((3.0, 3.0), None), ((3, 3), (3, 4, 5, 5))]
)
def test_wrong_sizes_are_as_in_torch(padding, weight):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 7, padding=3))
    fused, _ = fuse(copy.deepcopy(plain))
    found = []
    for model in (plain, fused):
        model[2].padding = padding
        if weight is not None:
            torch.manual_seed(0)
            model[2].weight = nn.Parameter(torch.randn(weight))
        try:
            found.append(model(torch.ones(2, 4, 16, 16)).shape)
        except (RuntimeError, TypeError) as error:
            found.append(type(error))
    assert found[0] == found[1]


def test_tensors_of_onednn_are_torchs_error():
    fused, _ = fuse(nn.Sequential(nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 3)).eval())
    for side in (8, 128):
        with pytest.raises(RuntimeError):
            fused(torch.randn(2, 4, side, side).to_mkldnn())
    with pytest.raises(ValueError, match=r"x must be a dense tensor, found one with layout torch\._mkldnn"):
        instance_norm_act(torch.randn(2, 4, 8, 8).to_mkldnn())
