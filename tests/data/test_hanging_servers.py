"""S3 servers that stall, drip, or send without an end: each wait is named and ends, and nothing fills up."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_bucket import URL, FaultyBucket

from vologan_fast.config import ConfigError, DataConfig
from vologan_fast.data import DataError, load_dataset, open_loader
from vologan_fast.data.demo import make_demo
from vologan_fast.data.pack import pack
from vologan_fast.data.records import place

pytest.importorskip("boto3")
OPTIONS = shlex.split("""
    --preset demo --device cpu --data.size 32 --generator.width 4 --generator.max-width 8 --train.batch 2
    --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8 --train.log-every 1
    --train.report-every -1 --train.validate-every 100000 --train.save-every 100000 --schedule.epochs 10000
""")
SHARD = "real-000001.tar"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(make_demo(folder / "demo", count=12, size=64), folder / "shards", 3)
    return folder / "shards"


@pytest.fixture
def bucket(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyBucket]:
    bucket = FaultyBucket(packed)
    for name, value in {**bucket.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.close()


def start(run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vologan_fast.train", *OPTIONS, "--data", URL, "--run-dir", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_sigterm_ends_the_wait_for_a_server(bucket: FaultyBucket, tmp_path: Path, fault: str) -> None:
    bucket.faults[f"{SHARD} whole"] = fault
    run = tmp_path / "run"
    running = start(run, "--data.patience", "16")
    assert running.stderr is not None
    named = running.stderr.readline()
    assert named.startswith(f"{URL}/{SHARD}") and "waiting for it since" in named
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=60)
    assert time.monotonic() - began < 10 and running.returncode == 130, errors
    assert "go on with: " in output
    bucket.faults.clear()
    resumed = start(run, "--resume", "--max-steps", "6")
    output, errors = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_patience_with_a_server_has_an_end(bucket: FaultyBucket, tmp_path: Path, fault: str) -> None:
    bucket.faults[f"{SHARD} whole"] = fault
    running = start(tmp_path / "run", "--data.patience", "3")
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    error = errors.splitlines()[-1]
    assert error.startswith("error: step ") and f"{URL}/{SHARD}" in error and ": not read within 3 s, which is" in error


@pytest.mark.parametrize("name", ["shards.json", "real-000000.idx"])
def test_a_start_that_waits_for_a_server_ends_too(bucket: FaultyBucket, tmp_path: Path, name: str) -> None:
    bucket.faults[name] = "drip"
    with pytest.raises(DataError, match=f"{URL}/{name}: not read within 1 s"):
        load_dataset(URL, DataConfig(size=32, patience=1.0), 0)


# Answers without an end


def test_an_endless_shard_does_not_fill_the_disk(bucket: FaultyBucket, packed: Path, tmp_path: Path) -> None:
    dataset = load_dataset(URL, DataConfig(size=32), 0)
    for path in packed.glob("real-*.tar"):
        bucket.faults[path.name] = "endless"
    with open_loader(dataset, 2) as loader, pytest.raises(DataError, match="the checksum differs"):
        for _ in range(20):
            next(loader)
    whole = sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar")) <= whole
    assert not list((tmp_path / "cache").rglob("*.partial")) and bucket.sent < 64 << 20


@pytest.mark.parametrize("change", ["shards", "index"])
def test_absurd_sizes_in_the_list_fill_nothing(
    bucket: FaultyBucket, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The list of a stranger says that a shard, or an index, is larger than any disk or memory, and all of it comes."""
    bucket.folder = shutil.copytree(packed, tmp_path / "absurd")
    manifest = json.loads((bucket.folder / "shards.json").read_text())
    del manifest["crc32"]
    for shard in manifest["domains"]["real"]["shards"]:
        shard["bytes"] = 10**15
        bucket.faults[f"{shard['file']} whole"] = "endless"
        if change == "index":
            shard["samples"] = 10**12
            bucket.faults[shard["file"].replace(".tar", ".idx")] = "endless"
    (bucket.folder / "shards.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("vologan_fast.data.shards.index._LARGEST_INDEX", 1 << 20)  # so that the test is quick
    with pytest.raises(DataError) as error:
        dataset = load_dataset(URL, DataConfig(size=32), 0)
        with pytest.raises(ConfigError, match="expected 4e\\+06 GB or more for the shards"):
            open_loader(dataset, 2).__enter__()
        place(dataset.train["real"][0].color)
    expected = {"shards": "1e+06 GB; expected at most", "index": "expected at most 1048576 bytes, found more"}
    assert expected[change] in str(error.value)
    assert bucket.sent < 64 << 20


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("shards.json", r"shards.json: expected at most 268435456 bytes, found more"),
        ("real-000000.idx", r"real-000000.idx: expected at most 3584 bytes, found more"),
        ("real-000000.tar", r"real-000000.tar: expected \d+ bytes, as asked for, found more"),
    ],
)
def test_an_endless_answer_does_not_fill_the_memory(bucket: FaultyBucket, name: str, error: str) -> None:
    bucket.faults[name] = "endless"
    with pytest.raises(DataError, match=error):
        load_dataset(URL, DataConfig(size=32), 0)
    assert bucket.sent < 600 << 20
