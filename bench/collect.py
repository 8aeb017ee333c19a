"""Collect all results of `on_gpu.sh` in one JSON file and one table.

    python bench/collect.py PARTS FOLDER      writes FOLDER/GPU-COMMIT.json and .md, and prints the table

PARTS is a folder. Its file `parts` has a line "name status seconds" for each part. NAME.txt is the output of the part
NAME, and NAME.json its benchmarks, if it has any. The JSON file has the format of pytest-benchmark with the benchmarks
of all parts, so `pytest-benchmark compare` can read it. The keys `environment` and `parts` are added to this format.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Json = dict[str, Any]

UNITS = {"microseconds": "µs", "milliseconds": "ms", "milliseconds_a_pair": "ms a pair"}
"""Names of the sides' times in the benchmarks → units."""
RESULTS = {"0": "", "5": "what it needs is not installed", "124": "no time left", "137": "no time left"}
"""Exit statuses that are no failures → results."""


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> Json:
    on_gpu = torch.cuda.is_available()
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "commit": os.environ.get("COMMIT") or output_of("git", "describe", "--always", "--dirty", "--exclude=*"),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Triton": triton,
        "Python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def read_parts(folder: Path) -> Iterator[tuple[Json, Json]]:
    """Yield each part, and the JSON that pytest-benchmark saved for it, which may be empty."""
    for line in (folder / "parts").read_text().splitlines():
        name, status, seconds = line.split()
        text, saved = folder / f"{name}.txt", folder / f"{name}.json"
        counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)\b", text.read_text() if text.exists() else "")
        result = ", ".join(filter(None, [RESULTS.get(status, f"FAILED, status {status}"), *counts]))
        benchmarks = json.loads(saved.read_text()) if saved.exists() and saved.stat().st_size else {}
        yield {"name": name, "result": result or "done", "seconds": int(seconds)}, benchmarks


def rows(benchmark: Json) -> Iterator[tuple[str, str, str, str]]:
    """Yield for each side: its name, time, ratio to the side "ours", and other facts about it."""
    info = {name: value for name, value in benchmark["extra_info"].items() if name not in ("device", "ratios")}
    unit = next((name for name in UNITS if name in info), None)
    times = info.pop(unit) if unit else {}
    of_sides = {name: value for name, value in info.items() if isinstance(value, dict) and times.keys() & value.keys()}
    problems = info.pop("problems", {})
    for side, time in times.items():
        known = [f"{words(name)} {shown(values[side])}" for name, values in of_sides.items() if side in values]
        if side == "ours":
            known += [f"{words(name)} {shown(value)}" for name, value in info.items() if name not in of_sides]
        yield side, f"{shown(time)} {UNITS[unit]}", f"{time / times['ours']:.2f}", ", ".join(known)
    for side, problem in problems.items():
        yield side, "", "", problem
    if not times:
        median = f"{shown(1e3 * benchmark['stats']['median'])} ms"
        yield (
            info.pop("side", ""),
            median,
            "",
            ", ".join(f"{words(name)} {shown(value)}" for name, value in info.items()),
        )


def words(name: str) -> str:
    return name.replace("_", " ")


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {shown(number)}" for name, number in value.items())
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def table(about: Json, parts: list[Json], benchmarks: list[Json]) -> str:
    lines = [f"# {about['device']}, commit {about['commit']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in about.items() if name not in ("device", "commit")), ""]
    lines += ["| part | result | seconds |", "|---|---|---:|"]
    lines += [f"| {part['name']} | {part['result']} | {part['seconds']} |" for part in parts]
    lines += ["", "| benchmark | side | time | × ours | |", "|---|---|---:|---:|---|"]
    for benchmark in benchmarks:
        title = f"{benchmark['group'] or benchmark['fullname']}: {benchmark['param'] or benchmark['name']}"
        for row in rows(benchmark):
            lines.append(f"| {' | '.join([title, *row])} |")
            title = ""
    return "\n".join(lines) + "\n"


def main() -> None:
    folder, results = map(Path, sys.argv[1:])
    about, found = environment(), list(read_parts(folder))
    parts = [part for part, _ in found]
    saved = [of_part for _, of_part in found if of_part]
    benchmarks = [benchmark for of_part in saved for benchmark in of_part["benchmarks"]]
    for benchmark in benchmarks:
        benchmark["stats"].pop("data", None)  # the times of all rounds
    together = (saved[0] if saved else {}) | {"environment": about, "parts": parts, "benchmarks": benchmarks}
    results.mkdir(parents=True, exist_ok=True)
    name = results / f"{about['device']}-{about['commit']}".replace(" ", "-")
    text = table(about, parts, benchmarks)
    Path(f"{name}.json").write_text(json.dumps(together, indent=1, ensure_ascii=False) + "\n")
    Path(f"{name}.md").write_text(text)
    print(f"\n{text}\n{name}.json\n{name}.md")


if __name__ == "__main__":
    main()
