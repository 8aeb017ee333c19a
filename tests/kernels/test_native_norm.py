"""The native instance norm: every instruction set of this machine, threads, and when it is chosen.

`test_instance_norm.py` has the cases that it shares with the Triton kernels.
"""

import threading

import pytest
import torch
from norm_cases import LAYOUTS, Case, randn
from vologan_kernels import (
    ACTIVATIONS,
    InstanceNormAct2d,
    adversarial_loss,
    instance_norm_act,
    native_library,
    pixel_losses,
)
from vologan_kernels.instance_norm import native

REFUSAL = native_library.refusal(torch.zeros(1))
needs_library = pytest.mark.skipif(bool(REFUSAL), reason=str(REFUSAL))
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the cases lie on the GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def results(case):
    return [*case.forward("native"), *case.backward("native")]


# ---- as exact as the plain form -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_everything(level, dtype, layout, activation):
    for pad in range(4):
        for from_output in (False, True) if ACTIVATIONS[activation].inverse else (False,):
            x = randn(2, 5, 4 + pad, 9, dtype=dtype).contiguous(memory_format=layout)
            residual = pad in (1, 2)
            Case(
                x, activation=activation, pad=pad, residual=residual, from_output=from_output, min_scale=0.5 * (pad > 1)
            ).check("native")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_channels(level, layout, dtype):
    """Channels fill a vector, leave lanes over, or share one."""
    for channels in range(1, 71):
        n, h, w, pad = 1 + channels % 2, 1 + channels % 5, 1 + channels % 7, channels % 3 == 0
        x = randn(n, channels, h, w, dtype=dtype).contiguous(memory_format=layout)
        Case(x, pad=int(pad and min(h, w) > 1), affine=channels % 4 > 0).check("native")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_planes_in_several_parts(level, layout, dtype):
    for pad in (0, 1):
        Case(randn(2, 3, 131, 67, dtype=dtype).contiguous(memory_format=layout), pad=pad).check("native")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_a_mean_far_above_the_deviation_costs_no_digits(level, layout, ratio):
    x = (randn(2, 3, 65, 33) + ratio).contiguous(memory_format=layout)
    x[:, :, 0, 0] = 0  # and the first value is no help
    Case(x).check("native", roundings=float(x.mean() / x.std()))  # of the mean, which moves a result by so many


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_a_flat_plane_gives_the_bias(level, layout, dtype, value):
    x = torch.full((2, 3, 37, 29), value, dtype=dtype).contiguous(memory_format=layout)
    bias = torch.tensor([0.0, -1.5, 0.75])
    y = instance_norm_act(x, torch.ones(3), bias, impl="native")
    assert torch.equal(y, bias.to(dtype).view(1, 3, 1, 1).expand_as(y))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numbers_that_are_not_finite_stay_in_their_plane(level, layout, activation):
    """And there they appear where the plain form has them for contiguous images. torch's gradient of elu loses them in
    some channels_last ones."""
    x = randn(2, 5, 6, 7).contiguous(memory_format=layout)
    residual = randn(2, 5, 6, 7, seed=4).contiguous(memory_format=layout)
    x[0, 1, 2, 3] = torch.nan
    x[1, 2, 0, 0] = torch.inf
    residual[0, 3, 5, 6] = torch.nan
    case, contiguous = Case(x, activation=activation), Case(x.contiguous(), activation=activation)
    case.residual, contiguous.residual = residual, residual.contiguous()
    plain = [*contiguous.forward("reference"), *contiguous.backward("reference")]
    for found, expected in zip(results(case), plain, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [1e38, -1e38, -3e38, -torch.inf], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_huge_numbers_are_the_plain_forms(level, activation, number):
    """e^-u is 0 or infinite there. A bound on it, times such a number, would not be small."""
    case = Case(randn(2, 3, 6, 7), activation=activation, residual=True)
    case.residual[0, 1, 2, 3] = number
    plain = [*case.forward("reference"), *case.backward("reference")]
    for found, expected in zip(results(case), plain, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


# ---- threads --------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 300, 200), (1, 3, 200, 150), (2, 8, 90, 70), (3, 40, 33, 31), (9, 2, 64, 64)]


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pad", [0, 2])
def test_any_number_of_threads_gives_the_same_bits(layout, shape, pad):
    case = Case(randn(*shape).contiguous(memory_format=layout), activation="prelu", residual=True, pad=pad)
    alone = results(case)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, results(case), alone))


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_changes_no_bit_of_its_samples(layout):
    whole = Case(randn(3, 8, 90, 70).contiguous(memory_format=layout))
    alone = Case(whole.x[1:2], grad=whole.grad[1:2])
    for together, single in zip(whole.forward("native"), alone.forward("native"), strict=True):
        assert torch.equal(together[1:2], single)
    assert torch.equal(whole.backward("native")[0][1:2], alone.backward("native")[0])


@needs_library
def test_callers_in_several_threads_do_not_disturb_each_other():
    torch.set_num_threads(2)
    cases = [Case(randn(2, 6, 80, 60, seed=seed), pad=1) for seed in range(4)]
    expected = [results(case) for case in cases]
    wrong = []

    def call(i):
        for _ in range(10):
            if not all(map(torch.equal, results(cases[i]), expected[i])):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


# ---- when it is chosen ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(native_library, "_installed", lambda: None)
    native_library.load.cache_clear()
    yield
    native_library.load.cache_clear()


def outcome(x, impl):
    x = x.detach().requires_grad_()
    y = instance_norm_act(x, activation="silu", impl=impl)
    return [y, *torch.autograd.grad(y, x, randn(*y.shape, seed=1).to(y.dtype))]


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_is_native_on_a_cpu(dtype, monkeypatch):
    calls = []
    for name in ("forward", "backward"):
        run = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *given, name=name, run=run: calls.append(name) or run(*given))
    x = randn(2, 3, 9, 8, dtype=dtype)
    found = outcome(x, "auto")
    assert calls == ["forward", "backward"]
    assert all(map(torch.equal, found, outcome(x, "native")))


@needs_library
def test_no_samples():
    x, weight = torch.zeros(0, 3, 4, 5, requires_grad=True), torch.ones(3, requires_grad=True)
    y = instance_norm_act(x, weight, reflection_pad=1, impl="native")
    assert y.shape == (0, 3, 6, 7)
    dx, d_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape and torch.equal(d_weight, torch.zeros(3))


def test_float16_is_left_to_the_plain_form():
    x = randn(2, 3, 5, 4, dtype=torch.float16)
    assert all(map(torch.equal, outcome(x, "auto"), outcome(x, "reference")))
    with pytest.raises(ValueError, match=r"x must be float32, bfloat16 or float64, found torch\.float16"):
        instance_norm_act(x, impl="native")


@pytest.mark.usefixtures("no_library")
def test_without_the_library_auto_is_the_plain_form():
    x = randn(2, 3, 5, 4)
    assert native_library.levels() == ()
    assert all(map(torch.equal, outcome(x, "auto"), outcome(x, "reference")))
    with pytest.raises(ValueError, match=r"impl='native': the library _native\.so is not there"):
        instance_norm_act(x, impl="native")


@needs_library
def test_the_environment_names_a_level(monkeypatch):
    native_library.load.cache_clear()
    monkeypatch.setenv(native_library.LEVEL_VARIABLE, "sse9")
    with pytest.raises(ValueError, match=r"VOLOGAN_KERNELS_LEVEL must be .* \(.*plain\), found 'sse9'"):
        instance_norm_act(randn(1, 1, 2, 2))
    monkeypatch.setenv(native_library.LEVEL_VARIABLE, "plain")
    case = Case(randn(2, 3, 37, 29))
    plain = results(case)
    native_library.use_level(native_library.levels()[0])
    native_library.use_level("plain")
    assert all(map(torch.equal, results(case), plain))
    native_library.use_level(native_library.levels()[0])


@needs_library
def test_tensors_elsewhere_are_refused():
    x = randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match="needs CPU tensors, found one on meta"):
        instance_norm_act(x, residual=torch.empty(1, 2, 4, 4, device="meta"))
    with pytest.raises(ValueError, match="needs CPU tensors, found one on meta"):
        instance_norm_act(x, torch.empty(2, device="meta"))
    with pytest.raises(ValueError, match="x must be a CPU tensor, found one on meta"):
        instance_norm_act(torch.empty(1, 2, 4, 4, device="meta"), impl="native")


def test_other_operations_have_no_native_form():
    x = randn(1, 2, 4, 4)
    for call in (
        lambda: pixel_losses([(x, x)], [(1, 1, 1)], impl="native"),
        lambda: adversarial_loss(x, "real", impl="native"),
    ):
        with pytest.raises(ValueError, match="impl must be auto, reference or triton, found 'native'"):
            call()


@needs_library
def test_the_module_passes_it_on():
    x = randn(2, 3, 6, 5)
    norms = [InstanceNormAct2d(3, affine=True, activation="relu", impl=impl) for impl in ("native", "auto")]
    assert torch.equal(*(norm(x) for norm in norms))
    with pytest.raises(ValueError, match="impl='native'"):
        norms[0](x.half())
