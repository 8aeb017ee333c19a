"""Operations call their kernels themselves, except where PyTorch's dispatcher must see them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vologan_kernels import adversarial_losses, instance_norm_act, native_library, pixel_losses

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATIONS = {
    "instance_norm_act": lambda x: instance_norm_act(x, impl="triton").square().sum(),
    "pixel_losses": lambda x: pixel_losses([(x, torch.zeros(x.shape, device=DEVICE))], [(1, 1, 1)], impl="triton")[0],
    "adversarial_losses": lambda x: adversarial_losses([x], ["real"], impl="triton")[0],
}
if native_library.refusal(torch.zeros(1, device=DEVICE)) is None:
    OPERATIONS["instance_norm_act natively"] = lambda x: instance_norm_act(x, impl="native").square().sum()


def names(operation):
    """The operations of torch.library behind a row of the table."""
    name = operation.split()[0]
    return name, f"{name}_backward"


class Recorded(TorchDispatchMode):
    """The names of the operations that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    """A class of tensors that could see operations."""


def values(kind=torch.Tensor):
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 5, device=DEVICE).view(2, 3, 4, 5)
    return nn.Parameter(x) if kind is nn.Parameter else x.as_subclass(kind).requires_grad_()


def gradient(operation, x, around):
    with around:
        (found,) = torch.autograd.grad(OPERATIONS[operation](x), x)
    return found


@pytest.fixture
def no_dispatcher(monkeypatch):
    """The operations of torch.library may not be called."""

    def refuse(*arguments):
        raise AssertionError("an operation was dispatched")

    for operation in OPERATIONS:
        for name in names(operation):
            monkeypatch.setattr(torch.ops.vologan_kernels, name, refuse)


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernels_are_called_directly(operation, kind, no_dispatcher):
    gradient(operation, values(kind), nullcontext())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_mode_sees_the_operations(operation):
    around = Recorded()
    seen = gradient(operation, values(), around)
    assert {f"vologan_kernels::{name}" for name in names(operation)} <= set(around.names)
    assert torch.equal(seen, gradient(operation, values(), nullcontext()))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_profiler_sees_the_operations(operation):
    around = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    gradient(operation, values(), around)
    seen = {event.name for event in around.events()}
    assert {f"vologan_kernels::{name}" for name in names(operation)} <= seen


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_subclass_is_dispatched(operation, no_dispatcher):
    with pytest.raises(AssertionError, match="dispatched"):
        gradient(operation, values(Subclass), nullcontext())


def negated(shape):
    """A public view of a complex tensor: its memory holds the negative of its values."""
    return torch.randn(shape, dtype=torch.complex64, device=DEVICE).conj().imag


NEGATED = {
    "dense": lambda: torch._neg_view(torch.linspace(-1, 2, 2 * 3 * 4 * 5, device=DEVICE).view(2, 3, 4, 5)),
    "imaginary parts": lambda: negated((2, 3, 4, 5)),
    "one channel of one number a row": lambda: negated((2, 1, 4, 1)),
    "one number": lambda: negated((1, 1, 1, 1)),
}


@pytest.mark.parametrize("make", NEGATED.values(), ids=NEGATED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_negated_view_has_its_values(operation, make):
    """Of the images, and of the gradient of the norm's output."""
    view = make()
    values = view.resolve_neg().contiguous()
    assert view.is_neg() and not values.is_neg()
    call = OPERATIONS[operation]
    found, expected = (call(x) for x in (view, values))
    torch.testing.assert_close(found, expected)
    found, expected = (gradient(operation, x.detach().requires_grad_(), nullcontext()) for x in (view, values))
    torch.testing.assert_close(found, expected)
    impl = "native" if operation.endswith("natively") else "triton"
    y = instance_norm_act(leaf := values.clone().requires_grad_(), impl=impl)
    found, expected = (torch.autograd.grad(y, leaf, upstream, retain_graph=True)[0] for upstream in (view, values))
    torch.testing.assert_close(found, expected)
