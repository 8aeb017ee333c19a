"""NAdam against torch's: in float64 to rounding, in float32 by the distance of both from the float64 run.

Without a GPU the kernels run in Triton's interpreter.
"""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from vologan_kernels import NAdam, dispatch, native_library

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1,), (), (7,), (0, 3), (64,), (5, 3, 3, 3), (1025,), (4097,)]
FAST = ["triton"] + ["native"] * (native_library.refusal(torch.zeros(1, device=DEVICE)) is None)
IMPLS = ["reference", *FAST]
HALVES = [("triton", torch.float16)]
# The interpreter truncates bfloat16, and the native library has no float16.
HALVES += [("triton" if DEVICE == "cuda" else "native", torch.bfloat16)] * (DEVICE == "cuda" or "native" in FAST)


def randn(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def parameters(dtype=torch.float64, shapes=SHAPES):
    made = [nn.Parameter(randn(shape, dtype, seed)) for seed, shape in enumerate(shapes)]
    for parameter in made:
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return made


def set_gradients(ours, step):
    """The same numbers for a parameter at every call. Their size differs very much from one parameter to the next."""
    for i, parameter in enumerate(ours):
        grad = randn(parameter.shape, seed=1000 * step + i) * 10.0 ** (2 - i)
        parameter.grad = torch.empty_like(parameter).copy_(grad)


def run(optimizer, ours, steps, first=0):
    for step in range(first, first + steps):
        set_gradients(ours, step)
        optimizer.step()


def distance(found, expected):
    """The largest difference of two lists of tensors."""
    pairs = zip(found, expected, strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs if a.numel())


def assert_same_states(a, b, tolerance=0.0):
    for p, q in zip(a.state.values(), b.state.values(), strict=True):
        assert p.keys() == q.keys()
        for name, value in p.items():
            assert value.dtype == q[name].dtype and value.shape == q[name].shape
            assert torch.allclose(value, q[name], rtol=tolerance, atol=1e-16 if tolerance else 0), name


OPTIONS = [
    {},
    {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "momentum_decay": 0.1},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"maximize": True, "weight_decay": 0.1},
    {"betas": (0.0, 0.0), "momentum_decay": 0.0},
    {"lr": torch.tensor(0.01)},
    {"lr": torch.tensor([0.01], dtype=torch.float64)},
    {"lr": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_every_step_is_torchs(impl, options):
    compare_with_torch(impl, options, steps=5)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "steps"), [(o, 20 if o else 100) for o in OPTIONS], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_many_steps_are_torchs(impl, options, steps):
    compare_with_torch(impl, options, steps)


def compare_with_torch(impl, options, steps):
    ours, theirs = parameters(), parameters()
    optimizer = NAdam(ours, impl=impl, **options)
    if impl != "reference" and isinstance(options.get("lr"), torch.Tensor):
        options = {"lr": options["lr"].item()}  # torch would multiply such numbers in float32
    expected = torch.optim.NAdam(theirs, **options)
    run(optimizer, ours, steps)
    run(expected, theirs, steps)
    tolerance = 0.0 if impl == "reference" else 1e-12
    assert distance(ours, theirs) <= tolerance
    assert_same_states(optimizer, expected, tolerance)
    assert [p.stride() for p in ours] == [p.stride() for p in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("impl", FAST)
def test_float32_is_as_near_to_the_truth_as_torch(impl):
    plain, ours = parameters(torch.float32), parameters(torch.float32)
    truth = [nn.Parameter(p.detach().double()) for p in ours]
    for trained, optimizer in (
        (truth, torch.optim.NAdam(truth)),
        (plain, torch.optim.NAdam(plain)),
        (ours, NAdam(ours, impl=impl)),
    ):
        for step in range(100):
            set_gradients(trained, step)
            for p in trained:
                p.grad = p.grad.float().to(p.dtype)
            optimizer.step()
    largest = max(p.abs().max().item() for p in truth if p.numel())
    ulp = torch.finfo(torch.float32).eps * largest
    assert distance(ours, truth) <= 2 * distance(plain, truth) + ulp


@pytest.mark.parametrize(("impl", "dtype"), HALVES)
def test_half_precision_is_as_near_to_the_truth_as_torch(impl, dtype):
    plain, ours = parameters(dtype, [(3000,)]), parameters(dtype, [(3000,)])
    truth = [nn.Parameter(p.detach().double()) for p in ours]
    for trained, optimizer in (
        (truth, torch.optim.NAdam(truth, eps=1e-3)),
        (plain, torch.optim.NAdam(plain, eps=1e-3)),
        (ours, NAdam(ours, eps=1e-3, impl=impl)),
    ):
        for step in range(10):
            for p in trained:
                p.grad = randn(p.shape, dtype, step).to(p.dtype)
            optimizer.step()
    assert ours[0].dtype == dtype
    ulp = torch.finfo(dtype).eps * truth[0].abs().max().item()
    assert distance(ours, truth) <= 2 * distance(plain, truth) + ulp


@pytest.mark.parametrize("impl", IMPLS)
def test_a_parameter_without_a_gradient_waits(impl):
    ours, theirs = parameters(), parameters()
    optimizer, expected = NAdam(ours, impl=impl), torch.optim.NAdam(theirs)
    for step in range(10):
        for trained, each in ((ours, optimizer), (theirs, expected)):
            set_gradients(trained, step)
            for i, parameter in enumerate(trained):
                if i == 1 or (i + step) % 3 == 0:
                    parameter.grad = None
            each.step()
    assert distance(ours, theirs) <= 1e-12
    assert ours[1] not in optimizer.state and int(optimizer.state[ours[2]]["step"]) == 7
    optimizer.zero_grad()
    assert optimizer.step() is None and optimizer.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize("impl", IMPLS)
def test_groups_have_options_of_their_own_and_may_change_them(impl):
    def grouped(make, trained, **options):
        groups = [
            {"params": trained[:3], "lr": 0.1},
            {"params": trained[3:], "betas": (0.5, 0.9), "weight_decay": 0.01},
        ]
        return make(groups, **options)

    ours, theirs, late = parameters(), parameters(), [parameters(shapes=[(9,)])[0] for _ in range(2)]
    optimizer, expected = grouped(NAdam, ours, impl=impl), grouped(torch.optim.NAdam, theirs)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (optimizer, expected)]
    for step in range(8):
        if step == 4:
            optimizer.add_param_group({"params": [late[0]], "decoupled_weight_decay": True, "weight_decay": 0.3})
            expected.add_param_group({"params": [late[1]], "decoupled_weight_decay": True, "weight_decay": 0.3})
            for schedule in schedules:
                schedule.base_lrs.append(0.0)
        run(optimizer, [*ours, late[0]] if step >= 4 else ours, 1, step)
        run(expected, [*theirs, late[1]] if step >= 4 else theirs, 1, step)
        for each in (optimizer, expected):
            each.param_groups[0]["lr"] *= 0.5
            each.param_groups[1]["momentum_decay"] = 0.01 * step
        if step < 4:
            for schedule in schedules:
                schedule.step()
    assert distance([*ours, late[0]], [*theirs, late[1]]) <= 1e-12


@pytest.mark.parametrize("impl", FAST)
def test_gradients_and_moments_may_lie_in_another_order(impl):
    shape = (6, 5, 3, 2)
    ours, theirs = parameters(shapes=[shape, (4, 3)]), parameters(shapes=[shape, (4, 3)])
    optimizer, expected = NAdam(ours, impl=impl), torch.optim.NAdam(theirs)
    for step in range(6):
        for trained, each in ((ours, optimizer), (theirs, expected)):
            trained[0].grad = randn(shape, seed=step)  # contiguous, the parameter is channels_last
            trained[1].grad = randn((3, 4), seed=step).t() if step % 2 else randn((), seed=step).expand(4, 3)
            if step == 3:
                trained[0].data = trained[0].data.contiguous()
            each.step()
    assert distance(ours, theirs) <= 1e-12
    assert_same_states(optimizer, expected, 1e-12)


@pytest.mark.parametrize("negated", ["gradient", "parameter"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1, 1, 2)], ids=str)
def test_negated_views_have_their_values(shape, negated):
    """Memory of such a view, which `z.conj().imag` is, has the other sign."""
    found = []
    for impl in IMPLS:
        start, grad = torch.full(shape, 2.0, device=DEVICE), torch.full(shape, 3.0, device=DEVICE)
        start, grad = (
            torch._neg_view(-value) if name == negated else value
            for name, value in (("parameter", start), ("gradient", grad))
        )
        parameter = nn.Parameter(start)
        parameter.grad = grad
        assert start.is_neg() or parameter.grad.is_neg()
        NAdam([parameter], lr=0.1, impl=impl).step()
        assert (parameter < 2).all()
        found.append(parameter.detach().resolve_neg())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_what_kernels_cannot_take_goes_torchs_way(impl):
    def unusual():
        gaps = nn.Parameter(randn((4, 6))[:, ::2])
        complex_one = nn.Parameter(torch.complex(randn((3,)), randn((3,), seed=1)))
        return [gaps, complex_one, nn.Parameter(randn((5,)))]

    ours, theirs = unusual(), unusual()
    optimizer, expected = NAdam(ours, impl=impl), torch.optim.NAdam(theirs)
    for step in range(5):
        for trained, each in ((ours, optimizer), (theirs, expected)):
            for p in trained:
                p.grad = randn(p.shape, seed=step).to(p.dtype)
            each.step()
    assert (
        torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) and distance(ours[2:], theirs[2:]) < 1e-12
    )


@pytest.mark.parametrize("impl", FAST)
def test_unaligned_parameters_are_updated_too(impl):
    ours, theirs = [nn.Parameter(randn((2000,))[1:]) for _ in range(2)]
    optimizer, expected = NAdam([ours], impl=impl), torch.optim.NAdam([theirs])
    run(optimizer, [ours], 3)
    run(expected, [theirs], 3)
    assert ours.data_ptr() % 16 and distance([ours], [theirs]) <= 1e-12


@pytest.mark.parametrize("impl", FAST)
def test_nothing_beside_the_parameters_is_written(impl):
    buffer = torch.zeros(3000, dtype=torch.float64, device=DEVICE)
    ours = nn.Parameter(buffer[500:1600])
    run(NAdam([ours], impl=impl), [ours], 2)
    assert not buffer[:500].any() and not buffer[1600:].any() and buffer[500:1600].all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dicts_go_to_torch_and_back(impl, dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, expected = NAdam(ours, lr=0.01, impl=impl), torch.optim.NAdam(theirs, lr=0.01)
    run(optimizer, ours, 3)
    run(expected, theirs, 3)
    from_torch, from_ours = parameters(dtype), parameters(dtype)
    for new, old in zip(from_torch + from_ours, theirs + ours, strict=True):
        new.data.copy_(old.data)
    to_ours, to_torch = NAdam(from_torch, lr=1.0, impl=impl), torch.optim.NAdam(from_ours, lr=1.0)
    to_ours.load_state_dict(copy.deepcopy(expected.state_dict()))
    to_torch.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert to_ours.param_groups[0]["lr"] == to_torch.param_groups[0]["lr"] == 0.01
    assert all(state["mu_product"].dtype == state["step"].dtype == torch.float32 for state in to_ours.state.values())
    for each, trained in ((optimizer, ours), (to_ours, from_torch), (expected, theirs), (to_torch, from_ours)):
        run(each, trained, 5, first=3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9  # torch loads Π and computes with it in float64
    assert distance(from_torch, theirs) <= tolerance and distance(from_ours, ours) <= tolerance
    if impl == "reference":
        assert distance(from_torch, theirs) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
def test_resuming_changes_no_bit(impl, dtype):
    if (impl, dtype) in (("native", torch.float16), ("triton", torch.bfloat16)):
        pytest.skip("the library has no float16, and Triton's interpreter truncates bfloat16")
    straight, halves = parameters(dtype), parameters(dtype)
    run(NAdam(straight, eps=1e-4, impl=impl), straight, 6)
    first = NAdam(halves, eps=1e-4, impl=impl)
    run(first, halves, 3)
    second = NAdam(halves, impl=impl)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    run(second, halves, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(straight, halves, strict=True))


@pytest.mark.parametrize("impl", FAST)
def test_copies_and_pickles_go_on_alike(impl):
    ours = parameters()
    optimizer = NAdam(ours, impl=impl)
    run(optimizer, ours, 2)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        others = [p for group in copied.param_groups for p in group["params"]]
        assert copied.impl == impl
        run(copied, others, 2, first=2)
    run(optimizer, ours, 2, first=2)
    assert distance(ours, others) == 0


@pytest.mark.parametrize("impl", FAST)
def test_the_same_gradients_give_the_same_bits(impl):
    runs = [parameters(torch.float32) for _ in range(2)]
    for trained in runs:
        run(NAdam(trained, impl=impl), trained, 5)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.fixture
def launches(monkeypatch):
    from vologan_kernels.nadam import kernels

    made = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            made.append(self.kernel)
            return self.kernel[grid]

    for name in ("coefficients_kernel", "update_kernel"):
        monkeypatch.setattr(kernels, name, Counted(getattr(kernels, name)))
    return made


@pytest.mark.parametrize("count", [1, 300])
def test_a_step_is_two_launches(launches, count):
    trained = [nn.Parameter(randn((3,))) for _ in range(count)]
    optimizer = NAdam([{"params": [p], "lr": 0.1 / i} for i, p in enumerate(trained, 1)], impl="triton")
    run(optimizer, trained, 1)
    assert len(launches) == 2


def test_a_compiler_that_fails_leaves_no_half_step(monkeypatch):
    from triton.errors import TritonError
    from vologan_kernels.nadam import kernels

    class Fails:
        def __getitem__(self, grid):
            raise TritonError("not on this GPU")

    monkeypatch.setattr(kernels, "update_kernel", Fails())
    monkeypatch.setattr(dispatch, "_is_gpu", lambda x: True)
    monkeypatch.setattr(native_library, "refusal", lambda x: "x is on a GPU")
    monkeypatch.setattr(dispatch, "_given_up", False)
    ours, theirs = parameters(), parameters()
    optimizer = NAdam(ours)
    with pytest.warns(UserWarning, match="cannot compile NAdam"):
        run(optimizer, ours, 1)
    run(optimizer, ours, 1, first=1)
    run(torch.optim.NAdam(theirs), theirs, 2)
    assert distance(ours, theirs) <= 1e-12


@pytest.mark.parametrize("impl", FAST)
def test_autograd_sees_that_parameters_change(impl):
    parameter = nn.Parameter(randn((3,)))
    loss = parameter.square().sum()
    loss.backward(retain_graph=True)
    NAdam([parameter], impl=impl).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "NAdam: lr is -1.0: expected a number, at least 0"),
        ({"lr": torch.zeros(2)}, "NAdam: lr has 2 elements"),
        ({"eps": float("nan")}, "NAdam: eps is nan"),
        ({"betas": (0.9, 1.0)}, r"NAdam: betas are \(0.9, 1.0\)"),
        ({"betas": (0.9,)}, r"NAdam: betas are \(0.9,\)"),
        ({"betas": 0.9}, r"NAdam: betas are 0.9: expected two numbers"),
        ({"lr": "fast"}, "NAdam: lr is fast: expected a number"),
        ({"lr": torch.tensor(1j)}, "NAdam: lr is 1j: expected a number"),
        ({"eps": None}, "NAdam: eps is None: expected a number"),
        ({"weight_decay": -0.1}, "NAdam: weight_decay is -0.1"),
        ({"momentum_decay": -0.1}, "NAdam: momentum_decay is -0.1"),
        ({"impl": "cuda"}, "NAdam: impl must be auto, reference, triton or native, found 'cuda'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        NAdam([nn.Parameter(torch.zeros(1))], **options)


def test_bad_options_of_a_later_group_are_named():
    optimizer = NAdam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="NAdam: lr is -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": -1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_moment_of_another_shape_is_refused(impl, name):
    """torch loads such a state. Its strides may be those of the parameter, so nothing else would notice it."""
    smaller, larger = (nn.Parameter(randn((rows, 3))) for rows in (2, 5))
    first, optimizer = NAdam([smaller], impl=impl), NAdam([larger], impl=impl)
    run(first, [smaller], 1)
    optimizer.load_state_dict(first.state_dict())
    other = "exp_avg_sq" if name == "exp_avg" else "exp_avg"
    optimizer.state[larger][other] = torch.zeros_like(larger)
    before = larger.detach().clone()
    with pytest.raises(ValueError, match=rf"NAdam: {name} has shape \(2, 3\): expected \(5, 3\)"):
        run(optimizer, [larger], 1)
    assert torch.equal(larger, before)


@pytest.mark.parametrize("impl", FAST)
def test_a_gradient_of_another_shape_is_refused(impl):
    """Code that exchanges `parameter.data` leaves the gradient as it was."""
    parameter = nn.Parameter(randn((2, 3)))
    parameter.grad = randn((2, 3))
    optimizer = NAdam([parameter], impl=impl)
    parameter.data = randn((5, 3))
    with pytest.raises(ValueError, match=r"NAdam: grad has shape \(2, 3\): expected \(5, 3\)"):
        optimizer.step()
    assert torch.equal(parameter, randn((5, 3)))


@pytest.mark.parametrize("impl", FAST)
def test_a_moment_on_another_device_is_refused(impl):
    parameter = nn.Parameter(randn((3,)))
    optimizer = NAdam([parameter], impl=impl)
    run(optimizer, [parameter], 1)
    optimizer.state[parameter]["exp_avg"] = torch.zeros(3, device="meta", dtype=torch.float64)
    with pytest.raises(ValueError, match="NAdam: exp_avg is on meta: expected c"):
        run(optimizer, [parameter], 1)


@pytest.mark.parametrize("kind", [float, lambda t: t.double(), lambda t: t.long(), lambda t: t.bfloat16()])
@pytest.mark.parametrize("impl", FAST)
def test_a_count_of_another_type_is_that_count(impl, kind):
    """For example, a program may have changed all tensors of a state to another type."""
    found = []
    for change in (lambda count: count, kind):
        ours = parameters(torch.float32)
        optimizer = NAdam(ours, impl=impl)
        run(optimizer, ours, 2)
        for state in optimizer.state.values():
            state["step"] = change(state["step"])
        run(optimizer, ours, 2, first=2)
        found.append(ours)
    assert distance(*found) == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_hooks_may_change_what_is_loaded(impl):
    """torch advises such hooks where the parameters of a file come in another order."""
    ours = parameters(torch.float64)[:3]
    optimizer = NAdam(ours, impl=impl)
    for parameter, steps in zip(ours, (1, 2, 3), strict=True):
        optimizer.zero_grad()
        for step in range(steps):
            parameter.grad = randn(parameter.shape, seed=step)
            optimizer.step()
    loaded = NAdam(parameters(torch.float64)[:3][::-1], impl=impl)
    loaded.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "state": {2 - key: value for key, value in state["state"].items()}}
    )
    seen = []
    loaded.register_load_state_dict_post_hook(
        lambda each: seen.extend(state["mu_product"].dtype for state in each.state.values())
    )
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states = [loaded.state[parameter] for parameter in loaded.param_groups[0]["params"]]
    assert [state["step"].item() for state in states] == [3, 2, 1]
    for state, old in zip(reversed(states), optimizer.state.values(), strict=True):
        assert torch.equal(state["mu_product"], old["mu_product"])
    assert seen == [torch.float32] * 3


def test_a_state_of_another_optimiser_is_refused():
    parameter = nn.Parameter(randn((3,)))
    parameter.grad = randn((3,))
    other = torch.optim.Adam([parameter])
    other.step()
    optimizer = NAdam([parameter], lr=0.5)
    with pytest.raises(ValueError, match="NAdam: the state of parameter 0 has no mu_product: expected a state of"):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.5


def test_a_group_that_cannot_be_added_is_not_there():
    optimizer = NAdam([nn.Parameter(torch.zeros(1))])
    optimizer.impl = "nowhere"
    with pytest.raises(ValueError, match="found 'nowhere'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_a_rate_that_is_a_tensor_keeps_its_digits(impl):
    rate = torch.tensor(0.1, dtype=torch.float64)  # on the CPU
    found = []
    for lr in (rate, 0.1):
        ours = parameters()
        run(NAdam(ours, lr=lr, impl=impl), ours, 3)
        found.append(ours)
    assert distance(*found) <= 1e-14


def test_sparse_gradients_are_refused():
    parameter = nn.Parameter(torch.zeros(2, device=DEVICE))
    parameter.grad = torch.ones(2, device=DEVICE).to_sparse()
    with pytest.raises(RuntimeError, match=r"NAdam: a gradient of layout torch.sparse_coo: expected a dense one"):
        NAdam([parameter]).step()


@pytest.mark.gpu
def test_a_cuda_graph_holds_a_step():
    """A captured step that is replayed equals single steps, also if the learning rate changes, and syncs nothing."""
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    gradients = [[torch.randn_like(p) for p in ours] for _ in range(5)]
    for p, q, grad in zip(ours, theirs, gradients[0], strict=True):
        p.grad, q.grad = grad.clone(), grad.clone()
    rate = torch.tensor(0.01, device="cuda")
    optimizer, expected = NAdam(ours, lr=rate), NAdam(theirs, lr=0.01)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()  # makes the state and compiles
    torch.cuda.current_stream().wait_stream(stream)
    expected.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 5):
            for p, q, grad in zip(ours, theirs, gradients[step], strict=True):
                p.grad.copy_(grad)
                q.grad.copy_(grad)
            rate.fill_(0.01 / step)
            expected.param_groups[0]["lr"] = 0.01 / step
            graph.replay()
            expected.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert distance(ours, theirs) <= 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_a_default_device_changes_no_step(impl):
    found = []
    for around in (contextlib.nullcontext(), torch.device("meta")):
        ours = parameters(torch.float32)
        set_gradients(ours, 0)
        with around:
            NAdam(ours, impl=impl).step()
        found.append(ours)
    assert distance(*found) == 0
