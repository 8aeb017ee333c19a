"""Instance norm + activation: the plain form against the formula, the kernels against the plain form, and float64.

Without a GPU the kernels run in Triton's interpreter, on small planes; `two_kernels` makes those take the path of large
ones.
"""

import copy
import math

import pytest
import torch
from exactness import assert_as_exact
from hypothesis import given
from hypothesis import strategies as st
from norm_cases import DEVICE, LAYOUTS, OPS, SPARSE, STRIDED, Case, formula, randn
from torch import nn
from torch.nn import functional as F
from vologan_kernels import ACTIVATIONS, InstanceNormAct2d, dispatch, instance_norm_act, launch, native_library

triton = pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
REFUSAL = native_library.refusal(randn(1))
FORMS = ["reference", "triton", pytest.param("native", marks=pytest.mark.skipif(bool(REFUSAL), reason=str(REFUSAL)))]


@pytest.fixture(params=["one kernel", "two kernels", "native"])
def impl(request, monkeypatch):
    """Triton, with planes that fit a tile and with planes cut into several parts of several tiles; and the library."""
    if request.param == "native":
        if REFUSAL:
            pytest.skip(REFUSAL)
        return "native"
    if request.param == "two kernels":
        stream_all(monkeypatch)
    return "triton"


def stream_all(monkeypatch):
    monkeypatch.setattr(launch, "SINGLE_FORWARD", 0)
    monkeypatch.setattr(launch, "SINGLE_BACKWARD", 0)
    monkeypatch.setattr(launch, "STREAM", 128)
    monkeypatch.setattr(launch, "STREAM_CHANNELS", 4)
    monkeypatch.setattr(launch, "LEAST_TILES", 1)


# ---- the plain form against the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 5), (1, 4, 2, 7), (0, 2, 4, 4)], ids=str)
def test_the_plain_form_is_the_formula(dtype, layout, activation, shape):
    x, residual = (randn(*shape, dtype=dtype, seed=i).contiguous(memory_format=layout) for i in (0, 1))
    weight, bias = randn(shape[1], seed=2), randn(shape[1], seed=3)
    slope = randn(shape[1], seed=4) if activation == "prelu" else 0.3
    leaves = [x, weight, bias, residual]
    grad = randn(*shape[:2], shape[2] + 2, shape[3] + 2, dtype=dtype, seed=6)

    def run(function, precision):
        """y and the gradients of the leaves, with all arguments in `precision` (None: as they are)."""
        inputs = [(t if precision is None else t.to(precision)).detach().requires_grad_() for t in leaves]
        slopes = slope if precision is None or not isinstance(slope, torch.Tensor) else slope.to(precision)
        y = function(inputs[0], inputs[1], inputs[2], slopes, inputs[3])
        return [y, *torch.autograd.grad(y, inputs, grad.to(y.dtype))]

    options = {"eps": 1e-3, "activation": activation, "reflection_pad": 1}
    ours = run(
        lambda x, w, b, s, r: instance_norm_act(x, w, b, negative_slope=s, residual=r, impl="reference", **options),
        None,
    )
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    plain = run(lambda *inputs: formula(*inputs, **options), accumulator)
    truth = run(lambda *inputs: formula(*inputs, **options), torch.float64)
    for found, p, t in zip(ours, plain, truth, strict=True):
        terms = grad.double().abs().sum() if found.dim() == 1 and grad.numel() else None
        assert_as_exact(found, p.to(found.dtype), t, ulps=2, scale=terms)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_derivative_at_a_kink_is_that_of_torch(activation, impl):
    """A plane of zeros has x̂ = 0, so u is the residual to the bit: here multiples of ½, where activations have kinks.

    The two sides of a kink differ by far more than 10⁻³, and roundings are far smaller.
    """
    u = torch.arange(-8, 8, 0.5, device=DEVICE).view(1, 1, 4, 8)
    slope = torch.full((1,), 0.3, device=DEVICE) if activation == "prelu" else None
    options = {"activation": activation, "negative_slope": 0.3 if slope is None else slope, "impl": impl}
    residual = u.clone().requires_grad_()
    y = instance_norm_act(torch.zeros_like(u), residual=residual, **options)
    (found,) = torch.autograd.grad(y.sum(), residual)
    exact = u.double().requires_grad_()
    slope = 0.3 if slope is None else slope.double()
    truth = formula(torch.zeros_like(exact), None, None, slope, exact, eps=1e-3, activation=activation)
    (expected,) = torch.autograd.grad(truth.sum(), exact)
    assert (found - expected).abs().max() < 1e-3


# ---- the kernels against the plain form ------------------------------------------------------------------------------


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_type(dtype, activation, impl):
    if impl == "native" and dtype == torch.float16:
        pytest.skip("left to the plain form")
    x = randn(2, 5, 9, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    Case(x, activation=activation, residual=True).check(impl)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("from_output", [False, True], ids=["input saved", "output saved"])
def test_every_layout_padding_and_way_to_save(layout, pad, from_output, impl):
    x = randn(1, 3, 4, 6).contiguous(memory_format=layout)
    Case(x, pad=pad, from_output=from_output, residual=pad == 1, affine=pad < 3, min_scale=0.25).check(impl)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 1), (1, 7, 1, 9), (5, 1, 3, 2), (1, 11, 9, 8), (0, 2, 4, 4)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_odd_shapes(shape, layout, impl):
    Case(randn(*shape, dtype=torch.bfloat16).contiguous(memory_format=layout)).check(impl)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
def test_inputs_and_gradients_of_any_strides(make, impl):
    tensor = make()
    Case(tensor).check(impl)
    x = randn(2, 5, 6, 5)
    for layout in LAYOUTS.values():
        Case(x.contiguous(memory_format=layout), grad=tensor).check(impl)


@pytest.mark.skipif(DEVICE == "cuda", reason="programs of a GPU run at the same time")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_interpreter_never_waits_for_other_programs(layout, monkeypatch):
    """VOLOGAN_KERNELS_ONE_LAUNCH=1 is for a GPU. The interpreter runs one program after the other, and would hang."""
    from vologan_kernels.instance_norm import kernels

    stream_all(monkeypatch)
    monkeypatch.setattr(launch, "ONE_LAUNCH", True)
    for kernel in (kernels.persistent_fwd_kernel, kernels.persistent_bwd_kernel):
        assert not kernels._in_one_launch(kernel)
    Case(randn(2, 5, 9, 8).contiguous(memory_format=layout), pad=1).check("triton")


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_parameters_of_any_strides(make, layout, impl):
    """PyTorch's group norm, which the plain form calls, reads behind the end of such parameters."""
    x = randn(2, 5, 6, 5, seed=9).contiguous(memory_format=layout)
    found = []
    for parameters in (make(1), make(2), make(3)), [make(seed).contiguous() for seed in (1, 2, 3)]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *parameters)]
        assert [leaf.stride() for leaf in leaves[1:]] == [tensor.stride() for tensor in parameters]
        y = instance_norm_act(*leaves[:3], activation="prelu", negative_slope=leaves[3], impl=impl)
        found.append([y, *torch.autograd.grad(y, leaves, randn(*y.shape, seed=5))])
    for strided, dense in zip(*found, strict=True):
        assert torch.equal(strided, dense)


def test_the_gradient_of_a_sum_is_right(impl):
    """The gradient of a sum arrives with strides of 0."""
    x = randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    Case(x, grad=torch.ones((), device=DEVICE).expand(x.shape)).check(impl)


@pytest.mark.parametrize("from_output", [False, True])
def test_constant_planes(from_output, impl):
    """Zero and constant planes, as in backgrounds: y is the activation of β, gradients are finite."""
    x = (
        torch.stack([torch.zeros(9, 7), torch.full((9, 7), 3.0), randn(9, 7)])
        .expand(2, 3, 9, 7)
        .contiguous()
        .to(DEVICE)
    )
    case = Case(x, from_output=from_output)
    case.check(impl)
    y, _, _ = case.forward(impl)
    torch.testing.assert_close(y[:, :2], F.leaky_relu(case.bias[:2], 0.3)[None, :, None, None].expand(2, 2, 9, 7))


def test_a_mean_far_above_the_deviation_costs_no_digits(impl):
    x = randn(2, 3, 16, 16) + 1000
    x[:, :, 0, 0] = 0  # and the first value is no help
    Case(x).check(impl)


@pytest.mark.parametrize("from_output", [False, True])
def test_scales_at_and_near_zero(from_output, impl):
    """If γ is 0 or less than min_scale, y has the bounded γ, and the gradient of γ is as if it were not bounded."""
    weight = torch.tensor([0.0, 1e-3, -1e-3, 2.0], device=DEVICE)
    x = randn(2, 4, 6, 5)
    case = Case(x, weight=weight, bias=randn(4, seed=2), from_output=from_output, min_scale=2**-6)
    case.check(impl)
    bounded = torch.tensor([2**-6, 2**-6, -(2**-6), 2.0], device=DEVICE)
    other = Case(x, weight=bounded, bias=case.bias, from_output=from_output)
    for found, expected in zip(case.backward(impl), other.backward(impl), strict=True):
        assert torch.equal(found, expected)
    exact = Case(x, weight=weight, bias=case.bias)  # the input saved, and no bound: γ = 0 is right as it is
    exact.check(impl)
    assert exact.backward(impl)[0][:, 0].abs().max() == 0


@pytest.mark.parametrize("beta", [0.0, 1.0, 16.0])
def test_what_saving_the_output_costs(beta):
    """x̂ is (f⁻¹(y) − β) / γ: rounding y to bfloat16 moves dγ by its ulp times |β / γ|, and dx hardly."""
    x = randn(2, 4, 16, 16, dtype=torch.bfloat16)
    weight, bias = torch.full((4,), 0.5, device=DEVICE), torch.full((4,), beta, device=DEVICE)
    truth = Case(x, weight=weight, bias=bias).true_backward()
    found = Case(x, weight=weight, bias=bias, from_output=True).backward("reference")
    ulp = torch.finfo(torch.bfloat16).eps
    for name, f, t in zip(("dx", "dγ"), found, truth, strict=False):
        error = (f.double() - t).norm() / t.norm()
        assert error <= 4 * ulp * max(1, beta / 0.5), f"{name}: {error:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu"])
@pytest.mark.parametrize("weight", [None, 0.5])
@pytest.mark.parametrize("beta", [0.0, 30.0, -1e4])
def test_a_large_bias_costs_no_digits(beta, weight, activation, dtype):
    """With the output kept, x̂ would be exact to a rounding of β only."""
    x, grad = (randn(2, 4, 16, 16, dtype=dtype, seed=seed) for seed in (0, 1))
    gamma, bias = (None if value is None else torch.full((4,), value, device=DEVICE) for value in (weight, beta))

    def gradients(function, precision):
        inputs = [t.to(precision).requires_grad_() for t in (x, gamma, bias) if t is not None]
        y = function(inputs[0], None if gamma is None else inputs[1], inputs[-1])
        return torch.autograd.grad(y, inputs, grad.to(y.dtype))

    options = {"eps": 1e-3, "activation": activation}
    found = gradients(lambda *t: instance_norm_act(*t, negative_slope=0.3, **options), dtype)
    by_formula = lambda x, gamma, bias: formula(x, gamma, bias, 0.3, None, **options)  # noqa: E731
    plain = gradients(by_formula, torch.float64 if dtype == torch.float64 else torch.float32)
    for ours, expression, true in zip(found, plain, gradients(by_formula, torch.float64), strict=True):
        terms = grad.double().abs().sum() if true.dim() == 1 else None
        assert_as_exact(ours, expression.to(ours.dtype), true, ulps=4, scale=terms)


def test_the_same_input_gives_the_same_bits(impl):
    x = randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    case = Case(x, residual=True)
    for results in (lambda: case.forward(impl), lambda: case.backward(impl)):
        assert all(map(torch.equal, results(), results()))


def test_a_batch_changes_no_bit_of_its_samples(monkeypatch):
    stream_all(monkeypatch)
    monkeypatch.setattr(launch, "STREAM_PROGRAMS", 10**6)  # as many parts, however many samples
    x = randn(3, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    whole = Case(x)
    alone = Case(x[1:2], grad=whole.grad[1:2])
    for together, single in zip(whole.forward("triton"), alone.forward("triton"), strict=True):
        assert torch.equal(together[1:2], single)
    assert torch.equal(whole.backward("triton")[0][1:2], alone.backward("triton")[0])


@given(
    n=st.integers(1, 64),
    c=st.integers(1, 1024),
    positions=st.integers(1, 2**20),
    channels_last=st.booleans(),
    itemsize=st.sampled_from([2, 4, 8]),
    heavy=st.booleans(),
    multiprocessors=st.integers(1, 256),
    tensors=st.integers(1, 3),
)
def test_the_parts_cover_a_plane_and_their_tiles_fit(
    n, c, positions, channels_last, itemsize, heavy, multiprocessors, tensors
):
    cut = launch.stream(n * c, positions, c, channels_last, itemsize, heavy=heavy, multiprocessors=multiprocessors)
    assert cut.splits >= 1 and cut.splits * cut.length(positions) >= positions
    assert cut.length(positions) % cut.tile.positions == 0
    assert cut.lanes * cut.tile.channels <= 8 * 32 * cut.tile.warps
    assert 2 <= cut.stages(tensors) <= launch.MOST_STAGES
    assert cut.stages(tensors) * tensors * cut.tile_bytes <= launch.PIPELINE
    programs = n * cut.splits * -(-c // cut.tile.channels)
    one_each = n * -(-c // cut.tile.channels)
    assert programs <= max(one_each, launch.STREAM_PROGRAMS * multiprocessors)


@pytest.mark.skipif(DEVICE == "cuda", reason="8 GiB that are never touched: virtual memory of the CPU")
@pytest.mark.parametrize("impl", FORMS[1:])
def test_offsets_beyond_32_bits(impl):
    far = 2**31 + 64
    memory = torch.empty(far + 64, dtype=torch.bfloat16)
    x = memory.as_strided((2, 1, 4, 4), (far, 16, 4, 1))
    x.copy_(randn(2, 1, 4, 4))
    Case(x).check(impl)


# ---- derivatives, compilation, mixed precision -----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("save", ["input", "output"])
def test_first_and_second_derivatives(activation, pad, save):
    if save == "output" and ACTIVATIONS[activation].inverse is None:
        pytest.skip("not invertible")
    inputs = [randn(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate([(2, 2, 3, 4), (2,), (2,)])]
    inputs.append(randn(2, 2, 3, 4, dtype=torch.float64, seed=3))
    if activation == "prelu":
        inputs.append(randn(2, dtype=torch.float64, seed=4))
    inputs = [t.requires_grad_() for t in inputs]

    def function(x, weight, bias, residual, slope=0.3):
        return instance_norm_act(
            x,
            weight,
            bias,
            activation=activation,
            negative_slope=slope,
            residual=residual,
            reflection_pad=pad,
            save=save,
        )

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("save", ["input", pytest.param("output", marks=pytest.mark.slow)])
@pytest.mark.parametrize("impl", FORMS[1:])
def test_derivatives_of_the_kernels(save, impl):
    inputs = [randn(*s, dtype=torch.float64, seed=i).requires_grad_() for i, s in enumerate([(1, 1, 2, 3), (1,), (1,)])]

    def function(x, weight, bias):
        return instance_norm_act(
            x, weight, bias, activation="leaky_relu", negative_slope=0.3, reflection_pad=1, save=save, impl=impl
        )

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("from_output", [False, True])
def test_the_operations_describe_themselves_rightly(impl, from_output):
    x = randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    case = Case(x, residual=True, pad=1, from_output=from_output)
    options = case.options.values()
    torch.library.opcheck(OPS.instance_norm_act.default, (x, *case.parameters, 1e-3, *options, impl))
    saved = case.saved()
    arguments = (case.grad, *saved, *case.parameters, *options, from_output, impl)
    torch.library.opcheck(OPS.instance_norm_act_backward.default, arguments)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = InstanceNormAct2d(8, affine=True, activation="leaky_relu", min_scale=2**-6, reflection_pad=1)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_compiles_whole_once_for_all_batch_sizes():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = Small().to(DEVICE, memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5, 9):
        x = randn(batch, 4, 8, 8, seed=batch).contiguous(memory_format=torch.channels_last)
        results = []
        for network in (compiled, model):
            y = network(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
        assert all(map(torch.equal, *results))
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert counters["stats"]["unique_graphs"] == 2  # batch 2, and any batch
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": True, "min_scale": 0.1, "activation": "leaky_relu", "reflection_pad": 1},
        {"activation": "prelu"},
        {"track_running_stats": True, "activation": "gelu"},
    ],
    ids=["plain", "min_scale", "prelu", "tracking"],
)
def test_compiles_whole_with_every_size_and_number_dynamic(options):
    torch._dynamo.reset()
    norm, x = InstanceNormAct2d(3, **options).to(DEVICE), randn(2, 3, 8, 6).requires_grad_()
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend="aot_eager")
    for numbers in ({}, {"eps": 0.1}, {"eps": 0.01, "negative_slope": 0.25}, {"min_scale": 0.5}):
        vars(norm).update(numbers)
        found, expected = ([y, *torch.autograd.grad(y.square().sum(), x)] for y in (compiled(x), norm(x)))
        torch.testing.assert_close(found, expected)


def test_compiles_whole_after_a_number_has_changed():
    """Then Dynamo takes the number for an argument, and calls with a symbol for it."""
    torch._dynamo.reset()
    norm, x = InstanceNormAct2d(3, activation="leaky_relu").to(DEVICE), randn(2, 3, 8, 6)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    for name, numbers in {"eps": (1e-5, 0.1, 1.0), "negative_slope": (0.01, 0.2, 0.3), "min_scale": (0.1, 0.2)}.items():
        for number in numbers:
            setattr(norm, name, number)
            torch.testing.assert_close(compiled(x), norm(x))
    norm.eps = -1.0
    with pytest.raises(ValueError, match="eps must be a finite number, at least 0; found -1"):
        torch.compile(norm, backend="aot_eager")(x)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e-9])
@pytest.mark.parametrize("name", ["eps", "min_scale"])
def test_numbers_that_are_not_finite_or_negative_are_refused(name, number):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, at least 0; found"):
        instance_norm_act(randn(1, 2, 4, 4), **{name: number})


@pytest.mark.parametrize("why", ["frozen", "no_grad", "inference_mode"])
def test_compiles_whole_where_nothing_requires_a_gradient(why):
    model, x = Small().to(DEVICE), randn(2, 4, 8, 8)
    if why == "frozen":
        model.requires_grad_(False)
    expected = model(x)
    mode = {"frozen": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[why]
    with mode():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_activation_checkpointing(create_graph):
    from torch.utils.checkpoint import checkpoint

    model, x = Small().to(DEVICE), randn(2, 4, 8, 8).requires_grad_()
    found = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        inputs = [x, *model.parameters()]
        gradients = torch.autograd.grad(forward(x).square().sum(), inputs, create_graph=create_graph)
        found.append([gradient.detach() for gradient in gradients])
    torch.testing.assert_close(*found)


def test_torch_func():
    x, weight = randn(2, 4, 5, 5), randn(4, seed=1)
    found = torch.func.grad(lambda weight: instance_norm_act(x, weight, activation="silu").square().sum())(weight)
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(instance_norm_act(x, weight, activation="silu").square().sum(), weight)
    torch.testing.assert_close(found, expected)


def test_inductor_adds_no_layout_copy():
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    model = Small().to(DEVICE, memory_format=torch.channels_last)
    x = randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    results, code = run_and_get_code(lambda: torch.compile(model, fullgraph=True)(x))
    torch.testing.assert_close(results, model(x))
    forward = "\n".join(code)
    assert forward.count("instance_norm_act.default(") == 1
    assert "def forward" not in forward and "clone" not in forward


def test_autocast_leaves_it_alone():
    x = randn(2, 4, 8, 8)
    norm = InstanceNormAct2d(4, affine=True, activation="relu").to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert norm(x).dtype == torch.float32
        y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert norm.weight.grad.dtype == torch.float32


def test_a_discriminator_with_a_gradient_penalty_learns():
    """R1 (Mescheder et al., arXiv 1801.04406): the penalty's gradient is a second derivative of every layer."""
    torch.manual_seed(0)
    for min_scale in (0.0, 2**-6):  # the input saved, the output saved
        layers = [(4, 8), (8, 8)]
        discriminator = nn.Sequential(
            *[
                layer
                for a, b in layers
                for layer in (
                    nn.Conv2d(a, b, 3, 2, 1, bias=False),
                    InstanceNormAct2d(b, affine=True, activation="leaky_relu", negative_slope=0.2, min_scale=min_scale),
                )
            ],
            nn.Conv2d(8, 1, 3),
        ).to(DEVICE)
        optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
        real, fake = randn(8, 4, 16, 16, seed=1).cumsum(2), randn(8, 4, 16, 16, seed=2)
        losses = []
        for _ in range(30):
            real.requires_grad_()
            logits = discriminator(real)
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            loss = F.softplus(-logits).mean() + F.softplus(discriminator(fake)).mean() + 0.1 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


# ---- the module, and mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine, bias", [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("track", [False, True])
def test_drop_in_for_torchs_instance_norm(affine, bias, track):
    theirs = nn.InstanceNorm2d(3, 1e-3, 0.2, affine, track).to(DEVICE)
    if not bias:
        theirs.register_parameter("bias", None)  # as torch's own bias=False, from 2.13 on
    ours = InstanceNormAct2d(3, 1e-3, 0.2, affine, track, bias=bias).to(DEVICE)
    if affine:
        nn.init.normal_(theirs.weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for seed in (1, 2):
        x = randn(2, 3, 8, 8, seed=seed) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_running_statistics_meet_everything_else():
    norm = InstanceNormAct2d(3, affine=True, track_running_stats=True, activation="relu", reflection_pad=1).to(DEVICE)
    norm(randn(2, 3, 8, 8) + 2)
    x, residual = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1)
    u = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, norm.eps) + residual
    torch.testing.assert_close(norm.eval()(x, residual), F.pad(F.relu(u), (1, 1, 1, 1), mode="reflect"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_running_statistics_of_every_type(dtype):
    theirs = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).to(DEVICE, dtype).eval()
    ours = InstanceNormAct2d(3, affine=True, track_running_stats=True).to(DEVICE, dtype).eval()
    x = randn(2, 3, 8, 8).to(dtype)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_running_statistics_stay_finite():
    """torch refuses a plane of one value. Of no samples, it makes statistics that are NaN."""
    norm = InstanceNormAct2d(3, track_running_stats=True).to(DEVICE)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match=r"needs planes of more than one value in training, found \(2, 3, 1, 1\)"):
        norm(randn(2, 3, 1, 1))
    assert norm(randn(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_planes_without_values():
    y = instance_norm_act(randn(2, 3, 0, 4).requires_grad_(), torch.ones(3, device=DEVICE))
    assert y.shape == (2, 3, 0, 4)
    y.sum().backward()


def test_reset_parameters_gives_every_parameter_its_first_value():
    """Code that builds a model on the device "meta" gives it memory afterwards, and calls this method."""
    first = InstanceNormAct2d(3, affine=True, activation="prelu", negative_slope=0.3)
    with torch.device("meta"):
        norm = InstanceNormAct2d(3, affine=True, activation="prelu", negative_slope=0.3)
    norm.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(7)
    norm.reset_parameters()
    torch.testing.assert_close(norm.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_plane_of_one_value_gives_the_activation_of_the_bias():
    bias = torch.tensor([-1.0, 2.0], device=DEVICE)
    y = instance_norm_act(randn(3, 2, 1, 1), torch.ones(2, device=DEVICE), bias, activation="relu")
    torch.testing.assert_close(y, torch.tensor([0.0, 2.0], device=DEVICE).view(1, 2, 1, 1).expand(3, 2, 1, 1))


def saved_bytes(function, x):
    """Bytes kept for the backward beside the input and the output themselves, and whether the input is kept."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    own = {t.untyped_storage().data_ptr() for t in (x, y)}
    return sum(size for pointer, size in kept.items() if pointer not in own), x.untyped_storage().data_ptr() in kept


@pytest.mark.parametrize(
    ("options", "keeps_input"),
    [
        ({"activation": "leaky_relu"}, False),
        ({"activation": "relu"}, True),
        ({"activation": "leaky_relu", "affine": True}, True),
        ({"activation": "leaky_relu", "affine": True, "min_scale": 2**-6}, False),
        ({"activation": "leaky_relu", "affine": True, "save": "output"}, False),
        ({"activation": "leaky_relu", "save": "input"}, True),
        ({"activation": "leaky_relu", "negative_slope": 0.0}, True),
    ],
)
def test_what_is_saved(options, keeps_input):
    norm = InstanceNormAct2d(8, **options).to(DEVICE)
    x = randn(2, 8, 16, 16).requires_grad_()
    extra, input_kept = saved_bytes(norm, x)
    assert input_kept == keeps_input
    assert extra <= 4 * (2 * 2 * 8 + 2 * 8)  # mean, rstd, γ, β


@pytest.mark.parametrize(("activation", "needed"), [("identity", False), ("relu", True)])
def test_a_residual_is_kept_only_where_the_backward_needs_it(activation, needed):
    residual = randn(2, 8, 16, 16, seed=1).requires_grad_()
    x = randn(2, 8, 16, 16).requires_grad_()
    extra, _ = saved_bytes(lambda x: instance_norm_act(x, residual=residual, activation=activation), x)
    assert (extra >= residual.numel() * 4) == needed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"\(N, C, H, W\).*\(2, 3, 4\)"),
        ({"x": torch.zeros(1, 2, 3, 3, dtype=torch.int32)}, "floating-point.*int32"),
        ({"weight": torch.ones(3)}, r"weight must have shape \(2,\), found \(3,\)"),
        ({"activation": "swish"}, "one of .*leaky_relu.*'swish'"),
        ({"activation": "prelu"}, "prelu takes negative_slope"),
        ({"activation": "relu", "negative_slope": torch.ones(2)}, "prelu takes negative_slope"),
        ({"residual": torch.zeros(1, 2, 3, 4)}, r"residual must have x's shape \(1, 2, 3, 3\), found \(1, 2, 3, 4\)"),
        ({"eps": math.nan}, "eps must be a finite number.*nan"),
        ({"eps": -1.0}, "eps must be a finite number.*-1.0"),
        ({"reflection_pad": 3}, "reflection_pad.*less than both sides.*found 3"),
        ({"reflection_pad": 1.5}, "reflection_pad must be a whole number, found 1.5"),
        ({"x": torch.zeros(3), "activation": "prelu", "negative_slope": torch.ones(1)}, r"\(N, C, H, W\).*\(3,\)"),
        ({"save": "both"}, "save must be auto, input or output, found 'both'"),
        ({"save": "output", "activation": "relu"}, "save='output': relu.*cannot be inverted"),
        ({"impl": "cuda"}, "impl must be auto, reference, triton or native, found 'cuda'"),
        ({"x": [1.0]}, "x must be a tensor, found list"),
        ({"weight": 2.0}, "weight must be a tensor, found float"),
        ({"residual": 1.0}, "residual must be a tensor, found float"),
        ({"eps": None}, "eps must be a number, found None"),
        ({"eps": "small"}, "eps must be a number, found 'small'"),
        ({"reflection_pad": (1, 1)}, r"reflection_pad must be a number, found \(1, 1\)"),
        ({"reflection_pad": -1}, "reflection_pad must be at least 0, found -1"),
        ({"activation": ["relu"]}, r"activation must be one of .*, found \['relu'\]"),
        ({"activation": "leaky_relu", "negative_slope": math.nan}, "negative_slope must be a finite number, found nan"),
        ({"weight": torch.ones(2) * 1j}, r"must be real, found a tensor of torch.complex64 with shape \(2,\)"),
        ({"residual": torch.ones(1, 2, 3, 3) * 1j}, "residual must be real, found a tensor of torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        instance_norm_act(**({"x": torch.zeros(1, 2, 3, 3)} | arguments))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\).*\(1, 2, 4, 4\)"):
        InstanceNormAct2d(3)(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be a whole number, at least 1, found 0"),
        ({"num_features": 2.5}, "num_features must be a whole number, at least 1, found 2.5"),
        ({"eps": -1.0}, "eps must be a finite number, at least 0; found -1.0"),
        ({"eps": "small"}, "eps must be a number, found 'small'"),
        ({"num_features": 2.5, "affine": True}, "num_features must be a whole number, at least 1, found 2.5"),
        ({"momentum": "high"}, "momentum must be None or a number from 0 to 1, found 'high'"),
        ({"momentum": math.nan}, "momentum must be None or a number from 0 to 1, found nan"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"activation": "prelu", "negative_slope": torch.ones(2)}, "negative_slope must be a number, found tensor"),
        ({"activation": "leaky_relu", "negative_slope": math.inf}, "negative_slope must be a finite number, found inf"),
        ({"reflection_pad": -1}, "reflection_pad must be at least 0, found -1"),
        ({"min_scale": -1.0}, "min_scale must be a finite number, at least 0; found -1.0"),
        ({"save": "both"}, "save must be auto, input or output, found 'both'"),
    ],
)
def test_bad_options_of_a_module_are_named_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        InstanceNormAct2d(**({"num_features": 2} | arguments))


KINDS_OF_NUMBERS = [int, float, bool, torch.tensor, lambda number: torch.tensor(number, dtype=torch.float64)]


@pytest.mark.parametrize("kind", KINDS_OF_NUMBERS, ids=["int", "float", "bool", "tensor", "float64 tensor"])
@pytest.mark.parametrize("name", ["eps", "negative_slope", "reflection_pad", "min_scale"])
@pytest.mark.parametrize("impl", FORMS)
def test_numbers_of_any_kind(name, kind, impl):
    """A kernel that is called directly gets what PyTorch's dispatcher would make of them."""
    if name == "negative_slope" and kind not in (int, float, bool):
        pytest.skip("a tensor is a slope of prelu")
    x, weight = randn(2, 3, 5, 4), randn(3, seed=1)
    options = {"activation": "leaky_relu", "min_scale": 0.1, "impl": impl}
    for number in (1, 0, 1):  # a plan for 1 must not serve 0, and one for True may serve 1
        found, expected = (instance_norm_act(x, weight, **(options | {name: make(number)})) for make in (kind, int))
        assert torch.equal(found, expected)


def test_triton_on_the_cpu_is_only_for_its_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        instance_norm_act(torch.zeros(1, 2, 3, 3), impl="triton")


def test_a_gpu_that_triton_cannot_compile_for_gets_the_plain_form_and_one_warning(monkeypatch):
    from triton.compiler.errors import CompilationError
    from vologan_kernels.instance_norm import kernels

    def fails(*arguments, **options):
        raise CompilationError("", None, "sm_70 is not supported")

    monkeypatch.setattr(kernels, "forward", fails)
    monkeypatch.setattr(dispatch, "_given_up", False)
    monkeypatch.setattr(dispatch, "_is_gpu", lambda x: True)
    monkeypatch.setattr(native_library, "refusal", lambda x: "x is on a GPU")
    x = randn(1, 2, 4, 4)
    with pytest.warns(UserWarning, match="plain PyTorch form.*sm_70 is not supported") as caught:
        y = instance_norm_act(x), instance_norm_act(x)
    assert len(caught) == 1
    assert torch.equal(y[0], instance_norm_act(x, impl="reference")) and torch.equal(*y)
    with pytest.raises(CompilationError):
        instance_norm_act(x, impl="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 64, 256, 256), (1, 64, 512, 512), (8, 512, 16, 16), (2, 48, 100, 60)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("pad", [0, 1])
def test_large_planes_on_a_gpu(shape, dtype, layout, pad):
    x = randn(*shape, dtype=dtype).contiguous(memory_format=layout)
    for from_output in (False, True):
        Case(x, pad=pad, from_output=from_output, min_scale=2**-6).check("triton")


@pytest.mark.gpu
def test_it_is_captured_in_a_cuda_graph():
    model, x = Small().cuda().to(memory_format=torch.channels_last), randn(2, 4, 32, 32)
    x = x.contiguous(memory_format=torch.channels_last)
    captured = torch.cuda.make_graphed_callables(model, (x,))
    expected = model(x)
    torch.testing.assert_close(captured(x), expected)
