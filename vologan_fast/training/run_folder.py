"""The run folder, with all files that a training run writes.

config.json         the data set and the whole configuration, including values that were chosen automatically
metrics.jsonl       one JSON object per logged step
tensorboard/        the same numbers, the grids and the quantities of the report, as TensorBoard events (loggers.py)
samples/            step-########.png
report.html         the report (run_report.py)
checkpoints/        step-########/ (see checkpoint.py)
.lock               locked by the process that trains here
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vologan_fast.config import Config, ConfigError, from_record, to_dict
from vologan_fast.files import write_whole
from vologan_fast.quantities.observation import Observation
from vologan_fast.report.pictures import pictures
from vologan_fast.training.loggers import DEFAULT, Loggers

_BEFORE_CONFIG = {"samples", "tensorboard", "wandb", "checkpoints", "lost+found"}
"""Names in a run folder before config.json exists. Hidden files may be there too. The last is of an empty volume."""


class RunFolder:
    """Writer of a run's files. It locks the folder for this process until `close`.

    Raises ConfigError if the folder cannot be written, or while another process trains in it.
    """

    def __init__(self, path: Path, config: Config, log: Sequence[str] = DEFAULT) -> None:
        self.path = path
        self._config, self._log = config, log
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.report = path / "report.html"
        self._metrics = path / "metrics.jsonl"
        with _writing(path):
            self.samples.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)

    def begin(self, step: int) -> None:
        """Start to write after `step`. Drop lines and events of later steps, which a resumed run makes again."""
        with _writing(self.path):
            kept = _drop_lines_after(self._metrics, step)
            self._loggers = Loggers(self._log, self.path, self._config, step + 1)
        self.last_validation = max((line["step"] for line in kept if line["split"] == "held_out"), default=-1)
        """Step of the last line about held-out images. -1 if there is none."""
        self.scores = {line["step"]: line["score"] for line in kept if line["split"] == "evaluation"}
        """Score of each evaluation so far, by step. Less is better."""

    def log(self, record: dict[str, Any]) -> None:
        """Append one line. Its `step` and `split` locate its values in the TensorBoard curves."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        values = {f"{record['split']}/{name}": value for name, value in record.items() if name not in ("step", "split")}
        self._loggers.scalars(values, record["step"])

    def add_picture(self, path: Path, step: int) -> None:
        """Add the PNG at `path` to the loggers."""
        with Image.open(path) as picture:
            self._loggers.picture("samples", np.asarray(picture), step)

    def add_observation(self, observation: Observation) -> None:
        """Add the quantities of a report to the loggers: histograms, pictures, and the sentences."""
        step, loggers = observation.step, self._loggers
        for channel, of_sets in observation.histograms.items():
            for name, values in of_sets.items():
                loggers.histogram(f"{channel}/{name}", values, step)
        for network, weights in observation.weights.items():
            loggers.histogram(f"weights/{network}", weights.histogram, step)
            loggers.scalars({f"sigma/{network}/{found.layer}": found.sigma for found in weights.spectra}, step)
            loggers.scalars({f"gamma/{network}/{scales.layer}": scales.median for scales in weights.gammas}, step)
        captions = []
        for name, picture in pictures(observation):
            loggers.picture(name, picture.pixels, step)
            captions.append(f"{name}: {picture.caption}")
        loggers.text("report/pictures", captions, step)
        loggers.text("report/warnings", observation.warnings or ["nothing looks wrong"], step)

    def close(self) -> None:
        """Close the files, so that another process can train in the folder."""
        self._loggers.close()
        self._lock.close()


def check_unused(run: Path) -> None:
    """Raise ConfigError unless a run without a record can start in the folder `run`.

    The folder may be missing or empty. It may also be the rest of a start that was killed before config.json existed.
    """
    try:
        names = [path.name for path in run.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"--run-dir {run}: cannot be read ({error.strerror or error})") from error
    others = sorted(name for name in names if name not in _BEFORE_CONFIG and not name.startswith("."))
    if others:
        raise ConfigError(f"--run-dir {run}: has {others[0]} but no config.json; expected a run, or an empty folder")


def write_config(run: Path, data: str, config: Config) -> None:
    """Write the data set's name (from `data.absolute`) and the configuration to `run`/config.json, atomically.

    Raises ConfigError if it cannot be written.
    """
    text = json.dumps({"data": data, "config": to_dict(config)}, indent=2)
    with _writing(run):
        write_whole(run / "config.json", text.encode() + b"\n", alone=True)


def read_config(path: Path) -> tuple[str, Config]:
    """Return the data set's name and the configuration that `write_config` wrote to `path`.

    A record of an older version keeps its meaning. Raises ConfigError if the file is missing, or is not such a record.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; expected the config.json of a run folder") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(record, dict) or set(record) != {"data", "config"}:
        raise ConfigError(f'{path}: expected an object with "data" and "config", as a run folder has it')
    try:
        return str(record["data"]), from_record(record["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@contextlib.contextmanager
def _writing(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--run-dir {run}: cannot be written ({error.strerror or error})") from error


def _locked(run: Path) -> BinaryIO:
    """Lock the folder, and return the lock file. The lock holds until the file is closed or the process ends."""
    lock = (run / ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"--run-dir {run}: another process is training in it; wait for its end, or stop it") from None
    except OSError:  # some clusters' file systems have no locks: train without one
        pass
    return lock


def _drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the complete lines of `path` up to `step`, and return their records.

    A killed process may have left lines of later steps, and an incomplete line.
    """
    if not path.exists():
        return []
    kept: list[str] = []
    records: list[dict[str, Any]] = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] <= step and line.endswith("\n"):
            kept.append(line)
            records.append(record)
    write_whole(path, "".join(kept).encode(), alone=True)
    return records
