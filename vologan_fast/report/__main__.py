"""The command `python -m vologan_fast.report`: one HTML file that shows a run, or compares several.

python -m vologan_fast.report runs/first
python -m vologan_fast.report runs/first runs/second --output comparison.html
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vologan_fast.config import ConfigError

if TYPE_CHECKING:
    import torch

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
        return _say(f"{error.filename or arguments.output}: {error.strerror or error}")


def _say(message: str) -> int:
    from vologan_fast.report.text import visible

    print(f"error: {visible(message)}", file=sys.stderr, flush=True)
    return 1


def _report(arguments: Arguments) -> int:
    from vologan_fast.commands import chosen_device
    from vologan_fast.report.page import plotly_script
    from vologan_fast.report.text import visible
    from vologan_fast.training.run_report import FILE, write_report

    if not arguments.runs:
        raise ConfigError("RUN_DIR: expected at least one run folder, found none")
    if not 1 <= arguments.fov <= 170:
        raise ConfigError(f"--fov {arguments.fov:g}: expected 1 to 170 degrees")
    plotly_script()  # a missing package is said before the work
    device = chosen_device(arguments.device)
    runs = [_look(run, arguments.checkpoint, device) for run in arguments.runs]
    default = arguments.runs[0] / FILE if len(runs) == 1 else Path("comparison.html")
    path = write_report(arguments.output or default, runs, arguments.fov)
    for record, observation in runs:
        for sentence in observation.warnings:
            print(visible(f"{record.name}: {sentence}"))
    print(visible(f"report: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)"))
    return 0


def _look(run: Path, word: str, device: torch.device) -> tuple[RunRecord, Observation]:
    """Return what a run folder records, and what the networks of one of its checkpoints do."""
    from vologan_fast.data import DataError, load_dataset
    from vologan_fast.networks import Networks, layout_by_device
    from vologan_fast.quantities.observation import observe
    from vologan_fast.training.checkpoint import load_state, load_weights, step_of
    from vologan_fast.training.run_folder import read_config
    from vologan_fast.training.run_report import held_out, read_record

    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; expected a run folder")
    data, config = read_config(run / "config.json")
    folder = _chosen(run, word)
    dataset = load_dataset(data, config.data, config.train.seed)
    if not dataset.has_fingerprint(load_state(folder)["data"]):
        raise DataError(
            f"{run / 'config.json'}: its data set now has other images than the run was trained on (names or number "
            "of files differ); expected the same, because the held-out images follow from it"
        )
    networks = Networks(config)
    load_weights(folder, networks)
    networks.to(device=device, memory_format=layout_by_device(device))  # type: ignore[call-overload]
    return read_record(run, data, config), observe(networks, config, held_out(dataset), step_of(folder))


def _chosen(run: Path, word: str) -> Path:
    """Return the folder of the checkpoint that the argument names. Raises ConfigError."""
    from vologan_fast.training.checkpoint import find_best, list_checkpoints, step_of

    found = list_checkpoints(run / "checkpoints")
    if not found:
        raise ConfigError(f"{run}: expected a run folder with a checkpoint, found none in it")
    if word == "last":
        return found[-1]
    if word == "best":
        if (best := find_best(run / "checkpoints")) is None:
            raise ConfigError(f"--checkpoint best: {run} has no best checkpoint; python -m vologan_fast.evaluate finds it")
        return best
    steps = {str(step_of(path)): path for path in found}
    if word not in steps:
        raise ConfigError(f"--checkpoint {word}: expected last, best or one of {', '.join(steps)}")
    return steps[word]


if __name__ == "__main__":
    sys.exit(main())
