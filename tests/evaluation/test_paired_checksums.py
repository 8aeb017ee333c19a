"""A paired test whose folder, or a folder above it, has checksums: no damage is accepted."""

import json
from pathlib import Path

import pytest

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.checksums import make_checksums
from vologan_fast.data.demo import make_demo
from vologan_fast.evaluation.inputs import load_paired, load_repeats

pytest.importorskip("OpenEXR")


def test_images_and_list_of_a_paired_test_are_compared(tmp_path: Path) -> None:
    root = make_demo(tmp_path / "demo", count=4, size=32, paired_test=1, repeats=1)
    make_checksums(root)
    of_run = load_dataset(root, DataConfig(size=32), 0)
    listed = root / "paired-test/paired_paths.json"
    (scene,) = json.loads(listed.read_text())["paired_data"]
    load_paired(listed, of_run, "synthetic", "real")
    load_repeats(listed, of_run)
    images = [scene["synthetic"]["color_path"], scene["truth"]["depth_path"], scene["repeats"][0]["color_path"]]
    for name in (*images, "paired_paths.json"):
        path = listed.parent / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 + len(whole) // 20):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(DataError, match=f"^{path}: damaged, or changed: "):
                load_paired(listed, of_run, "synthetic", "real")
                load_repeats(listed, of_run)
                pytest.fail(f"accepted: {name}, byte {at}")
        path.write_bytes(whole)
