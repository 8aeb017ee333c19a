"""A run folder: everything that a training run writes.

config.json         what ran: the whole configuration, with everything that was chosen automatically
metrics.jsonl       one JSON object a logged step
tensorboard/        the same numbers and the grids as TensorBoard events
samples/            step-########.png
checkpoints/        step-########/ (see checkpoint.py)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vologan_fast.config import Config, ConfigError, from_dict, to_dict


class RunFolder:
    """Writes a run's files. Lines and events of steps after `step` are dropped: a resumed run makes them again."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.samples.mkdir(parents=True, exist_ok=True)
        self._metrics = path / "metrics.jsonl"
        _drop_lines_after(self._metrics, step)
        self._events = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1)

    def log(self, record: dict[str, Any]) -> None:
        """Append one line; its `step` and `split` name the point of the TensorBoard curves."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("step", "split"):
                self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def add_picture(self, path: Path, step: int) -> None:
        """Show the PNG at `path` in TensorBoard."""
        import numpy as np
        from PIL import Image

        self._events.add_image("samples", np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


def write_config(run: Path, data: str, config: Config) -> None:
    """Record the data set's name (data.absolute) and the configuration in `run`/config.json, atomically."""
    text = json.dumps({"data": data, "config": to_dict(config)}, indent=2)
    partial = run / "config.json.partial"
    with partial.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(run / "config.json")


def read_config(path: Path) -> tuple[str, Config]:
    """The data set's name and the configuration that `write_config` recorded. Raises ConfigError."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; expected the config.json of a run folder") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(record, dict) or set(record) != {"data", "config"}:
        raise ConfigError(f'{path}: expected an object with "data" and "config", as a run folder has it')
    try:
        return str(record["data"]), from_dict(record["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the complete lines of `path` up to `step`: a killed process may have left more, and half a line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] <= step and line.endswith("\n"):
            kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    partial.rename(path)
