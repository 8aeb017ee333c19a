"""Measures how long a turn of the point clouds takes: `python bench/report_turns.py REPORT.html …`

Chromium opens the reports without a GPU, and a scripted mouse drags in each cloud. A turn is one move of the mouse,
until the page has painted it. The reports take turns, so whatever else the machine does slows all of them. Processor
time is the sum over all processes of Chromium. It depends less on the load of the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Browser, browser

PLACE = "document.querySelector('.clouds')"


def family(root: int) -> list[int]:
    """Return a process and all processes below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def processor_seconds(root: int) -> float:
    """Return the processor time of a process and of all below it."""
    ticks = 0
    for process in family(root):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def turns(page: Browser, report: Path, width: int, moves: int) -> tuple[list[float], float]:
    """Drag each scene of a report. Return the seconds of each move, and the processor seconds of all."""
    page.open(report, width)
    page.wait(f"!!{PLACE}?.querySelector('canvas')")
    page.run(f"{PLACE}.scrollIntoView({{block: 'center'}})")
    for _ in range(10):
        page.paint()
    left, top, wide, high = page.run(
        f"(({{left, top, width, height}}) => [left, top, width, height])({PLACE}.getBoundingClientRect())"
    )
    count = page.run(f"{PLACE}.querySelectorAll('canvas').length")
    seconds: list[float] = []
    began = processor_seconds(page.process)
    for scene in range(count):
        middle = (scene + 0.5) / count
        start = (left + wide * middle, top + high / 2) if width >= 700 else (left + wide / 2, top + high * middle)
        start = start[0], min(max(start[1], 10), 890)
        seconds += page.drag(start, (start[0] + 60, start[1] + 10), moves)
    return seconds, processor_seconds(page.process) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--moves", type=int, default=10, help="moves of the mouse in each scene")
    parser.add_argument("--width", type=int, default=1280, help="width of the window in pixels")
    options = parser.parse_args()
    found: dict[Path, list[tuple[list[float], float]]] = {report: [] for report in options.reports}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(Path(profile)) as page:
        for _ in range(options.rounds):
            for report, rounds in found.items():
                rounds.append(turns(page, report, options.width, options.moves))
    for report, rounds in found.items():
        seconds = sorted(1000 * second for moves, _ in rounds for second in moves)
        processor = statistics.median(1000 * used / len(moves) for moves, used in rounds)
        print(
            f"{report.name}: a turn takes {statistics.median(seconds):.0f} ms (median of {len(seconds)}, "
            f"90 % take at most {seconds[int(0.9 * (len(seconds) - 1))]:.0f} ms), {processor:.0f} ms of processor time"
        )


if __name__ == "__main__":
    main()
