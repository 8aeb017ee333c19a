"""Rows of measurements, the ratios between them, and the table: what `on_gpu.sh` leaves behind.

A *row* is a line of JSON in a file that several processes append to. A row is written as soon as its numbers are known,
so whatever ends a process takes no row with it. There are three kinds:

    {"test": …, "planned": true}                                     a benchmark will run
    {"test": …, "benchmark": …, "case": …, "side": …, NAME: number}  one side of a comparison, or a part of its numbers
    {"test": …, "result": "passed", "why": …, "seconds": …}          the test has ended, or was ended

`lines` puts together what belongs to a side. The ratios compare the sides of a case in one file, which comes from one
run on one machine. `write` replaces the JSON file and the table as a whole, so a reader never finds half a file.

    python bench/collect.py RESULT.json      prints the table of a result

The JSON file has the keys `environment`, `parts` and `rows`. Nothing here imports torch, except `environment`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Json = dict[str, Any]

UNITS = {"microseconds": "µs", "milliseconds": "ms", "milliseconds_a_pair": "ms a pair"}
"""Names of a side's time → units. A side has one of them."""
REFERENCE = "eager fp32"
"""The side whose losses the others are compared with."""
KEYS = "test", "planned", "benchmark", "case", "side", "result", "why", "seconds"


# ---- the file of rows -----------------------------------------------------------------------------------------------


def append(path: Path, row: Json) -> None:
    """Add a row to the file, in one write. Processes that append at the same time do not mix their lines."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Json]:
    """Return all rows of the file. A row that was not finished is left out, with what a full disk appended to it."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        with contextlib.suppress(json.JSONDecodeError):
            if line.endswith("\n") and isinstance(row := json.loads(line), dict):
                found.append(row)
    return found


# ---- sides, ratios and losses ---------------------------------------------------------------------------------------


def lines(rows: Iterable[Json]) -> list[Json]:
    """Return one dict for each side: all its numbers, and `why` it has no time.

    A test that ended without naming a side has a line of its own, unless it passed.
    """
    sides: dict[tuple[str, str, str], Json] = {}
    named: dict[str, list[Json]] = {}
    ends: dict[str, Json] = {}
    for row in rows:
        test = row["test"]
        if "benchmark" in row:
            line = sides.setdefault((row["benchmark"], row["case"], row["side"]), {})
            line |= {name: value for name, value in row.items() if name != "test"}
            if not any(line is other for other in named.setdefault(test, [])):
                named[test].append(line)
        else:
            ends[test] = row
    for test, end in ends.items():
        if end.get("result") == "passed":
            continue
        why = end.get("why") or ("did not end" if end.get("result") == "started" else "not reached")
        nameless = {"benchmark": "not measured", "case": test, "side": ""}
        for line in named.get(test) or [sides.setdefault(("not measured", test, ""), nameless)]:
            if time_of(line) is None:
                line.setdefault("why", why)
    return list(sides.values())


def cases(sides: Iterable[Json]) -> list[list[Json]]:
    """Return the sides of each case, in the order in which the cases began. Each side gets its ratio and the floor.

    The ratio is over the side "ours". Without a time of it, it is over the first side whose name begins with "ours".
    """
    found: dict[tuple[str, str], list[Json]] = {}
    for line in sides:
        found.setdefault((line["benchmark"], line["case"]), []).append(line)
    for case in found.values():
        timed = {line["side"]: time for line in case if (time := time_of(line)) is not None}
        base = "ours" if "ours" in timed else next((side for side in timed if side.startswith("ours")), None)
        floor = next((line["floor_microseconds"] for line in case if "floor_microseconds" in line), None)
        for line in case:
            if floor:
                line["floor_microseconds"] = floor
            if base and line["side"] in timed and timed[base] > 0:
                line["ratio"] = round(timed[line["side"]] / timed[base], 3)
        _compare_losses(case)
    return list(found.values())


def case_of(rows: Iterable[Json], benchmark: str, case: str) -> list[Json]:
    """Return the sides of one case."""
    rows = [row for row in rows if (row.get("benchmark"), row.get("case")) == (benchmark, case)]
    return [line for found in cases(lines(rows)) for line in found]


def slug(side: str) -> str:
    """Return the name of a side as it stands in the id of a test."""
    return side.replace(", ", "-").replace(" ", "-")


def time_of(line: Json) -> float | None:
    return next((line[name] for name in UNITS if line.get(name) is not None), None)


def _compare_losses(case: list[Json]) -> None:
    """Give each side the largest relative difference of its losses, in the first step and later.

    A side beyond its tolerance computes something else. It loses its time and ratio.
    """
    truth = next((line["losses"] for line in case if line["side"] == REFERENCE and "losses" in line), None)
    for line in case:
        if "losses" not in line:
            continue
        if truth is None:
            line["losses_differ"] = "not compared"
            continue
        differ = [
            max(abs(a - b) / abs(a) for a, b in zip(*step, strict=True))
            for step in zip(truth, line["losses"], strict=True)
        ]
        line["losses_differ"] = [float(f"{x:.1e}") for x in differ]
        first, later = line["tolerance"]
        if not (differ[0] < first and max(differ) < later):  # nan, too
            line["why"] = f"WRONG: losses differ by {max(differ):.1e}"
            line.pop("ratio", None)


# ---- the table ------------------------------------------------------------------------------------------------------


def words(name: str) -> str:
    return name.replace("_", " ")


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return " ".join(f"{name} {shown(number)}" for name, number in value.items())
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


COLUMNS = ("side", "time", "× ours", "host µs", "modelled µs", "of copy", "peak MiB", "")
IN_COLUMNS = {"ratio", "host_microseconds", "modelled_microseconds", "floor_microseconds", "peak_mebibytes"}
HIDDEN = {"losses", "tolerance", *KEYS, *UNITS, *IN_COLUMNS}


def cells(line: Json) -> list[str]:
    """Return the cells of a side, as `COLUMNS` names them."""
    unit = next((name for name in UNITS if line.get(name) is not None), None)
    floor = line.get("floor_microseconds")
    share = f"{100 * floor / line['microseconds']:.0f} %" if floor and unit == "microseconds" else ""
    notes = [f"{words(name)} {shown(value)}" for name, value in line.items() if name not in HIDDEN]
    if (unit is None and not notes) or str(line.get("why", "")).startswith("WRONG"):
        notes.insert(0, line.get("why", "not measured"))
    return [
        line["side"],
        f"{shown(float(line[unit]))} {UNITS[unit]}" if unit else "",
        shown(line.get("ratio")),
        shown(line.get("host_microseconds")),
        shown(line.get("modelled_microseconds")),
        share,
        shown(line.get("peak_mebibytes")),
        ", ".join(notes),
    ]


def sentence(line: Json) -> str:
    """Return the cells in one line, for a terminal."""
    side, time, ratio, host, model, share, peak, notes = cells(line)
    parts = (
        f"{side:24} {time:>12}",
        ratio and f"{ratio} × ours",
        host and f"host {host} µs",
        model and f"modelled {model} µs",
        share and f"{share} of a copy",
        peak and f"peak {peak} MiB",
        notes,
    )
    return "  ".join(filter(None, parts))


def table(about: Json, parts: list[Json], rows: Iterable[Json]) -> str:
    """Return the Markdown text."""
    text = [f"# {about.get('device', 'unknown')}, commit {about.get('commit', 'unknown')}", ""]
    text += [", ".join(f"{name} {shown(value)}" for name, value in about.items() if name not in ("device", "commit"))]
    text += ["", "| part | result | seconds | clocks after it |", "|---|---|---:|---|"]
    for part in parts:
        text.append(f"| {part['name']} | {part['result']} | {shown(part['seconds'])} | {part.get('clocks', '')} |")
    tables: dict[str, list[list[Json]]] = {}
    for case in cases(lines(rows)):
        tables.setdefault(case[0]["benchmark"], []).append(case)
    for benchmark, found in tables.items():
        text += ["", f"## {benchmark}", "", f"| case | {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * 6 + "---|"]
        for case in found:
            titles = [case[0]["case"], *[""] * (len(case) - 1)]
            for title, line in zip(titles, case, strict=True):
                text.append("| " + " | ".join([title, *(cell.replace("|", "/") for cell in cells(line))]) + " |")
    return "\n".join(text) + "\n"


def write(name: Path, about: Json, parts: list[Json], rows: list[Json]) -> None:
    """Write NAME.json and NAME.md, each as a whole."""
    found = [line for case in cases(lines(rows)) for line in case]
    together = {"environment": about, "parts": parts, "rows": found}
    for suffix, text in (
        ("json", json.dumps(together, indent=1, ensure_ascii=False, default=str) + "\n"),
        ("md", table(about, parts, rows)),
    ):
        new = Path(f"{name}.{suffix}.new")
        new.write_text(text)
        new.replace(f"{name}.{suffix}")


# ---- the machine ----------------------------------------------------------------------------------------------------


def output_of(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def asked(gpu: str, query: str) -> str:
    """Return what nvidia-smi says about a GPU, or "unknown". `gpu` is its name for nvidia-smi, or "" for the first.

    The first GPU of nvidia-smi is not torch's first one if CUDA_VISIBLE_DEVICES says so.
    """
    which = [f"--id={gpu}"] if gpu else []
    return output_of("nvidia-smi", *which, f"--query-gpu={query}", "--format=csv,noheader").partition("\n")[0]


def clocks(gpu: str) -> str:
    """Return the clocks of a GPU now, or "" where nvidia-smi is not there."""
    found = asked(gpu, "clocks.sm,clocks.mem,temperature.gpu,power.draw")
    return "" if found == "unknown" else found


def environment() -> Json:
    """Return the names and versions of what is measured, and of what measures."""
    import torch

    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "none"
    gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else ""
    driver = asked(gpu, "driver_version,clocks.max.sm,clocks.max.mem,power.limit")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "commit": os.environ.get("COMMIT") or output_of("git", "describe", "--always", "--dirty", "--exclude=*"),
        "GPU": gpu,
        "driver, greatest clocks and power": driver,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Triton": triton,
        "Python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python bench/collect.py RESULT.json", file=sys.stderr)
        return 2
    try:
        result = json.loads(Path(arguments[0]).read_text())
        text = table(result["environment"], result["parts"], [{"test": "", **row} for row in result["rows"]])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "expected a result of bench/on_gpu.sh"
        print(f"error: {arguments[0]}: {expected}, found {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
