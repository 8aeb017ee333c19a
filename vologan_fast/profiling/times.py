"""Time by part and network, from the events of torch.profiler."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from vologan_fast.files import folder_aside
from vologan_fast.profiling.machine import synchronize
from vologan_fast.profiling.parts import NEITHER, NORM, OF_OPTIONS, OTHER, PLACES, REST, STEP, part_of
from vologan_fast.profiling.workload import Workload


class Taken:
    """Seconds by (part, network), and launches by part, summed over all profiled steps."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.launches: Counter[str] = Counter()


def profile(work: Workload, steps: int, trace: Path) -> list[Any]:
    """Profile `steps` steps, write their Chrome trace, and return the profiler's events (`FunctionEvent`).

    Raises OSError if the trace cannot be written.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler reports each start and stop on stderr
    work.watch(record_function)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (work.device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            work.run()
        synchronize(work.device)
    with folder_aside(trace) as folder:  # the profiler leaves a part of a trace where it fails
        written = folder / "trace.json"
        profiler.export_chrome_trace(str(written))
        if not written.is_file():  # the profiler does not report this
            raise OSError(f"{trace}: the trace could not be written")
        written.rename(trace)
    return list(profiler.events() or [])


def cpu_time(events: list[Any]) -> Taken:
    """Return the self time of the events in the steps: each event's duration without the events inside it."""
    owners, taken = _Owners(events), Taken()
    for event in events:
        if id(event) in owners.inside_steps:
            taken.seconds[owners.of[id(event)]] += event.self_cpu_time_total / 1e6
    return taken


def device_time(events: list[Any]) -> Taken:
    """Return the time of the events on the GPU. Each belongs to the operation that launched it."""
    owners, taken = _Owners(events), Taken()
    calls = {event.id: event for event in events if event.device_type == DeviceType.CPU and event.name.startswith("cu")}
    for event in events:
        if event.device_type != DeviceType.CPU and not event.is_user_annotation:
            owner = owners.of_call(calls.get(event.id))
            taken.seconds[owner] += event.time_range.elapsed_us() / 1e6
            taken.launches[owner[0]] += 1
    return taken


_BACKWARD = "autograd::engine::evaluate_function: "


class _Owners:
    """The part and network of each event on the CPU, by the event's id()."""

    def __init__(self, events: list[Any]) -> None:
        self.of: dict[int, tuple[str, str]] = {}
        self.inside_steps: set[int] = set()
        self._forward: dict[tuple[int, int], tuple[str, str]] = {}
        """Thread and number of an autograd node → the part of its backward, and the network whose forward made it."""
        self._behind = REST, NEITHER
        """Part and network that the current backward has reached."""
        self._optimizers: list[Any] = []
        outermost = [event for event in events if event.device_type == DeviceType.CPU and event.cpu_parent is None]
        forward = {event.thread for event in outermost if event.name == STEP}  # on a GPU, backwards have their own
        for event in sorted(outermost, key=lambda event: (event.thread not in forward, event.time_range.start)):
            self._visit(event, (OTHER, NEITHER), inside_step=False, backward=False)

    def _visit(self, event: Any, above: tuple[str, str], inside_step: bool, backward: bool) -> None:
        part, network = PLACES.get(event.name, (part_of(event.name) or above[0], above[1]))
        if event.name.startswith(_BACKWARD):
            # Nodes without a number accumulate a parameter's gradient. They run right after the node that makes it.
            backward = True
            self._behind = self._forward.get((event.fwd_thread, event.sequence_nr), self._behind)
            part, network = self._behind
        elif not backward and event.sequence_nr >= 0:  # the last operation with this number makes the node
            self._forward[event.thread, event.sequence_nr] = part if part in OF_OPTIONS else REST, network
        inside_step = inside_step or event.name == STEP
        self.of[id(event)] = part, network
        if inside_step:
            self.inside_steps.add(id(event))
        if event.name.startswith("Optimizer.step"):
            self._optimizers.append(event)
        for child in event.cpu_children:
            self._visit(child, (part, network), inside_step, backward)

    def of_call(self, call: Any) -> tuple[str, str]:
        """Return part and network of a call to CUDA.

        NAdam launches its kernels outside of any operation. Their calls are recognised by their time.
        """
        if call is None:
            return OTHER, NEITHER
        if call.cpu_parent is not None:
            return self.of[id(call.cpu_parent)]
        for step in self._optimizers:
            if step.time_range.start <= call.time_range.start <= step.time_range.end:
                return self.of[id(step)]
        return OTHER, NEITHER


_PREPARATIONS = (
    *("aten::empty", "aten::new_empty", "aten::view", "aten::as_strided", "aten::expand", "aten::reshape"),
    *("aten::to", "aten::_to_copy", "aten::contiguous", "aten::clone", "aten::copy_"),
)
"""Beginnings of the names of operations that make, copy and view tensors."""


def native_share(events: list[Any]) -> float:
    """Return the share of the norms' operations that compute in native code: no operation of PyTorch does it for them.

    0 if there are no norms.
    """
    norms = [event for event in events if event.name.startswith(NORM) and event.device_type == DeviceType.CPU]
    return sum(map(_only_prepares, norms)) / len(norms) if norms else 0.0


def _only_prepares(event: Any) -> bool:
    """Return whether all operations of PyTorch inside an event make, copy or view tensors."""
    return all(child.name.startswith(_PREPARATIONS) for child in event.cpu_children)


def annotated(events: list[Any], place: str) -> float:
    """Return the seconds that the host spends in an annotated place."""
    on_host = (event for event in events if event.name == place and event.device_type == DeviceType.CPU)
    return sum(event.cpu_time_total for event in on_host) / 1e6
