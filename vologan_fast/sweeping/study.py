"""The record of a sweep: Optuna's study in a SQLite file, which several processes may use at once.

A process that runs a trial holds a lock on a file for it. When the process ends, however it ends, the system releases
the lock. So a trial that Optuna calls running, but whose lock is free, was interrupted. Its values are enqueued again
as another trial, which goes on in the same run folder.

A trial has the attributes `folder`, the number of its run folder; `outcome`; and `reason`. It counts from the moment on
at which it has a folder. All of its values are chosen before. They follow from the trials that count, so a sweep
that was killed chooses the same values as one that was not.
"""

from __future__ import annotations

import contextlib
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vologan_fast.config import ConfigError
from vologan_fast.files import append_to, aside_of, refuse_link
from vologan_fast.sweeping.outcome import ENDED, FAILED, FINISHED, PRUNED, Outcome
from vologan_fast.sweeping.space import Parameter, Space
from vologan_fast.words import printable

if TYPE_CHECKING:
    import optuna

_NAME, _DATABASE = "sweep", "sweep.db"
_SECONDS = 120
"""The most that a process waits while another one writes the SQLite file."""


class Record:
    """The trials of a sweep in the folder `out`. A process opens it once."""

    def __init__(self, space: Space, out: Path) -> None:
        """Raises ConfigError if the folder cannot be written, or holds another sweep."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.out, self._optuna = space, out, optuna
        try:
            for name in ("locks", "trials"):
                refuse_link(out / name)
            refuse_link(out / _DATABASE, "a file")  # SQLite would follow it
            (out / "locks").mkdir(parents=True, exist_ok=True)
            with self._alone():
                self.study = self._open_study()
                if self.study.user_attrs["space"] != space.identity:
                    raise ConfigError(
                        f"--out {out}: holds a sweep of another space; expected the file that began it, in which only "
                        "the number of trials may change, or another folder"
                    )
                failed = [trial for trial in self.latest() if trial.user_attrs.get("outcome") == FAILED]
                self._enqueue([trial for trial in failed if trial.state == optuna.trial.TrialState.FAIL])
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error

    def _open_study(self) -> optuna.Study:
        """Return the study, which is made if there is none.

        It is made under another name. Else a kill could leave a file with tables and without their indices, which
        Optuna would not add.
        """
        path = self.out / _DATABASE
        if not path.exists():
            partial = aside_of(path)
            for leftover in (partial, partial.with_name(f"{partial.name}-journal")):
                leftover.unlink(missing_ok=True)
            _, storage = self._study_in(partial)
            storage.remove_session()
            storage.engine.dispose()
            partial.rename(path)
        return self._study_in(path)[0]

    def _study_in(self, path: Path) -> tuple[optuna.Study, optuna.storages.RDBStorage]:
        from sqlalchemy.engine import URL

        settings = self.space.settings
        storage = self._optuna.storages.RDBStorage(
            URL.create("sqlite", database=str(path)).render_as_string(),
            engine_kwargs={"connect_args": {"timeout": _SECONDS}},
        )
        study = self._optuna.create_study(
            storage=storage,
            study_name=_NAME,
            direction=settings.direction,
            pruner=self._optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_steps),
            load_if_exists=True,
        )
        if "space" not in study.user_attrs:
            study.set_user_attr("space", self.space.identity)
        return study, storage

    def latest(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count in their order, without those that another one has taken the place of."""
        latest = {folder_of(trial): trial for trial in self.study.get_trials(deepcopy=False) if _counts(trial)}
        return [latest[folder] for folder in sorted(latest)]

    @property
    def ended(self) -> int:
        """The number of trials that need not run again."""
        return sum(map(self._has_ended, self.latest()))

    def _has_ended(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Return whether a trial need not run again. One that was killed inside `tell` has not ended."""
        outcome = trial.user_attrs.get("outcome")
        return outcome in ENDED and trial.state == self._state(outcome)

    def _state(self, outcome: str) -> optuna.trial.TrialState:
        states = self._optuna.trial.TrialState
        return {FINISHED: states.COMPLETE, PRUNED: states.PRUNED}.get(outcome, states.FAIL)

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
                following = max(map(folder_of, trials), default=-1) + 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                    self.study.sampler = self._optuna.samplers.TPESampler(
                        n_startup_trials=self.space.settings.startup_trials,
                        seed=self.space.settings.seed + following,
                        constant_liar=True,
                    )
                trial = self.study.ask({p.option: self._distribution(p) for p in self.space.parameters})
                if not _counts(trial):
                    trial.set_user_attr("folder", following)
                lock = _locked(self._lock_of(trial))
        try:
            yield trial
        finally:
            if lock is not None:
                lock.close()

    def tell(self, trial: optuna.trial.Trial, outcome: Outcome) -> None:
        """Record how a trial ended."""
        trial.set_user_attr("reason", outcome.reason)
        trial.set_user_attr("outcome", outcome.name)
        self.study.tell(trial, outcome.value, self._state(outcome.name))

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
        """Let the trials be tried again whose process has ended. It may also have ended inside this function."""
        states = self._optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if not _counts(trial):  # others begin trials only while this process does not
                self.study.tell(trial.number, state=states.FAIL)
        for trial in self.latest():
            outcome = trial.user_attrs.get("outcome")
            if trial.state == states.RUNNING and (lock := _locked(self._lock_of(trial))) is not None:
                lock.close()  # nobody runs it
                self.study.tell(trial.number, state=states.FAIL)
                self._enqueue([trial])
            elif trial.state == states.FAIL and outcome != FAILED and not self._has_ended(trial):
                self._enqueue([trial])

    def _enqueue(self, trials: list[optuna.trial.FrozenTrial]) -> None:
        """Let the values of these trials be tried again, in their run folders."""
        for trial in trials:
            # A trial that was enqueued takes its values over one by one, and may have been killed in between.
            values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            self.study.enqueue_trial(values, {"folder": folder_of(trial)})

    def _lock_of(self, trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> Path:
        return self.out / "locks" / f"trial-{folder_of(trial):04d}"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let the processes of a sweep enter a block one after the other."""
        with append_to(self.out / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def folder_of(trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> int:
    """Return the number of the run folder of a trial that counts."""
    return int(trial.user_attrs["folder"])


def _counts(trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial has begun. If not, its process was killed while its values were chosen."""
    return "folder" in trial.user_attrs


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
