"""The fixture `record`, which keeps what a benchmark measures, and the table at the end.

pytest bench/kernels                       prints the table
pytest bench/kernels --rows FILE           also appends each row to FILE at once, as `on_gpu.sh` needs it
pytest bench/kernels --prepare             compiles what the benchmarks need, and times nothing
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import collect

OUT_OF_MEMORY = "out of memory"


class Recorder:
    """Keeps the rows of this process. It is a plugin, so pytest tells it about every test."""

    def __init__(self, path: Path | None, preparing: bool) -> None:
        self.preparing = preparing
        """Whether a benchmark should only compile. Then nothing is kept."""
        self.rows: list[collect.Json] = []
        self._path = path
        self._test = ""
        self._session: pytest.Session

    def __call__(self, benchmark: str, case: str, side: str, **numbers: object) -> None:
        """Keep numbers of a side. The first call of a test may have none: then a failure is known to be the side's."""
        self._add({"test": self._test, "benchmark": benchmark, "case": case, "side": side, **numbers})

    def _add(self, row: collect.Json) -> None:
        if self.preparing:
            return
        self.rows.append(row)
        if self._path:
            collect.append(self._path, row)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported has a row, too."""
        if report.outcome != "passed" and report.nodeid:
            self._add({"test": report.nodeid, "result": report.outcome, "why": reason(report)})

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._session = session
        for item in session.items:
            self._add({"test": item.nodeid, "planned": True})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid
        self._add({"test": nodeid, "result": "started"})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            row = {"test": report.nodeid, "result": report.outcome, "seconds": round(report.duration, 2)}
            if report.outcome != "passed":
                row["why"] = reason(report)
            self._add(row)
            if report.outcome == "failed":
                # Python keeps the last traceback, and with it the memory of a test.
                sys.last_value = sys.last_traceback = sys.last_exc = None  # type: ignore[attr-defined]
                if row["why"] == OUT_OF_MEMORY or not gpu_works():
                    self._session.shouldstop = row["why"]  # on_gpu.sh goes on in a new process

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for case in collect.cases(collect.lines(row for row in self.rows if "planned" not in row)):
            terminalreporter.write_line(f"{case[0]['benchmark']}: {case[0]['case']}")
            for line in case:
                terminalreporter.write_line(f"    {collect.sentence(line)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="append each row of measurements to this file")
    parser.addoption("--prepare", action="store_true", help="compile what the benchmarks need, and time nothing")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--rows")
    config.pluginmanager.register(Recorder(path, config.getoption("--prepare")), "recorder")
    config.addinivalue_line("filterwarnings", "error:.*Triton cannot compile")
    if path:  # on_gpu.sh started this process, which must not use the GPU any longer than it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.environ.get("VOLOGAN_ON_GPU", str(os.getppid())) != str(os.getppid()):  # it has ended before
            os._exit(1)


@pytest.fixture(autouse=True)
def ours_is_ours() -> None:
    """Let Triton try again in each test. If it cannot compile, ours is plain PyTorch, and its time must not count.

    The package warns once in a process, and this warning is an error here (`pytest_configure`).
    """
    if dispatch := sys.modules.get("vologan_kernels.dispatch"):
        dispatch._given_up = False  # type: ignore[attr-defined]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Recorder:
    """Return a function that keeps numbers of a side: record(benchmark, case, side, microseconds=…)."""
    return request.config.pluginmanager.get_plugin("recorder")


def reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return one line that says why a test failed or was skipped."""
    if isinstance(report.longrepr, tuple):  # path, line, reason of a skip
        return report.longrepr[2].removeprefix("Skipped: ")[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = (crash.message if crash else str(report.longrepr)).strip()
    line = text.splitlines()[0] if crash else text.splitlines()[-1].removeprefix("E").strip()
    return OUT_OF_MEMORY if "out of memory" in line.lower() else f"FAILED: {line[:300]}"


def gpu_works() -> bool:
    """Return whether the GPU can be used in this process. After a fault of a kernel, it cannot."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
