"""The demo data: the files on disk, which are complete or absent."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vologan_fast.data import DataError
from vologan_fast.data.demo import make_demo
from vologan_fast.data.demo.dataset import RECORD
from vologan_fast.data.demo.phone import capture, clean
from vologan_fast.data.demo.scene import random_scene, render

OpenEXR = pytest.importorskip("OpenEXR")

COUNT, PAIRED = 6, 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo with a paired test."""
    return make_demo(tmp_path_factory.mktemp("demo") / "data", COUNT, 64, seed=1, paired_test=PAIRED)


def load(folder: Path, item: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Read uint8 colour (64, 64, 3) and half depth (64, 64) with other libraries."""
    with Image.open(folder / item["color_path"]) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        colour = np.asarray(image)
    channels = OpenEXR.File(str(folder / item["depth_path"]), separate_channels=True).channels()
    assert list(channels) == ["Z"]
    return colour, channels["Z"].pixels


def manifest(demo: Path) -> dict[str, list[dict[str, str]]]:
    return json.loads((demo / "training_paths.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout_is_the_published_one(demo: Path) -> None:
    lists = manifest(demo)
    assert {name: len(items) for name, items in lists.items()} == {"synthetic_data": COUNT, "real_data": COUNT}
    for item in [*lists["synthetic_data"], *lists["real_data"]]:
        colour, depth = load(demo, item)
        assert colour.shape == (64, 64, 3)
        assert (depth.shape, depth.dtype) == ((64, 64), np.float16)


def test_there_is_a_person_before_an_exact_background(demo: Path) -> None:
    lists = manifest(demo)
    for item in [*lists["synthetic_data"], *lists["real_data"]]:
        colour, depth = load(demo, item)
        figure = depth != -1
        assert 0.05 < figure.mean() < 0.4
        rows, columns = np.nonzero(figure)
        assert max(np.ptp(rows), np.ptp(columns)) > 52, "the figure fills the frame"
        measured = depth[figure & ~np.isnan(depth)]
        assert measured.min() > -0.9
        assert measured.max() < 1
        # JPEG blurs the outline inside its blocks of 16 x 16 pixels, and chroma into the next pixel. Beyond, all is 0.
        blocks = figure.reshape(4, 16, 4, 16).any((1, 3)).repeat(16, 0).repeat(16, 1)
        near = np.any([np.roll(blocks, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
        assert (colour[~near] == 0).all()
        assert colour[figure].mean() > 20


def test_only_the_phone_has_holes() -> None:
    """A photograph has NaN inside the figure. At this size, dark hair covers many sensor points."""
    holes = 0
    for i in range(6):
        buffers = render(random_scene(np.random.default_rng(i)), 128)
        assert np.isfinite(clean(buffers).depth).all()
        photograph = capture(buffers, np.random.default_rng(i))
        hole = np.isnan(photograph.depth) & photograph.mask
        assert hole.sum() < 0.2 * photograph.mask.sum()
        holes += hole.sum()
    assert holes > 0


def test_every_image_shows_another_person(demo: Path) -> None:
    lists = manifest(demo)
    pairs = [(demo, item) for item in [*lists["synthetic_data"], *lists["real_data"]]]
    paired = json.loads((demo / "paired-test" / "paired_paths.json").read_text())["paired_data"]
    pairs += [(demo / "paired-test", item["synthetic"]) for item in paired]
    outlines = [load(*pair)[1] != -1 for pair in pairs]
    for i, a in enumerate(outlines):
        for b in outlines[:i]:
            assert (a ^ b).sum() > 0.1 * (a | b).sum()


def test_paired_views_show_the_same_scene(demo: Path) -> None:
    folder = demo / "paired-test"
    paired = json.loads((folder / "paired_paths.json").read_text())["paired_data"]
    assert len(paired) == PAIRED
    for item in paired:
        (s_colour, s_depth), (t_colour, t_depth), (u_colour, u_depth) = (
            load(folder, item[kind]) for kind in ("synthetic", "real", "truth")
        )
        figure = (s_depth != -1) & (t_depth != -1) & (u_depth != -1)
        assert figure.sum() > 0.8 * (s_depth != -1).sum()
        # The truth is the photograph without its noise. So it is nearer to the photograph than to the render.
        to_truth = np.abs(t_colour.astype(float) - u_colour)[figure].mean()
        assert 0 < to_truth < np.abs(s_colour.astype(float) - u_colour)[figure].mean()
        noise, effect = (np.nanmean(np.abs((d.astype(float) - u_depth)[figure])) for d in (t_depth, s_depth))
        assert 0 < noise < 0.5 * effect


def test_training_cannot_reach_the_paired_test(demo: Path) -> None:
    named = [path for items in manifest(demo).values() for item in items for path in item.values()]
    assert all(path.split("/")[0] in ("synthetic", "real") for path in named)
    on_disk = {str(p.relative_to(demo)) for p in demo.rglob("*") if p.suffix in (".jpg", ".exr")}
    assert {path for path in on_disk if not path.startswith("paired-test/")} == set(named)


def test_without_a_paired_test_there_is_no_folder_for_it(tmp_path: Path) -> None:
    make_demo(tmp_path / "data", 1, 32)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [RECORD, "real", "synthetic", "training_paths.json"]


def test_equal_arguments_give_equal_files(demo: Path, tmp_path: Path) -> None:
    """Image i depends only on the seed and on i, not on the number of images."""
    again = files(make_demo(tmp_path / "again", 2, 64, seed=1, paired_test=1))
    first = files(demo)
    images = [name for name in again if name.endswith((".jpg", ".exr"))]
    assert len(images) == 2 * (2 * 2 + 3)
    assert all(again[name] == first[name] for name in images)
    other = files(make_demo(tmp_path / "other", 2, 64, seed=2))
    assert other["synthetic/0000.jpg"] != first["synthetic/0000.jpg"]


def test_the_same_demo_is_made_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in demo.rglob("*")}
    monkeypatch.setattr("vologan_fast.data.demo.dataset._fill", lambda *_: pytest.fail("it was rendered again"))
    assert make_demo(demo, COUNT, 64, seed=1, paired_test=PAIRED) == demo
    assert {p: p.stat().st_mtime_ns for p in demo.rglob("*")} == before


def test_an_existing_folder_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds another demo: found .*'count': 6.* expected .*'count': 7"):
        make_demo(demo, 7, 64, seed=1, paired_test=PAIRED)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=f"{tmp_path} exists and is not a demo data set"):
        make_demo(tmp_path, 1, 64)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert (make_demo(tmp_path / "data", 1, 32) / RECORD).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0, "size": 64}, "count: found 0, expected at least 1"),
        ({"count": 1, "size": 60}, "size: found 60, expected a multiple of 8"),
        ({"count": 1, "size": 16}, "size: found 16, expected at least 32"),
        ({"count": 1, "size": 64, "seed": -1}, "seed: found -1"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        make_demo(tmp_path / "data", **arguments)
    assert not any(tmp_path.iterdir())


def start(folder: Path, count: int) -> subprocess.Popen[str]:
    """Start the command in another process, and return when it has begun to write images."""
    command = [sys.executable, "-m", "vologan_fast.data", "demo", str(folder), "--count", str(count), "--size", "64"]
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Background jobs of a shell ignore Ctrl-C, and so would a process that tests in such a job start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(folder.parent.glob(f".{folder.name}.partial/*/*.exr")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no image after a minute"
        time.sleep(0.02)
    return process


def test_a_killed_run_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    process = start(folder, 400)  # on several processes if there are several cores
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not folder.exists()
    again = files(make_demo(folder, 2, 64))
    assert len([name for name in again if name.endswith(".exr")]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "what the killed run left is gone"


def test_an_interrupted_run_cleans_up_and_ends_soon(tmp_path: Path) -> None:
    process = start(tmp_path / "data", 400)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_make_one_demo(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = start(folder, 8)
    command = [sys.executable, "-m", "vologan_fast.data", "demo", str(folder), "--count", "8", "--size", "64"]
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    assert first.wait() == 0
    assert (second.returncode, second.stdout.strip()) == (0, str(folder))
    assert "Rendering" not in second.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_the_command_line_reports_a_mistake_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vologan_fast.data", "demo", str(tmp_path / "data"), "--size", "60"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: size: found 60, expected a multiple of 8"]


def test_what_others_put_there_meanwhile_stays(tmp_path: Path) -> None:
    """A folder that was empty at first is used; if it holds something at the end, nothing is replaced."""
    folder = tmp_path / "data"
    folder.mkdir()
    process = start(folder, 8)
    (folder / "mine.txt").write_text("precious")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "cannot be written" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (folder / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("target", ["empty", "absent"])
def test_a_link_is_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(DataError, match="cannot be written"):
        make_demo(tmp_path / "link", 1, 32)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]
