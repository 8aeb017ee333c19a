"""Starts commands and kills them (-9): just before a file operation, or after some time.

Importing torch takes longer than a small job. So a server process imports once what a command needs, and each start is
a fork of it. From there on, the process is what `python -m MODULE ARGUMENTS` makes.

    with Killer("vologan_fast.translate", folder) as killer:
        whole = killer.run(arguments)                         # to its end: its code is 0
        killer.run(arguments, operation=17)                   # its code is KILLED
        killer.run(arguments, seconds=0.3)                    # the same, unless it ends before
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import random
import select
import signal
import sqlite3.dbapi2
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

KILLED = -signal.SIGKILL
_OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime"}
"""Python's audit events of file operations. Those with a descriptor instead of a path are not known by their folder."""
_COUNTER = 8  # bytes


class Ended(NamedTuple):
    """How a start of the command ended."""

    code: int
    operations: int
    """File operations in the folder, and statements of SQLite, until then."""
    changes: list[int]
    """The numbers of those that may change a file. Empty if the command was killed."""
    seconds: float
    said: str


class Killer:
    """A command whose starts can be killed. Close it at the end."""

    def __init__(self, module: str, folder: Path, prelude: str = "") -> None:
        """`folder` is where operations are counted. `prelude` is Python that the server runs first."""
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115  closed by close
        self._server = subprocess.Popen(
            [sys.executable, __file__, module, str(folder), prelude],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def run(self, arguments: Sequence[object], *, operation: int | None = None, seconds: float | None = None) -> Ended:
        """Start the command, and wait until it has ended or was killed."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._said.truncate(0)
        request = {"arguments": [str(word) for word in arguments], "operation": operation, "seconds": seconds}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        assert answer, said
        return Ended(*json.loads(answer), said)

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()
        self._said.close()

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def moments(whole: Ended, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` file operations of `whole`, and as many random times, in random order.

    The operations are those that may change a file, evenly spread. If there are fewer than `count`, others are added.
    If there are fewer than `count` in all, some come more than once.
    """
    rng = random.Random(seed)
    operations = list(whole.changes)
    others = sorted({*range(1, whole.operations + 1)}.difference(operations))
    operations += rng.sample(others, min(max(count - len(operations), 0), len(others)))
    found: list[dict[str, Any]] = [{"operation": operations[i * len(operations) // count]} for i in range(count)]
    found += [{"seconds": rng.uniform(0, whole.seconds)} for _ in range(count)]
    rng.shuffle(found)
    return found


# The server


def _serve(module: str, folder: str) -> None:
    counter = mmap.mmap(-1, _COUNTER)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what commands print
    known = False
    for line in sys.stdin:
        request = json.loads(line)
        names, of_child = os.pipe()
        counter[:] = bytes(_COUNTER)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(names)
            changes: list[int] = []
            _count(folder, counter, changes, request["operation"])
            code = run_command(module, request["arguments"])
            with os.fdopen(of_child, "w") as file:
                json.dump({"changes": changes, "modules": list(sys.modules)}, file)
            os._exit(code)
        os.close(of_child)
        if request["seconds"] is not None:
            _kill_after(child, request["seconds"])
        with os.fdopen(names) as file:
            text = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        noted = json.loads(text) if code == 0 else {}  # a child may be killed while it writes
        seconds = time.monotonic() - began
        if not known and noted:  # later starts need not import them again
            known = True
            for name in noted["modules"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        operations = int.from_bytes(counter[:], "little")
        print(json.dumps([code, operations, noted.get("changes", []), seconds]), file=answers, flush=True)


def _count(folder: str, counter: mmap.mmap, changes: list[int], last: int | None) -> None:
    """Count the file operations of this process in the folder. Kill it just before the one with the number `last`."""
    process = os.getpid()

    def operation(change: bool) -> None:
        if os.getpid() != process:
            return
        number = int.from_bytes(counter[:], "little") + 1
        counter[:] = number.to_bytes(_COUNTER, "little")
        if change:
            changes.append(number)
        if number == last:
            os.kill(process, signal.SIGKILL)

    def statement(text: str) -> None:
        operation(not text.startswith(("SELECT", "PRAGMA")))

    def look(event: str, values: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and folder in str(values):
            flags = values[2] if event == "open" else os.O_WRONLY
            operation(bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connected(*arguments, **options)
        connection.set_trace_callback(statement)
        return connection

    sys.addaudithook(look)
    connected = sqlite3.connect
    sqlite3.dbapi2.connect = connect  # SQLAlchemy calls this one


def _kill_after(process: int, seconds: float) -> None:
    descriptor = os.pidfd_open(process)
    if not select.select([descriptor], [], [], seconds)[0]:
        os.kill(process, signal.SIGKILL)
    os.close(descriptor)


def run_command(module: str, arguments: Sequence[str]) -> int:
    """Run a command as `python -m` does, and return its exit code."""
    from vologan_fast import stopping

    sys.argv = [module, *arguments]
    try:
        stopping.run(importlib.import_module(module).main)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class Forked:
    """A stand-in for subprocess.Popen where the command is Python's: a fork, which imports nothing again."""

    def __init__(self, command: Sequence[str], *, stdout: Any, preexec_fn: Callable[[], None], **_: object) -> None:
        self.returncode: int | None = None
        self._process = os.fork()
        if self._process == 0:
            os.setsid()
            preexec_fn()
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)
            os._exit(run_command(command[2], command[3:]))

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._wait(0)

    def terminate(self) -> None:
        os.kill(self._process, signal.SIGTERM)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self._process, options)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode


if __name__ == "__main__":
    exec(sys.argv[3])
    _serve(sys.argv[1], sys.argv[2])
