"""Shards on servers that fsspec reads: the same bits as local shards, also over connections that break.

The servers are stand-ins on loopback (servers.py). The clients are the real packages: aiohttp, gcsfs, huggingface_hub.
"""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from servers import HUB, Server

pytest.importorskip("aiohttp")
pytest.importorskip("gcsfs")
pytest.importorskip("huggingface_hub")

from test_s3 import TINY

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, Dataset, held_out_batches, load_dataset, open_loader
from vologan_fast.data.demo import make_demo
from vologan_fast.data.pack import pack
from vologan_fast.data.shards import remote
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.filesystem import FileSystem
from vologan_fast.translation.inputs import find_inputs

KINDS = ["http", "gs", "hf"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards."""
    folder = tmp_path_factory.mktemp("packed")
    pack(make_demo(folder / "images", count=10, size=64), folder / "shards", 4)
    return folder / "shards"


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a copy of the shards, which a test may change."""
    copy = tmp_path / "served"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    server = Server(copy)
    for name, value in environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    hub = "huggingface_hub.constants"  # it read the variable when it was imported
    monkeypatch.setattr(f"{hub}.ENDPOINT", server.url)
    monkeypatch.setattr(f"{hub}.HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01, 0.01))
    yield server
    server.close()


def environment(server: Server, folder: Path) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": server.url,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NO_GCE_CHECK": "true",  # else google-auth looks for the metadata server of a cloud machine
    }


def url(server: Server, kind: str) -> str:
    return {"http": f"{server.url}/files/v1", "gs": "gs://bucket/v1", "hf": f"hf:/{HUB}/v1"}[kind]


def dataset(root: Path | str, **changes: object) -> Dataset:
    return load_dataset(root, DataConfig(size=32, backend="torch", **changes), seed=5)  # type: ignore[arg-type]


def batches(root: Path | str, steps: int = 8) -> list[torch.Tensor]:
    with open_loader(dataset(root), 4) as loader:
        return [image for _ in range(steps) for image in next(loader)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_the_bits_of_local_shards(server: Server, packed: Path, kind: str) -> None:
    remote_set, local_set = dataset(url(server, kind)), dataset(packed)
    assert remote_set.fingerprint() == local_set.fingerprint()
    assert torch.equal(next(held_out_batches(remote_set, "real", 2)), next(held_out_batches(local_set, "real", 2)))
    assert same(batches(url(server, kind)), batches(packed))
    assert server.tars() == {path.name for path in packed.glob("*.tar")}
    server.requests.clear()
    assert same(batches(url(server, kind) + "/"), batches(packed))  # another run reads the tars from the cache
    assert not server.tars()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_weights(server: Server, packed: Path, tmp_path: Path, kind: str) -> None:
    weights = []
    for root in (url(server, kind), str(packed)):
        run = tmp_path / f"run-{len(weights)}"
        command = [*TINY, "--data", root, "--run-dir", str(run)]
        done = subprocess.run(
            [sys.executable, "-m", "vologan_fast.train", *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f'"data": "{root}"' in (run / "config.json").read_text()
        weights.append({path.name: path.read_bytes() for path in run.glob("checkpoints/*/*.safetensors")})
    assert weights[0] == weights[1] and len(weights[0]) >= 4


def test_images_to_translate_may_be_there_too(server: Server, packed: Path) -> None:
    found = find_inputs(url(server, "hf"), "real")
    local = find_inputs(str(packed), "real")
    assert len(found) == 10 and [image.color for image in found] == [image.color for image in local]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_gets_one_sentence(server: Server, kind: str) -> None:
    root = url(server, kind)
    (server.folder / "real-000000.idx").unlink()
    with pytest.raises(DataError) as error:
        dataset(root)
    assert str(error.value) == f"{root}/real-000000.idx: there is no such file"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", KINDS)
def test_what_may_not_be_read_gets_one_sentence(server: Server, kind: str, status: int) -> None:
    server.failures["shards.json"] = [status] * 9
    with pytest.raises(DataError, match=r"^\S*/shards.json: these credentials may not read it$"):
        dataset(url(server, kind))


def test_after_a_broken_connection_reading_goes_on(server: Server, packed: Path) -> None:
    """Connections close in mid-file, and the server is busy for a while, again and again."""
    server.failures = {path.name: [-700, 503, 429] for path in packed.iterdir() if path.name != "pack.jsonl"}
    assert same(batches(url(server, "http")), batches(packed))
    assert not any(server.failures.values())


def test_after_some_attempts_it_gives_up(server: Server) -> None:
    server.failures["shards.json"] = [503] * 9
    with pytest.raises(DataError, match=r"/shards.json: .*503") as error:
        dataset(url(server, "http"))
    assert "\n" not in str(error.value) and len(server.failures["shards.json"]) == 9 - 4
    server.close()
    with pytest.raises(DataError, match=r"/shards.json: .*[Cc]onnect"):
        dataset(url(server, "http"))


def test_a_server_that_sends_whole_files_only_is_refused(server: Server) -> None:
    server.ranges = False
    with pytest.raises(
        DataError, match=r"\.tar: expected \d+ bytes .* found the whole file \(status 200\); the server must"
    ):
        dataset(url(server, "http"))


MIB = 1 << 20


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, {}, bytes(MIB), "found more"),
        (206, {"Content-Range": "bytes 0-99/100"}, bytes(MIB), "expected 100 bytes from byte 0 on, found more"),
        (206, {}, bytes(MIB), r"found the whole file \(status 206\)"),
        (206, {"Content-Range": "bytes 1-100/101"}, bytes(100), r"found bytes 1-100/101 \(status 206\)"),
        (206, {"Content-Range": "bytes 0-98/100"}, bytes(99), r"found bytes 0-98/100 \(status 206\)"),
        (206, {"Content-Range": "bytes 0-99999999/*"}, bytes(MIB), r"found bytes 0-99999999/\* \(status 206\)"),
        (206, {"Content-Range": "bytes 5-1/9"}, b"", r"found bytes 5-1/9 \(status 206\)"),
        (206, {"Content-Range": "lines 0-9/9"}, b"", r"found lines 0-9/9 \(status 206\)"),
        (204, {}, b"", r"\(status 204\)"),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(MIB)), r"found gzip \(status 200\)"),
        (
            302,
            {"Location": "file:///etc/passwd"},
            b"",
            "what it redirects to, to be http:// or https:// URLs, found file:",
        ),
        (302, {"Location": "ftp://host/x"}, b"", "what it redirects to, to be http:// or https:// URLs, found ftp:"),
    ],
)
def test_wrong_answers_are_refused_at_once(
    server: Server, status: int, headers: dict[str, str], body: bytes, message: str
) -> None:
    """Some have no end. Little more is sent than what was asked for, 8 MiB, and what the sockets hold."""
    server.answers["shards.json"] = (status, headers, body, len(body) == MIB)
    with pytest.raises(DataError, match=rf"/shards.json: .*{message}"):
        dataset(url(server, "http"))
    assert server.requests["shards.json", "part"] == 1 and server.endless_bytes < 40 * MIB


@pytest.mark.parametrize("target", ["shards.json", "../v1/shards.json", "/files/v1/shards.json"])
def test_redirects_without_end_are_named(server: Server, target: str) -> None:
    server.answers["shards.json"] = (302, {"Location": target}, b"", False)
    with pytest.raises(DataError, match=r"/shards.json: expected a file, found redirects without end$"):
        dataset(url(server, "http"))


def test_an_answer_that_ends_early_is_asked_for_again(server: Server) -> None:
    """Without Content-Length, only Content-Range says how long it is."""
    server.answers["shards.json"] = (206, {"Content-Range": "bytes 0-99/100"}, bytes(60), False)
    with pytest.raises(DataError, match="the connection ended after 60 of 100 bytes"):
        dataset(url(server, "http"))
    assert server.requests["shards.json", "part"] == 4


def test_a_shard_that_grew_or_changed_is_named(server: Server) -> None:
    tar = server.folder / "real-000000.tar"
    loader = open_loader(dataset(url(server, "http")), 4)
    tar.write_bytes(tar.read_bytes() + bytes(100))
    with loader, pytest.raises(DataError, match=r"real-000000.tar: these are not the .* checksum differs"):
        for _ in range(8):
            next(loader)


def test_a_shard_that_is_damaged_in_the_cache_is_fetched_again(
    server: Server, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = url(server, "http")
    assert same(batches(address), batches(packed))
    cached = sorted(tmp_path.glob("cache/**/*.tar"))
    assert len(cached) == len(server.tars())
    for number, tar in enumerate(cached):
        data = bytearray(tar.read_bytes())
        data[(number + 1) * len(data) // (len(cached) + 1)] ^= 1 << number % 8
        tar.write_bytes(data)
    server.requests.clear()
    capsys.readouterr()
    assert same(batches(address), batches(packed))
    assert len(server.tars()) == len(cached)
    said = capsys.readouterr().err
    assert all(f"{tar}: damaged since it was fetched; fetching it again\n" in said for tar in cached)
    server.requests.clear()
    assert same(batches(address), batches(packed)) and not server.tars()


def test_a_disk_that_changes_what_is_written_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(len(data))))
    with pytest.raises(DataError, match=r"what was read again is not what was written; check the disk$"):
        batches(url(server, "http"))


def test_a_file_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        size, sha256, sent = 1000, "0" * 64, 0

        def blocks(self) -> Iterator[bytes]:
            while True:
                self.sent += 300
                yield bytes(300)

        def url(self, name: str) -> str:
            return name

    endless = Endless()
    with pytest.raises(DataError, match="the checksum differs"):
        ShardCache(tmp_path, 10_000).local(endless)  # type: ignore[arg-type]
    assert endless.sent == 1200 and not list(tmp_path.iterdir())
    endless.blocks = lambda name, first, size: Endless.blocks(endless)  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match=r"shards.json: expected at most 1000 bytes, found more"):
        remote._read_whole(endless, "shards.json", 1000, 10.0)  # type: ignore[arg-type]


def test_other_systems_of_fsspec_work_the_same(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(remote.STORES, "memory", FileSystem)
    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe(f"/bucket/v1/{path.name}", path.read_bytes())
    assert same(batches("memory://bucket/v1"), batches(packed))


@pytest.mark.parametrize(
    "name",
    [
        "file:///etc",
        "memory://x",
        "ftp://host/x",
        "S3://bucket",
        "local:///etc",
        "github://a:b@/x",
        "zip://a::file:///b",
    ],
)
def test_other_schemes_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected a folder, or a URL that begins with s3://, gs://, hf://, http://, "):
        dataset(name)


@pytest.mark.parametrize(
    "name", ["http://host/a.zip::file:///etc", "https://host/x?token=1", "gs://bucket/x#y", "gs://", "hf://"]
)
def test_urls_that_could_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected a URL without ::, \\? and #, such as gs://bucket/prefix"):
        dataset(name)


def test_a_repository_that_cannot_be_one_gets_one_sentence(server: Server) -> None:
    for name in ("hf://datasets", "hf://datasets/nobody/nothing/v1", "gs://elsewhere/v1"):
        with pytest.raises(DataError) as error:
            dataset(name)
        assert str(error.value).startswith(name) and "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["gcsfs", "huggingface_hub", "aiohttp"]))
from vologan_fast.config import ConfigError
from vologan_fast.data.shards.filesystem import FileSystem
for url in ("gs://bucket/x", "hf://datasets/a/b", "https://host/x", "http://host/x"):
    try:
        FileSystem(url)
    except ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "gs://bucket/x: reading from gs:// needs gcsfs: pip install 'vologan-fast[gcs]'",
        "hf://datasets/a/b: reading from hf:// needs huggingface_hub: pip install 'vologan-fast[hf]'",
        "https://host/x: reading from https:// needs aiohttp: pip install 'vologan-fast[http]'",
        "http://host/x: reading from http:// needs aiohttp: pip install 'vologan-fast[http]'",
    ], done.stderr
