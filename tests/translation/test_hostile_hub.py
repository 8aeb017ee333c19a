"""Servers that send too much, or nothing, to `hub pull`, and pulls that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, hub
from runs import error, make_run

from vologan_fast.hub import main
from vologan_fast.translation.model_folder import write_model_folder
from vologan_fast.translation.translator import load

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    write_model_folder(load(make_run(folder / "run"), device="cpu"), folder / "model")
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes]) -> Iterator[Hub]:
    from huggingface_hub import constants

    with hub() as server:
        server.private["me/model"] = False
        server.add("me/model", "main", files)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def endless(handler: Any, kind: bytes = b"\0") -> bool:
    """Answer without an end, until the client goes."""
    handler.send_response(200)
    for name, value in (("Transfer-Encoding", "chunked"), ("ETag", '"x"'), ("X-Repo-Commit", "0" * 40)):
        handler.send_header(name, value)
    handler.end_headers()
    piece = kind * (1 << 20)
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
    handler.close_connection = True
    return True


def of_file(answer: Callable[[Any], bool], command: str = "GET") -> Callable[[Any, str], bool]:
    return lambda handler, path: path.endswith("model.safetensors") and handler.command == command and answer(handler)


def packed(handler: Any) -> bool:
    handler._send(200, b"\x1f\x8b\x08", {"Content-Encoding": "gzip"})
    return True


FAULTS: dict[str, tuple[Callable[[Any, str], bool], list[str], str]] = {
    "a file without an end": (of_file(endless), [], "sends more than it has announced"),
    "a list without an end": (
        lambda handler, path: path.startswith("/api/") and endless(handler, b" "),
        [],
        "sends more than it has announced",
    ),
    "a packed answer": (of_file(packed), [], "the server packs its answers (gzip)"),
    "more than is allowed": (lambda *_: False, ["--max-gigabytes", "1e-6"], "--max-gigabytes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_sends_too_much_is_cut_off(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    server.fault, options, expected = FAULTS[name]
    said = error(main, capsys, "pull", "me/model", str(tmp_path / "pulled"), *options)
    assert expected in said and "me/model at http://127.0.0.1" in said
    assert not list(tmp_path.iterdir())


def test_sizes_that_the_server_does_not_tell_are_limited(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server._Handler.path", _WithoutQuestion(), raising=False)
    assert main(["pull", "me/model", str(tmp_path / "pulled")]) == 0
    capsys.readouterr()
    server.fault = of_file(endless)
    most = "0.001"
    assert "sends more" in error(main, capsys, "pull", "me/model", str(tmp_path / "other"), "--max-gigabytes", most)
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]


class _WithoutQuestion:
    """An attribute that forgets what follows a question mark, by which sizes are asked for."""

    def __set__(self, handler: Any, value: str) -> None:
        handler.__dict__["asked"] = value.split("?")[0]

    def __get__(self, handler: Any, kind: type | None = None) -> Any:
        return handler.__dict__["asked"] if handler is not None else self


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_the_limit_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    command = ["pull", "me/model", str(tmp_path / "x"), "--max-gigabytes", value]
    assert "expected more than 0" in error(main, capsys, *command)


@pytest.mark.slow
def test_a_pull_that_is_stopped_leaves_nothing_and_one_that_is_killed_can_be_repeated(
    server: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vologan_fast.hub", "pull", "me/model", str(tmp_path / "pulled")]
    waiting: list[str] = []

    def stalls(handler: Any) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(files["model.safetensors"])))
        handler.end_headers()
        handler.wfile.write(files["model.safetensors"][:100])
        waiting.append(handler.path)
        while waiting:
            time.sleep(0.05)
        handler.close_connection = True
        return True

    server.fault = of_file(stalls)
    for sent in (signal.SIGKILL, signal.SIGTERM):
        running = subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.PIPE, text=True)
        while not waiting:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(sent)
        _, errors = running.communicate(timeout=60)
        waiting.clear()
        left = {path.name for path in tmp_path.iterdir()} - {"home"}
        assert "Traceback" not in errors and left <= ({".pulled.partial"} if sent == signal.SIGKILL else set())
    assert errors == "stopped by SIGTERM\n"
    server.fault = lambda *_: False
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == files
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {"pulled"}
