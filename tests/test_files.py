"""Files and folders stay complete or absent if the process that writes them is killed."""

import contextlib
import ctypes
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
from vologan_fast.files import (
    LinkError,
    append_to,
    aside_of,
    cache_folder,
    file_aside,
    folder_aside,
    open_own,
    publish,
    publish_together,
    remove_whole,
    reserve,
    write_whole,
)

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
        files.publish(path, replace=True)
print("written")
"""


def content(path: Path) -> object:
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else path.read_bytes()


def write(path: Path, kind: str, data: bytes, replace: bool = False) -> None:
    if kind == "file":
        write_whole(path, data)
        return
    with folder_aside(path) as aside:
        for name in "abc":
            (aside / name).write_bytes(data)
        publish(path, replace=replace)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_kill_9_leaves_the_old_or_the_new_content_and_no_obstacle(
    tmp_path: Path, kind: str, step: str, call: int
) -> None:
    """The process is killed before the n-th write, sync or rename, if there are so many."""
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
    write(path, kind, b"newest", replace=True)
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


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, two writers would overwrite each other. So only paths with one writer are written there."""

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="locks"):
        write(tmp_path / "it", "file", b"data")
    with pytest.raises(OSError, match="locks"):
        write(tmp_path / "folder", "folder", b"data")
    assert not (tmp_path / "it").exists() and not (tmp_path / "folder").exists()
    write_whole(tmp_path / "it", b"data", alone=True)
    with folder_aside(tmp_path / "folder", alone=True):
        publish(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".partial") == ["folder", "it"]


def test_a_folder_that_holds_something_is_replaced_only_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    write(folder, "folder", b"first")  # an empty folder is nothing to lose
    with pytest.raises(OSError, match="not empty"):
        write(folder, "folder", b"second")
    assert content(folder) == dict.fromkeys("abc", b"first")
    with folder_aside(folder) as aside:
        (aside / "a").write_bytes(b"third")
        publish(folder, replace=True)
    assert content(folder) == {"a": b"third"}
    assert list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_comes_back_if_the_new_one_cannot_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "it", "folder", b"old")
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if str(source).endswith(".it.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="space"), folder_aside(tmp_path / "it") as aside:
        (aside / "a").write_bytes(b"new")
        publish(tmp_path / "it", replace=True)
    assert content(tmp_path / "it") == dict.fromkeys("abc", b"old")
    assert list(tmp_path.iterdir()) == [tmp_path / "it"]


def test_a_link_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    write(tmp_path / "target", "folder", b"data")
    (tmp_path / "link").symlink_to("target")
    remove_whole(tmp_path / "link")
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]
    assert content(tmp_path / "target") == dict.fromkeys("abc", b"data")


RACE = """
import sys
from pathlib import Path
from vologan_fast.files import folder_aside, publish
for i in range(300):
    path = Path(sys.argv[1], str(i))
    with folder_aside(path) as aside:
        if not path.exists():
            (aside / "a").write_bytes(b"data")
            publish(path)
"""


def test_several_processes_make_the_same_folders(tmp_path: Path) -> None:
    racing = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path]) for _ in range(4)]
    assert [process.wait(120) for process in racing] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 300


def test_the_data_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path, (tmp_path / "it").exists())))
    write(tmp_path / "it", "folder", b"data")
    names = {path.name: there for path, there in synced}
    assert names == {"a": False, "b": False, "c": False, ".it.partial": False, tmp_path.name: True}


def test_removing_a_folder(tmp_path: Path) -> None:
    remove_whole(tmp_path / "absent")
    write(tmp_path / "it", "folder", b"data")
    remove_whole(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("images") == tmp_path / "vologan_fast" / "images"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("images") == tmp_path / ".cache" / "vologan_fast" / "images"


def write_together(folder: Path, names: list[str]) -> None:
    opened = os.open(folder, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, opened)
        written = []
        for name in names:
            file = stack.enter_context(file_aside(folder / name, alone=True))
            os.write(file, name.encode())
            written.append((folder / name, file))
        assert not any((folder / name).exists() for name in names)
        publish_together(written, opened)


@pytest.mark.parametrize("there", [True, False])
def test_files_are_published_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file, sync=os.fsync: (synced.append(file), sync(file)))
    if not there:
        monkeypatch.setattr(files, "_syncfs", None)
    write_together(tmp_path, ["a", "b", "c"])
    assert content(tmp_path) == {name: name.encode() for name in "abc"}
    if files._syncfs is not None:
        assert len(synced) == 1  # the folder: the files were synced at once
    else:
        assert len(synced) == 4


def test_files_that_cannot_be_synced_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(files, "_syncfs", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_together(tmp_path, ["a", "b"])
    assert list(tmp_path.iterdir()) == []


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_an_unfinished_name_that_is_a_link_leads_nowhere(tmp_path: Path, kind: str) -> None:
    """A folder of somebody else may hold links at the names of unfinished files. Their targets stay as they are."""
    victim, target = tmp_path / "victim", tmp_path / "run" / "report.html"
    target.parent.mkdir()
    victim.write_text("mine")
    make = os.symlink if kind == "symbolic" else os.link
    make(victim, aside_of(target))
    write_whole(target, b"report", alone=True)
    assert victim.read_text() == "mine" and target.read_bytes() == b"report" and not target.is_symlink()
    assert names_in(target.parent) == ["report.html"]


def test_an_unfinished_folder_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "run" / "step-00000002"
    victim.mkdir()
    (victim / "letter").write_text("mine")
    target.parent.mkdir()
    aside_of(target).symlink_to(victim)
    with folder_aside(target, alone=True) as aside:
        (aside / "state.pt").write_text("state")
        publish(target)
    assert (victim / "letter").read_text() == "mine" and names_in(victim) == ["letter"]
    assert names_in(target.parent) == ["step-00000002"] and not target.is_symlink()


def test_no_file_is_appended_to_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for content in ("mine", None):
        if content is None:
            victim.unlink()
        else:
            victim.write_text(content)
        (tmp_path / "log").symlink_to(victim)
        with pytest.raises(LinkError, match="log: expected a file of this folder, found a link"):
            append_to(tmp_path / "log")
        with pytest.raises(LinkError):
            open_own(tmp_path / "log", os.O_WRONLY | os.O_TRUNC)
        assert (victim.read_text() if victim.exists() else None) == content
        (tmp_path / "log").unlink()
    os.mkfifo(tmp_path / "log")  # opening it must not wait
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(LinkError):
            open_own(tmp_path / "log", flags)


def test_reserved_room_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".reserve").symlink_to(tmp_path / "victim")
    assert reserve(tmp_path / ".reserve", 4096)
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / ".reserve").is_symlink()
