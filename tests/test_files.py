"""Files and folders that are complete or absent, whatever ends the process that writes them."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vologan_fast import files
from vologan_fast.files import aside_of, cache_folder, file_aside, folder_aside, publish, remove_folder, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from vologan_fast import files
calls, step = 0, sys.argv[1]
def kill(*arguments, original=getattr(os, step)):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(os, step, kill)  # pathlib calls os.rename
path = Path(sys.argv[3])
if sys.argv[4] == "file":
    files.write_whole(path, b"new" * 1000)
else:
    with files.folder_aside(path) as aside:
        for name in "abc":
            (aside / name).write_bytes(b"new")
        files.publish(path)
print("written")
"""


def content(path: Path) -> object:
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else path.read_bytes()


def write(path: Path, kind: str, data: bytes) -> None:
    if kind == "file":
        write_whole(path, data)
        return
    with folder_aside(path) as aside:
        for name in "abc":
            (aside / name).write_bytes(data)
        publish(path)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_kill_9_leaves_the_old_or_the_new_content_and_no_obstacle(
    tmp_path: Path, kind: str, step: str, call: int
) -> None:
    """Killed before the n-th write, sync or rename, where there are so many."""
    path = tmp_path / "it"
    write(path, kind, b"old")
    old = content(path)
    command = [sys.executable, "-c", KILLED, step, str(call), str(path), kind]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
    if path.exists():
        found = content(path)
        assert found == old or set(found.values() if kind == "folder" else [found]) in ({b"new"}, {b"new" * 1000})
    else:  # a folder is replaced in two renames
        assert kind == "folder" and killed.returncode
    write(path, kind, b"newest")
    assert set(content(path).values() if kind == "folder" else [content(path)]) == {b"newest"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["it"], "what the killed process left is gone"


def test_an_error_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "it", b"old")
    with pytest.raises(ZeroDivisionError), file_aside(tmp_path / "it") as file:
        os.write(file, b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), folder_aside(tmp_path / "folder") as aside:
        (aside / "half").write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "it").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["it"]


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while file.read_text() != text:
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_writer_waits_for_the_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    second = f"""
from pathlib import Path
from vologan_fast.files import {kind}_aside
print("waits", flush=True)
with {kind}_aside(Path({str(path)!r})):
    print("writes", flush=True)
"""
    aside = file_aside if kind == "file" else folder_aside
    said = tmp_path / "said"
    with said.open("w") as output, aside(path):
        process = subprocess.Popen([sys.executable, "-c", second], stdout=output)
        try:
            wait_for(said, "waits\n")
            time.sleep(0.2)
            assert said.read_text() == "waits\n"
            publish(path)
            wait_for(said, "waits\nwrites\n")
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert path.exists() and not aside_of(path).exists()


def test_file_systems_without_locks_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    write(tmp_path / "file", "file", b"data")
    write(tmp_path / "folder", "folder", b"data")
    assert content(tmp_path / "file") == b"data" and len(content(tmp_path / "folder")) == 3


def test_the_data_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path, (tmp_path / "it").exists())))
    write(tmp_path / "it", "folder", b"data")
    names = {path.name: there for path, there in synced}
    assert names == {"a": False, "b": False, "c": False, ".it.partial": False, tmp_path.name: True}


def test_removing_a_folder(tmp_path: Path) -> None:
    remove_folder(tmp_path / "absent")
    write(tmp_path / "it", "folder", b"data")
    remove_folder(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("images") == tmp_path / "vologan_fast" / "images"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("images") == tmp_path / ".cache" / "vologan_fast" / "images"
