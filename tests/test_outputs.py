"""Outputs that are closed or full, and places that are no files: what commands make of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vologan_fast.files import LONGEST_LINE, file_aside, lines_of, write_whole

PRINTS = """
import os, sys
from vologan_fast import stopping
from rich.console import Console
stopping.begin()
def main():
    if sys.argv[1] == "rich":
        Console().print("said")
    elif sys.argv[1] == "waits":
        print("said")
    else:
        from vologan_fast.words import say
        try:
            say("said")
        except OSError as error:  # as a command that writes files
            raise AssertionError("taken for a file") from error
    with open(os.devnull) as file:
        assert file.fileno() > 2
    return 0
stopping.run(main)
"""


def prints(how: str, redirection: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -c "$1" {how} {redirection}'
    return subprocess.run(["bash", "-c", command, sys.executable, PRINTS], capture_output=True, text=True)


@pytest.mark.parametrize("redirection", [">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_a_closed_output_ends_nothing(redirection: str) -> None:
    done = prints("waits", redirection)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["rich", "waits", "says"])
def test_a_full_output_is_one_sentence(how: str) -> None:
    done = prints(how, "> /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written (No space left on device)\n")


def test_warnings_that_cannot_be_written_end_nothing() -> None:
    assert prints("waits", "2> /dev/full").returncode == 0


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """An account that may do everything would replace /dev/null for the whole machine."""
    pipe, place = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        for path in (pipe, place, Path("/dev/null")):
            with pytest.raises(OSError, match="not a regular file") as caught:
                write_whole(path, b"x")
            assert caught.value.filename == str(path)
        assert pipe.is_fifo() and place.is_socket() and Path("/dev/null").is_char_device()
    assert sorted(tmp_path.iterdir()) == [pipe, place]


def test_an_error_names_the_file_and_not_the_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, file_aside(tmp_path / "none" / "file"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "file")


def test_lines_of_any_length_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * (3 * LONGEST_LINE) + b"\n" + b"y" * (LONGEST_LINE - 1) + b"\nlast")
    assert [len(line) for line in lines_of(path)] == [6, 1, LONGEST_LINE, 4]
    with path.open("ab") as file:
        file.truncate(1 << 31)  # without a line's end, and without room on the disk
    assert [len(line) for line in lines_of(path)] == [6, 1, LONGEST_LINE, 0]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        list(lines_of(tmp_path / "pipe"))


def test_a_signal_ends_the_processes_of_the_doctor(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vologan_fast.doctor", "--run-dir", str(tmp_path / "of this test")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (children := _children(running.pid)):
        assert running.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)  # it waits for them now
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (130, "stopped by SIGTERM\n")
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()
