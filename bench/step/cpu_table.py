"""Measure a training step on a CPU: ours beside eager float32, and beside the best of torch.compile.

    python bench/step/cpu_table.py
    python bench/step/cpu_table.py --steps demo --threads 2 --sides ours eager --json table.json

It prints three tables as Markdown: ratios, all times, and memory. `sides.py` defines the sides. Each side has a process
of its own, because ours changes how a process allocates memory. The processes take single steps in turn, so all of them
meet the same disturbances. A pause before each step lets the threads of the side before fall asleep. A time is the
median over the turns.

Before a side is timed, the losses of its first step are compared with those of *eager fp32*. In bfloat16, they may
differ twice as much as those of *eager bf16* do. A side that computes something else, fails, or takes longer than
--limit for its first step is left out, and the table says so. Compiling takes minutes the first time. Then the compiled
code is kept, as for training.

Memory is the most resident memory of the process of a side, and the bytes that autograd keeps, which are counted. The
former includes Python, torch, and its compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sides import (
    CPU_SIDES,
    SIDES,
    TOLERANCE,
    Side,
    configuration,
    first_state,
    images,
    kept_bytes,
    losses_of,
    make_step,
)

from vologan_fast.config import Config
from vologan_fast.host import processor
from vologan_fast.networks import numerics_of
from vologan_fast.training.compilation import keep_compiled_code

CPU = torch.device("cpu")
EAGER = "eager fp32"
PAUSE = 0.03
"""Seconds before a step. OpenMP's threads spin for some milliseconds after their work, and take a core from others."""


@dataclass(frozen=True)
class Case:
    """A step to measure."""

    preset: str
    width: int | None
    """Channels of the first level. None: those of the preset."""
    size: int
    """Side of the images in pixels."""
    batch: int

    @property
    def config(self) -> Config:
        config = configuration(self.preset, self.width)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, size=self.size))

    def __str__(self) -> str:
        width = f" of width {self.width}" if self.width else ""
        return f"{self.preset}{width}, {self.size}², batch {self.batch}"


CASES = {
    "demo": Case("demo", None, 64, 2),
    "vologan-64": Case("vologan-64", 16, 64, 2),
    "vologan-512": Case("vologan-512", 16, 256, 1),
}


@dataclass(frozen=True)
class Memory:
    kept: int
    """Bytes that autograd keeps at the peak of a step."""
    resident: int
    """Most resident bytes of the process."""


@dataclass
class Measured:
    """All sides of a case, with a number of threads."""

    case: str
    threads: int
    automatic: str
    """Our side in the precision and layout that `auto` chooses here."""
    forced: str
    """Our side in those that `auto` chooses with `--train.precision float32`."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Side → median of a step."""
    first_seconds: dict[str, float] = field(default_factory=dict)
    """Side → its first step, which may compile."""
    losses_differ: dict[str, float] = field(default_factory=dict)
    """Side → largest relative difference of a network's loss from eager fp32's, in the first step."""
    memory: dict[str, Memory] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Side → why it has no time."""

    def best_compiled(self, dtype: str = "") -> str | None:
        """Return the fastest side of torch.compile, among those whose precision begins with `dtype`."""
        compiled = [side for side in self.milliseconds if side.startswith(f"compile, {dtype}")]
        return min(compiled, key=self.milliseconds.__getitem__, default=None)


@dataclass(frozen=True)
class First:
    """The first step of a side, which may compile."""

    losses: list[float]
    seconds: float


class Runner:
    """A side in this process."""

    def __init__(self, case: Case, threads: int, side: Side) -> None:
        torch.set_num_threads(threads)
        keep_compiled_code()
        self.step = make_step(side, case.config, first_state(case.config))
        self.pair = images(case.config, case.batch)

    def first(self, limit: float) -> First:
        """Take the first step. Raises TimeoutError after `limit` seconds, and what the step raises."""
        began = time.perf_counter()
        with _at_most(limit), warnings.catch_warnings():
            warnings.filterwarnings("error", "torch.compile fails")
            losses = losses_of(self.step, self.pair, 0)
        return First(losses, round(time.perf_counter() - began, 2))

    def turn(self, number: int) -> float:
        """Take a step, and return its milliseconds."""
        began = time.perf_counter()
        self.step(*self.pair, number)
        return 1e3 * (time.perf_counter() - began)

    def memory(self) -> Memory:
        status = Path("/proc/self/status").read_text().splitlines()
        resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        return Memory(kept_bytes(self.step, self.pair, 0), resident)


class RunnerProcess:
    """A side in a process of its own, with the methods of `Runner`."""

    def __init__(self, case: Case, threads: int, side: Side) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._pool.submit(_run_in_process, case, threads, side).result()

    def first(self, limit: float) -> First:
        return self._pool.submit(_first, limit).result()

    def turn(self, number: int) -> float:
        return self._pool.submit(_turn, number).result()

    def memory(self) -> Memory:
        return self._pool.submit(_memory).result()

    def close(self) -> None:
        self._pool.shutdown()


_runner: Runner  # of a process


def _run_in_process(*arguments: Any) -> None:
    global _runner
    _runner = Runner(*arguments)


def _first(limit: float) -> First:
    return _runner.first(limit)


def _turn(number: int) -> float:
    return _runner.turn(number)


def _memory() -> Memory:
    return _runner.memory()


def measure(
    case: Case,
    threads: int,
    sides: Sequence[str],
    turns: int,
    limit: float,
    start: Callable[[Case, int, Side], Runner | RunnerProcess] = RunnerProcess,
) -> Measured:
    """Measure a case. `limit`: seconds for a side's first step. `start` makes the runner of a side."""
    config = case.config
    forced = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    found = Measured(str(case), threads, f"ours, {numerics_of(config, CPU)}", f"ours, {numerics_of(forced, CPU)}")
    with contextlib.ExitStack() as running:

        def started(side: Side) -> Runner | RunnerProcess:
            runner = start(case, threads, side)
            if isinstance(runner, RunnerProcess):
                running.callback(runner.close)
            return runner

        expected, reduced = (started(SIDES[name]).first(limit).losses for name in (EAGER, "eager bf16"))
        allowed = {dtype: first for dtype, (first, _) in TOLERANCE.items()}
        allowed[torch.bfloat16] = max(allowed[torch.bfloat16], 2 * _difference(reduced, expected))
        runners = {}
        for side in sides:
            runner = started(CPU_SIDES[side])
            try:
                first = runner.first(limit)
            except Exception as error:  # of any kind: the other sides go on
                found.left_out[side] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
                continue
            found.first_seconds[side] = first.seconds
            differ = found.losses_differ[side] = _difference(first.losses, expected)
            if differ <= allowed[CPU_SIDES[side].numerics.dtype]:
                runners[side] = runner
            else:
                found.left_out[side] = f"WRONG: its losses differ by {differ:.1e}"
        times: dict[str, list[float]] = {side: [] for side in runners}
        for turn in range(1 + turns):  # the first turn is not counted: the optimisers make their state
            for side, runner in runners.items():
                time.sleep(PAUSE)
                times[side].append(runner.turn(1 + turn))
        found.milliseconds = {side: statistics.median(of_side[1:]) for side, of_side in times.items()}
        found.memory = {side: runner.memory() for side, runner in runners.items()}
    return found


def _difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of a network's loss."""
    return max(abs(loss - of_eager) / abs(of_eager) for loss, of_eager in zip(losses, expected, strict=True))


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- tables ---------------------------------------------------------------------------------------------------------


def ratios(measured: Sequence[Measured]) -> str:
    """Return how many times as long as ours the others take."""
    head = ("step", "threads", "ours", "ms", "eager fp32 takes", "the best torch.compile takes", "which")
    rows = []
    for of in measured:
        reduced = [side for side in of.milliseconds if side.startswith("ours, bfloat16")]
        fastest = min(reduced, key=of.milliseconds.__getitem__, default=of.automatic)
        for ours in dict.fromkeys((of.automatic, fastest, of.forced)):
            if ours not in of.milliseconds:
                continue
            name = ours.removeprefix("ours, ") + " (auto)" * (ours == of.automatic)
            own, best = of.milliseconds[ours], of.best_compiled("float32" if ours == of.forced else "")
            cells = [
                f"{of.milliseconds[side] / own:.2f} ×" if side in of.milliseconds else "–" for side in (EAGER, best)
            ]
            rows.append((of.case, of.threads, name, f"{own:.1f}", *cells, (best or "–").removeprefix("compile, ")))
    return _markdown(head, rows)


def times(measured: Sequence[Measured]) -> str:
    """Return the milliseconds of each side, and why a side has none."""
    head = ("side", *(f"{of.case}, threads: {of.threads}" for of in measured))
    sides = dict.fromkeys(side for of in measured for side in (*of.milliseconds, *of.left_out))
    return _markdown(
        head,
        [
            (
                side,
                *(
                    f"{of.milliseconds[side]:.1f}" if side in of.milliseconds else of.left_out.get(side, "–")
                    for of in measured
                ),
            )
            for side in sides
        ],
    )


def memory(measured: Sequence[Measured]) -> str:
    """Return the memory of each side."""
    head = ("step", "threads", "side", "kept for the backward, MiB", "share of eager's", "resident at the peak, MiB")
    rows = [
        (
            of.case,
            of.threads,
            side,
            f"{found.kept / 2**20:.1f}",
            f"{found.kept / of.memory[EAGER].kept:.2f}" if EAGER in of.memory else "–",
            f"{found.resident / 2**20:.0f}",
        )
        for of in measured
        for side, found in of.memory.items()
    ]
    return _markdown(head, rows)


def _markdown(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=CASES, default=list(CASES), help="steps to measure")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1], help="numbers of threads")
    parser.add_argument("--sides", nargs="+", default=["eager", "ours", "compile"], help="beginnings of their names")
    parser.add_argument("--turns", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a side's first step")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    arguments = parser.parse_args(argv)
    sides = [side for side in CPU_SIDES if side.startswith(tuple(arguments.sides))]
    record: dict[str, Any] = {"processor": processor(), "torch": torch.__version__, "turns": arguments.turns}
    measured: list[Measured] = []
    for name in arguments.steps:
        for threads in arguments.threads:
            measured.append(measure(CASES[name], threads, sides, arguments.turns, arguments.limit))
            print(f"{CASES[name]}, threads: {threads}: done", file=sys.stderr, flush=True)
            if arguments.json:
                record["measured"] = [dataclasses.asdict(of) for of in measured]
                arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{record['processor']}, torch {record['torch']}; medians of {arguments.turns} steps, sides in turn\n")
    print(ratios(measured), times(measured), memory(measured), sep="\n\n")


if __name__ == "__main__":
    main()
