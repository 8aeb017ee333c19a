"""The values of a trial stay the same, wherever a process ends while it takes them over."""

from pathlib import Path

import pytest

pytest.importorskip("optuna")
import optuna

from vologan_fast.config import Config
from vologan_fast.sweeping.space import Parameter, Settings, Space
from vologan_fast.sweeping.study import Record, folder_of

RATES = tuple(
    Parameter(f"{network}-optimizer.learning-rate", low=1e-4, high=1e-3, log=True)
    for network in ("generator", "discriminator")
)
SPACE = Space(Config(), {}, RATES, Settings(trials=2, objective="train/loss"))


class Killed(BaseException):
    """Stands for the end of the process: nothing more is written."""


def next_values(out: Path) -> tuple[int, dict[str, float]]:
    """The run folder and the values of the trial that a new process runs next. The process is killed before it ends."""
    with Record(SPACE, out).next_trial() as trial:
        assert trial is not None
        return folder_of(trial), trial.params


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_process_ends_while_it_takes_values_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """It ends after `taken` values, and the next one after as many. The third takes all."""
    first = next_values(tmp_path)
    suggest = optuna.trial.Trial._suggest
    for _ in range(2):
        calls: list[str] = []

        def interrupted(trial, name, distribution, calls=calls):  # type: ignore[no-untyped-def]
            if len(calls) == taken:
                raise Killed
            calls.append(name)
            return suggest(trial, name, distribution)

        with monkeypatch.context() as patched:
            patched.setattr(optuna.trial.Trial, "_suggest", interrupted)
            if taken < len(RATES):
                with pytest.raises(Killed):
                    next_values(tmp_path)
            else:
                assert next_values(tmp_path) == first
    assert next_values(tmp_path) == first
