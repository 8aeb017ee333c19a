"""One trial: a process that trains, watched while it runs, and then a process that evaluates.

The processes end with the one that started them, however it ends. A trial that was interrupted goes on from its last
checkpoint, because `train` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vologan_fast.files import open_own
from vologan_fast.report.record import read_evaluation, read_lines
from vologan_fast.sweeping.outcome import DIVERGES, FAILED, FINISHED, PRUNED, Outcome, outcome_of
from vologan_fast.sweeping.space import EVALUATE, Settings
from vologan_fast.words import say_error

_POLL = 0.2
"""Seconds between two looks at a training."""
_PATIENCE = 120.0
"""Seconds that a training has to end by itself when it is asked to."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Trial:
    """The training of a trial."""

    options: Sequence[str]
    """Options of `train`, except the run folder."""
    device: str
    run: Path
    """The run folder. What the processes print is in a file beside it."""

    @property
    def log(self) -> Path:
        return self.run.with_suffix(".log")

    @property
    def command(self) -> list[str]:
        """The command that trains. It can be repeated as it is, at any time."""
        return ["-m", "vologan_fast.train", *self.options, "--run-dir", str(self.run), "--resume"]

    def __call__(self, settings: Settings, prunes: Callable[[int, float], bool]) -> Outcome:
        """Train and judge. `prunes(step, value)` is told each value of the metric, and says whether to stop.

        Raises OSError if a process cannot be started, or the log cannot be written.
        """
        self.run.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(self.log, os.O_WRONLY | os.O_TRUNC), "wb") as log:
            status = self._train(log, settings.metric, prunes)
            if status is None:
                return Outcome(PRUNED, "worse than the median of the trials before it")
            if status != 0:
                return outcome_of(status, self.log)
            if settings.objective != EVALUATE:
                return self._last(settings.metric)
            evaluate = ["-m", "vologan_fast.evaluate", str(self.run), "--bootstrap", "0", "--device", self.device]
            with _process(evaluate, log) as process:
                if (status := process.wait()) != 0:
                    return outcome_of(status, self.log)
        folder = self.run / "evaluation"
        try:
            return Outcome(FINISHED, value=float(read_evaluation(folder)["best"]["score"]))
        except (LookupError, TypeError, ValueError):
            return Outcome(FAILED, f"{folder / 'evaluation.json'} has no score of the best checkpoint")

    def _train(self, log: Any, metric: str, prunes: Callable[[int, float], bool]) -> int | None:
        """Return the exit status of the training, or None if it was pruned."""
        told = -1
        with _process(self.command, log) as process:
            while True:
                ended = process.poll() is not None
                for step, value in self.values(metric, say_error if ended else _silent):
                    if step > told and math.isfinite(value):
                        told = step
                        if prunes(step, value) and not ended:
                            _stop(process)
                            return None
                if ended:
                    return process.returncode
                time.sleep(_POLL)

    def values(self, metric: str, say: Callable[[str], None] = say_error) -> list[tuple[int, float]]:
        """Return the values of a metric so far, with their steps. An incomplete last line is left out.

        `say` gets a warning if other lines are no records.
        """
        split, _, name = metric.partition("/")
        records = read_lines(self.run / "metrics.jsonl", say=say)
        return [(r["step"], float(r[name])) for r in records if r["split"] == split and name in r]

    def _last(self, metric: str) -> Outcome:
        values = self.values(metric, _silent)
        if not values:
            names = f"{self.run / 'metrics.jsonl'} has no {metric}"
            return Outcome(FAILED, f"{names}; expected the objective in it, as SPLIT/NAME")
        step, value = values[-1]
        if not math.isfinite(value):
            return Outcome(DIVERGES, f"{metric} is {value} at step {step}")
        return Outcome(FINISHED, value=value)


def _silent(warning: str) -> None:
    """Say nothing: a log is read again and again, and what is wrong with it is said once, at the end."""


@contextlib.contextmanager
def _process(arguments: Sequence[str], log: Any) -> Any:
    """Start Python, and stop it again if it still runs at the end."""
    parent = os.getpid()

    def end_with_parent() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it has ended in between
                os._exit(1)

    # A group of its own: Ctrl-C reaches the sweep alone, which then asks the training to stop.
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, which saves a training, and kill it if it does not."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
