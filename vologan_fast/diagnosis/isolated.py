"""Runs probes in processes of their own, which may crash or hang.

    python -m vologan_fast.diagnosis.isolated RUN_FOLDER PROBE …

runs the named probes one after the other. Each gives a line of JSON: the name of the probe, and its findings. If the
process ends before all of them, the first probe without a line is the one that ended it. Another process goes on behind
it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vologan_fast.diagnosis.finding import Finding
from vologan_fast.diagnosis.probes import PROBES
from vologan_fast.words import in_a_sentence, printable

SECONDS = 180.0
"""The most that all probes of a process take. Importing torch from a cold disk can take most of a minute."""


def findings(run_folder: Path, seconds: float = SECONDS) -> list[Finding]:
    """Return the findings of all probes, in their order. A probe that crashes or hangs gives a finding that says so."""
    found: list[Finding] = []
    left = list(PROBES)
    while left:
        lines, ended = _run(run_folder, left, seconds)
        for line in lines:
            found += [Finding(**fields) for fields in line["findings"]]
        left = left[len(lines) :]
        if left:  # the process has ended early
            probe = PROBES[left.pop(0)]
            found.append(Finding(probe.group, probe.name, "broken", ended, probe.advice, probe.needed))
    return found


def _run(run_folder: Path, names: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Run probes in a process. Return the lines of those that came to an end, and how the process ended."""
    command = [sys.executable, "-m", "vologan_fast.diagnosis.isolated", str(run_folder), *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        out, err = process.communicate(timeout=seconds)
        ended = f"ends its process with {_how(process.returncode)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # processes that it has started would keep the pipes open
        out, err = process.communicate()
        ended = f"does not come to an end within {seconds:.0f} s"
    except BaseException:  # a signal
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    said = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    lines = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
    return lines, f"{ended}: {printable(said[-1].strip())}"[:300] if said else ended


def _how(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"status {status}"
    except ValueError:
        return f"signal {-status}"


def _answers(run_folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        probe = PROBES[name]
        try:
            found = list(probe.look(run_folder))
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {in_a_sentence(error)}"
            found = [Finding(probe.group, probe.name, "broken", said, probe.advice, probe.needed)]
        yield {"probe": name, "findings": [dataclasses.asdict(finding) for finding in found]}


def main(arguments: Sequence[str]) -> None:
    """Run the probes that the command line names."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; the answers are alone in their pipe
    for answer in _answers(Path(arguments[0]), arguments[1:]):
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
