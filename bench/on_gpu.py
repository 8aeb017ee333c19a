"""The plan of `on_gpu.sh`: what is measured in which order, for how long, and what happens if a part fails.

The first run on a machine has eight minutes and empty caches. So:

- the most telling parts come first. What takes minutes to compile comes last: max-autotune;
- what only compiles (`--prepare`) and what only tests runs in several processes at once, before anything is measured.
  While something is measured, nothing else runs;
- a part is a process of pytest. If a test crashes, hangs, takes all memory or breaks the GPU's context, the rest of the
  part goes on in a new process. A test that takes longer than its limit is killed, and so is a part;
- every row is on disk as soon as it is known, and the result is written anew after each. So whatever ends the run, also
  `kill -9`, leaves a table. What was not measured has a row that says why.

The result has the times as `collect.py` shows them. This file does not import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import collect

ROOT = Path(__file__).absolute().parents[1]
SECONDS = 480
"""Time of a whole run. Killing the last part and writing the result takes some seconds more."""
BUILD = 80.0
"""The most that building the native parts takes, in seconds."""
START = 45.0
"""The most that a process takes before its first test, in seconds: it imports torch."""
POLL = 0.2
"""Seconds between two looks at the running processes."""
NORM = "bench/kernels/test_instance_norm.py"
LOSSES = [f"bench/kernels/test_{name}.py" for name in ("losses", "nadam", "spectral_norm", "windowed_ssim")]


@dataclass(frozen=True)
class Part:
    """Tests that one process of pytest runs, or several, if some of them end it."""

    name: str
    arguments: Sequence[str]
    """Files, node ids and options of pytest."""
    seconds: float
    """The most that the part takes."""
    a_test: float = 45.0
    """The most that one test takes."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def tests(self) -> bool:
        """Whether it tests, and is no benchmark."""
        return self.arguments[0].startswith("tests/")

    @property
    def measures(self) -> bool:
        return "--prepare" not in self.arguments and not self.tests


def step(*pairs: int, sides: Sequence[str]) -> list[str]:
    """The node ids of training steps."""
    return [f"bench/step/test_step.py::test_step[vologan-512-{n}-{side}]" for n in pairs for side in sides]


def prepare(name: str, *arguments: str, seconds: float = 80.0) -> Part:
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # of each process; the machine has 16 cores
    return Part(f"prepare {name}", [*arguments, "--prepare"], seconds, seconds, threads)


EAGER = "ours-not-compiled", "eager-bf16", "eager-fp32"
COMPILED = "ours", "compile"
NORM_TESTS = "(channels_last and bfloat16) or graph"
NOT_COMPILED = "not test_model and not compile and not one-launch"
TESTS = [f"tests/kernels/test_{name}.py" for name in ("pixel_loss", "adversarial_loss", "nadam", "spectral_norm")]

PLAN: list[list[Part]] = [
    [  # at once; the native parts are built at the same time
        Part("tests of the norm", ["tests/kernels/test_instance_norm.py", "-m", "gpu", "-k", NORM_TESTS], 80),
        Part("tests of the other kernels", [*TESTS, "-m", "gpu", "-k", "not float16 or bfloat16"], 80),
        prepare("norm 1", NORM, "-k", "not test_model and ours and not one-launch and [1x"),
        prepare("norm 4", NORM, "-k", "not test_model and ours and not one-launch and [4x"),
        prepare("step", *step(4, 1, 8, sides=EAGER[:1])),
        *(prepare(f"{side}, step {n}", *step(n, sides=[side])) for n in (4, 1) for side in COMPILED),
        prepare("compiled norm", NORM, "-k", "not test_model and compile"),
        prepare("kernels 1", *LOSSES[:2]),
        prepare("kernels 2", *LOSSES[2:]),
        Part("model of the norm 1", [NORM, "-k", "test_model and [1x"], 80),
        Part("model of the norm 4", [NORM, "-k", "test_model and [4x"], 80),
    ],
    [Part("norm", [NORM, "-k", NOT_COMPILED], 60, a_test=15)],
    [Part("step 4", step(4, sides=EAGER), 80)],
    [Part("compiled step 4", step(4, sides=COMPILED), 80, a_test=60)],
    [Part("step 1", step(1, sides=EAGER), 60)],
    [Part("compiled step 1", step(1, sides=COMPILED), 80, a_test=60)],
    [Part("compiled norm", [NORM, "-k", "not test_model and compile"], 30, a_test=15)],
    [Part("step 8", step(8, sides=EAGER), 80)],
    [Part("kept images", ["bench/loader/test_resident.py"], 40)],
    [Part("depth decoder", ["bench/decode/test_gpu_decode.py"], 30)],
    [Part("norm in one launch", [NORM, "-k", "not test_model and one-launch"], 50, a_test=12)],
    [Part("step, CUDA graph", step(1, 4, sides=["ours-CUDA-graph"]), 50)],
    [Part("kernels", LOSSES, 50)],
    [prepare(f"{side}, step 8", *step(8, sides=[side])) for side in COMPILED],
    [Part("compiled step 8", step(8, sides=COMPILED), 90, a_test=60)],
    [Part("depth decoder, CPU", ["bench/decode/test_decode.py"], 30)],
    [Part("largest batch", ["bench/step/test_largest_batch.py"], 60)],
    [Part("max-autotune", step(4, sides=["compile-max-autotune"]), 240, a_test=240)],
]
"""Parts in a list run at once. The lists run one after the other."""


class Run:
    """A run of the plan: its time, its folder of rows, and its result."""

    def __init__(self, plan: list[list[Part]], seconds: float, results: Path, rehearsal: bool, folder: Path) -> None:
        self.plan, self.rehearsal, self.folder, self.results = plan, rehearsal, folder, results
        self.deadline = time.monotonic() + seconds
        self._caches = _caches(folder)
        self.parts: dict[str, dict[str, Any]] = {
            part.name: {"name": part.name, "result": "not reached", "seconds": 0.0} for wave in plan for part in wave
        }
        self.about: dict[str, Any] = {}
        self.name: Path | None = None
        """The result without its suffix, once it has a name."""
        self._lock = threading.RLock()  # a signal may come while the result is written, and then it is written again
        self._ended = False
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._written = -1

    # ---- the run ----------------------------------------------------------------------------------------------------

    def __call__(self) -> bool:
        """Run all parts. Returns whether none failed."""
        self.about = self._environment()
        try:
            self.name = self._new_name()
            self.write()
        except OSError as error:
            sys.exit(f"bench/on_gpu.sh: {self.results}: the result cannot be written: {error}")
        # The native parts are built beside the first list, but not beside something that is measured.
        alone = not self.plan or any(part.measures for part in self.plan[0])
        for i, wave in enumerate([[], *self.plan] if alone else self.plan):
            with ThreadPoolExecutor(min(len(wave) + 1, max(2, len(os.sched_getaffinity(0))))) as pool:
                jobs = [pool.submit(self._build)] if i == 0 else []
                jobs += [pool.submit(self._part, part) for part in wave]
                while not all(job.done() for job in jobs):
                    time.sleep(POLL)
                    self.write_if_new()
            names = ["build"] * (i == 0) + [part.name for part in wave]
            for name, job in zip(names, jobs, strict=True):
                if error := job.exception():
                    self.parts[name]["result"] = f"FAILED: {error!r}"
            if len(wave) == 1 and wave[0].measures:
                self.parts[wave[0].name]["clocks"] = collect.clocks(self.about.get("GPU", ""))
            self.try_to_write()
        return not any("failed" in part["result"] or "FAILED" in part["result"] for part in self.parts.values())

    def _environment(self) -> dict[str, Any]:
        needed = ["torch", "numpy", "pytest", "pytest_benchmark", *([] if self.rehearsal else ["triton"])]
        missing = [name.replace("_", "-") for name in needed if find_spec(name) is None]
        if missing:
            sys.exit(f"bench/on_gpu.sh: {sys.executable} lacks {', '.join(missing)}; $PYTHON names another interpreter")
        code = "import collect, json; print(json.dumps(collect.environment()))"
        try:
            asked = _said(sys.executable, "-c", code)
        except subprocess.TimeoutExpired:
            sys.exit("bench/on_gpu.sh: `import torch` does not end here")
        if asked.returncode:
            why = asked.stderr.strip().splitlines() or [f"status {asked.returncode}"]
            sys.exit(f"bench/on_gpu.sh: torch cannot be used here: {why[-1]}")
        found = json.loads(asked.stdout.splitlines()[-1])
        if self.rehearsal:
            return {**found, "device": "rehearsal", "note": "a CPU and small tensors: the times mean nothing"}
        if found["device"] == "CPU":
            sys.exit("bench/on_gpu.sh: torch finds no CUDA device here; expected one, or --rehearse")
        return found

    def _part(self, part: Part) -> None:
        """Run the tests of a part, in a new process after each that ended one."""
        began, rows, asked = time.monotonic(), self.rows_of(part), list(part.arguments)
        ends = min(began + part.seconds, self.deadline)
        note = self.parts[part.name]
        while asked and time.monotonic() < ends:
            before = len(collect.read(rows))
            why = self._process(part, asked, ends)
            new = collect.read(rows)[before:]
            planned = [row["test"] for row in new if row.get("planned")]
            started = {row["test"] for row in new if row.get("result") == "started"}
            ended = {row["test"] for row in new if row.get("result") not in (None, "started")}
            if not part.measures:
                note["result"] = why or _last_line(self.log_of(part.name))
                break
            for test in started - ended:
                collect.append(rows, {"test": test, "result": "failed", "why": why or "did not end"})
            if not planned and not ended:
                note["result"] = why or "no tests"
            asked = [test for test in planned if test not in started]
        note["seconds"] = round(time.monotonic() - began, 1)
        if part.measures:
            self._count(part)

    def _process(self, part: Part, tests: Sequence[str], ends: float) -> str:
        """Run pytest once. Returns "" if it ended by itself and well, else one line."""
        rows = self.rows_of(part)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        if not part.tests:
            command += ["--rows", str(rows)]
        elif self.rehearsal:
            command.append("--collect-only")
        stuck = part.a_test if part.measures else part.seconds
        status, why = self._command(part.name, command, ends, self._variables(part), rows, stuck)
        if why or status == 0:
            return why
        if status == 5:
            return "nothing to run here"
        if status < 0:
            return f"FAILED: ended by {signal.Signals(-status).name}" + (" (no memory?)" if status == -9 else "")
        return f"FAILED, status {status}: {_last_line(self.log_of(part.name))}"

    def _command(
        self, name: str, command: list[str], ends: float, variables: dict[str, str], rows: Path, stuck: float
    ) -> tuple[int, str]:
        """Run a command until it ends, or must be stopped. Returns its status, and why it was stopped.

        It is stopped at `ends`, or if nothing is added to `rows` for `stuck` seconds, or for `START` at its beginning.
        """
        with self.log_of(name).open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
        self._processes.add(process)
        if self._ended:
            self._kill(process)
        began = since = time.monotonic()
        before, limit = rows.stat().st_size if rows.exists() else 0, max(stuck, START)
        try:
            while process.poll() is None:
                time.sleep(POLL)
                now = time.monotonic()
                if rows.exists() and rows.stat().st_size != before:
                    before, since, limit = rows.stat().st_size, now, stuck
                if now > ends:
                    return 0, f"stopped after {now - began:.0f} s"
                if now - since > limit:
                    return 0, f"stopped: nothing happened for {limit:.0f} s"
        finally:
            self._kill(process)
        return process.returncode, ""

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """End the process with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold it
            process.wait(10)
        self._processes.discard(process)

    def end(self) -> None:
        """End all processes, and write what has been measured so far. Then the caller must end this process."""
        self._ended = True
        for process in list(self._processes):
            self._kill(process)
        if self.name:
            self.try_to_write()
            print(f"bench/on_gpu.sh: stopped by a signal; {self.name}.md has what was measured", file=sys.stderr)

    def _variables(self, part: Part) -> dict[str, str]:
        """Return the environment of a part."""
        common = {"VOLOGAN_ON_GPU": str(os.getpid()), **self._caches}
        ours = {"TORCH_COMPILE_DISABLE": "1", "VOLOGAN_REHEARSAL": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **common, **part.environment, **(ours if self.rehearsal else {})}

    def _count(self, part: Part) -> None:
        """Say how the tests of a part ended."""
        ends = {row["test"]: row for row in collect.read(self.rows_of(part)) if "result" in row or "planned" in row}
        results = [row.get("result", "not reached") for row in ends.values()]
        if results:
            kinds = dict.fromkeys(results)
            self.parts[part.name]["result"] = ", ".join(f"{results.count(kind)} {kind}" for kind in kinds)

    def _build(self) -> None:
        """Build the native parts, unless they are there. What needs them fails without them."""
        began, note = time.monotonic(), {"name": "build", "result": "not reached", "seconds": 0.0}
        self.parts = {"build": note, **self.parts}
        if _said(sys.executable, "-c", "import vologan_fast.depth").returncode == 0:
            note["result"] = "was there"
            return
        build, log = self.folder / "build", self.log_of("build")
        pybind11 = _said(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
        settings = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
        settings += [] if self.rehearsal else ["-DCMAKE_CUDA_ARCHITECTURES=native"]
        settings += ["-G", "Ninja"] if shutil.which("ninja") else []
        # CMake looks for nvcc in $PATH. CUDA's packages do not add their folder to it.
        variables = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])}
        note["result"] = "done"
        for command in (
            ["cmake", "-S", ".", "-B", str(build), *settings],
            ["cmake", "--build", str(build), "--parallel"],
            ["cmake", "--install", str(build), "--prefix", "."],
        ):
            ends = min(began + BUILD, self.deadline)
            try:
                status, why = self._command("build", command, ends, variables, log, BUILD)
            except OSError as error:  # no cmake
                status, why = 1, str(error)
            if status or why:
                note["result"] = f"cannot be built here: {why or _last_line(log)}"
                break
        note["seconds"] = round(time.monotonic() - began, 1)

    # ---- the result -------------------------------------------------------------------------------------------------

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def rows_of(self, part: Part) -> Path:
        return self.folder / f"{part.name}.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all parts. A part that has none yet has a row for each test that it names."""
        found = []
        for part in (part for wave in self.plan for part in wave):
            rows = collect.read(self.rows_of(part))
            if not rows and part.measures:
                named = [argument for argument in part.arguments if "::" in argument] or [f"part {part.name!r}"]
                rows = [{"test": test, "planned": True} for test in named]
            found += rows
        return found

    def _new_name(self) -> Path:
        """Take a name that no other run has, also none that runs at the same time. No result is overwritten."""
        self.results.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.+-]", "-", f"{self.about['device']}-{self.about['commit']}")
        for number in itertools.count(1):
            path = self.results / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                Path(f"{path}.json").touch(exist_ok=False)
                return path
        raise AssertionError

    def write_if_new(self) -> None:
        """Write the result if there is a new row."""
        size = sum(path.stat().st_size for path in self.folder.glob("*.jsonl"))
        if size == self._written:
            return
        self._written = size
        self.try_to_write()

    def try_to_write(self) -> None:
        """Write the result, or print why it cannot be written. A full disk is no reason to stop measuring."""
        try:
            self.write()
        except OSError as error:
            print(f"bench/on_gpu.sh: {self.name}: the result cannot be written now: {error}", file=sys.stderr)
        except Exception:
            traceback.print_exc()

    def write(self) -> None:
        with self._lock:
            collect.write(self.name, self.about, list(self.parts.values()), self.rows())

    def table(self) -> str:
        return collect.table(self.about, list(self.parts.values()), self.rows())


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def _caches(folder: Path) -> dict[str, str]:
    """Return a variable that gives Triton a cache in `folder` if it cannot write to its own. Without one, it fails."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111 Path's fails for a user with no home
    own = Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))
    with contextlib.suppress(OSError):
        own.mkdir(parents=True, exist_ok=True)
    return {} if os.access(own, os.W_OK) else {"TRITON_CACHE_DIR": str(folder / "triton")}


def _last_line(log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    found = [line for line in text.splitlines() if line.strip()]
    return found[-1][:200] if found else ""


def arguments() -> argparse.Namespace:
    names = ", ".join(part.name for wave in PLAN for part in wave)
    parser = argparse.ArgumentParser(
        prog="bench/on_gpu.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"parts: {names}",
    )
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "bench/results", help="of the result")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time of the run; by default {SECONDS}")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run only these parts")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the output of all parts there")
    parser.add_argument("--rehearse", action="store_true", help="run on a CPU with small tensors, to try the plan")
    found = parser.parse_args()
    if not found.seconds > 0:
        parser.error(f"--seconds {found.seconds}: expected more than 0")
    known = {part.name for wave in PLAN for part in wave}
    for name in found.only or ():
        if name not in known:
            parser.error(f"--only: {name!r} is no part; expected some of {names}")
    return found


def main() -> int:
    options = arguments()
    plan = [[part for part in wave if not options.only or part.name in options.only] for wave in PLAN]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    results, logs = options.folder.absolute(), options.logs and options.logs.absolute()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = logs or Path(temporary)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"bench/on_gpu.sh: --logs {options.logs}: the folder cannot be made: {error}")
        if list(folder.glob("*.jsonl")):
            sys.exit(f"bench/on_gpu.sh: --logs {options.logs}: expected a folder without the rows of another run")
        run = Run([wave for wave in plan if wave], options.seconds, results, options.rehearse, folder)

        def stop(*_: object) -> None:
            try:
                run.end()
                shutil.rmtree(temporary, ignore_errors=True)
            finally:
                os._exit(1)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        well = run()
        print(run.table())
        print(f"{run.name}.json\n{run.name}.md")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
