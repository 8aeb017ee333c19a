"""The records of a run that a report shows beside what its networks do: log, grids and the table of `evaluate`."""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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

    [] without the file. A run may be writing its last line. If other lines are no records, or out of order, `say` gets
    a warning. Raises OSError, also for what is no regular file.
    """
    found = FoundLines()
    with contextlib.suppress(FileNotFoundError):
        found = find_lines(lines_of(path), parse)
    if found.wrong:
        say(f"warning: {path}: {found.wrong} and left out")
    return list(found.records.values())


@dataclass(frozen=True)
class FoundLines:
    """The lines of a log, by their numbers."""

    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    strange: list[int] = field(default_factory=list)
    """Those that are no records."""
    misplaced: list[int] = field(default_factory=list)
    """Those that are records, in a place where training has not written them."""
    cut: list[int] = field(default_factory=list)
    """The last one, if it is no record and has no end. A process may be writing it, or was killed."""

    @property
    def wrong(self) -> str:
        """The beginning of a sentence about lines that training has not written so. Empty if there are none."""
        parts = [no_records(self.strange)] if self.strange else []
        if len(self.misplaced) == 1:
            parts.append(f"line {self.misplaced[0]} is out of order")
        elif self.misplaced:
            parts.append(f"{len(self.misplaced)} lines, from line {self.misplaced[0]} on, are out of order")
        return ", ".join(parts)


def find_lines(lines: Iterable[bytes], parse: Parse) -> FoundLines:
    """Return what the lines of a metrics.jsonl hold. For a skipped.jsonl, `parse` is `skipped_of`.

    The steps of a split rise from line to line of a metrics.jsonl. If lines were exchanged, or stand there twice, as
    few as possible count as misplaced.
    """
    found = FoundLines()
    for number, line in enumerate(lines, 1):
        if (record := parse(line)) is not None:
            found.records[number] = record
        else:
            (found.strange if line.endswith(b"\n") else found.cut).append(number)
    if parse is record_of:  # several images may be found bad at one step
        of_splits: defaultdict[str, list[int]] = defaultdict(list)
        for number, record in found.records.items():
            of_splits[record["split"]].append(number)
        for numbers in of_splits.values():
            rising = _rising([found.records[number]["step"] for number in numbers])
            found.misplaced.extend(number for place, number in enumerate(numbers) if place not in rising)
        found.misplaced.sort()
        for number in found.misplaced:
            del found.records[number]
    return found


def _rising(steps: Sequence[int]) -> set[int]:
    """Return the places of as many steps as possible that rise from one to the next."""
    lowest: list[int] = []  # lowest[n]: the lowest step that n others can lead up to
    at: list[int] = []  # its place
    before: list[int] = []  # for each place, that of the step before it
    for place, step in enumerate(steps):
        length = bisect_left(lowest, step)
        lowest[length : length + 1], at[length : length + 1] = [step], [place]
        before.append(at[length - 1] if length else -1)
    rising: set[int] = set()
    place = at[-1] if at else -1
    while place >= 0:
        rising.add(place)
        place = before[place]
    return rising


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
