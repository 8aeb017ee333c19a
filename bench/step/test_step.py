"""Benchmark of a whole training step: ours beside the plain step in eager float32, in eager bfloat16 and compiled.

    pytest bench/step

`sides.py` defines the four sides. For each side the benchmark shows three numbers. The time is in milliseconds per pair
of images (one of each domain): the sides run in turns, and the median counts. The memory is the peak per pair: on a
GPU, the bytes that a step allocates above weights and optimiser state; on the CPU, the bytes that autograd keeps. The
last number compares the four networks' losses in the first steps with the losses of the first side. It is checked
before the timing. A side that runs out of memory is reported as such.

On a GPU the cases are `vologan-512` at 512² and `vologan-64` at 64², the most important first, because compiling takes
minutes, once per machine. On the CPU the case is `vologan-64` with a quarter of the channels or less, on one core.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")  # count_launches.py imports it
from pytest_benchmark.fixture import BenchmarkFixture
from sides import ON_GPU, SIDES, configuration, first_state, images, make_step
from torch import Tensor

from vologan_fast.profiling.saved_tensors import SavedTensors
from vologan_fast.training.step import TrainingStep

CASES = (
    [("vologan-512", None, 4), ("vologan-64", None, 8), ("vologan-512", None, 1), ("vologan-512", None, 8)]
    if ON_GPU
    else [("vologan-64", 16, 2)]
)
"""Preset, width, batch."""
MEMORY = "allocated" if ON_GPU else "kept by autograd"
FIRST_STEPS = 3
TOLERANCE = {torch.float32: (1e-5, 1e-2), torch.bfloat16: (1e-2, 5e-2)}
"""Relative tolerance of a loss in the first step, and in the later steps. It is larger in the later ones: NAdam's first
step uses only the signs of the gradients, so a rounding error counts as much as a gradient."""
TURNS, STEPS_A_TURN = (3, 5) if ON_GPU else (5, 1)

Batch = tuple[Tensor, Tensor]


@pytest.mark.filterwarnings("error:torch.compile fails")
@pytest.mark.parametrize(("preset", "width", "batch"), CASES, ids=[f"{preset}-{batch}" for preset, _, batch in CASES])
def test_step(
    preset: str, width: int | None, batch: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    config = configuration(preset, width)
    state, pair = first_state(config), images(config, batch)
    problems: dict[str, str] = {}

    def of_each(sides: dict[str, Any], use: Callable[[Any], Any]) -> dict[str, Any]:
        """Return use(side) for all sides. A side that fails is removed, and its problem is recorded."""
        found = {}
        for name in list(sides):
            try:
                found[name] = use(sides[name])
            except (torch.cuda.OutOfMemoryError, UserWarning) as error:
                problems[name] = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else str(error)
            if name in problems:
                del sides[name]
                free_memory()
        return found

    steps = of_each({name: name for name in SIDES}, lambda name: make_step(name, config, state))
    losses = of_each(steps, lambda step: first_losses(step, pair))
    first = next(iter(losses.values()))
    differ = {name: ((found - first) / first).abs().amax(1).tolist() for name, found in losses.items()}
    for name, differences in differ.items():
        at_first, later = TOLERANCE[SIDES[name].precision]
        assert differences[0] < at_first and max(differences) < later, f"losses of {name} differ by {differences}"
    peaks = of_each(steps, lambda step: peak_bytes(step, pair) / batch / 2**20)
    turns = [of_each(steps, lambda step: milliseconds(step, pair) / batch) for _ in range(TURNS)]
    times = {name: statistics.median(turn[name] for turn in turns) for name in steps}
    assert "ours" in times, problems

    height, width = config.data.shape
    title = f"{preset}{f' of width {width}' if width else ''}, {height} × {width}, batch {batch}"
    benchmark.group = f"training step, {title}"
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name() if ON_GPU else "CPU",
        milliseconds_a_pair=times,
        mebibytes_a_pair={name: round(peaks[name], 1) for name in times},
        memory=MEMORY,
        losses_differ=differ,
        problems=problems,
        ratios={name: round(time / times["ours"], 2) for name, time in times.items()},
    )
    benchmark.pedantic(finished, args=(steps["ours"], pair), rounds=10, warmup_rounds=1)
    with capsys.disabled():
        print(f"\n{title}; a pair of images, memory {MEMORY}")
        for name, time_ in times.items():
            print(
                f"    {name:10} {time_:8.1f} ms {time_ / times['ours']:6.2f} ×  {peaks[name]:8.1f} MiB "
                f"{peaks[name] / peaks['ours']:6.2f} ×   losses differ by "
                + ", ".join(f"{x:.0e}" for x in differ[name])
            )
        for name, problem in problems.items():
            print(f"    {name:10} {problem}")
    assert set(problems.values()) <= {"out of memory"}, problems


def first_losses(step: TrainingStep, pair: Batch) -> Tensor:
    """Return the losses of the four networks in the first steps, (FIRST_STEPS, 4)."""
    rows = []
    for number in range(FIRST_STEPS):
        terms = step(*pair, number).terms()
        rows.append(torch.stack([value for name, value in terms.items() if name.endswith("/total")]))
    return torch.stack(rows).cpu()


def peak_bytes(step: TrainingStep, pair: Batch) -> int:
    step.networks.zero_grad(set_to_none=True)
    if not ON_GPU:
        kept = SavedTensors(step.networks)
        with kept.counted():
            step(*pair, FIRST_STEPS)
        return kept.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    finished(step, pair)
    return torch.cuda.max_memory_allocated() - before


def milliseconds(step: TrainingStep, pair: Batch) -> float:
    """Return the time per step of several steps, with one wait of the host after the last."""
    free_memory()  # free the other sides' memory; then an untimed step allocates its own
    finished(step, pair)
    began = time.perf_counter()
    finished(step, pair, STEPS_A_TURN)
    return 1e3 * (time.perf_counter() - began) / STEPS_A_TURN


def finished(step: TrainingStep, pair: Batch, steps: int = 1) -> None:
    for _ in range(steps):
        step(*pair, FIRST_STEPS)
    if ON_GPU:
        torch.cuda.synchronize()


def free_memory() -> None:
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
