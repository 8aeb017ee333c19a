import functools
import math
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def new_plans():
    """Forget the plans that operations keep, because a test may change launch shapes and how tensors are made."""
    planning = sys.modules.get("vologan_kernels.planned_triton")
    if planning is not None:
        planning.forget_plans()


@pytest.fixture
def poison(monkeypatch):
    """Fill new memory with NaN, so that a value shows that no kernel wrote."""

    def poisoned(make):
        @functools.wraps(make)
        def wrapper(*arguments, **options):
            tensor = make(*arguments, **options)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def no_image_is_small(monkeypatch):
    """`fuse` leaves small images on a CPU to torch's own operations. Here it does not, so that tests see its own."""
    from vologan_kernels.fuse import convolutions, fused_call

    monkeypatch.setattr(fused_call, "SMALL", dict.fromkeys(fused_call.SMALL, 0))
    monkeypatch.setattr(convolutions, "SMALL", 0)
    monkeypatch.setattr(convolutions, "SMALL_WITH_FEW_OUTPUTS", 0)


@pytest.fixture(params=["avx512_bf16", "avx2", "plain"])
def level(request):
    """One instruction set of the native library after the other."""
    from vologan_kernels import native_library

    if request.param not in native_library.levels():
        pytest.skip(f"this processor has {' '.join(native_library.levels()) or 'no library'}")
    native_library.use_level(request.param)
    yield request.param
    native_library.use_level(native_library.levels()[0])
