"""Samples memory, open files, threads and disk of a training of 2,000 steps, and fails if something grows.

    python bench/endurance.py [--steps 2000] [--folder DIR] [options of vologan_fast.train]

The training is a process of its own, with tiny networks on the demo data. It validates, judges, draws, writes the
report, TensorBoard and checkpoints every 50 steps, so that a leak in any of them shows. It ends with a table:

- memory without the pages of files (RssAnon of /proc), the median of the samples since the row before;
- open files and threads, the most since the row before;
- disk, in all and without the logs and pictures, which grow with the run by design (`train --dry-run` says how much);
- files that were left in the folder for temporary files.

The exit code is 1 if something else grew from the second quarter of the steps to the last one: open files, threads or
left files at all, disk by more than 1 %, or memory by more than `SLACK`. In the first quarter, much is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vologan_fast.data.demo import make_demo

OPTIONS = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --train.log-every 10 --train.validate-every 50
    --train.save-every 50 --train.report-every 50 --train.keep-checkpoints 2 --train.evaluate-every 50
    --generator.width 4 --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8
    --discriminator.down-widths 4 4 8 --discriminator.attention matrix --log tensorboard
""")
ROWS = 8
SLACK = 0.03
"""Growth of memory that counts as none. An allocator keeps some memory that is free, now more and now less."""
GROWING = ("metrics.jsonl", "samples", "tensorboard", "report")
"""The beginnings of the names of logs and pictures in a run folder."""


@dataclass(frozen=True)
class Sample:
    step: int
    memory: int
    handles: int
    threads: int
    disk: int
    fixed_disk: int
    left: int


@dataclass(frozen=True)
class Row:
    """The samples up to a step, in short."""

    step: int
    samples: int
    memory: float
    handles: int
    threads: int
    disk: int
    fixed_disk: int
    left: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="keeps the run; default: a folder that is removed")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        data = make_demo(folder / "data", count=20, size=32)
        rows = summary(watch(folder, data, arguments.steps, options), arguments.steps)
    print_table(rows)
    found = grown(rows)
    print(f"grew: {', '.join(found)}" if found else "nothing grew")
    return 1 if found else 0


def watch(folder: Path, data: Path, steps: int, options: Sequence[str]) -> list[Sample]:
    """Train in a process, and sample it until it ends."""
    run, temporary = folder / "run", folder / "temporary"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "vologan_fast.train", *OPTIONS, "--run-dir", str(run), "--data", str(data)]
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    samples = []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--max-steps", str(steps), *options], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):  # the process has ended, or a file was replaced
                samples.append(sample(process.pid, run, temporary))
            time.sleep(0.25)
    if process.returncode != 0:
        sys.exit((folder / "log").read_text())
    return samples


def sample(pid: int, run: Path, temporary: Path) -> Sample:
    process = Path(f"/proc/{pid}")
    memory = next(line for line in (process / "status").read_text().splitlines() if line.startswith("RssAnon"))
    sizes = {path.relative_to(run): size_of(path) for path in run.rglob("*") if path.is_file()}
    return Sample(
        last_step(run / "metrics.jsonl"),
        1024 * int(memory.split()[1]),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
        sum(sizes.values()),
        sum(size for path, size in sizes.items() if not path.parts[0].lstrip(".").startswith(GROWING)),
        len(list(temporary.rglob("*"))),
    )


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was replaced in the meantime
        return 0


def last_step(log: Path) -> int:
    if not log.exists():
        return 0
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 10_000))
        lines = [line for line in stream.read().split(b"\n")[:-1] if line.startswith(b"{")]
    return max((json.loads(line)["step"] for line in lines), default=0)


def summary(samples: Sequence[Sample], steps: int) -> list[Row]:
    rows = []
    for number in range(ROWS):
        first, last = steps * number // ROWS, steps * (number + 1) // ROWS
        mine = [s for s in samples if max(first, 1) <= s.step <= last]
        rows.append(
            Row(
                last,
                len(mine),
                statistics.median(s.memory for s in mine),
                max(s.handles for s in mine),
                max(s.threads for s in mine),
                mine[-1].disk,
                max(s.fixed_disk for s in mine),
                mine[-1].left,
            )
        )
    return rows


def grown(rows: Sequence[Row]) -> list[str]:
    """Return the names of what is more in the last quarter than in the second one, in which all has been used."""
    early, late = rows[len(rows) // 4 : len(rows) // 2], rows[-len(rows) // 4 :]
    names = []
    for name, slack in (("memory", SLACK), ("handles", 0.0), ("threads", 0.0), ("fixed_disk", 0.01), ("left", 0.0)):
        before, after = (max(getattr(row, name) for row in some) for some in (early, late))
        if after > before * (1 + slack):
            names.append(f"{name} from {before:,.0f} to {after:,.0f}")
    return names


def print_table(rows: Sequence[Row]) -> None:
    print("| up to step | samples | memory, MB | open files | threads | disk, MB | without logs, MB | left files |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.step:,} | {row.samples} | {row.memory / 1e6:.1f} | {row.handles} | {row.threads} "
            f"| {row.disk / 1e6:.2f} | {row.fixed_disk / 1e6:.2f} | {row.left} |"
        )


if __name__ == "__main__":
    sys.exit(main())
