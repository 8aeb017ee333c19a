"""The command `python -m vologan_fast.sweep`: train with many settings, and find the best ones.

    python -m vologan_fast.sweep examples/sweep-vologan-64.yaml --out sweeps/first

The file says which options of `vologan_fast.train` vary, and how. Each trial is a training in a process of its own.
The same command goes on with a sweep that was killed or stopped. The same command on several machines or in several
terminals, with one folder, works on one sweep.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from vologan_fast import stopping
from vologan_fast.commands import starting_point
from vologan_fast.config import Config, ConfigError
from vologan_fast.sweeping.outcome import FAILED, REFUSED, Outcome
from vologan_fast.sweeping.reading import read_space
from vologan_fast.sweeping.space import EVALUATE, Space
from vologan_fast.sweeping.study import Record, folder_of, in_words
from vologan_fast.sweeping.trial import Trial
from vologan_fast.words import printable, say, say_error

if TYPE_CHECKING:
    import optuna


@dataclass
class Arguments:
    """Train with many settings, each in a process of its own, and find the best ones."""

    space: Annotated[Path, tyro.conf.Positional]
    """YAML file with the options that vary."""
    out: Path | None = None
    """Folder of the sweep. If it holds this sweep, the sweep goes on. Default: sweeps/NAME of the file."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m vologan_fast.sweep")
    out = arguments.out or Path("sweeps") / arguments.space.stem
    try:
        _check_packages()
        with stopping.interrupting():
            return _sweep(read_space(arguments.space, _starting_point), arguments.space, out)
    except ConfigError as error:
        say_error(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "vologan_fast.sweep", str(arguments.space), "--out", str(out)])
        say(f"stopped; go on with: {command}")
        return stopping.EXIT


def _sweep(space: Space, file: Path, out: Path) -> int:
    record = Record(space, out)
    settings = space.settings
    say(f"sweep in {out.resolve()}: {record.ended} of {settings.trials} trials have ended")
    if settings.objective == EVALUATE and not space.base.train.evaluate_every:
        say("no trial is pruned, because none evaluates while it trains: set train.evaluate-every")
    failed = False
    while not failed:
        with record.next_trial() as trial:
            if trial is None:
                break
            failed = not _run(record, trial)
    from vologan_fast.sweeping.results import summary, table, write_results

    try:
        page = write_results(record, f"Sweep {file.name}")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(record))
    say(summary(record))
    say(f"plots: {page.resolve()}")
    return 1 if failed else 0


def _run(record: Record, trial: optuna.trial.Trial) -> bool:
    """Run a trial and record its outcome. Return False if it failed for a reason that is not its values'."""
    name = f"trial {folder_of(trial)}"
    again = " goes on" if record.run_folder(trial).exists() else ""
    say(f"{name}{again}: {in_words(trial.params)}")

    def prunes(step: int, value: float) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    space = record.space
    try:
        space.config_of(trial.params)
    except ConfigError as error:
        outcome = Outcome(REFUSED, printable(str(error)))
    else:
        device = str(space.options.get("device", "auto"))
        training = Trial(space.command_of(trial.params), device, record.run_folder(trial))
        try:
            outcome = training(space.settings, prunes)
        except OSError as error:
            outcome = Outcome(FAILED, printable(f"{error.filename or record.out}: {error.strerror or error}"))
    record.tell(trial, outcome)
    value = "" if outcome.value is None else f", {space.settings.objective} {outcome.value:.6g}"
    say(f"{name}: {outcome.name}{value}{outcome.reason and f' ({outcome.reason})'}")
    if outcome.name == FAILED:
        log = record.run_folder(trial).with_suffix(".log")
        say_error(f"error: {name}: {outcome.reason}; see {log}; the same command tries it again")
        return False
    return True


def _starting_point(preset: str | None, recorded: Path | None, device: str) -> tuple[Config, str | None]:
    start = starting_point(preset, recorded, device)
    return start.settings, start.preset


def _check_packages() -> None:
    try:
        import optuna  # noqa: F401
        import plotly  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a sweep needs {error.name}: pip install 'vologan-fast[sweep]'") from error


if __name__ == "__main__":
    stopping.run(main)
