"""A step of NAdam: ours beside torch's (foreach, foreach that can be captured, compiled), in one run.

    pytest bench/kernels/test_nadam.py

On a GPU there are 150 parameters with 78 million elements, as in two `vologan-512` generators. On the CPU there are as
many small ones, and ours is torch's foreach form. The floor is four reads and three writes of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measuring import DEVICE, ON_GPU, Call, beside, check_close, copy_microseconds
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from vologan_kernels import NAdam

SIZES = ([512 * 512 * 9] * 33 if ON_GPU else [64 * 64 * 9] * 10) + [512] * 117


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(size, generator=generator).to(DEVICE, dtype)) for size in SIZES]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE, dtype)
    return made


def test_nadam(benchmark: BenchmarkFixture, record: Any) -> None:
    options = {"lr": 2e-4, "betas": (0.5, 0.999)}
    capturable: dict[str, Any] = {**options, "foreach": True, "capturable": True}

    def after_a_step(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        optimizer.step()
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def compiled() -> torch.optim.Optimizer:
        optimizer = torch.optim.NAdam(parameters(), **capturable)
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
        return optimizer

    truth = after_a_step(torch.optim.NAdam(parameters(torch.float64), **options))

    def side(name: str, make: Callable[[], torch.optim.Optimizer]) -> Callable[[], Call]:
        def checked() -> Call:
            optimizer = make()
            check_close(name, after_a_step(optimizer), truth, torch.float32)
            return lambda i: optimizer.step()

        return checked

    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "ours": lambda: NAdam(parameters(), **options),
        "foreach": lambda: torch.optim.NAdam(parameters(), **options, foreach=True),
    }
    if ON_GPU:
        optimizers["capturable"] = lambda: torch.optim.NAdam(parameters(), **capturable)
        optimizers["compile"] = compiled
    sides = {name: side(name, make) for name, make in optimizers.items()}
    flat = torch.empty(sum(SIZES), device=DEVICE)
    case = f"{len(SIZES)} parameters, {flat.numel() / 1e6:.1f} M"
    beside(record, benchmark, "NAdam, a step", case, sides, lambda: copy_microseconds([flat]) / 2 * 7)
