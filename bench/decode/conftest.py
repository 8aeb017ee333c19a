"""A table of the decode benchmarks, printed at the end of the test run."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

Rates = dict[str, dict[str, tuple[float, float]]]
RATES = pytest.StashKey[Rates]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATES] = {}


@pytest.fixture
def rates(request: pytest.FixtureRequest) -> Rates:
    """Return the table to fill: workload → decoder → (median, fastest) seconds per image."""
    return request.config.stash[RATES]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rates = config.stash[RATES]
    if not rates:
        return
    write = terminalreporter.write_line
    terminalreporter.section("decode to float32, one core, file in the page cache")
    write(f"{_processor()}; median and fastest round; × is fastest over ours")
    write("")
    write(f"{'':34}{'decoder':16}{'median ms':>10}{'fastest ms':>11}{'images/s':>10}{'×':>7}")
    for workload, rows in rates.items():
        ours = rows.get("vologan_fast")
        for name, (median, fastest) in rows.items():
            ratio = f"{fastest / ours[1]:7.2f}" if ours else ""
            write(f"{workload:34}{name:16}{1e3 * median:10.3f}{1e3 * fastest:11.3f}{1 / median:10.0f}{ratio}")
