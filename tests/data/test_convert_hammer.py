"""HAMMER: domains from its training scenes, and a paired test from its test scenes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from public_sets import HEIGHT, WIDTH, hammer_sequence, write_png

from vologan_fast import depth
from vologan_fast.data import DataError
from vologan_fast.data.convert import convert
from vologan_fast.data.demo import make_demo

pytest.importorskip("OpenEXR")

SENSORS = {"hammer-tof": "depth_tof", "hammer-d435": "depth_d435", "hammer-l515": "depth_l515"}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Write two training scenes and one test scene."""
    for name in ("scene2_traj1_1", "scene2_traj1_naked_1", "scene12_traj2_1"):
        hammer_sequence(tmp_path / "hammer" / name)
    return tmp_path / "hammer"


def paired_list(target: Path) -> list[dict[str, dict[str, str]]]:
    return json.loads((target / "paired-test/paired_paths.json").read_text())["paired_data"]


@pytest.mark.parametrize(("kind", "folder"), [*SENSORS.items(), ("hammer-truth", "_gt")])
def test_domains_hold_the_training_scenes(kind: str, folder: str, scenes: Path, tmp_path: Path) -> None:
    done = convert(kind, scenes, tmp_path / "set", "real")
    assert (done.written, done.broken, done.options) == (4, (), "")
    for scene in ("scene2_traj1_1", "scene2_traj1_naked_1"):
        for part, source in (("color", "rgb"), ("depth", folder)):
            found = tmp_path / "set/real" / part / f"hammer-{scene}-000001.png"
            assert found.read_bytes() == (scenes / scene / "polarization" / source / "000001.png").read_bytes()


@pytest.mark.parametrize(("kind", "folder"), SENSORS.items())
def test_the_paired_test_holds_the_test_scenes(kind: str, folder: str, scenes: Path, tmp_path: Path) -> None:
    written = hammer_sequence(scenes / "scene14_traj1_1", 3)
    done = convert(kind, scenes, tmp_path / "set", "paired-test")
    assert (done.written, done.kept, done.broken) == (5, 0, ())
    items = paired_list(tmp_path / "set")
    assert len(items) == 5
    root = tmp_path / "set/paired-test"
    for i, item in enumerate(items[2:]):  # in the order of the names: scene 12 first
        assert item["truth"] == item["real"]
        for side, source in (("synthetic", "_gt"), ("real", folder)):
            np.testing.assert_array_equal(depth.decode(root / item[side]["depth_path"]), written[source][i])
        assert len({(root / item[side]["color_path"]).read_bytes() for side in ("synthetic", "real")}) == 1
    assert not (tmp_path / "set/real").exists()


def test_the_list_has_the_form_of_the_demo_s(scenes: Path, tmp_path: Path) -> None:
    convert("hammer-tof", scenes, tmp_path / "set", "paired-test")
    demo = make_demo(tmp_path / "demo", count=1, size=32, paired_test=1)
    for items in (paired_list(tmp_path / "set"), paired_list(demo)):
        assert {kind: sorted(paths) for kind, paths in items[0].items()} == {
            kind: ["color_path", "depth_path"] for kind in ("synthetic", "real", "truth")
        }


def test_a_second_run_adds_what_is_missing(scenes: Path, tmp_path: Path) -> None:
    hammer_sequence(scenes / "scene13_traj1_1", 4)
    assert convert("hammer-tof", scenes, tmp_path / "set", "paired-test", limit=2).written == 2
    assert len(paired_list(tmp_path / "set")) == 2
    next((tmp_path / "set/paired-test/real/color").iterdir()).unlink()  # as if killed between the two files
    done = convert("hammer-tof", scenes, tmp_path / "set", "paired-test")
    assert (done.written, done.kept) == (4, 2)
    assert len(paired_list(tmp_path / "set")) == 6
    done = convert("hammer-tof", scenes, tmp_path / "set", "paired-test")
    assert (done.written, done.kept) == (0, 6)


def test_a_frame_that_is_broken_on_one_side_is_not_listed(scenes: Path, tmp_path: Path) -> None:
    path = scenes / "scene12_traj2_1/polarization/depth_tof/000000.png"
    path.write_bytes(b"no PNG")
    done = convert("hammer-tof", scenes, tmp_path / "set", "paired-test")
    (sentence,) = done.broken
    assert sentence.startswith(f"{path}: ")
    (item,) = paired_list(tmp_path / "set")
    assert item["real"]["depth_path"] == "real/depth/hammer-scene12_traj2_1-000001.png"


def test_frames_of_another_sensor_are_not_taken_for_these(scenes: Path, tmp_path: Path) -> None:
    for domain in ("real", "paired-test"):
        convert("hammer-tof", scenes, tmp_path / "set", domain)
        with pytest.raises(DataError, match=r"there are frames of hammer-scene\S+ from .*/depth_tof in .*/real"):
            convert("hammer-d435", scenes, tmp_path / "set", domain)


def test_another_paired_test_is_not_replaced(scenes: Path, tmp_path: Path) -> None:
    demo = make_demo(tmp_path / "demo", count=1, size=32, paired_test=1)
    with pytest.raises(DataError, match="expected no paired test or a converted one, found another"):
        convert("hammer-tof", scenes, demo, "paired-test")


@pytest.mark.parametrize("kind", ["tum", "hammer-truth", "bedlam"])
def test_formats_without_pairs(kind: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{kind} has no clean depth beside a sensor's"):
        convert(kind, scenes, tmp_path / "set", "paired-test")


def test_folders_with_one_half_of_the_scenes(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected recordings that are not test scenes, found none"):
        convert("hammer-tof", scenes / "scene12_traj2_1", tmp_path / "set", "real")
    with pytest.raises(DataError, match=r"expected test scenes \(12 to 14\), found none"):
        convert("hammer-tof", scenes / "scene2_traj1_1", tmp_path / "set", "paired-test")
    with pytest.raises(DataError, match=r"expected a folder with polarization/rgb in it.*, found nothing"):
        convert("hammer-tof", tmp_path / "absent", tmp_path / "set", "real")


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "depth_tof"), "depth_tof, found none among 2 and 0"),
        (lambda root: [p.unlink() for p in (root / "rgb").iterdir()], "depth_tof, found none among 0 and 2"),
        (lambda root: [p.rename(p.with_name("x" + p.name)) for p in (root / "rgb").iterdir()], "none among 2 and 2"),
    ],
)
def test_incomplete_sequences(spoil: Spoil, message: str, scenes: Path, tmp_path: Path) -> None:
    spoil(scenes / "scene2_traj1_1/polarization")
    done = convert("hammer-tof", scenes, tmp_path / "set", "real")
    (sentence,) = done.broken
    assert sentence.startswith(f"{scenes / 'scene2_traj1_1'}: expected images of the same names in polarization/rgb")
    assert sentence.endswith(message)
    assert done.written == 2


@pytest.mark.parametrize(
    ("folder", "image", "message"),
    [
        ("depth_tof", np.full((HEIGHT, WIDTH), 2, np.uint16), "median depth would be 0.002 m; expected 0.1 to 10 m"),
        ("depth_tof", np.full((HEIGHT, WIDTH), 20000, np.uint16), "median depth would be 20 m; expected 0.1 to 10 m"),
        ("depth_tof", np.zeros((HEIGHT, WIDTH), np.uint16), "expected pixels with depth, found none"),
        ("depth_tof", np.full((HEIGHT, WIDTH), 200, np.uint8), "uint8 PNG; expected a 16-bit grey PNG"),
        ("depth_tof", np.full((24, 32), 2000, np.uint16), "depth of 32 × 24; expected 48 × 36, as the colour's"),
        ("rgb", np.zeros((24, 32, 3), np.uint8), "depth of 48 × 36; expected 32 × 24, as the colour's"),
    ],
)
def test_broken_frames(folder: str, image: np.ndarray, message: str, scenes: Path, tmp_path: Path) -> None:
    write_png(scenes / "scene2_traj1_1/polarization" / folder / "000000.png", image)
    done = convert("hammer-tof", scenes, tmp_path / "set", "real")
    (sentence,) = done.broken
    assert re.search(message, sentence)
    assert done.written == 3
