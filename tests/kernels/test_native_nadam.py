"""The native NAdam: every instruction set of this machine, threads, and when it is chosen.

`test_nadam.py` has the cases that it shares with the Triton kernels.
"""

import pytest
import torch
from torch import nn
from vologan_kernels import NAdam, native_library
from vologan_kernels.nadam import native

REFUSAL = native_library.refusal(torch.zeros(1))
needs_library = pytest.mark.skipif(bool(REFUSAL), reason=str(REFUSAL))
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the parameters lie on the GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIZES = [*range(40), 63, 64, 65, 4095, 4096, 4097, 70_001]
"""No element, parts of a vector, whole vectors, parts of a piece, and several pieces."""


def randn(size, seed, dtype):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(dtype, steps=3, options=None, sizes=SIZES, **more):
    """Parameters after some steps, with their moments."""
    parameters = [nn.Parameter(randn(size, size, dtype)) for size in sizes]
    optimizer = NAdam(parameters, **(options or {}), **more)
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = randn(len(parameter), 1000 * step + len(parameter) + 1, dtype)
        optimizer.step()
    return [
        tensor.detach().double()
        for parameter in parameters
        for tensor in (parameter, *optimizer.state[parameter].values())
    ]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True, "betas": (0.5, 0.9)}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_on_every_instruction_set(level, dtype, options):
    """As near to float64 as torch's form, plus a rounding of the largest numbers."""
    options = {"eps": 1e-3} | options
    truth, plain = trained(torch.float64, impl="reference", options=options), None
    if dtype != torch.float64:
        plain = trained(dtype, impl="reference", options=options)
        # The truth starts from the rounded numbers, too.
        parameters = [nn.Parameter(randn(size, size, dtype).double()) for size in SIZES]
        optimizer = torch.optim.NAdam(parameters, **options)
        for step in range(3):
            for parameter in parameters:
                parameter.grad = randn(len(parameter), 1000 * step + len(parameter) + 1, dtype).double()
            optimizer.step()
        states = [optimizer.state[parameter] for parameter in parameters]
        names = "step", "mu_product", "exp_avg", "exp_avg_sq"
        truth = [
            t.detach().double() for p, s in zip(parameters, states, strict=True) for t in (p, *(s[n] for n in names))
        ]
    found = trained(dtype, impl="native", options=options)
    for k, (ours, exact) in enumerate(zip(found, truth, strict=True)):
        if not exact.numel():
            continue
        theirs = 0.0 if plain is None else (plain[k] - exact).abs().max()
        rounding = torch.finfo(dtype).eps * exact.abs().max()
        if exact.dim() == 0:  # t and Π, which are float32 for all types
            rounding = 4 * torch.finfo(torch.float32).eps * exact.abs()
        assert (ours - exact).abs().max() <= 2 * theirs + 2 * rounding


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    sizes, before = [5, 90_001, 4096, 0, 33], torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(trained(dtype, impl="native", sizes=sizes))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@needs_library
@pytest.mark.parametrize("first", [0, 50_000], ids=["the same", "a part"])
def test_parameters_that_share_memory_are_updated_one_after_the_other(first):
    """As by torch. Two threads would change the same numbers at the same time."""
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for kind in (torch.optim.NAdam, NAdam, NAdam):
            numbers = randn(150_000, 0, torch.float64)
            views = [nn.Parameter(numbers[:100_000]), nn.Parameter(numbers[first : first + 100_000])]
            optimizer = kind(views, lr=0.1)
            for step in range(10):
                for view in views:
                    view.grad = randn(100_000, step, torch.float64)
                optimizer.step()
            found.append(numbers)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], found[2])


@needs_library
def test_auto_is_native_on_a_cpu(monkeypatch):
    calls, update = [], native.update
    monkeypatch.setattr(native, "update", lambda updates: calls.append(len(updates)) or update(updates))
    found = trained(torch.float32)
    assert calls == [len(SIZES)] * 3
    assert all(map(torch.equal, found, trained(torch.float32, impl="native")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_the_library_cannot_take_is_left_to_torchs_form(dtype, monkeypatch):
    if dtype == torch.float32:  # no library
        monkeypatch.setattr(native_library, "_installed", lambda: None)
        native_library.load.cache_clear()
    try:
        found = trained(dtype, options={"eps": 1e-3})
        with pytest.raises(ValueError, match="NAdam: impl='native': "):
            NAdam([nn.Parameter(torch.zeros(1, dtype=dtype))], impl="native")
    finally:
        native_library.load.cache_clear()
    assert all(map(torch.equal, found, trained(dtype, impl="reference", options={"eps": 1e-3})))


@needs_library
@pytest.mark.filterwarnings("error")
def test_a_step_in_a_compiled_function_is_native_too():
    """torch.compile cannot look into the library, and says nothing about it."""
    ours, theirs = (nn.Parameter(randn(100, 0, torch.float32)) for _ in range(2))
    optimizer, expected = NAdam([ours]), NAdam([theirs])
    for parameter in (ours, theirs):
        parameter.grad = randn(100, 1, torch.float32)
    torch.compile(optimizer.step, backend="eager")()
    expected.step()
    assert torch.equal(ours, theirs)


@needs_library
def test_numbers_that_are_not_finite_stay_where_they_are():
    parameter = nn.Parameter(torch.zeros(100))
    parameter.grad = torch.ones(100)
    parameter.grad[3], parameter.grad[70] = torch.nan, torch.inf
    NAdam([parameter], impl="native").step()
    assert set((~parameter.isfinite()).nonzero().flatten().tolist()) == {3, 70}
