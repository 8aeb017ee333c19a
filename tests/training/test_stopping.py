"""How commands end before their time: by signals, at any moment, by a closed terminal, and by unforeseen errors."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_train import ONE_THREAD, TINY, metrics, process, resume, wait_for_the_first_step

from vologan_fast.data.demo import make_demo

ENDLESS = ["--schedule.epochs", "100000"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


def last_saved(run):
    return int(sorted((run / "checkpoints").glob("step-*"))[-1].name.removeprefix("step-"))


@pytest.mark.parametrize(
    "name", ["SIGUSR1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGHUP", "SIGUSR2", "SIGTERM"))]
)
def test_a_signal_of_a_scheduler_saves_and_says_how_to_resume(tmp_path, demo, name):
    run = tmp_path / "run"
    running = process(*TINY, "--run-dir", run, "--data", demo, *ENDLESS)
    wait_for_the_first_step(run)
    running.send_signal(getattr(signal, name))
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 130 and not errors
    assert f"go on with: python -m vologan_fast.train --run-dir {run} --resume --device cpu\n" in output
    saved = last_saved(run)
    assert [line["step"] for line in metrics(run)] == list(range(1, saved + 1))
    assert resume(run, "--max-steps", str(saved + 1)) == 0


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("SIGINT", 0.3),
        *(pytest.param(n, s, marks=pytest.mark.slow) for n in ("SIGINT", "SIGTERM") for s in (0.7, 1.5, 3)),
    ],
)
def test_a_signal_during_the_start_ends_with_a_sentence(tmp_path, demo, name, seconds):
    """Also while Python imports torch. The same command with --resume then starts the run."""
    run = tmp_path / "run"
    command = [*TINY, "--run-dir", str(run), "--data", str(demo), "--resume", "--max-steps"]
    running = process(*command, 9999999)
    time.sleep(seconds)
    running.send_signal(getattr(signal, name))
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    if "go on with" not in output:
        assert errors == f"stopped by {name}; the same command starts again, and train goes on with --resume\n"
    assert resume(run, *command, "1") == 0 or last_saved(run) > 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_with_a_sentence(tmp_path, demo):
    run, code = tmp_path / "run", "import time; from vologan_fast.training import checkpoint; "
    slow = f"{code}checkpoint._write = lambda *_: time.sleep(100); from vologan_fast import stopping, train; "
    slow += "import sys; stopping.begin(); stopping.run(lambda: train.main(sys.argv[1:]))"
    command = [sys.executable, "-c", slow, *TINY, "--run-dir", str(run), "--data", str(demo), *ENDLESS]
    running = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_the_first_step(run)
    running.send_signal(signal.SIGINT)
    time.sleep(1)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 20 and running.returncode == 130
    lost = "the steps since the last checkpoint are lost, and --resume goes on from it"
    assert errors == f"stopped at once by a second signal, SIGINT: {lost}\n"


@pytest.mark.slow
def test_nohup_keeps_a_run_that_loses_its_terminal(tmp_path, demo):
    run = tmp_path / "run"
    command = ["nohup", sys.executable, "-m", "vologan_fast.train", *TINY, "--run-dir", str(run), "--data", str(demo)]
    running = subprocess.Popen([*command, *ENDLESS], env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_the_first_step(run)
    running.send_signal(signal.SIGHUP)
    steps = len(metrics(run))
    deadline = time.monotonic() + 60
    while len(metrics(run)) < steps + 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running.poll() is None and len(metrics(run)) >= steps + 5
    running.terminate()
    running.communicate(timeout=300)
    assert running.returncode == 130


def test_a_closed_terminal_saves(tmp_path, demo):
    """The terminal is gone, so nothing can be printed any more: not even the bar."""
    run = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(ONE_THREAD)
        os.execv(
            sys.executable,
            [sys.executable, "-m", "vologan_fast.train", *TINY, "--run-dir", str(run), "--data", str(demo), *ENDLESS],
        )
    wait_for_the_first_step(run)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    saved = last_saved(run)
    assert [line["step"] for line in metrics(run)] == list(range(1, saved + 1)) and saved


@pytest.mark.slow
def test_a_reader_of_the_output_may_go(tmp_path, demo):
    run = tmp_path / "run"
    running = process(*TINY, "--run-dir", run, "--data", demo, "--max-steps", 40)
    wait_for_the_first_step(run)
    running.stdout.close()
    assert running.wait(300) == 0 and running.stderr.read() == ""
    assert len(metrics(run)) == 40


UNFORESEEN = """
import sys
from vologan_fast import evaluate, stopping
def fails(argv=None):
    return {"<script>": 1}[sys.argv[1]]
stopping.run(fails)
"""


def test_an_error_that_nobody_foresaw_is_two_lines_and_a_file(tmp_path):
    command = [sys.executable, "-c", UNFORESEEN, "a\nb\x1b[31m"]
    env = {**ONE_THREAD, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == r"error: nobody foresaw this: KeyError: 'a\nb\x1b[31m'"
    file = Path(second.removeprefix("please report it, with the traceback in "))
    assert file.parent == tmp_path and "Traceback" in file.read_text() and "KeyError" in file.read_text()
    full = subprocess.run(command, env={**env, "TMPDIR": "/nowhere"}, cwd="/proc", capture_output=True, text=True)
    assert full.returncode == 1 and "KeyError" in full.stderr


def test_all_commands_end_so():
    commands = [
        *Path(__file__).parents[2].glob("vologan_fast/*.py"),
        Path(__file__).parents[2] / "vologan_fast/data/__main__.py",
    ]
    texts = {path.name: path.read_text() for path in commands}
    mains = {name for name, text in texts.items() if re.search(r"^def main\(", text, flags=re.MULTILINE)}
    assert {"train.py", "translate.py", "evaluate.py", "export.py", "hub.py", "profile.py", "__main__.py"} <= mains
    assert all('if __name__ == "__main__":\n    stopping.run(main' in texts[name] for name in mains)


@pytest.mark.parametrize(
    "name", [pytest.param(b"r\xff\xfen"), pytest.param(b"<script>\x1b[31m\n\"'", marks=pytest.mark.slow)]
)
def test_a_run_folder_may_have_any_name(tmp_path, demo, name):
    run = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118  bytes
    arguments = [*TINY, "--run-dir", run, "--data", str(demo), "--max-steps"]
    for steps in ("1", "2"):
        command = [sys.executable, "-m", "vologan_fast.train", *arguments, steps, "--resume"]
        done = subprocess.run(command, env=ONE_THREAD, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    assert (Path(os.fsdecode(run)) / "checkpoints/step-00000002/checksums.json").exists()
