"""Measuring for the benchmarks here: medians of all sides in one run, and the share of the copy bandwidth."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch._functorch.config
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

torch._functorch.config.donated_buffer = False  # torch.compile's backward runs many times over one forward

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
COPIES = 4 if ON_GPU else 1
"""Sets of tensors used in turn, so that on a GPU none is found in the L2 cache."""

Call = Callable[[int], object]
"""A function that does the work once, with the tensors of round i."""


def microseconds(call: Call, rounds: int = 50 if ON_GPU else 20) -> float:
    """Median time of call(round)."""
    for i in range(5):
        call(i)
    times = []
    for i in range(rounds):
        if ON_GPU:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(i)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        else:
            began = time.perf_counter()
            call(i)
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def copy_microseconds(tensors: Sequence[Tensor]) -> float:
    """The time to read one of `tensors`, which have one size, and to write as much."""
    destination = torch.empty_like(tensors[0])
    return microseconds(lambda i: destination.copy_(tensors[i % len(tensors)].detach()))


def check_close(name: str, found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Assert that a relative error is at most some roundings of the type. A wrong result has no speed."""
    for i, (ours, true) in enumerate(zip(found, truth, strict=True)):
        error = float((ours.detach().double() - true.detach().double()).norm() / true.detach().double().norm())
        assert error < 16 * torch.finfo(dtype).eps, f"{name} computes a wrong result {i}: relative error {error:.2g}"


def beside(
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
    title: str,
    sides: Mapping[str, Call],
    floor: float,
    **about: object,
) -> None:
    """Time all `sides`, of which one is "ours"; print the row and keep it. `floor` is in microseconds."""
    times = {name: microseconds(call) for name, call in sides.items()}
    percent = 100 * floor / times["ours"]
    benchmark.extra_info.update(
        about,
        device=torch.cuda.get_device_name() if ON_GPU else "CPU",
        microseconds=times,
        floor_microseconds=floor,
        percent_of_copy_bandwidth=round(percent, 1),
        ratios={name: round(time / times["ours"], 2) for name, time in times.items() if name != "ours"},
    )
    benchmark.pedantic(_finished, args=(sides["ours"],), rounds=20, warmup_rounds=3)
    with capsys.disabled():
        row = "  ".join(f"{name} {time:.0f} µs" for name, time in times.items())
        print(f"\n{title:45} {row}  floor {floor:.0f} µs = {percent:.0f} %")


def _finished(call: Call) -> None:
    call(0)
    if ON_GPU:
        torch.cuda.synchronize()
