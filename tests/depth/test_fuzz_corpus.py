"""The fuzzer's files: sound ones of every native kind. A file that is refused at once would test nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_corpus

from vologan_fast import depth


def test_all_native_kinds_are_there_and_sound() -> None:
    kinds, total = set(), 0
    for name, content in fuzz_corpus.corpus():
        info = depth.probe(content)
        assert (name, info.decoder) == (name, "native")
        depth.decode(content)
        kinds |= {(info.format, info.compression, channel.dtype) for channel in info.channels}
        total += len(content)
    exr = {("exr", c, t) for c in ("none", "rle", "zips", "zip") for t in ("float16", "float32", "uint32")}
    png = {("png", "deflate", t) for t in ("uint8", "uint16")}
    assert exr | png | {("pfm", "none", "float32"), ("npy", "none", "float16")} <= kinds
    assert total < 100_000


def test_compressed_chunks_are_compressed() -> None:
    """A chunk that does not become smaller is stored as it is and does not reach the codec."""
    sizes = {name: len(content) for name, content in fuzz_corpus.corpus()}
    for codec in ("rle", "zips", "zip"):
        for kind in ("float16", "float32", "uint32", "channels"):
            plain = sizes[f"none-{kind}.exr"]
            assert sizes[f"{codec}-{kind}.exr"] < plain, (codec, kind)


def test_equal_files_every_time(tmp_path: Path) -> None:
    for folder in "ab":
        subprocess.run([sys.executable, fuzz_corpus.__file__, tmp_path / folder], check=True)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "ab")
    assert first == second
    assert first == dict(fuzz_corpus.corpus())
