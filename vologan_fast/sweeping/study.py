"""The record of a sweep: Optuna's study in a SQLite file, which several processes may use at once.

A process that runs a trial holds a lock on a file for it. When the process ends, however it ends, the system releases
the lock. So a trial that Optuna calls running, but whose lock is free, was interrupted. Its values are enqueued again
as another trial, which goes on in the same run folder.

Each trial has the attributes `folder`, the number of the first trial with these values; `outcome`; and `reason`.
"""

from __future__ import annotations

import contextlib
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vologan_fast.config import ConfigError
from vologan_fast.files import append_to
from vologan_fast.sweeping.outcome import ENDED, FAILED, FINISHED, PRUNED, Outcome
from vologan_fast.sweeping.space import Parameter, Space
from vologan_fast.words import printable

if TYPE_CHECKING:
    import optuna

_NAME = "sweep"
_SECONDS = 120
"""The most that a process waits while another one writes the SQLite file."""


class Record:
    """The trials of a sweep in the folder `out`. A process opens it once."""

    def __init__(self, space: Space, out: Path) -> None:
        """Raises ConfigError if the folder cannot be written, or holds another sweep."""
        import optuna
        from sqlalchemy.engine import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.out, self._optuna = space, out, optuna
        settings = space.settings
        try:
            (out / "locks").mkdir(parents=True, exist_ok=True)
            with self._alone():
                self.study = optuna.create_study(
                    storage=optuna.storages.RDBStorage(
                        URL.create("sqlite", database=str(out / "sweep.db")).render_as_string(),
                        engine_kwargs={"connect_args": {"timeout": _SECONDS}},
                    ),
                    study_name=_NAME,
                    direction=settings.direction,
                    pruner=optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_steps),
                    load_if_exists=True,
                )
                known = self.study.user_attrs.get("space")
                if known is None:
                    self.study.set_user_attr("space", space.identity)
                elif known != space.identity:
                    raise ConfigError(
                        f"--out {out}: holds a sweep of another space; expected the file that began it, in which only "
                        "the number of trials may change, or another folder"
                    )
                self._enqueue([trial for trial in self.latest() if trial.user_attrs.get("outcome") == FAILED])
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error

    def latest(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials in their order, without those that another one has taken the place of."""
        latest = {folder_of(trial): trial for trial in self.study.get_trials(deepcopy=False)}
        return [latest[folder] for folder in sorted(latest)]

    @property
    def ended(self) -> int:
        """The number of trials that need not run again."""
        return sum(trial.user_attrs.get("outcome") in ENDED for trial in self.latest())

    @contextlib.contextmanager
    def next_trial(self) -> Iterator[optuna.trial.Trial | None]:
        """Yield a trial to run, which is this process's as long as the block runs. None if no more are needed."""
        lock: BinaryIO | None = None
        trial = None
        with self._alone():
            self._enqueue_interrupted()
            trials = self.latest()
            running = sum(trial.state == self._optuna.trial.TrialState.RUNNING for trial in trials)
            if self.ended + running < self.space.settings.trials:
                # With the same seed, each process would draw the same values.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                    self.study.sampler = self._optuna.samplers.TPESampler(
                        n_startup_trials=self.space.settings.startup_trials,
                        seed=self.space.settings.seed + len(self.study.get_trials(deepcopy=False)),
                        constant_liar=True,
                    )
                trial = self.study.ask({p.option: self._distribution(p) for p in self.space.parameters})
                if "folder" not in trial.user_attrs:
                    trial.set_user_attr("folder", trial.number)
                lock = _locked(self._lock_of(trial.number))
        try:
            yield trial
        finally:
            if lock is not None:
                lock.close()

    def tell(self, trial: optuna.trial.Trial, outcome: Outcome) -> None:
        """Record how a trial ended."""
        trial.set_user_attr("reason", outcome.reason)
        trial.set_user_attr("outcome", outcome.name)
        states = self._optuna.trial.TrialState
        state = {FINISHED: states.COMPLETE, PRUNED: states.PRUNED}.get(outcome.name, states.FAIL)
        self.study.tell(trial, outcome.value, state)

    def run_folder(self, trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> Path:
        """Return the run folder of a trial."""
        return self.out / "trials" / f"trial-{folder_of(trial):04d}"

    def _distribution(self, parameter: Parameter) -> optuna.distributions.BaseDistribution:
        kinds = self._optuna.distributions
        if parameter.choices is not None:
            return kinds.CategoricalDistribution(tuple(parameter.choices))
        low, high, log, step = parameter.low, parameter.high, parameter.log, parameter.step
        if isinstance(low, int) and isinstance(high, int):
            return kinds.IntDistribution(low, high, log=log, step=int(step or 1))
        return kinds.FloatDistribution(low, high, log=log, step=step)

    def _enqueue_interrupted(self) -> None:
        states, interrupted = self._optuna.trial.TrialState, []
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            lock = _locked(self._lock_of(trial.number))
            if lock is not None:  # nobody runs it
                lock.close()
                self.study.tell(trial.number, state=states.FAIL)
                interrupted.append(trial)
        self._enqueue(interrupted)

    def _enqueue(self, trials: list[Any]) -> None:
        """Let the values of these trials be tried again, in their run folders."""
        for trial in trials:
            if trial.params:  # none if it was killed before they were chosen
                self.study.enqueue_trial(trial.params, {"folder": folder_of(trial)})

    def _lock_of(self, number: int) -> Path:
        return self.out / "locks" / f"trial-{number:04d}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let the processes of a sweep enter a block one after the other."""
        with append_to(self.out / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def folder_of(trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> int:
    """Return the number of the first trial with the values of this one."""
    return int(trial.user_attrs.get("folder", trial.number))


def in_words(params: dict[str, Any]) -> str:
    """Return the values of a trial on one line."""
    return ", ".join(
        f"{name} {printable(f'{value:.4g}' if isinstance(value, float) else str(value))}"
        for name, value in params.items()
    )


def _locked(path: Path) -> BinaryIO | None:
    """Lock a file and return it. None if another process has locked it."""
    file = append_to(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
