"""The command `python -m vologan_fast.doctor`: what works on this machine, and why the rest does not.

    python -m vologan_fast.doctor
    python -m vologan_fast.doctor --run-dir /data/runs --json

It prints the versions, the processor, the GPUs, each compiled part with its instruction set, each fast path, and the
free memory and disk. What is off or broken has a reason, and what to do. The exit status is 0 if training can run here,
else 1. Only Python's own modules are imported here, since all others may be broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from vologan_fast import stopping
from vologan_fast.diagnosis.finding import Finding
from vologan_fast.diagnosis.isolated import findings
from vologan_fast.words import say_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vologan_fast.doctor", description="Say what works on this machine, and why the rest does not."
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder where run folders will be written")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    with stopping.interrupting():  # a signal ends the processes of the probes, too
        found = findings(arguments.run_dir)
    against = [finding for finding in found if finding.prevents_training]
    if arguments.json:
        say_lines(json.dumps({"can_train": not against, "findings": [dataclasses.asdict(f) for f in found]}, indent=2))
    else:
        say_lines("\n".join(report(found)))
    return 1 if against else 0


def report(found: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of the report."""
    width = max(len(finding.name) for finding in found)
    for group, of_group in groupby(found, key=lambda finding: finding.group):
        yield group
        for finding in of_group:
            advice = f" → {finding.advice}" if finding.advice else ""
            yield f"  {finding.name:{width}}  {finding.state:6}  {finding.found}{advice}"
        yield ""
    against = [finding.name for finding in found if finding.prevents_training]
    yield f"training cannot run here: {', '.join(against)}" if against else "training can run here"


if __name__ == "__main__":
    stopping.run(main)
