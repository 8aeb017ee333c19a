"""The logs of a stranger's run hold anything: a report shows the records in them, and leaves out the rest."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from vologan_fast.config import PRESETS
from vologan_fast.report import figures, sections
from vologan_fast.report.page import embedded
from vologan_fast.report.record import RunRecord, Table, read_lines, read_tables

SOUND = {
    "train": {
        "step": 9,
        "split": "train",
        "epoch": 0,
        "generator_st/cycle": 0.5,
        "seconds": 0.1,
        "learning_rate": 1e-4,
    },
    "held_out": {"step": 9, "split": "held_out", "generator_st/cycle": 0.5, "peak_memory_bytes": 10},
    "evaluation": {"step": 9, "split": "evaluation", "score": 0.25, "images_per_second": 2.5},
}
STRANGE: list[Any] = [
    None, True, -1, 0, 10**18, 10**400, -(10**400), 1e308, -1e308, float("nan"), float("inf"), "", "train", "</script>",
    "\x1b[31m", "\ud800", [], [1], {}, {"step": 1}, [[]] * 3,
]  # fmt: skip


def mutated(random_: random.Random, step: int) -> bytes:
    """Return a line of a log about a step, with some values, names or bytes that no training writes."""
    record: dict[str, Any] = {**random_.choice(list(SOUND.values())), "step": step}
    for _ in range(random_.randint(0, 3)):
        record[random_.choice([*record, "score", "seconds", "a/b", "\ud800", "</script>"])] = random_.choice(STRANGE)
    if random_.random() < 0.2:
        record.pop(random_.choice(list(record)))
    line = bytearray(json.dumps(record).encode())
    if random_.random() < 0.1:
        line[random_.randrange(len(line))] = random_.randrange(256)
    return bytes(line).replace(b"\n", b" ")


def test_no_line_ends_a_report(tmp_path: Path) -> None:
    random_, kept = random.Random(0), 0
    for _ in range(1000):
        sound = [json.dumps(record).encode() for record in SOUND.values()]
        strange = [mutated(random_, step) for step in range(5)] + [
            b"[" * 100_000,
            b"9" * 5000,
            b'{"step": ' + b"9" * 5000 + b"}",
        ]
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*strange, *sound]) + b"\n")
        lines = read_lines(tmp_path / "metrics.jsonl")
        assert lines[-3:] == list(SOUND.values())
        kept += len(lines) - 3
        record = RunRecord("run", tmp_path, "data", PRESETS["demo"], lines, [], [3], 3, [])
        assert sections.duration(record.training_seconds)
        for line in lines:
            assert f"{line['step']:,} {line.get('score', 0):.3f} {line.get('images_per_second', 0):.1f}"
        for section in (sections._curves(record), sections._overlaid([record, record])):
            assert section is not None
            for part in section.parts:
                assert embedded(part.figures)
        assert figures.curves(lines, figures.fields(lines, ""), "all")
    assert 500 < kept < 4500  # some are still records


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_regular_files_are_read(tmp_path: Path, make: Any) -> None:
    for name in ("evaluation.md", "evaluation.json"):  # with the latter, the former is not read
        make(tmp_path / name)
        for read in (lambda: read_lines(tmp_path / name), lambda: read_tables(tmp_path)):  # noqa: B023  at once
            with pytest.raises(OSError, match="not a regular file"):
                read()


def test_a_strangers_tables_are_tables_or_left_out(tmp_path: Path) -> None:
    table = {"title": "a", "columns": ["b", "c"], "rows": [["d", "e"], []]}
    for found in ([table], [table, table]):
        (tmp_path / "evaluation.json").write_text(json.dumps({"tables": found}))
        assert read_tables(tmp_path) == len(found) * [Table("a", ["b", "c"], [["d", "e"], []])]
    for strange in STRANGE[1:]:
        for found in (strange, [strange], *([table | {name: strange}] for name in table)):
            (tmp_path / "evaluation.json").write_text(json.dumps({"tables": found}))
            for of in read_tables(tmp_path):
                assert all(isinstance(text, str) for row in ([of.title], of.header, *of.rows) for text in row)
