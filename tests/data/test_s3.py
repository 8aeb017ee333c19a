"""Shards in a bucket: the same bits as local shards, fetched once and ahead of use, into a folder of bounded size."""

import fcntl
import itertools
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import BACKENDS, MakeDataset

pytest.importorskip("boto3")
pytest.importorskip("moto.server")

import boto3
from moto.server import ThreadedMotoServer

from vologan_fast.config import ConfigError, DataConfig
from vologan_fast.data import DataError, Dataset, RGBDLoader, held_out_batches, load_dataset, open_loader
from vologan_fast.data.pack import pack
from vologan_fast.data.shards import remote
from vologan_fast.data.shards.cache import ShardCache, read_ahead
from vologan_fast.data.shards.s3 import Bucket

URL = "s3://images/people/v1"
TINY = shlex.split("""
    --preset demo --device cpu --max-steps 3 --data.size 32 --generator.width 4 --generator.max-width 8
    --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --train.report-every -1
""")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def environment(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set only these credentials and settings, and empty the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "absent"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "absent"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()


def upload(folder: Path) -> None:
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="images")
    for path in folder.iterdir():
        client.upload_file(str(path), "images", f"people/v1/{path.name}")


@pytest.fixture
def packed(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Make a folder of shards, and upload it to the bucket. Returns the folder."""
    pack(make_dataset(synthetic=25, real=11), tmp_path / "packed", 4)
    upload(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter of the requests for whole objects and for parts, by name."""
    seen: Counter[str] = Counter()
    get = Bucket._get

    def counting(self: Bucket, name: str, **more: Any) -> Any:
        seen[f"{name} {'part' if more else 'whole'}"] += 1
        return get(self, name, **more)

    monkeypatch.setattr(Bucket, "_get", counting)
    return seen


def tars(requests: Counter[str], how: str) -> dict[str, int]:
    return {name.split()[0]: count for name, count in requests.items() if name.endswith(f".tar {how}")}


def dataset(root: Path | str, backend: str = "torch", **changes: Any) -> Dataset:
    return load_dataset(root, DataConfig(size=64, backend=backend, **changes), seed=5)  # type: ignore[arg-type]


def take(loader: RGBDLoader, steps: int) -> list[tuple[torch.Tensor, ...]]:
    return [next(loader) for _ in range(steps)]


def same(a: list[tuple[torch.Tensor, ...]], b: list[tuple[torch.Tensor, ...]]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_have_the_bits_of_local_shards(packed: Path, backend: str, requests: Counter[str]) -> None:
    with open_loader(dataset(packed, backend), 4) as loader:
        expected = take(loader, 12)
    remote = dataset(URL, backend)
    assert not tars(requests, "whole")  # the depth settings were resolved from parts
    with open_loader(remote, 4) as loader:
        assert f"shards from {URL}" in loader.describe()
        assert same(take(loader, 12), expected)
    assert set(tars(requests, "whole")) == {path.name for path in packed.glob("*.tar")}
    assert set(tars(requests, "whole").values()) == {1}
    requests.clear()
    with open_loader(dataset(URL, backend), 4) as loader:  # another run reads from the cache
        loader.load_state_dict({"step": 3})
        assert same(take(loader, 9), expected[3:])
    assert not tars(requests, "whole") and not tars(requests, "part")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["host", "disk"])
def test_images_can_be_kept_decoded(packed: Path, backend: str, cache: str, requests: Counter[str]) -> None:
    with open_loader(dataset(packed, backend), 4) as loader:
        expected = take(loader, 6)
    with open_loader(dataset(URL, backend, cache=cache), 4) as loader:
        assert "resident" in loader.describe() and same(take(loader, 6), expected)
    assert set(tars(requests, "whole").values()) == {1}


def test_held_out_images_are_read_by_themselves(packed: Path, requests: Counter[str]) -> None:
    expected = torch.cat(list(held_out_batches(dataset(packed), "synthetic", 2)))
    remote = dataset(URL)
    requests.clear()
    assert torch.equal(torch.cat(list(held_out_batches(remote, "synthetic", 2))), expected)
    assert sum(tars(requests, "part").values()) == 10 and not tars(requests, "whole")


def test_a_run_goes_on_from_a_copy_elsewhere(packed: Path) -> None:
    assert dataset(URL).fingerprint() == dataset(packed).fingerprint()


@pytest.mark.slow
def test_training_reads_from_a_bucket(packed: Path, tmp_path: Path) -> None:
    """The command runs alone with a real server. Its weights equal those of a run with local shards."""
    command = [sys.executable, "-m", "vologan_fast.train", *TINY]
    weights = []
    for data, run in ((URL, tmp_path / "remote"), (str(packed), tmp_path / "local")):
        done = subprocess.run(
            [*command, "--data", data, "--run-dir", str(run)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        weights.append({path.name: path.read_bytes() for path in run.glob("checkpoints/*/*.safetensors")})
        assert f'"data": "{data}"' in (run / "config.json").read_text()
    assert weights[0] == weights[1] and len(weights[0]) >= 4


# Missing objects and settings


def refusal(url: str, kind: type[Exception] = DataError) -> str:
    with pytest.raises(kind) as error:
        dataset(url)
    assert "\n" not in str(error.value) and str(error.value).startswith("s3://")
    return str(error.value)


def test_what_is_not_there(packed: Path) -> None:
    assert refusal("s3://nowhere/x") == "s3://nowhere/x/shards.json: there is no such bucket"
    assert refusal("s3://images/elsewhere") == "s3://images/elsewhere/shards.json: there is no such object"
    assert refusal("s3://") == "s3://: expected s3://bucket/prefix"
    boto3.client("s3", region_name="us-east-1").delete_object(Bucket="images", Key="people/v1/real-000001.idx")
    assert refusal(URL) == f"{URL}/real-000001.idx: there is no such object"


def test_without_credentials(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials; set AWS_ACCESS_KEY_ID" in refusal(URL)


def test_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "Could not connect" in refusal(URL)


def test_a_stream_that_breaks_goes_on_at_the_same_byte(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 makes several attempts to get an answer, but none after a stream has begun."""
    from botocore.exceptions import ResponseStreamingError

    tar, get, firsts = "real-000000.tar", Bucket._get, []

    def breaking(self: Bucket, name: str, **more: Any) -> Any:
        answer = get(self, name, **more)
        if name == tar:
            firsts.append(more.get("Range"))
            if len(firsts) < 6:
                chunks = answer["Body"].iter_chunks

                def iter_chunks(size: int) -> Iterator[bytes]:
                    yield next(chunks(1000))
                    raise ResponseStreamingError(error="cut off")

                answer["Body"].iter_chunks = iter_chunks
        return answer

    monkeypatch.setattr(Bucket, "_get", breaking)
    monkeypatch.setattr(remote, "_WAITS", (0.01,))
    assert b"".join(remote._blocks(Bucket(URL), tar)) == (packed / tar).read_bytes()
    assert firsts == [None, *(f"bytes={1000 * i}-" for i in range(1, 6))]


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # type: ignore[arg-type]
    assert refusal(URL, ConfigError) == f"{URL}: reading from S3 needs boto3: pip install boto3"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_that_is_not_what_was_packed_is_named(packed: Path, backend: str) -> None:
    tar = bytearray((packed / "real-000001.tar").read_bytes())
    tar[3000] ^= 1
    client = boto3.client("s3", region_name="us-east-1")
    remote = dataset(URL, backend)
    client.put_object(Bucket="images", Key="people/v1/real-000001.tar", Body=bytes(tar))
    with open_loader(remote, 4) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match=f"^{URL}/real-000001.tar: these are not the .* checksum differs"):
                take(loader, 12)
        client.upload_file(str(packed / "real-000001.tar"), "images", "people/v1/real-000001.tar")
        take(loader, 12)  # the shard is right again
    assert not list((Path(os.environ["XDG_CACHE_HOME"]) / "vologan_fast/shards").glob(".*"))


def test_a_cache_that_cannot_hold_what_a_batch_needs_is_refused(packed: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.shard_cache: 0.2 MB are there .*; expected \d.* MB or more"):
        open_loader(dataset(URL, shard_cache=0.0002), 4)


# The cache


class Tar:
    """A shard that counts its fetches."""

    def __init__(self, number: int, size: int = 1000) -> None:
        import hashlib

        self.data = bytes([number]) * size
        self.size, self.sha256 = size, hashlib.sha256(self.data).hexdigest()
        self.fetched = 0

    def blocks(self) -> Iterator[bytes]:
        self.fetched += 1
        for first in range(0, self.size, 300):
            time.sleep(0.001)
            yield self.data[first : first + 300]

    def local(self) -> Path:
        raise AssertionError

    def read(self, offset: int, size: int) -> bytes:
        raise AssertionError


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_folder_stays_within_its_limit_and_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    shards = [Tar(i) for i in range(4)]
    for shard in shards[:3]:
        assert cache.local(shard).read_bytes() == shard.data
        cache.release(shard)
        time.sleep(0.01)
    cache.local(shards[0])
    cache.local(shards[3])
    assert size_of(tmp_path) == 3000
    assert [cache.has(shard) for shard in shards] == [True, False, True, True]
    cache.local(shards[1])
    assert [shard.fetched for shard in shards] == [1, 2, 1, 1]


def test_shards_that_another_process_reads_stay(tmp_path: Path) -> None:
    first, second = Tar(1), Tar(2)
    cache = ShardCache(tmp_path, 1000)
    path = cache.local(first)
    cache.release(first)
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        cache.local(second)
        assert path.exists()
    cache.release(second)
    cache.local(Tar(3))
    assert not path.exists() and size_of(tmp_path) == 1000


def test_many_threads_and_caches_fetch_a_shard_once(tmp_path: Path) -> None:
    shard = Tar(1, 20_000)
    caches = [ShardCache(tmp_path, 10**6) for _ in range(3)]  # as three processes would
    threads = [threading.Thread(target=cache.local, args=(shard,)) for cache in caches for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shard.fetched == 1


def test_what_a_killed_process_left_is_written_over_or_removed(tmp_path: Path) -> None:
    one, two = Tar(1), Tar(2)
    for shard in (one, two):
        (tmp_path / f".{shard.sha256}.tar.partial").write_bytes(b"half")
    (tmp_path / f"{one.sha256}.tar").write_bytes(b"cut off by somebody")
    cache = ShardCache(tmp_path, 1000)
    assert cache.local(one).read_bytes() == one.data
    assert [path.name for path in tmp_path.iterdir()] == [f"{one.sha256}.tar"]


def test_shards_are_fetched_ahead_as_far_as_there_is_room(tmp_path: Path) -> None:
    shards = [Tar(i) for i in range(40)]
    cache = ShardCache(tmp_path, 10_000)

    def batches() -> Iterator[int]:
        for step in itertools.count():
            cache.local(shards[step // 10 % 40])
            yield step

    def settled() -> list[int]:
        before, now = None, [shard.fetched for shard in shards]
        while before != now:
            time.sleep(0.1)
            before, now = now, [shard.fetched for shard in shards]
        return now

    ahead = read_ahead(batches(), cache, lambda step: [shards[step // 10 % 40]], 0, 10_000)
    for _ in range(5):
        next(ahead)
    assert settled() == [1] * 10 + [0] * 30
    for _ in range(30):  # shards 0 to 2 are behind
        next(ahead)
    assert settled() == [1] * 13 + [0] * 27
    assert size_of(tmp_path) == 10_000
    for _ in range(400):
        next(ahead)
    ahead.close()
    assert max(shard.fetched for shard in shards) == 2 and size_of(tmp_path) <= 10_000


def test_a_process_that_ends_waits_for_no_fetching(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from vologan_fast.data.shards.cache import ShardCache, read_ahead

class Slow:
    size, sha256 = 10, "0" * 64
    def blocks(self):
        time.sleep(1000)

ahead = read_ahead((step for step in range(9)), ShardCache(Path({str(tmp_path)!r}), 100), lambda step: [Slow()], 0, 9)
next(ahead)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
