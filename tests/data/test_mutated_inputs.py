"""100,000 mutations of what the Python parsers read: recordings, the index of a tar, shards.json and manifests.

Each gives what lies inside its bounds, or one sentence that names the file. Any other error fails the test.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import MakeDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import record3d_file, scannet_file
from test_convert import read_all

from vologan_fast.data import DataError
from vologan_fast.data.manifest import find_records, list_records, skipped_files
from vologan_fast.data.pack import pack
from vologan_fast.data.shards.index import MANIFEST, find_shards, parse_index, parse_manifest

EACH = 20_000
INTERESTING = [0, 1, 9, 10, 32, 34, 44, 45, 46, 47, 48, 57, 58, 91, 92, 93, 101, 123, 125, 127, 128, 255]
"""Bytes that mean something in JSON, in numbers, in paths and in binary headers."""

changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "flip", "insert", "delete", "copy", "number"]),
        st.sampled_from(INTERESTING) | st.integers(0, 255),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=6,
)
slow = settings(
    max_examples=EACH,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def mutated(content: bytes, wanted: list[tuple[float, str, int, int]]) -> bytes:
    found = bytearray(content)
    for where, kind, value, length in wanted:
        at = int(where * max(len(found), 1))
        if kind == "set" and found:
            found[at] = value
        elif kind == "flip" and found:
            found[at] ^= 1 << (value % 8)
        elif kind == "insert":
            found[at:at] = bytes([value]) * length
        elif kind == "delete":
            del found[at : at + length]
        elif kind == "copy":
            found[at:at] = found[value : value + length]
        elif kind == "number":
            found[at:at] = str(value << length).encode()
    return bytes(found)


def one_sentence(error: DataError, path: Path) -> None:
    assert str(error).startswith(str(path)) and "\n" not in str(error), error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scannet", "record3d"])
def test_recordings(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    {"scannet": scannet_file, "record3d": record3d_file}[kind](path)
    whole = path.read_bytes()
    assert read_all(kind, path) == 0

    @slow
    @given(changes)
    def check(wanted: list[tuple[float, str, int, int]]) -> None:
        path.write_bytes(mutated(whole, wanted))
        read_all(kind, path)

    check()


@pytest.fixture
def shards(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    pack(make_dataset(height=8, width=8), tmp_path / "shards", shard_size=3)
    return tmp_path / "shards"


@pytest.mark.slow
def test_the_index_of_a_tar(shards: Path) -> None:
    """The checksum in shards.json is that of the mutated index, as somebody who means harm would write it."""
    entry = parse_manifest((shards / MANIFEST).read_bytes(), "shards.json")["synthetic"].shards[0]
    whole = (shards / entry.index).read_bytes()
    path = shards / entry.index

    @slow
    @given(changes, st.integers(1, 4))
    def check(wanted: list[tuple[float, str, int, int]], samples: int) -> None:
        content = mutated(whole, wanted)
        changed = dataclasses.replace(entry, samples=samples, index_sha256=hashlib.sha256(content).hexdigest())
        try:
            index = parse_index(content, changed, str(path))
        except DataError as error:
            return one_sentence(error, path)
        assert len(index.keys) == samples
        for column in (0, 2):
            offset, size = index.spans[:, column], index.spans[:, column + 1]
            assert ((offset == 0) & (size == 0) | (offset >= 512) & (offset + size <= entry.bytes)).all()

    check()


@pytest.mark.slow
def test_shards_json(shards: Path) -> None:
    """The list has no checksum of its own, as somebody who means harm would write it."""
    path = shards / MANIFEST
    whole = path.read_bytes()
    whole = whole[: whole.rindex(b',\n "crc32"')] + b"\n}"

    @slow
    @given(changes)
    def check(wanted: list[tuple[float, str, int, int]]) -> None:
        path.write_bytes(mutated(whole, wanted))
        try:
            found = find_shards(shards)
        except DataError as error:
            return one_sentence(error, shards)
        for records in found.values():
            for record in (records[0], records[-1]):
                for file in record.files:
                    assert Path(os.fspath(file.shard.local())).parent == shards  # type: ignore[union-attr]
                    assert len(file.shard.read(file.offset, file.size)) == file.size  # type: ignore[union-attr]

    check()


@pytest.mark.slow
def test_manifests(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=2, real=2, height=8, width=8)
    path = root / "training_paths.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    whole = json.dumps(manifest).encode()
    ways: list[Callable[[Path], Any]] = [find_records, list_records, skipped_files]

    @slow
    @given(changes)
    def check(wanted: list[tuple[float, str, int, int]]) -> None:
        path.write_bytes(mutated(whole, wanted))
        for way in ways:
            try:
                found = way(root)
            except DataError as error:
                one_sentence(error, root)
                continue
            if way is find_records:
                for record in (record for records in found.values() for record in records):
                    assert all(str(file).startswith(f"{root}/") and ".." not in file.parts for file in record.files)

    check()
