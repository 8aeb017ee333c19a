"""A rank that is stopped (SIGSTOP) is named, and ends the run within a bounded time. The run then resumes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from test_train import ONE_THREAD, TINY, resume, wait_for_the_first_step

from vologan_fast.data.demo import make_demo
from vologan_fast.training import heartbeat

RUN = """
import os, pathlib, sys
from vologan_fast import stopping, train
from vologan_fast.training import heartbeat
folder, named, lost, *arguments = sys.argv[1:]
heartbeat.NAMED_AFTER, heartbeat.LOST_AFTER = float(named), float(lost)
pathlib.Path(folder, os.environ["RANK"]).write_text(str(os.getpid()))
stopping.begin()
stopping.run(lambda: train.main(arguments))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture
def started(tmp_path, demo):
    """Start two ranks. Return the process of torchrun, the run folder, and the ids of the ranks."""
    begun = []

    def start(named, lost):
        run, script = tmp_path / "run", tmp_path / "run.py"
        script.write_text(RUN)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script, tmp_path, named, lost]
        options = [*TINY, "--train.save-every", 5, "--schedule.epochs", 100_000, "--run-dir", run, "--data", demo]
        running = subprocess.Popen(
            [*map(str, [*command, *options])],
            env=ONE_THREAD,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(running)
        wait_for_the_first_step(run)
        while not list(run.glob("checkpoints/step-*")):
            time.sleep(0.1)
        return running, run, [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]

    yield start
    for running in begun:
        running.kill()
        for rank in (0, 1):  # they would go on without torchrun, and hold its stderr open
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((tmp_path / str(rank)).read_text()), signal.SIGKILL)
        running.communicate(timeout=100)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] != "Z"


def seconds_until_gone(pid, most):
    began = time.monotonic()
    while is_alive(pid) and time.monotonic() - began < most:
        time.sleep(0.1)
    return time.monotonic() - began


def saved(run):
    return int(sorted((run / "checkpoints").glob("step-*"))[-1].name.removeprefix("step-"))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_ends_the_run(started, stopped):
    running, run, ranks = started(3, 8)
    os.kill(ranks[stopped], signal.SIGSTOP)
    try:
        # Sooner, except where it waits in a library.
        assert seconds_until_gone(ranks[1 - stopped], 120) < 8 + heartbeat.EXIT_AFTER + 20
    finally:
        os.kill(ranks[stopped], signal.SIGKILL)
    _, errors = running.communicate(timeout=100)
    named = (
        rf"rank {stopped} on \S+ has not answered for \d+ s: is it stopped, or its machine\?; the run ends after 8 s"
    )
    assert re.search(named, errors), errors
    if stopped == 1:
        assert re.search(r"\nerror: .*rank 1 on \S+ has not answered for \d+ s: ", errors), errors
    assert running.returncode
    assert resume(run, "--max-steps", str(saved(run) + 1)) == 0


def test_a_signal_ends_a_run_with_a_stopped_rank(started):
    """The rank that is not stopped has ended after ten seconds. torchrun kills the other one."""
    running, run, ranks = started(heartbeat.NAMED_AFTER, heartbeat.LOST_AFTER)
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(1)
    try:
        running.send_signal(signal.SIGTERM)
        assert seconds_until_gone(ranks[0], 20) < 10
    finally:
        os.kill(ranks[1], signal.SIGKILL)
    running.communicate(timeout=100)
    assert resume(run, "--max-steps", str(saved(run) + 1)) == 0


@pytest.mark.slow
def test_a_stopped_rank_is_named_within_a_minute(started):
    """A rank that goes on is no fault any more."""
    running, run, ranks = started(heartbeat.NAMED_AFTER, heartbeat.LOST_AFTER)
    os.kill(ranks[1], signal.SIGSTOP)
    began = time.monotonic()
    assert any("has not answered" in line for line in running.stderr)  # until it ends
    assert 20 < time.monotonic() - began < 60
    os.kill(ranks[1], signal.SIGCONT)
    assert any("rank 1 answers again" in line for line in running.stderr)
    steps, began = saved(run), time.monotonic()
    while saved(run) < steps + 10:
        assert time.monotonic() - began < 100
        time.sleep(0.2)
