"""Spectral normalisation against torch's, which iterates at every forward, and the kernels against the plain form.

Without a GPU the kernels run in Triton's interpreter, on small matrices.
"""

import copy
import math

import pytest
import torch
from exactness import assert_as_exact
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.parametrizations import spectral_norm as torchs_spectral_norm
from vologan_kernels import power_iteration, spectral_norm, spectral_norm_step
from vologan_kernels.spectral_norm import module
from vologan_kernels.spectral_norm.memory import padded, starts, view
from vologan_kernels.spectral_norm.operation import Normalise

triton = pytest.importorskip("triton")
from vologan_kernels.spectral_norm import kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OPS = torch.ops.vologan_kernels

LAYERS = {
    "convolution": lambda: nn.Conv2d(3, 5, 3, bias=False),
    "one row": lambda: nn.Conv2d(3, 1, 1),
    "one column": lambda: nn.Conv2d(1, 4, 1),
    "groups": lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
    "one dimension": lambda: nn.Conv1d(3, 4, 3),
    "three dimensions": lambda: nn.Conv3d(2, 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 4, 2),
    "transposed, groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "linear": lambda: nn.Linear(7, 4),
}


def pair(make=LAYERS["convolution"], dtype=torch.float64):
    """The same layer under our normalisation and under torch's, with the same u and v."""
    ours, theirs = spectral_norm(make().to(dtype)), torchs_spectral_norm(make().to(dtype))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def image(layer, seed=0):
    """An input for `layer`."""
    generator = torch.Generator().manual_seed(seed)
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    sides = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv3d: 3}.get(type(layer).__mro__[1], 2)
    return torch.randn(2, channels, *[6] * sides, dtype=torch.float64, generator=generator)


def original(layer):
    return layer.parametrizations.weight.original


def small_model():
    """Layers of several kinds and depths, one of them under two names."""
    shared = spectral_norm(nn.Conv2d(4, 4, 3, padding=1))
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 1)),
        nn.Sequential(shared, nn.LeakyReLU(0.2), nn.ModuleDict({"again": shared})["again"]),
        spectral_norm(nn.ConvTranspose2d(4, 2, 2, 2)),
        nn.Conv2d(2, 2, 1),
    )


# ---- against torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_200_training_steps_equal_torchs(kind):
    """With one forward a step, u, v, σ and the weights are those of torch."""
    ours, theirs = pair(LAYERS[kind])
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9) for layer in (ours, theirs)]
    for step in range(200):
        x = image(ours, step)
        with spectral_norm_step(ours):
            losses = ours(x).square().mean(), theirs(x).square().mean()
            torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-12)
    sigmas = [original(layer) / layer.eval().weight for layer in (ours, theirs)]
    torch.testing.assert_close(*sigmas, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_equal_torchs(kind):
    ours, theirs = pair(LAYERS[kind])
    with spectral_norm_step(ours):
        ours(image(ours)).square().sum().backward()
    theirs(image(theirs)).square().sum().backward()
    for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-10, atol=1e-12)
        assert parameter.grad.stride() == parameter.stride()


def test_gradients_of_gradients_equal_torchs():
    ours, theirs = pair()

    def penalty(layer):
        x = image(layer).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).sigmoid().sum(), x, create_graph=True)
        (of_weight,) = torch.autograd.grad(gradient.square().sum(), original(layer), create_graph=True)
        return torch.autograd.grad(of_weight.square().sum(), original(layer))[0]

    with spectral_norm_step(ours):
        found = penalty(ours)
    torch.testing.assert_close(found, penalty(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["convolution", "transposed", "linear"])
def test_state_dicts_are_torchs_in_both_directions(kind):
    ours, theirs = pair(LAYERS[kind])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.eval()(image(ours)), theirs.eval()(image(theirs)))
    theirs.train()(image(theirs))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(image(ours)), theirs.eval()(image(theirs)))


@pytest.mark.parametrize("kind", LAYERS)
def test_an_assigned_weight_is_divided_as_torchs_is(kind):
    ours, theirs = pair(LAYERS[kind])
    new = torch.randn_like(original(ours)) * 3
    ours.weight, theirs.weight = new.clone(), new.clone()
    assert isinstance(original(ours), nn.Parameter) and torch.equal(original(ours), new)
    torch.testing.assert_close(ours.weight, theirs.eval().weight, rtol=1e-12, atol=1e-14)
    with spectral_norm_step(ours):  # torch iterates in the forward
        found = torch.autograd.grad(ours(image(ours)).sin().sum(), original(ours))
    expected = torch.autograd.grad(theirs.train()(image(theirs)).sin().sum(), original(theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_half_types_keep_rounded_vectors_and_compute_in_float32(dtype, implementation):
    """As docs/kernels-training.md says: u and v of the state dict have the weights' dtype, and σ is that of float32."""
    layer = spectral_norm(nn.Conv2d(3, 5, 3).to(DEVICE)).to(dtype)
    assert {value.dtype for value in layer.state_dict().values()} == {dtype}
    matrix, kept = original(layer).detach().flatten(1).double(), layer.parametrizations.weight[0]
    t = matrix @ kept._v.double()
    s = matrix.t() @ (t / t.norm())
    with spectral_norm_step(layer, dtype=torch.float32, impl=implementation):
        torch.testing.assert_close(layer.weight.flatten(1).double(), matrix / s.norm(), rtol=1e-5, atol=0)
    for vector, product in ((kept._u, t), (kept._v, s)):
        torch.testing.assert_close(vector.double(), product / product.norm(), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_power_iteration_is_torchs():
    ours, theirs = pair(LAYERS["transposed"])
    for _ in range(3):
        power_iteration(ours)
        _ = theirs.weight
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-12, atol=1e-14)


def test_the_largest_singular_value_becomes_one():
    layer = spectral_norm(nn.Conv2d(4, 6, 3))
    for _ in range(100):
        power_iteration(layer)
    assert abs(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2).item() - 1) < 1e-4


# ---- a step ---------------------------------------------------------------------------------------------------------


def test_forwards_of_one_step_share_a_weight_and_its_gradient():
    layer, apart = pair()[0], pair()[0]
    apart.load_state_dict(layer.state_dict())
    power_iteration(apart)
    with spectral_norm_step(layer):
        assert layer.weight is layer.weight
        sum(layer(image(layer, seed)).sigmoid().sum() for seed in range(3)).backward()
    for seed in range(3):  # outside of a step each forward divides for itself
        apart(image(apart, seed)).sigmoid().sum().backward()
    torch.testing.assert_close(original(layer).grad, original(apart).grad, rtol=1e-12, atol=1e-14)


def test_several_backwards_in_one_step():
    """Several backwards: of a real and a fake loss, or of generators and discriminators one after the other."""
    together, apart = pair()[0], pair()[0]
    apart.load_state_dict(together.state_dict())
    with spectral_norm_step(together), spectral_norm_step(apart):
        (together(image(together)).square().sum() + together(image(together, 1)).sum()).backward()
        apart(image(apart)).square().sum().backward()
        apart(image(apart, 1)).sum().backward()
    torch.testing.assert_close(original(together).grad, original(apart).grad, rtol=1e-12, atol=1e-14)


def test_frozen_forwards_see_the_same_weight_and_leave_no_gradient():
    layer, _ = pair()
    with spectral_norm_step(layer):
        layer.requires_grad_(False)
        x = image(layer).requires_grad_()
        frozen = layer.weight
        layer(x).sum().backward()
        assert original(layer).grad is None and x.grad is not None and not frozen.requires_grad
        layer.requires_grad_(True)
        assert torch.equal(frozen, layer.weight) and layer.weight.data_ptr() == frozen.data_ptr()
        layer(image(layer)).sum().backward()
        assert original(layer).grad is not None


def test_a_weight_that_was_frozen_at_the_start_learns_when_it_no_longer_is():
    layer, twin = pair()
    layer.requires_grad_(False)
    with spectral_norm_step(layer, dtype=torch.float32):
        layer.requires_grad_(True)
        assert layer.weight.dtype == torch.float32
        layer.weight.sum().backward()
    twin.weight.sum().backward()
    torch.testing.assert_close(original(layer).grad, original(twin).grad, rtol=1e-5, atol=1e-6)


def test_a_layer_that_takes_no_part_gets_no_gradient():
    model = nn.ModuleList([pair()[0], pair(LAYERS["linear"])[0]])
    with spectral_norm_step(model):
        model[1](image(model[1])).sum().backward()
    assert original(model[0]).grad is None and original(model[1]).grad is not None


def test_a_graph_outlives_the_next_step():
    """A graph that is still alive when the next iteration runs keeps its own u and v, inside of a step and outside."""
    for step in (spectral_norm_step, lambda _: torch.enable_grad()):
        layer, twin = pair()[0], pair()[0]
        twin.load_state_dict(layer.state_dict())
        with step(layer):
            loss = layer(image(layer)).square().sum()
        with step(twin):
            twin(image(twin)).square().sum().backward()
        with spectral_norm_step(layer):
            loss.backward()
        assert torch.equal(original(layer).grad, original(twin).grad)


def test_eval_mode_iterates_nowhere():
    layer, twin = pair()
    layer.eval(), twin.eval()
    before = copy.deepcopy(layer.state_dict())
    with spectral_norm_step(layer):
        inside = layer(image(layer))
    assert torch.equal(layer(image(layer)), twin(image(twin)))
    torch.testing.assert_close(inside, layer(image(layer)), rtol=1e-12, atol=1e-14)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_shared_layer_iterates_once():
    model, alone = small_model().double(), pair(lambda: nn.Conv2d(4, 4, 3, padding=1))[0]
    alone.load_state_dict(model[1][0].state_dict())
    with spectral_norm_step(model, model[1], alone):
        pass
    assert torch.equal(model[1][0].parametrizations.weight[0]._v, alone.parametrizations.weight[0]._v)


def test_models_may_move_and_grow_between_steps():
    model = small_model()
    with spectral_norm_step(model):
        model(torch.ones(1, 3, 4, 4)).sum().backward()
    model = model.double().to(memory_format=torch.channels_last)
    model.append(spectral_norm(nn.Conv2d(2, 2, 3).double()))
    before = model[-1].parametrizations.weight[0]._v.clone()
    with spectral_norm_step(model):
        assert model[1][0].weight.is_contiguous(memory_format=torch.channels_last)
        model.zero_grad()
        model(torch.ones(1, 3, 4, 4, dtype=torch.float64)).sum().backward()
    assert original(model[1][0]).grad.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(before, model[-1].parametrizations.weight[0]._v)


def test_steps_end_with_an_exception_and_nest():
    layer, _ = pair()
    with pytest.raises(KeyError), spectral_norm_step(layer):
        raise KeyError
    assert layer.weight is not layer.weight
    with spectral_norm_step(layer):
        outer = layer.weight
        with spectral_norm_step(layer):
            assert layer.weight is not outer
        assert layer.weight is outer


def test_a_copy_made_in_a_step_is_whole_and_on_its_own():
    model = small_model()
    with spectral_norm_step(model):
        twin = copy.deepcopy(model)
        for name, value in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value)
        x = torch.rand(1, 3, 4, 4)
        torch.testing.assert_close(twin(x), model(x))
        twin.load_state_dict(small_model().state_dict())
        assert not torch.allclose(twin(x), model(x))


def test_other_weights_for_a_call_are_respected():
    """Weights of torch.func.functional_call count, and not those that the step has normalised."""
    layer, _ = pair(LAYERS["linear"])
    other = torch.randn_like(original(layer), requires_grad=True)
    with spectral_norm_step(layer):
        x = image(layer)
        found = torch.func.functional_call(layer, {"parametrizations.weight.original": other}, (x,))
        found.sum().backward()
        assert other.grad is not None and original(layer).grad is None
        assert not torch.allclose(found, layer(x))


def test_the_weight_comes_in_the_dtype_that_was_asked_for():
    layer, twin = pair(dtype=torch.float32)
    x = image(layer).float()
    with spectral_norm_step(layer, dtype=torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.bfloat16
        found = layer(x)
        found.float().square().sum().backward()
        expected = twin(x)
        expected.float().square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(original(layer).grad, original(twin).grad, rtol=0.02, atol=0.02)


def test_a_weight_of_zeros_stays_zero_and_can_learn():
    layer, _ = pair()
    original(layer).data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
    for step in range(2):
        with spectral_norm_step(layer):
            assert torch.isfinite(layer.weight).all() and bool(layer.weight.any()) == (step > 0)
            (layer(image(layer)) - 1).square().mean().backward()
        optimizer.step()
    assert torch.isfinite(original(layer)).all() and original(layer).any()


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = small_model()
        twin = copy.deepcopy(model)
        x = torch.rand(2, 3, 4, 4)
        for wrapped, step in ((nn.parallel.DistributedDataParallel(model), model), (twin, twin)):
            with spectral_norm_step(step):
                wrapped(x).square().sum().backward()
        for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad)
    finally:
        torch.distributed.destroy_process_group()


# ---- a training without steps ----------------------------------------------------------------------------------------


@pytest.fixture
def one_warning():
    """The warning is given once a process; here, once a test."""
    module._warn_that_sigma_is_stale.cache_clear()
    yield
    module._warn_that_sigma_is_stale.cache_clear()


def update(model, optimizer=None):
    """A training step's end: every weight changes, as an optimiser changes it."""
    (optimizer or torch.optim.SGD(model.parameters(), 1e-3)).step()


def backward(model):
    model(torch.rand(2, 3, 6, 6)).square().sum().backward()


@pytest.mark.usefixtures("one_warning")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_training_without_steps_warns_once_with_the_lines_that_mend_it(optimizer):
    model = small_model().float()
    optimizer = optimizer(model.parameters(), 1e-3)
    with pytest.warns(UserWarning, match=r"(?s)old σ.*import spectral_norm_step\n.*with spectral_norm_step") as caught:
        for _ in range(6):
            backward(model)
            update(model, optimizer)
    assert len(caught) == 1


def in_steps(model):
    with spectral_norm_step(model):
        backward(model)
    update(model)


def accumulated(model):
    with spectral_norm_step(model):
        backward(model)
        backward(model)
    update(model)


def with_a_forward_between(model):
    in_steps(model)
    backward(model)  # with a σ of one step ago


def evaluated(model):
    backward(model.eval())
    update(model.train())


def without_gradients(model):
    with torch.no_grad():
        model(torch.rand(2, 3, 6, 6))
    update(model)


def frozen(model):
    model(torch.rand(2, 3, 6, 6, requires_grad=True)).sum().backward()
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 0.99)


def iterated(model):
    backward(model)
    update(model)
    power_iteration(model)


def copied(model):
    backward(copy.deepcopy(model))
    update(model)


def loaded(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with spectral_norm_step(model):
        backward(model)


def called_with_other_weights(model):
    with torch.no_grad():
        others = {name: value * 0.9 for name, value in model.named_parameters()}
    torch.func.functional_call(model, others, torch.rand(2, 3, 6, 6)).sum()


def exported(model):
    torch.export.export(model, (torch.rand(2, 3, 6, 6),))
    update(model)


@pytest.mark.usefixtures("one_warning")
@pytest.mark.filterwarnings("error:spectral_norm")
@pytest.mark.parametrize(
    "use",
    [
        in_steps,
        accumulated,
        with_a_forward_between,
        evaluated,
        without_gradients,
        frozen,
        iterated,
        copied,
        loaded,
        called_with_other_weights,
        exported,
    ],
)
def test_proper_uses_do_not_warn(use):
    model = small_model().float()
    if use is frozen:
        model.requires_grad_(False)
    for _ in range(5):
        use(model)


@pytest.mark.usefixtures("one_warning")
@pytest.mark.filterwarnings("error:spectral_norm")
def test_a_compiled_training_in_steps_does_not_warn():
    torch._dynamo.reset()
    model = small_model().float()
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(4):
        with spectral_norm_step(model):
            compiled(torch.rand(2, 3, 6, 6)).square().sum().backward()
        update(model)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"module\.weight must have at least 2 dimensions, found NoneType"):
        spectral_norm(nn.ReLU())
    with pytest.raises(ValueError, match=r"at least 2 dimensions, found \(3,\)"):
        spectral_norm(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"module\.weight must have no parametrization yet"):
        spectral_norm(pair()[0])
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, found torch\.int32"):
        spectral_norm_step(pair()[0], dtype=torch.int32).__enter__()
    with pytest.raises(ValueError, match="impl must be auto, reference or triton, found 'cuda'"):
        spectral_norm_step(pair()[0], impl="cuda").__enter__()


def test_compiles_without_graph_breaks():
    """It compiles twice: with frozen weights and without. New weights in every step do not compile it again."""
    model = small_model()
    twin, backend = copy.deepcopy(model), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.rand(2, 3, 4, 4)
    for _ in range(3):
        for net, run in ((model, compiled), (twin, twin)):
            with spectral_norm_step(net):
                net.requires_grad_(False)
                run(x)
                net.requires_grad_(True)
                (run(x).square().sum() + run(x - 1).sum()).backward()
    assert backend.frame_count == 2
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


# ---- the operations -------------------------------------------------------------------------------------------------

SHAPES = [
    (5, 3, 3, 3),
    (1, 7, 1, 1),
    (9, 1, 3, 3),
    (1, 1, 3, 3),
    (6, 1),
    (1, 1),
    (40, 4, 7, 7),
    (3, 300),
    (2, 3, 2, 2, 2),
]


def matrices(dtype, layout="contiguous"):
    """Weights of `SHAPES`, and the u and v of each after some iterations."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = [randn(*shape) for shape in SHAPES]
    if layout == "channels_last":
        weights = [w.to(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    elif layout == "transposed":
        weights = [w.transpose(0, 1).contiguous().transpose(0, 1) for w in weights]
    elif layout == "transposed channels_last":
        weights = [w.movedim(1, 0).movedim(1, -1).contiguous().movedim(-1, 1).movedim(0, 1) for w in weights]
    elif layout == "with gaps":
        weights = [w.repeat_interleave(2, dim=1)[:, ::2] for w in weights]
    us, vs = [randn(w.shape[0]) for w in weights], [randn(w.shape[1:].numel()) for w in weights]
    for _ in range(3):
        OPS.spectral_iterate(weights, us, vs, "reference")
    return [[t.to(DEVICE, dtype) for t in tensors] for tensors in (weights, us, vs)]


def double(tensors):
    return [tensor.double() for tensor in tensors]


def by_layer(memory, weights):
    """The matrices in a padded memory, and the padding."""
    places = starts([padded(weight) for weight in weights])
    ends = [place + weight.numel() for weight, place in zip(weights, places, strict=False)]
    padding = torch.cat([memory[end:place] for end, place in zip(ends, places[1:], strict=True)])
    return [view(memory, weight, place) for weight, place in zip(weights, places, strict=False)], padding


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "transposed", "transposed channels_last", "with gaps"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("iterate", [True, False])
def test_kernels_agree_with_the_plain_form(poison, dtype, layout, iterate):
    weights, us, vs = matrices(dtype, layout)
    kept = {impl: (copy.deepcopy(us), copy.deepcopy(vs)) for impl in ("triton", "reference")}
    truth_kept = double(us), double(vs)
    made = {impl: OPS.spectral_normalize(weights, *kept[impl], dtype, iterate, impl) for impl in kept}
    truth = OPS.spectral_normalize(double(weights), *truth_kept, torch.float64, iterate, "reference")
    sizes = [size for shape in SHAPES for size in (shape[0], math.prod(shape[1:]))]
    pieces = []
    for (normalised, vectors, sigmas), (us, vs) in zip(
        (made["triton"], made["reference"], truth), (kept["triton"], kept["reference"], truth_kept), strict=True
    ):
        normalised, padding = by_layer(normalised, weights)
        assert not padding.any()
        pieces.append([*normalised, *vectors.split(sizes), *sigmas, *us, *vs])
    for found, plain, exact in zip(*pieces, strict=True):
        assert_as_exact(found, plain, exact, ulps=2.0)

    layers = [7, 0, 2, 3, 6]
    generator = torch.Generator().manual_seed(4)
    grads = [torch.randn(SHAPES[i], generator=generator, dtype=torch.float64).to(DEVICE, dtype) for i in layers]
    found, plain = (OPS.spectral_normalize_backward(grads, layers, *made["reference"], weights, impl) for impl in kept)
    exact = OPS.spectral_normalize_backward(
        double(grads), layers, *double(made["reference"]), double(weights), "reference"
    )
    results = [by_layer(memory, [weights[i] for i in layers])[0] for memory in (found, plain, exact)]
    for gradients in zip(*results, strict=True):
        assert_as_exact(*gradients, ulps=2.0)


def test_kernels_iterate_alone_as_they_do_in_a_step(poison):
    weights, us, vs = matrices(torch.float32)
    alone, in_step = ((copy.deepcopy(us), copy.deepcopy(vs)) for _ in range(2))
    OPS.spectral_iterate(weights, *alone, "triton")
    OPS.spectral_normalize(weights, *in_step, torch.float32, True, "triton")
    assert all(map(torch.equal, alone[0] + alone[1], in_step[0] + in_step[1]))


def test_kernels_leave_u_and_v_of_a_weight_of_zeros():
    weights, us, vs = ([tensors[0]] for tensors in matrices(torch.float32))
    weights[0].zero_()
    before = us[0].clone(), vs[0].clone()
    normalised, vectors, sigmas = OPS.spectral_normalize(weights, us, vs, torch.float32, True, "triton")
    assert not normalised.any() and sigmas.tolist() == [1.0]
    assert torch.equal(us[0], before[0]) and torch.equal(vs[0], before[1])
    assert torch.equal(vectors, torch.cat(before))


def test_kernels_have_a_float64_epsilon_for_float64_weights():
    """These weights are below ε = 10⁻¹², which then divides. As a float32 it is off by 4 · 10⁻⁹."""
    weights, us, vs = (tensors[:2] for tensors in matrices(torch.float64))
    weights = [weight * 1e-14 for weight in weights]
    kept = {impl: (copy.deepcopy(us), copy.deepcopy(vs)) for impl in ("triton", "reference")}
    for impl, vectors in kept.items():
        OPS.spectral_iterate(weights, *vectors, impl)
    torch.testing.assert_close(kept["triton"], kept["reference"], rtol=1e-13, atol=0)


def test_every_weight_starts_at_a_multiple_of_128_bytes():
    weights, us, vs = matrices(torch.bfloat16)
    made = spectral_norm_step_of(weights, us, vs, torch.bfloat16)
    assert all(tensor.storage_offset() * tensor.element_size() % 128 == 0 for tensor in made)


def spectral_norm_step_of(weights, us, vs, dtype, iterate=True, impl="reference"):
    return Normalise.apply([0] * len(weights), us, vs, dtype, iterate, impl, *weights)


def test_a_step_with_kernels_is_the_step_without():
    models = [small_model().double().to(DEVICE) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, impl in zip(models, ("triton", "reference"), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(3):
            x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)
            optimizer.zero_grad()
            with spectral_norm_step(model, impl=impl):
                (model(x).square().sum() + model(1 - x).sum()).backward()
            optimizer.step()
            power_iteration(model, impl=impl)
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, models[1].state_dict()[name], rtol=1e-10, atol=1e-12)


def test_the_number_of_launches_does_not_depend_on_the_number_of_layers(monkeypatch):
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append(self.kernel.fn.__name__)
            return self.kernel[grid]

    for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
        monkeypatch.setattr(kernels, name, Counted(getattr(kernels, name)))

    def of(layers):
        launches.clear()
        model = nn.Sequential(*(spectral_norm(nn.Conv2d(2, 2, 1)) for _ in range(layers))).to(DEVICE)
        with spectral_norm_step(model, impl="triton"):
            (
                model(torch.ones(1, 2, 1, 1, device=DEVICE)) + model(torch.zeros(1, 2, 1, 1, device=DEVICE))
            ).sum().backward()
        return list(launches)

    assert of(1) == of(7) == ["rows_kernel", "columns_kernel", "normalise_kernel", "inner_kernel", "gradient_kernel"]


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_same_input_same_bits(impl):
    def run():
        weights, us, vs = matrices(torch.float32, "channels_last")
        made = OPS.spectral_normalize(weights, us, vs, torch.bfloat16, True, impl)
        grads = [view(made[0], weights[0], 0)]
        return *made, *us, *vs, OPS.spectral_normalize_backward(grads, [0], *made, weights, impl)

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradcheck_and_gradgradcheck(impl):
    weights, us, vs = ([tensors[i] for i in (0, 2, 4)] for tensors in matrices(torch.float64))
    weights = [weight.requires_grad_() for weight in weights]
    weights[1] = weights[1].detach()  # one that learns nothing

    def normalise(*weights):
        made = spectral_norm_step_of(weights, us, vs, torch.float64, iterate=False, impl=impl)
        return made[0], made[2]

    # Without the iteration: u and v count as constants, and a difference quotient must see them so.
    assert torch.autograd.gradcheck(normalise, weights, fast_mode=True)
    assert torch.autograd.gradgradcheck(normalise, weights, fast_mode=True)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_opcheck(impl):
    weights, us, vs = (tensors[:4] for tensors in matrices(torch.float32, "channels_last"))
    made = OPS.spectral_normalize(weights, us, vs, torch.float32, True, impl)
    grads = [torch.randn_like(weights[i]) for i in (0, 2)]
    for op, arguments in (
        (OPS.spectral_iterate, (weights, us, vs, impl)),
        (OPS.spectral_normalize, (weights, us, vs, torch.bfloat16, True, impl)),
        (OPS.spectral_normalize_backward, (grads, [0, 2], *made, weights, impl)),
    ):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.gpu
def test_a_cuda_graph_repeats_a_step():
    x = torch.rand(2, 3, 4, 4, device="cuda")
    model = small_model().cuda()
    twin = copy.deepcopy(model)

    def step(net):
        for parameter in net.parameters():
            parameter.grad = None
        with spectral_norm_step(net, impl="triton"):
            net(x).square().sum().backward()
        with torch.no_grad():
            torch._foreach_add_(list(net.parameters()), [p.grad for p in net.parameters()], alpha=-1e-3)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model), step(twin)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model)
    for _ in range(3):
        graph.replay()
        step(twin)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])
