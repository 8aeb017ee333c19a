"""The records of a run that a report shows beside what its networks do: log, grids and the table of `evaluate`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vologan_fast.checksums import ChangedError, unsigned, unsigned_line
from vologan_fast.config import Config
from vologan_fast.files import LONGEST_LINE, lines_of, read_regular
from vologan_fast.words import say_error

Lines = Sequence[dict[str, Any]]
Parse = Callable[[bytes], dict[str, Any] | None]
"""Returns the record in a line of a log. None if there is none."""
MACHINE = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")
"""The fields of a log line that say how fast the machine was, and not what the networks do."""
_TEXTS = ("split", "domain", "file", "reason")
"""The fields of a record that are no numbers."""
_MOST = 2**62
_LARGEST_EVALUATION = 1 << 26
"""Bytes of the largest evaluation.json, or .md."""


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
            total += line.get("seconds", 0.0) * max(line["step"] - last, 0)
            last = line["step"]
        return total


def record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl. None for a line that no training can have written.

    So it is as its checksum says; lines of former versions have none. All values but a few texts are numbers that a
    float can hold, and the numbers of the machine are finite.
    """
    if len(line) > LONGEST_LINE:
        return None
    try:
        record = unsigned_line(line)
    except (ValueError, RecursionError):  # ValueError also for bytes that are no text, and for absurd numbers
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    if not all(isinstance(value, str) if name in _TEXTS else _is_number(value) for name, value in record.items()):
        return None
    if not all(0 <= record.get(name, 0) < _MOST for name in ("step", *MACHINE)):
        return None
    return record if "split" in record and (record["split"] != "evaluation" or "score" in record) else None


def skipped_of(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of skipped.jsonl, as `record_of` does. It has the fields of `Skipped`."""
    record = record_of(line)
    return record if record is not None and record.keys() == {"step", *_TEXTS} else None


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST)


def read_lines(path: Path, parse: Parse = record_of, say: Callable[[str], None] = say_error) -> list[dict[str, Any]]:
    """Return the records in the lines of a metrics.jsonl. For a skipped.jsonl, `parse` is `skipped_of`.

    [] without the file. A run may be writing its last line. If other lines are no records, `say` gets a warning. Raises
    OSError, also for what is no regular file.
    """
    records: list[dict[str, Any]] = []
    strange: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for number, line in enumerate(lines_of(path), 1):
            record = parse(line)
            if record is not None:
                records.append(record)
            elif line.endswith(b"\n"):
                strange.append(number)
    if strange:
        say(f"warning: {path}: {no_records(strange)} and left out")
    return records


def no_records(lines: Sequence[int]) -> str:
    """Return the beginning of a sentence about lines of a log that are no records, by their numbers."""
    if len(lines) == 1:
        return f"line {lines[0]} is no record"
    return f"{len(lines)} lines, from line {lines[0]} on, are no records"


def find_grids(folder: Path) -> list[tuple[int, Path]]:
    """Return step and file of the grids in a run's folder `samples`, lowest step first."""
    found = [(re.fullmatch(r"step-(\d+)", path.stem), path) for path in folder.glob("step-*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the record in the evaluation.json that `evaluate` wrote into a folder.

    {} without the file. For one that is not as its checksum says, a warning and {}. Raises OSError.
    """
    path = folder / "evaluation.json"
    try:
        found = unsigned(read_regular(path, _LARGEST_EVALUATION), indent=1)
    except FileNotFoundError:
        return {}
    except ChangedError as error:
        say_error(f"warning: {path}: {error}; it is not used")
        return {}
    except (ValueError, RecursionError) as error:
        say_error(f"warning: {path}: not readable as JSON ({error}); it is not used")
        return {}
    return found if isinstance(found, dict) else {}


def read_tables(folder: Path) -> list[Table]:
    """Return the tables that `evaluate` wrote into a folder. [] if there are none. Raises OSError."""
    found = read_evaluation(folder).get("tables")
    if found is None:
        return _tables_in_markdown(folder / "evaluation.md")
    return [Table(of["title"], of["columns"], of["rows"]) for of in found] if _are_tables(found) else []


def _are_tables(found: Any) -> bool:
    try:
        texts = [text for of in found for row in ([of["title"]], of["columns"], *of["rows"]) for text in row]
    except (TypeError, LookupError):
        return False
    return all(isinstance(text, str) for text in texts)


def _tables_in_markdown(path: Path) -> list[Table]:
    """Return the tables of a former version, which wrote none into evaluation.json."""
    try:
        lines = read_regular(path, _LARGEST_EVALUATION).decode(errors="replace").splitlines()
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
