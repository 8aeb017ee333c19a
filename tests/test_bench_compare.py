"""bench/compare.py: what counts as slower, and that it finds a slowdown between two commits."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "compare.py"


@pytest.fixture
def compare(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return pytest.importorskip("compare")


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        ([1.2, 1.2, 1.2], "slower"),
        ([1.01, 1.3, 1.3], "slower"),
        ([0.99, 1.3, 1.3], ""),  # one round says otherwise
        ([1.1, 1.1, 1.1], ""),  # not beyond the threshold
        ([1.01, 1.09, 9.0], ""),  # one slow round is no slowdown
        ([0.9, 0.9, 0.9], "faster"),
        ([0.8, 0.8, 1.01], ""),
        ([0.95, 0.95, 0.95], ""),
        ([0.4, *[1.3] * 7], "slower"),  # 8 rounds, of which one was disturbed
        ([0.4, 0.4, *[1.3] * 6], ""),
    ],
)
def test_slower_by_the_median_and_the_whole_interval(compare, head, verdict):
    assert compare.Comparison([1.0] * len(head), head).verdict(0.1) == verdict


@pytest.mark.parametrize(("rounds", "k"), [(1, 1), (4, 1), (5, 1), (7, 1), (8, 2), (10, 2), (11, 3), (20, 6)])
def test_the_interval_is_the_sign_test_s(compare, rounds, k):
    """k from tables of the 90 % confidence interval of a median."""
    ratios = [float(i) for i in range(1, rounds + 1)]
    assert compare.Comparison([1.0] * rounds, ratios).interval == (k, rounds + 1 - k)


def test_ratios_are_those_of_a_round(compare):
    """A machine that is half as fast in one round changes nothing."""
    comparison = compare.Comparison([1.0, 2.0, 4.0], [1.2, 2.4, 4.8])
    assert comparison.ratios == pytest.approx([1.2, 1.2, 1.2])
    assert comparison.ratio == pytest.approx(1.2)


def test_what_one_side_lacks_is_named(compare):
    base = [{"a": 1.0, "old": 1.0, "flaky": 1.0}, {"a": 2.0, "old": 1.0}]
    head = [{"a": 3.0, "new": 1.0, "flaky": 1.0}, {"a": 4.0, "new": 1.0, "flaky": 1.0}]
    assert compare.comparisons(base, head) == {"a": compare.Comparison([1.0, 2.0], [3.0, 4.0])}
    assert compare.not_compared(base, head) == {
        "flaky": "not in every round",
        "new": "only in HEAD",
        "old": "only in BASE",
    }


def test_the_slowest_row_comes_first(compare):
    rows = {"b/quick": compare.Comparison([2e-3], [1e-3]), "b/slow": compare.Comparison([1e-3], [2e-3])}
    assert compare.table(rows, 0.1).splitlines() == [
        "          BASE ms   HEAD ms   ratio   interval",
        "b/slow      1.000     2.000   2.000   2.000 … 2.000  slower",
        "b/quick     2.000     1.000   0.500   0.500 … 0.500  faster",
    ]


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two commits: the second does half as much again in one of two benchmarks, and adds a third."""
    pytest.importorskip("pytest_benchmark")

    def commit(work: int, more: str = "") -> None:
        benchmark = (
            "def test_same(benchmark):\n    benchmark(sum, range(100_000))\n"
            f"def test_work(benchmark):\n    benchmark(sum, range({work}))\n{more}"
        )
        (tmp_path / "bench").mkdir(exist_ok=True)
        (tmp_path / "bench" / "test_sums.py").write_text(benchmark)
        git = "git", "-C", tmp_path, "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"
        subprocess.run([*git, "add", "bench"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", "work"], check=True)

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit(100_000)
    commit(150_000, "def test_new(benchmark):\n    benchmark(sum, range(10))\n")
    return tmp_path


def compare_commits(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = "--rounds", "4", "--threshold", "0.2"
    command = [sys.executable, SCRIPT, *options, *arguments, "--", "bench", "--benchmark-max-time=0.2"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_slowdown_is_found(repository):
    result = compare_commits(repository, "HEAD~1")
    assert result.returncode == 1, result.stdout + result.stderr
    verdicts = {line.split("::")[1].split()[0]: line.split()[-1] for line in result.stdout.splitlines() if "::" in line}
    assert verdicts["test_work"] == "slower", result.stdout
    assert verdicts["test_same"] != "slower", result.stdout
    assert "test_new: not compared, only in HEAD" in result.stdout
    assert "1 of 2 benchmarks are slower by more than 20%" in result.stdout


@pytest.mark.slow
def test_a_commit_is_not_slower_than_itself(repository):
    result = compare_commits(repository, "HEAD")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 of 3 benchmarks are slower" in result.stdout


def test_what_cannot_be_compared_is_said(repository):
    result = compare_commits(repository, "no-such-commit")
    assert result.returncode == 2
    assert result.stderr == "bench-compare: no-such-commit: expected a commit of this repository, found none\n"
