"""Model folders to and from a stand-in for the Hugging Face Hub on loopback, by huggingface_hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, hub
from runs import error, make_run

import vologan_fast
from vologan_fast.hub import main

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's uploads


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, and huggingface_hub's settings, which it reads from the environment when it is imported."""
    from huggingface_hub import constants

    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def translated(path: Path, direction: str | None = None) -> torch.Tensor:
    model = vologan_fast.load(path, direction, device="cpu")  # type: ignore[arg-type]
    return model(torch.rand(1, 4, 32, 40, generator=torch.Generator().manual_seed(1)))


def test_a_pulled_folder_translates_to_the_same_bits(run: Path, server: Hub, tmp_path: Path) -> None:
    assert main(["push", str(run), "me/model", "--license", "mit"]) == 0
    assert {"model.safetensors", "config.json", "README.md"} < set(server.files("me/model"))
    assert len(server.objects) == 1  # the weights, through LFS
    assert main(["pull", "me/model", str(tmp_path / "pulled")]) == 0
    assert torch.equal(translated(tmp_path / "pulled"), translated(run))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["pulled"]
    names = sorted(path.name for path in (tmp_path / "pulled").iterdir())
    assert names == ["README.md", "checksums.json", "config.json", "model.safetensors"]
    data = {name: (tmp_path / "pulled" / name).read_bytes() for name in names}
    assert data == {name: server.files("me/model")[name] for name in names}
    # A folder that was pulled can be pushed, and gives the same repository.
    assert main(["push", str(tmp_path / "pulled"), "me/copy", "--private"]) == 0
    assert server.files("me/copy") == server.files("me/model")
    assert server.private == {"me/model": False, "me/copy": True}


def test_revisions(run: Path, server: Hub, tmp_path: Path) -> None:
    assert main(["push", str(run), "me/model"]) == 0
    first = server.branches["me/model", "main"]
    for _ in range(2):  # the branch is made, then it exists
        assert main(["push", str(run), "me/model", "--revision", "real", "--direction", "t2s"]) == 0
    assert server.branches["me/model", "main"] == first
    for revision, direction in (("real", "t2s"), (first, "s2t")):
        assert main(["pull", "me/model", str(tmp_path / revision), "--revision", revision]) == 0
        assert torch.equal(translated(tmp_path / revision), translated(run, direction))


def test_subfolders_stay_where_they_are(run: Path, server: Hub, tmp_path: Path) -> None:
    assert main(["push", str(run), "me/model"]) == 0
    folder = tmp_path / "folder"
    assert main(["pull", "me/model", str(folder)]) == 0
    mine = {"s2t.onnx": b"1", "s2t-fp16.pt2": b"2", "a[1]*.onnx": b"3"}
    for name in ("old/s2t.onnx", "old/README.md", "old/config.json", "a/b/c.pt2", "folder.onnx/x", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    for name, data in mine.items():
        (folder / name).write_bytes(data)
    assert main(["push", str(folder), "me/copy"]) == 0
    expected = server.files("me/model") | mine
    assert server.files("me/copy") == expected
    # Neither are they pulled from a repository that somebody else has filled.
    others = {"old/s2t.onnx": b"4", "old/README.md": b"5", "a/b/c.pt2": b"6", "notes.txt": b"7"}
    server.add("me/copy", "main", expected | others)
    assert main(["pull", "me/copy", str(tmp_path / "pulled")]) == 0
    found = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    assert found == {name: data for name, data in expected.items() if name != ".gitattributes"}


def test_errors_are_one_sentence(
    run: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pulled = str(tmp_path / "pulled")
    assert main(["push", str(run), "me/secret", "--private"]) == 0
    capsys.readouterr()
    assert "me/absent at http://127.0.0.1" in (found := error(main, capsys, "pull", "me/absent", pulled))
    assert "no such repository" in found and "404" in found
    assert "no revision gone" in error(main, capsys, "pull", "me/secret", pulled, "--revision", "gone")
    assert "expected the name of a repository" in error(main, capsys, "pull", "a/b/c", pulled)
    assert "no access" in error(main, capsys, "push", str(run), "others/model")
    server.private["me/other"] = False
    server.add("me/other", "main", {})
    assert "exists and is public" in error(main, capsys, "push", str(run), "me/other", "--private")
    assert server.files("me/other") == {}
    server.add("me/other", "main", {"config.json": b"{}", "model.safetensors": b"foreign", "README.md": b"# x"})
    assert "model.safetensors" in error(main, capsys, "pull", "me/other", pulled)
    server.add("me/other", "main", {"weights.bin": b"foreign"})
    assert "found no weights" in error(main, capsys, "pull", "me/other", pulled)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in error(main, capsys, "pull", "me/secret", str(tmp_path / "full"))
    assert str(tmp_path / "none") in error(main, capsys, "push", str(tmp_path / "none"), "me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    assert "HF_TOKEN" in error(main, capsys, "pull", "me/secret", pulled)
    assert "HF_TOKEN" in error(main, capsys, "push", str(run), "me/model")
    server.shutdown()
    server.server_close()
    assert "me/secret at http://127.0.0.1" in error(main, capsys, "pull", "me/secret", pulled)
    assert "me/model at http://127.0.0.1" in error(main, capsys, "push", str(run), "me/model")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["full"]


def test_without_huggingface_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in (["push", str(run), "me/model"], ["pull", "me/model", str(tmp_path / "pulled")]):
        assert "pip install 'vologan-fast[hf]'" in error(main, capsys, *arguments)


@pytest.mark.slow
def test_the_environment_names_the_server_and_the_token(run: Path, tmp_path: Path) -> None:
    with hub() as server:
        settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        environment = os.environ | settings | {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        for arguments in (["push", str(run), "me/model"], ["pull", "me/model", str(tmp_path / "pulled")]):
            command = [sys.executable, "-m", "vologan_fast.hub", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert torch.equal(translated(tmp_path / "pulled"), translated(run))


def test_the_pushed_folder_does_not_say_where_the_data_lie(run: Path, server: Hub) -> None:
    recorded = json.loads((run / "config.json").read_text())["data"]
    assert recorded.startswith("/")
    assert main(["push", str(run), "me/model"]) == 0
    for name, data in server.files("me/model").items():
        assert recorded.encode() not in data and str(run).encode() not in data, name
