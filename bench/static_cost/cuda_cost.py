"""Static costs of each compiled kernel of csrc, without a GPU: registers, stack, spills, shared memory.

    python bench/static_cost/cuda_cost.py [--write | --check]

Compiles every .cu file of csrc alone for several GPU generations and prints a table. --write keeps it as
cuda_table.json beside this file. --check compares with it. It ends with 1, and gives the reason, if a kernel spills,
uses the stack, or is worse than in cuda_table.json. Needs nvcc, which is looked for in $PATH and in /usr/local/cuda.

`shared` is the shared memory that a kernel declares. A launch adds the bytes that its chunks need.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a", "100", "120")
SLACK = 8
"""Registers that another version of the compiler may add."""
TABLE = Path(__file__).with_name("cuda_table.json")


@dataclass(frozen=True)
class Row:
    kernel: str
    file: str
    arch: str
    registers: int
    stack: int
    spills: int
    """Bytes stored and loaded."""
    shared: int


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def rows_of(nvcc: str, source: Path, arch: str) -> Iterator[Row]:
    include = ROOT / "csrc"
    command = [nvcc, "-std=c++20", f"-I{include}", f"-I{include / 'depth'}", "-Xptxas", "-v", "-cubin"]
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    said = subprocess.run([*command, target, "-o", "/dev/null", source], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise SystemExit(f"{source.relative_to(ROOT)}, sm_{arch}: nvcc failed:\n{said.stdout}{said.stderr}")
    for entry in said.stderr.split("Compiling entry function ")[1:]:
        yield Row(
            kernel=number(r"'\w*?\d([a-z_]+_kernel)E", entry),
            file=str(source.relative_to(ROOT)),
            arch=arch,
            registers=int(number(r"Used (\d+) registers", entry)),
            stack=int(number(r"(\d+) bytes stack frame", entry)),
            spills=int(number(r"(\d+) bytes spill stores", entry)) + int(number(r"(\d+) bytes spill loads", entry)),
            shared=int(number(r"(\d+) bytes smem", entry, "0")),
        )


def number(pattern: str, text: str, absent: str | None = None) -> str:
    found = re.search(pattern, text)
    if found is None and absent is None:
        raise RuntimeError(f"ptxas did not say {pattern!r}: {text}")
    return absent or "" if found is None else found[1]


def complaints(rows: list[Row], before: list[Row]) -> list[str]:
    """The faults of `rows`, and the places where they are worse than `before`."""
    kept = {(row.kernel, row.arch): row for row in before}
    found = []
    for row in rows:
        old = kept.pop((row.kernel, row.arch), None)
        name = f"{row.kernel}, sm_{row.arch}"
        if row.stack or row.spills:
            found.append(f"{name}: {row.stack} bytes of stack and {row.spills} of spills, expected none")
        if old is None:
            found.append(f"{name}: not in {TABLE.name}; write it anew")
            continue
        if row.registers > old.registers + SLACK:
            found.append(f"{name}: {row.registers} registers, {old.registers} in {TABLE.name}")
        if row.shared > old.shared:
            found.append(f"{name}: {row.shared} bytes of shared memory, {old.shared} in {TABLE.name}")
    found += [f"{kernel}, sm_{arch}: in {TABLE.name}, but no longer compiled" for kernel, arch in kept]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help=f"keep the table as {TABLE.name}")
    action.add_argument("--check", action="store_true", help=f"compare with {TABLE.name}")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        parser.error("no nvcc in $PATH or /usr/local/cuda/bin")
    print(f"{'kernel':23} {'sm':>4} {'registers':>9} {'stack':>5} {'spills':>6} {'shared':>6}")
    rows = []
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        for arch in ARCHITECTURES:
            for row in rows_of(nvcc, source, arch):
                rows.append(row)
                print(
                    f"{row.kernel:23} {row.arch:>4} {row.registers:9} {row.stack:5} {row.spills:6} {row.shared:6}",
                    flush=True,
                )
    if arguments.write:
        TABLE.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")
    if arguments.check:
        found = complaints(rows, [Row(**row) for row in json.loads(TABLE.read_text())])
        print("\n".join(found), file=sys.stderr)
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
