"""The run folder, with all files that a training run writes.

config.json         the data set and the whole configuration, including values that were chosen automatically
metrics.jsonl       one JSON object per logged step; each line of a log ends with its own checksum
skipped.jsonl       one JSON object per bad image that another one replaces (data/skipping.py)
tensorboard/        the same numbers, the grids and the quantities of the report, as TensorBoard events (loggers.py)
samples/            step-########.png
report.html         the report (run_report.py)
bad_steps/          step-########.json: the images of steps that made weights which are not finite
checkpoints/        step-########/ (see checkpoint.py)
.lock               locked by the process that trains here
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vologan_fast.checksums import ChangedError, as_written, signed, signed_line, unsigned
from vologan_fast.config import Config, ConfigError, from_record, to_dict
from vologan_fast.data.skipping import Skipped
from vologan_fast.files import append_to, read_regular, refuse_link, sync, write_whole
from vologan_fast.quantities.observation import Observation
from vologan_fast.report.pictures import pictures
from vologan_fast.report.record import Parse, find_lines, record_of, skipped_of
from vologan_fast.training.checkpoint import give_up_reserve
from vologan_fast.training.loggers import DEFAULT, Loggers
from vologan_fast.words import say_error

_BEFORE_CONFIG = {"samples", "tensorboard", "wandb", "checkpoints", "lost+found"}
"""Names in a run folder before config.json exists. Hidden files may be there too. The last is of an empty volume."""

_FOLDERS = ("samples", "tensorboard", "wandb", "checkpoints", "bad_steps")
"""The folders in a run folder that training writes into. A link there may lead to files of somebody else."""

_LARGEST_RECORD = 1 << 24
"""Bytes of the largest config.json. Those of runs have some thousands."""


_LARGEST_LOG = 1 << 30
"""Bytes of the largest log of a run. `train.log_limit` keeps those of long runs at some ten millions."""


class RunFolder:
    """Writer of a run's files. It writes nothing before `lock`, and holds the lock until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.report = path / "report.html"
        self._metrics = path / "metrics.jsonl"
        self._skipped = path / "skipped.jsonl"
        self._lock: BinaryIO | None = None
        self._loggers: Loggers | None = None

    def lock(self) -> None:
        """Make the folder if it is missing, and lock it for this process. A second call does nothing.

        Raises ConfigError if it cannot be written, or while another process trains in it.
        """
        if self._lock is not None:
            return
        with _writing(self.path):
            for name in _FOLDERS:
                refuse_link(self.path / name)
            self.samples.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)

    def begin(self, step: int, config: Config, log: Sequence[str] = DEFAULT, lines: Mapping[str, int] = {}) -> None:
        """Start to write after `step`. Drop lines and events of later steps, which a resumed run makes again.

        `log` names the loggers (`loggers.py`), some of which also record the configuration. `lines` is what `lines` has
        returned at the checkpoint of `step`: a warning says if a file has fewer. A second call goes back.
        """
        with _writing(self.path):
            if self._loggers is not None:
                self._loggers.close()
            kept, skipped = (
                _lines_up_to(path, step, parse, lines.get(path.name, 0), lost)
                for path, parse, lost in (
                    (self._metrics, record_of, "the report lacks the lost lines"),
                    (
                        self._skipped,
                        skipped_of,
                        "the images of lost lines count as good until they are found bad again",
                    ),
                )
            )
            self._loggers = Loggers(log, self.path, config, step + 1)
        self.last_validation = max((line["step"] for line in kept if line["split"] == "held_out"), default=-1)
        """Step of the last line about held-out images. -1 if there is none."""
        self.scores = {line["step"]: line["score"] for line in kept if line["split"] == "evaluation"}
        """Score of each evaluation so far, by step. Less is better."""
        self.skipped = {record["file"]: Skipped(**record) for record in skipped}
        """The bad images so far, by their files."""
        self._logged = len(kept)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line. Its `step` and `split` locate its values in the TensorBoard curves."""
        _append(self._metrics, record)
        self._logged += 1
        values = {f"{record['split']}/{name}": value for name, value in record.items() if name not in ("step", "split")}
        assert self._loggers is not None  # begin was called
        self._loggers.scalars(values, record["step"])

    def add_skipped(self, found: Iterable[Skipped]) -> None:
        """Append a line for each bad image whose file has none yet."""
        for bad in found:
            if bad.file in self.skipped:
                continue
            _append(self._skipped, asdict(bad))
            self.skipped[bad.file] = bad
            say_error(bad.sentence)

    def lines(self, step: int) -> dict[str, int]:
        """Return how many lines up to `step` each log has. All lines of metrics.jsonl are of steps so far.

        They are the same in equal runs, while the content and the order of the lines depend on the machine.
        """
        skipped = sum(bad.step <= step for bad in self.skipped.values())
        return {self._metrics.name: self._logged, self._skipped.name: skipped}

    def add_picture(self, path: Path, step: int) -> None:
        """Add the PNG at `path` to the loggers."""
        assert self._loggers is not None
        with Image.open(path) as picture:
            self._loggers.picture("samples", np.asarray(picture), step)

    def add_observation(self, observation: Observation) -> None:
        """Add the quantities of a report to the loggers: histograms, pictures, and the sentences."""
        step, loggers = observation.step, self._loggers
        assert loggers is not None
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

    def keep_bad_step(self, step: int, record: dict[str, Any]) -> Path:
        """Write what is known about a step that made weights which are not finite, and return the file's path."""
        path = self.path / "bad_steps" / f"step-{step:08d}.json"
        with _writing(self.path):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, json.dumps({"step": step, **record}, indent=1).encode() + b"\n", alone=True)
        return path

    def sync(self) -> None:
        """Bring all lines and events to the disk. Raises OSError."""
        if self._loggers is not None:
            self._loggers.flush()
        for path in (self._metrics, self._skipped):
            with contextlib.suppress(FileNotFoundError):  # nothing was logged yet
                sync(path)

    def close(self) -> None:
        """Close the files, so that another process can train in the folder."""
        if self._loggers is not None:
            self._loggers.close()
        if self._lock is not None:
            give_up_reserve(self.checkpoints)
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

    The file ends with its own checksum.
    Raises ConfigError if it cannot be written.
    """
    text = signed({"data": data, "config": to_dict(config)}, indent=2)
    with _writing(run):
        write_whole(run / "config.json", text, alone=True)


def read_config(path: Path) -> tuple[str, Config]:
    """Return the data set's name and the configuration that `write_config` wrote to `path`.

    A record of an older version keeps its meaning. Raises ConfigError if the file is missing, is not such a record, or
    is not what its checksum says. A record without a checksum was changed on purpose, or is of an older version.
    """
    try:
        record = unsigned(read_regular(path, _LARGEST_RECORD), indent=2)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; expected the config.json of a run folder") from error
    except ChangedError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError also for what is no text
        raise ConfigError(f"{path}: not readable as JSON ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(record, dict) or set(record) != {"data", "config"}:
        raise ConfigError(f'{path}: expected an object with "data" and "config", as a run folder has it')
    try:
        if not isinstance(record["data"], str):
            raise ConfigError(f"data: expected the name of a data set, found {type(record['data']).__name__}")
        return record["data"], from_record(record["config"])
    except RecursionError as error:
        raise ConfigError(f"{path}: expected settings, found a value inside hundreds of others") from error
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
    lock = append_to(run / ".lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"--run-dir {run}: another process is training in it; wait for its end, or stop it") from None
    except OSError:  # some clusters' file systems have no locks: train without one
        pass
    return lock


def _append(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a log, with its checksum. Raises OSError, and then appends nothing."""
    with append_to(path, buffering=0) as file:
        end, line = file.tell(), signed_line(record)
        try:
            if file.write(line) < len(line):  # the disk has become full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)  # else the next line would begin in the middle of one
            raise


def _lines_up_to(path: Path, step: int, parse: Parse, least: int, lost: str) -> list[dict[str, Any]]:
    """Drop the lines of a log after `step`, and return the records of the others.

    A killed process may have left lines of later steps, and an incomplete line. Lines that are no records, or out of
    order, are dropped too. Then a warning says so, and the former file is kept. A warning also says if less than
    `least` lines are there. It ends with `lost`, which says what that means.
    """
    try:
        data = read_regular(path, _LARGEST_LOG)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    lines = list(io.BytesIO(data))  # a "\r" alone is no end of a line
    found = find_lines(lines, parse)
    kept = {number: record for number, record in found.records.items() if record["step"] <= step}
    if len(kept) + len(found.strange) < least:  # a kill cuts off no line that a checkpoint has counted
        found.strange.extend(found.cut)
    wrong = []
    if found.wrong:
        copy = path.with_name(f"{path.stem}.damaged.jsonl")
        write_whole(copy, data, alone=True)
        wrong.append(f"{found.wrong} and dropped; the file is kept as {copy.name}")
    if len(kept) + len(found.strange) < least:
        wrong.append(f"expected {least} line{'s' * (least != 1)} up to step {step}, found {len(kept)}")
    if wrong:
        say_error(f"warning: {path}: {'; '.join((*wrong, lost))}")
    whole = b"".join(as_written(lines[number - 1]) for number in kept)
    if whole != data:
        write_whole(path, whole, alone=True)
    return list(kept.values())
