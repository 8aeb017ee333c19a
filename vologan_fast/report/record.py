"""The records of a run that a report shows beside what its networks do: log, grids and the table of `evaluate`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vologan_fast.config import Config

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of texts with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says without its networks."""

    name: str
    """The folder's name."""
    path: Path
    data: str
    """The name of the data set."""
    config: Config
    lines: Lines
    """The lines of metrics.jsonl."""
    grids: Sequence[tuple[int, Path]]
    """Step and file of each grid of held-out images, lowest step first."""
    steps: Sequence[int]
    """Steps of the checkpoints, lowest first."""
    best: int | None
    """Step of the checkpoint that is linked as the best."""
    tables: Sequence[Table]
    """The tables that `python -m vologan_fast.evaluate` has written."""
    skipped: Lines = ()
    """The lines of skipped.jsonl: the bad images that others replaced."""

    def of(self, split: str) -> Lines:
        """Return the lines of a split: "train", "held_out" or "evaluation"."""
        return [line for line in self.lines if line["split"] == split]

    @property
    def training_seconds(self) -> float:
        """Time that the steps took, with the validations in between, without pauses between processes."""
        total, last = 0.0, 0
        for line in self.of("train"):
            seconds = line.get("seconds", 0.0)
            total += (seconds if math.isfinite(seconds) else 0.0) * max(line["step"] - last, 0)
            last = line["step"]
        return total


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics.jsonl. A run may be writing its last line. [] without the file."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return list(_records(text))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl as `read_lines`, without values that are no numbers."""
    return [
        {name: value for name, value in line.items() if name == "split" or isinstance(value, (int, float))}
        for line in read_lines(path)
    ]


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("split"), str):
            yield record


def find_grids(folder: Path) -> list[tuple[int, Path]]:
    """Return step and file of the grids in a run's folder `samples`, lowest step first."""
    found = [(re.fullmatch(r"step-(\d+)", path.stem), path) for path in folder.glob("step-*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)


def read_tables(path: Path) -> list[Table]:
    """Return the tables in a Markdown file that `evaluate` wrote. [] without the file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    tables: list[Table] = []
    title, rows = "", []
    for line in [*lines, ""]:
        if line.startswith("#"):
            title = line.lstrip("# ")
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
        elif rows:
            tables.append(Table(title, rows[0], rows[2:]))
            rows = []
    return tables
