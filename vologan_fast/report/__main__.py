"""The command `python -m vologan_fast.report`: one HTML file that shows a run, or compares several.

python -m vologan_fast.report runs/first
python -m vologan_fast.report runs/first runs/second --output comparison.html
python -m vologan_fast.report runs/first --rerun first.rrd
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vologan_fast import stopping
from vologan_fast.config import ConfigError

if TYPE_CHECKING:
    import torch

    from vologan_fast.data.skipping import Skipped
    from vologan_fast.quantities.observation import Observation
    from vologan_fast.report.record import RunRecord


@dataclass
class Arguments:
    """Write a report of a run as one HTML file, which opens offline. Several runs are compared."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    output: Path | None = None
    """File to write. Default: RUN/report.html for one run, comparison.html for several."""
    checkpoint: str = "last"
    """`last`, `best` or a step."""
    fov: float = 60.0
    """Field of view of the longer side, in degrees. The point clouds use it, because data sets do not hold it."""
    rerun: Path | None = None
    """File for the viewer Rerun (.rrd) instead of a report: images and point clouds of all checkpoints of a run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from vologan_fast.data import DataError
    from vologan_fast.report.page import ReportError
    from vologan_fast.training.checkpoint import CheckpointError

    arguments = tyro.cli(Arguments, args=argv, prog="python -m vologan_fast.report")
    try:
        return _report(arguments)
    except (ConfigError, DataError, CheckpointError, ReportError) as error:
        return _say(str(error))
    except OSError as error:
        place = error.filename or arguments.rerun or arguments.output or arguments.runs[0]
        other = "; name another file with --output" if place == str(_output(arguments)) else ""
        return _say(f"{place}: {error.strerror or error}{other}")


def _say(message: str) -> int:
    from vologan_fast.words import say_error

    say_error(f"error: {message}")
    return 1


def _output(arguments: Arguments) -> Path:
    """Return the report's file."""
    default = arguments.runs[0] / "report.html" if len(arguments.runs) == 1 else Path("comparison.html")
    return arguments.output or default


def _report(arguments: Arguments) -> int:
    from vologan_fast.commands import chosen_device
    from vologan_fast.data.skipping import described
    from vologan_fast.report.page import plotly_script
    from vologan_fast.training.run_report import write_report
    from vologan_fast.words import say, say_error

    if not arguments.runs:
        raise ConfigError("RUN_DIR: expected at least one run folder, found none")
    if not 1 <= arguments.fov <= 170:
        raise ConfigError(f"--fov {arguments.fov:g}: expected 1 to 170 degrees")
    device = chosen_device(arguments.device)
    if arguments.rerun is not None:
        return _record(arguments, arguments.rerun, device)
    plotly_script()  # a missing package is said before the work
    runs = []
    for run in arguments.runs:
        opened = _Opened(run)
        for line in described(opened.skipped):
            say_error(line)
        runs.append((opened.record(), opened.observe(opened.chosen(arguments.checkpoint), device)))
    path = write_report(_output(arguments), runs, arguments.fov)
    for record, observation in runs:
        for sentence in observation.warnings:
            say(f"{record.name}: {sentence}")
    say(f"report: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _record(arguments: Arguments, path: Path, device: torch.device) -> int:
    """Write the recording for Rerun."""
    from vologan_fast.report.rerun import library, write_recording
    from vologan_fast.words import say

    if len(arguments.runs) != 1 or arguments.output is not None:
        raise ConfigError("--rerun: expected one run folder and no --output")
    if arguments.checkpoint != "last":
        raise ConfigError("--checkpoint: expected no such option with --rerun, which shows all checkpoints")
    library()
    opened = _Opened(arguments.runs[0])
    observations = (opened.observe(folder, device) for folder in opened.checkpoints)
    write_recording(path, opened.run.resolve().name, observations, arguments.fov)
    say(f"recording: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB, {len(opened.checkpoints)} steps)")
    return 0


class _Opened:
    """A run folder with its data set. Raises ConfigError, DataError or CheckpointError for what is no such folder."""

    def __init__(self, run: Path) -> None:
        from vologan_fast.data import load_dataset
        from vologan_fast.training.checkpoint import list_checkpoints
        from vologan_fast.training.run_folder import read_config
        from vologan_fast.training.run_report import held_out

        if not run.is_dir():
            raise ConfigError(f"{run}: no such folder; expected a run folder")
        self.run = run
        self.data, self.config = read_config(run / "config.json")
        self.checkpoints = list_checkpoints(run / "checkpoints")
        if not self.checkpoints:
            raise ConfigError(f"{run}: expected a run folder with a checkpoint, found none in it")
        self._dataset = load_dataset(self.data, self.config.data, self.config.train.seed)
        self._images = held_out(self._dataset)

    def record(self) -> RunRecord:
        """Return what the run folder says. Bad images that the run has not met, but this command, are added."""
        from vologan_fast.training.run_report import read_record

        record = read_record(self.run, self.data, self.config)
        known = {bad.get("file") for bad in record.skipped}
        more = [dataclasses.asdict(bad) for bad in self.skipped if bad.file not in known]
        return dataclasses.replace(record, skipped=[*record.skipped, *more])

    @property
    def skipped(self) -> list[Skipped]:
        """The bad images among those that this command has read."""
        return [] if self._dataset.skipping is None else self._dataset.skipping.found()

    def observe(self, folder: Path, device: torch.device) -> Observation:
        """Return what the networks of a checkpoint do."""
        from vologan_fast.data import DataError
        from vologan_fast.networks import Networks, layout_by_device
        from vologan_fast.quantities.observation import observe
        from vologan_fast.training.checkpoint import load_state, load_weights, step_of

        if not self._dataset.has_fingerprint(load_state(folder)["data"]):
            raise DataError(
                f"{self.run / 'config.json'}: its data set now has other images than the run was trained on (names or "
                "number of files differ); expected the same, because the held-out images follow from it"
            )
        networks = Networks(self.config)
        load_weights(folder, networks)
        networks.to(device=device, memory_format=layout_by_device(device))  # type: ignore[call-overload]
        return observe(networks, self.config, self._images, step_of(folder))

    def chosen(self, word: str) -> Path:
        """Return the folder of the checkpoint that the argument names. Raises ConfigError."""
        from vologan_fast.training.checkpoint import find_best, step_of

        if word == "last":
            return self.checkpoints[-1]
        if word == "best":
            if (best := find_best(self.run / "checkpoints")) is None:
                raise ConfigError(
                    f"--checkpoint best: {self.run} has no best checkpoint; python -m vologan_fast.evaluate finds it"
                )
            return best
        steps = {str(step_of(path)): path for path in self.checkpoints}
        if word not in steps:
            raise ConfigError(f"--checkpoint {word}: expected last, best or one of {', '.join(steps)}")
        return steps[word]


if __name__ == "__main__":
    stopping.run(main)
