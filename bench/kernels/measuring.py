"""Measuring for the benchmarks here: the GPU's time and the host's, apart, and the share of the copy bandwidth.

A GPU works on a queue. If the queue is empty when a call comes, a clock around the call shows how long the host takes.
So the stream is filled first: `torch.cuda._sleep` keeps it busy for some milliseconds. Meanwhile the host enqueues all
calls of a batch, with an event before and after them. Between the events the GPU does nothing but the calls.

- *time*: between the events, for a call. It is the GPU's time alone.
- *host*: the time in which the host enqueues a call, while the stream is busy. The first calls are left out: they
  compile and plan.

If the GPU has reached the first event before the host is done, the numbers are worth nothing. Then the batch is
measured again with a longer sleep, and with fewer calls, because a GPU takes only about a thousand launches in advance.
If that does not help, a call waits for the GPU, or makes more launches than the queue holds. The row says so.

Without a GPU there is one time: the median of a call.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch._functorch.config
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

torch._functorch.config.donated_buffer = False  # torch.compile's backward runs many times over one forward

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
REHEARSAL = os.environ.get("VOLOGAN_REHEARSAL") == "1"
"""Whether `on_gpu.sh --rehearse` runs the cases of a GPU on a CPU, with small tensors."""
GPU_CASES = ON_GPU or REHEARSAL
COPIES = 4 if GPU_CASES else 1
"""Sets of tensors used in turn, so that on a GPU none is found in the L2 cache."""
COLD = 120 * 2**20
"""Bytes of all sets together, about twice the L2 cache of an H200. Small tensors need more sets for it."""
MOST_COPIES = 32
BOTH = "may include the host's time: a call waits for the GPU, or makes too many launches"
BATCHES = 7
"""Batches of calls, of which the median counts."""

Call = Callable[[int], object]
"""A function that does the work once, with the tensors of round i."""


def copies(set_bytes: int) -> int:
    """Sets of tensors that do not fit into L2 together, if each has so many bytes."""
    return min(MOST_COPIES, max(COPIES, -(-COLD // set_bytes))) if ON_GPU else COPIES


def size_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape itself, or in a rehearsal a small one."""
    limits = (2, 8, 16, 16) if REHEARSAL else shape
    return tuple(map(min, shape, limits))


# ---- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Time:
    """Microseconds of a call."""

    call: float
    host: float | None = None
    """Time to enqueue it, on a GPU."""
    spread: float = 0.0
    """Difference of the slowest and the fastest batch, in percent. Smaller differences between sides are noise."""
    waits: bool = False
    """Whether the host was never done before the GPU began, so that its time may be in `call`."""

    @property
    def row(self) -> dict[str, Any]:
        found: dict[str, Any] = {"microseconds": self.call}
        if self.host is not None:
            found |= {"host_microseconds": self.host, "spread_percent": round(self.spread, 1)}
        return found | ({"note": BOTH} if self.waits else {})


def measure(call: Call, sets: int = COPIES) -> Time:
    """Measure call(round). Round i uses set i modulo `sets`, and a batch uses each set equally often."""
    for i in range(3):
        call(i)
    if not ON_GPU:
        times = [_clocked(call, i) for i in range(3 if REHEARSAL else 20)]
        return Time(statistics.median(times))
    calls, sleep = max(sets, 32 // sets * sets), 0.0
    for attempt in itertools.count():
        torch.cuda.synchronize()
        began = time.perf_counter()
        for i in range(calls):
            call(i)
        sleep = max(2 * sleep, 2 * (time.perf_counter() - began) + 1e-3)
        torch.cuda.synchronize()
        found = [_batch(call, calls, sleep) for _ in range(BATCHES)]
        behind = [batch for batch in found if batch.behind]
        if len(behind) > BATCHES // 2 or calls == 1:
            break
        if attempt:  # a longer sleep alone did not help
            calls = max(1, calls // 2)
    counted = behind or found
    times = [batch.gpu for batch in counted]
    median = statistics.median(times)
    spread = 100 * (max(times) - min(times)) / median
    return Time(median, statistics.median(batch.host for batch in counted), spread, waits=not behind)


@dataclass(frozen=True)
class _Batch:
    gpu: float
    host: float
    behind: bool
    """Whether the GPU began with the calls after the host had enqueued them all."""


def _batch(call: Call, calls: int, sleep: float) -> _Batch:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(round(sleep * _cycles_a_second()))
    start.record()
    began = time.perf_counter()
    for i in range(calls):
        call(i)
    host = time.perf_counter() - began
    end.record()
    behind = not start.query()
    end.synchronize()
    return _Batch(1e3 * start.elapsed_time(end) / calls, 1e6 * host / calls, behind)


@functools.cache
def _cycles_a_second() -> float:
    """Cycles of `torch.cuda._sleep` in a second, once the GPU's clock has risen under load."""
    cycles, rates = 10_000_000, []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        rates.append(1e3 * cycles / start.elapsed_time(end))
    return max(rates)


def _clocked(call: Call, i: int) -> float:
    began = time.perf_counter()
    call(i)
    return 1e6 * (time.perf_counter() - began)


def copy_microseconds(tensors: Sequence[Tensor]) -> float:
    """The time to read one of `tensors`, which have one size, and to write as much."""
    pairs = [(torch.empty_like(tensor), tensor.detach()) for tensor in tensors]
    return measure(lambda i: pairs[i % len(pairs)][0].copy_(pairs[i % len(pairs)][1]), len(pairs)).call


# ---- sides ----------------------------------------------------------------------------------------------------------


def check_close(name: str, found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Assert that a relative error is at most some roundings of the type. A wrong result has no speed."""
    for i, (ours, true) in enumerate(zip(found, truth, strict=True)):
        error = float((ours.detach().double() - true.detach().double()).norm() / true.detach().double().norm())
        assert error < 16 * torch.finfo(dtype).eps, f"{name} computes a wrong result {i}: relative error {error:.2g}"


def beside(
    record: Any,
    benchmark: BenchmarkFixture,
    group: str,
    case: str,
    sides: Mapping[str, Callable[[], Call]],
    floor: Callable[[], float] | None,
) -> None:
    """Measure all `sides`, "ours" first, and keep a row for each at once. `floor` gives microseconds, if there is one.

    A side is a function that checks the side's result and returns its call. A side that fails loses no other.
    """
    problems: dict[str, Exception] = {}
    calls: dict[str, Call] = {}
    for name in sorted(sides, key=lambda name: (name != "ours", "compile" in name)):
        record(group, case, name)
        try:
            calls[name] = sides[name]()
            if record.preparing:
                continue
            record(group, case, name, **measure(calls[name]).row)
            if name == "ours" and floor:
                record(group, case, name, floor_microseconds=floor())
        except Exception as error:
            problems[name] = error
            record(group, case, name, why=_words(error))
    if record.preparing:
        pytest.skip("prepared")
    if "ours" not in problems:
        benchmark.group = f"{group}: {case}"
        pedantic(benchmark, calls["ours"])
    assert not problems, problems


def pedantic(benchmark: BenchmarkFixture, call: Call) -> None:
    """Let pytest-benchmark time single calls with a wait after each, host included, for `bench-compare`."""
    benchmark.pedantic(_finished, args=(call,), rounds=20, warmup_rounds=3)


def _finished(call: Call) -> None:
    call(0)
    if ON_GPU:
        torch.cuda.synchronize()


def _words(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"FAILED: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
