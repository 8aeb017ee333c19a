"""Compares the benchmarks of two commits: `make bench-compare BASE=COMMIT`, or `python bench/compare.py COMMIT`.

Each commit is unpacked and built below build/compare/, in a Python environment of its own. That borrows the packages of
the environment that runs this script. Changes that are not committed are not measured. Then pytest runs the benchmarks
of both commits in turn, several rounds, each time in a new process: what disturbs the machine meets both.

A round gives one ratio per benchmark: the fastest time of HEAD over the fastest time of BASE. Others who use the
machine slow down medians more than the fastest time. The table shows the median of these ratios, and an interval that
holds the true median with a probability of at least 90 %, whatever the noise is like. It reaches from the k-th least to
the k-th greatest ratio (the sign test's interval). For the 8 rounds of the default k is 2, which means 93 %: one round
that was disturbed does not count. Fewer than 5 rounds give less than 90 %.

A benchmark is slower if its median ratio is above 1 + threshold and its whole interval is above 1. Exit code: 0 if no
benchmark is slower, 1 if one is, 2 if the comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import site
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Times = dict[str, float]
"""Benchmark → its fastest time in one run, in seconds."""


class CannotCompareError(Exception):
    """One sentence that says why."""


@dataclass(frozen=True)
class Comparison:
    """One benchmark: its fastest times in each round, in seconds, equally many of both commits."""

    base: Sequence[float]
    head: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """HEAD over BASE of each round; above 1 where HEAD is slower."""
        return [head / base for base, head in zip(self.base, self.head, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """From the k-th least to the k-th greatest ratio; the largest k that still means 90 %."""
        ratios, k = sorted(self.ratios), 1
        while 2 * sum(math.comb(len(ratios), i) for i in range(k + 1)) <= 0.1 * 2 ** len(ratios):
            k += 1
        return ratios[k - 1], ratios[-k]

    def verdict(self, threshold: float) -> str:
        """ "slower", "faster" or "", by the rule at the top of this file; `threshold` 0.1 is 10 %."""
        if self.ratio > 1 + threshold and self.interval[0] > 1:
            return "slower"
        if self.ratio < 1 / (1 + threshold) and self.interval[1] < 1:
            return "faster"
        return ""


def comparisons(base: Sequence[Times], head: Sequence[Times]) -> dict[str, Comparison]:
    """The benchmarks that every round of both commits has; `base` and `head` hold one entry a round."""
    common = [name for name in base[0] if all(name in times for times in (*base, *head))]
    return {name: Comparison([times[name] for times in base], [times[name] for times in head]) for name in common}


def not_compared(base: Sequence[Times], head: Sequence[Times]) -> dict[str, str]:
    """The other benchmarks, each with the reason."""
    in_base, in_head = ({name for times in side for name in times} for side in (base, head))
    reasons = dict.fromkeys(in_base - in_head, "only in BASE") | dict.fromkeys(in_head - in_base, "only in HEAD")
    for name in (in_base & in_head) - comparisons(base, head).keys():
        reasons[name] = "not in every round"
    return dict(sorted(reasons.items()))


def table(rows: Mapping[str, Comparison], threshold: float) -> str:
    """The rows as text, slowest first."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}   BASE ms   HEAD ms   ratio   interval"]
    for name, row in sorted(rows.items(), key=lambda item: -item[1].ratio):
        times = "".join(f"{1e3 * statistics.median(side):10.3f}" for side in (row.base, row.head))
        spread = "{:.3f} … {:.3f}".format(*row.interval)
        lines.append(f"{name:{width}}{times}{row.ratio:8.3f}   {spread}  {row.verdict(threshold)}".rstrip())
    return "\n".join(lines)


def git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CannotCompareError(f"git {arguments[0]}: {result.stderr.strip()}")
    return result.stdout.strip()


def resolve(name: str) -> str:
    """The full hash of a commit."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except CannotCompareError:
        raise CannotCompareError(f"{name}: expected a commit of this repository, found none") from None


def run(command: Sequence[str | Path], folder: Path, what: str, sound: Sequence[int] = (0,)) -> None:
    """Raises CannotCompareError, with the end of what the command printed, unless it ends with a code of `sound`."""
    programs = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}"  # the build's cmake and ninja
    # pytest-benchmark measures nothing in a worker of pytest-xdist, where the tests of this script run.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    environment = {**ours, "PATH": programs}
    result = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode not in sound:
        raise CannotCompareError(f"{what} failed with {result.returncode}:\n{result.stdout[-4000:]}")


@dataclass(frozen=True)
class Side:
    """A commit, unpacked and built."""

    commit: str
    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @classmethod
    def build(cls, commit: str, folder: Path) -> Side:
        """Built once: a finished folder is taken as it is."""
        side, finished = cls(commit, folder), folder / "finished"
        if finished.exists():
            return side
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        git("archive", f"--output={folder / 'source.tar'}", commit)
        shutil.unpack_archive(folder / "source.tar", side.source)
        venv.create(folder / "venv", with_pip=False)
        # A path in a .pth file adds packages, but runs no .pth files: not those that install this checkout, editable.
        packages = next(folder.glob("venv/lib/python*/site-packages"))
        (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", side.python]
        install = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable"]
        for project in (side.source / "kernels", side.source):
            if (project / "pyproject.toml").exists():
                run([*install, project], folder, f"building {commit[:12]}")
        finished.touch()
        return side

    def times(self, arguments: Sequence[str]) -> Times:
        """Runs the benchmarks once; none where pytest finds none."""
        results = self.folder / "times.json"
        results.unlink(missing_ok=True)
        options = ["-q", "-p", "no:cacheprovider", f"--rootdir={self.source}", f"--benchmark-json={results}"]
        what = f"the benchmarks of {self.commit[:12]}"
        run([self.python, "-m", "pytest", *options, *arguments], self.source, what, sound=(0, 5))
        if not results.exists() or not results.stat().st_size:
            return {}
        return {row["fullname"]: row["stats"]["min"] for row in json.loads(results.read_text())["benchmarks"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        usage="compare.py [options] BASE [-- arguments of pytest]",
        description="Compares the benchmarks of two commits. Behind --: paths and options of pytest; "
        "by default bench/decode bench/kernels bench/step.",
    )
    parser.add_argument("base", metavar="BASE", help="the commit to compare with")
    parser.add_argument("--head", default="HEAD", help="the commit to judge; by default HEAD")
    parser.add_argument("--rounds", type=int, default=8, help="runs of either commit; by default 8")
    parser.add_argument(
        "--threshold", type=float, default=0.1, help="slower by more fails; by default 0.1, which is 10 %%"
    )
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    arguments = sys.argv[end + 1 :] or ["bench/decode", "bench/kernels", "bench/step"]
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {options.rounds}")
    if not options.threshold >= 0:  # nan, too
        parser.error(f"--threshold: expected at least 0, found {options.threshold}")
    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        os.chdir(top)  # git archives the folder where it stands
        # Real images, which the benchmarks look for beside the checkout.
        os.environ.setdefault("VOLOGAN_TEST_DATA", str(top.parent / "shared" / "data"))
        sides = []
        for name in (options.base, options.head):
            commit = resolve(name)
            print(f"building {name}, {commit[:12]}", flush=True)
            sides.append(Side.build(commit, top / "build" / "compare" / commit[:12]))
        times: tuple[list[Times], list[Times]] = ([], [])
        for i in range(options.rounds):
            print(f"round {i + 1} of {options.rounds}", flush=True)
            for k in (0, 1) if i % 2 == 0 else (1, 0):  # whoever runs first does not do so every time
                times[k].append(sides[k].times(arguments))
        rows = comparisons(*times)
        if not rows:
            raise CannotCompareError(f"no benchmark of {' '.join(arguments)} is in both commits")
    except CannotCompareError as problem:
        print(f"bench-compare: {problem}", file=sys.stderr)
        return 2
    print(table(rows, options.threshold))
    for name, reason in not_compared(*times).items():
        print(f"{name}: not compared, {reason}")
    slower = [name for name, row in rows.items() if row.verdict(options.threshold) == "slower"]
    print(f"{len(slower)} of {len(rows)} benchmarks are slower by more than {options.threshold:.0%}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
