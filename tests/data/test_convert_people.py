"""BEDLAM and HuMMan: what their look-alikes hold arrives in training, and incomplete folders give one sentence."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from public_sets import (
    HEIGHT,
    IPHONE_COLOR,
    IPHONE_DEPTH,
    KINECT_COLOR,
    KINECT_DEPTH,
    WIDTH,
    WORLD_DEPTH,
    bedlam2_set,
    bedlam_set,
    body,
    centimetres,
    humman_sequence,
    kinect_cameras,
    sensor,
    write_exr,
    write_mask,
    write_png,
)

from vologan_fast import depth
from vologan_fast.config import DataConfig, DepthSpec
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.convert import convert
from vologan_fast.data.convert.bedlam import is_sideways
from vologan_fast.data.convert.humman import read_cameras
from vologan_fast.data.convert.multilayer import srgb
from vologan_fast.data.convert.people import people_square
from vologan_fast.data.pixels import read_cropped

pytest.importorskip("OpenEXR")

SQUARE = slice(6, 42)
"""The columns of the square in the middle. The person of each image is inside."""
BOTH = {"bedlam": bedlam_set, "bedlam2": bedlam2_set}
both = pytest.mark.parametrize("release", BOTH)


def files(folder: Path, part: str) -> list[Path]:
    return sorted((folder / part).iterdir())


def bits(values: np.ndarray) -> np.ndarray:
    """Return float32 values as numbers, so that equal NaN are equal."""
    return values.astype(np.float32).view(np.uint32)


# BEDLAM and BEDLAM 2


@both
def test_bedlam_depth_is_kept_to_the_bit(release: str, tmp_path: Path) -> None:
    written = BOTH[release](tmp_path / "scene")
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic")
    assert (done.written, done.broken) == (4, ())
    assert done.options == "--data.synthetic.unit cm --data.synthetic.background inf"
    for path in files(tmp_path / "set/synthetic", "depth"):
        source = written[path.stem.removeprefix("scene-")]
        expected = np.where(source < 65504, source, np.inf)
        found = depth.decode(path)
        assert depth.probe(path).channels[0].dtype == source.dtype.name
        np.testing.assert_array_equal(bits(found), bits(expected))
        assert np.isinf(found[:6]).any()
    sources = sorted((tmp_path / "scene/png").rglob("*.png"))
    for path, source in zip(files(tmp_path / "set/synthetic", "color"), sources, strict=True):
        assert path.read_bytes() == source.read_bytes()


@both
def test_people_are_kept_and_the_rest_is_background(release: str, tmp_path: Path) -> None:
    written = BOTH[release](tmp_path / "scene")
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True)
    assert (done.written, done.broken) == (4, ())
    for path in files(tmp_path / "set/synthetic", "depth"):
        source = written[path.stem.removeprefix("scene-people-")]
        person = source < 400  # the person is at 3 m, and the wall behind at 5 m
        expected = np.where(person, source, np.inf)[:, SQUARE]
        np.testing.assert_array_equal(bits(depth.decode(path)), bits(expected))
    sources = sorted((tmp_path / "scene/png").rglob("*.png"))
    for path, source in zip(files(tmp_path / "set/synthetic", "color"), sources, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(source))[:, SQUARE])


@both
def test_the_channel_is_named(release: str, tmp_path: Path) -> None:
    BOTH[release](tmp_path / "scene")
    (note,) = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic").notes
    name = {"bedlam": "Depth", "bedlam2": f"{WORLD_DEPTH}.R"}[release]
    assert note.startswith(f"{tmp_path / 'scene'}: depth is the channel {name} (")


def test_people_become_the_foreground_of_training(tmp_path: Path) -> None:
    bedlam_set(tmp_path / "a/20221010_3_1000_batch01hand")
    for domain in ("synthetic", "real"):
        convert("bedlam", tmp_path / "a", tmp_path / "set", domain, people=True)
    spec = DepthSpec(unit="cm", background=math.inf)
    dataset = load_dataset(tmp_path / "set", DataConfig(size=32, synthetic=spec, real=spec), seed=0)
    record = dataset.train["synthetic"][0]
    _, values = read_cropped(record, dataset.spec("synthetic"), 32)
    assert 0.1 < (values > 0).mean() < 0.5
    assert 2.99 < dataset.spec("synthetic").near < dataset.spec("synthetic").far < 3.11


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_square_shows_most_people(mask: np.ndarray) -> None:
    side, starts = min(mask.shape), [range(n - min(mask.shape) + 1) for n in mask.shape]
    rows, columns = people_square(mask)
    assert mask[rows, columns].shape == (side, side)
    squares = {(y, x): mask[y : y + side, x : x + side].sum() for y in starts[0] for x in starts[1]}
    best = [place for place, count in squares.items() if count == max(squares.values())]
    assert (rows.start, columns.start) in best
    off = {(y, x): abs(y - (mask.shape[0] - side) / 2) + abs(x - (mask.shape[1] - side) / 2) for y, x in best}
    assert off[rows.start, columns.start] == min(off.values())


def test_a_multilayer_exr_gives_its_own_colour(tmp_path: Path) -> None:
    """Without PNGs, colour is the linear picture of the EXR as sRGB."""
    bedlam2_set(tmp_path / "scene", color=False)
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", limit=1)
    assert (done.written, done.broken) == (1, ())
    (path,) = files(tmp_path / "set/synthetic", "color")
    found = np.asarray(Image.open(path))
    assert found.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(found[0, [0, -1]], [[0] * 3, [255] * 3])
    assert (np.diff(found[0, :, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("linear", "expected"),
    [(0.0, 0), (1.0, 255), (0.5, 188), (0.0031308, 10), (-1.0, 0), (9.0, 255), (math.nan, 0)],
)
def test_srgb(linear: float, expected: int) -> None:
    """0.5 is 188: 255 · (1.055 · 0.5^(1/2.4) − 0.055) = 187.5. At the joint, 255 · 12.92 · 0.0031308 = 10.3."""
    assert srgb(np.float32([linear]))[0] == expected


def test_extracted_layers_of_bedlam_2(tmp_path: Path) -> None:
    """The tools of BEDLAM 2 write depth, picture and masks of the EXR as files of their own."""
    written = {}
    for i in range(2):
        frame = f"seq_000000/seq_000000_{i:04}"
        layers = tmp_path / "scene/exr_layers"
        written[i] = centimetres(i, np.float16)
        write_exr(layers / "depth" / f"{frame}_depth.exr", {"Depth": written[i]})
        write_png(layers / "image" / f"{frame}_image.png", np.full((HEIGHT, WIDTH, 3), 9 * i, np.uint8))
        write_mask(layers / "masks" / f"{frame}_00_body.png", body(i))
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True)
    assert (done.written, done.broken) == (2, ())
    for i, path in enumerate(files(tmp_path / "set/synthetic", "depth")):
        expected = np.where(body(i), written[i], np.inf)[:, SQUARE]
        np.testing.assert_array_equal(bits(depth.decode(path)), bits(expected))


@pytest.mark.parametrize(
    ("name", "sideways"),
    [
        ("20221011_1_250_batch01hand_closeup_suburb_a_6fps", True),
        ("20221010_3_1000_batch01hand", False),
        ("20240606_1_500_stadium_closeup", False),
        ("20240703_1_250_ai0901_orbit_portrait", True),
        ("20240729_1_250_ai1004_vcam", True),
        ("20240725_1_250_ai0805_vcam", False),
        ("my_portrait_of_closeup_people", False),
    ],
)
def test_which_scene_sets_are_sideways(name: str, sideways: bool, tmp_path: Path) -> None:
    assert is_sideways(tmp_path / name / "inner") == sideways


def test_a_sideways_scene_set_is_turned_upright(tmp_path: Path) -> None:
    name = "20221011_1_250_batch01hand_closeup_suburb_a"
    written = bedlam_set(tmp_path / name, 1, 1)
    done = convert("bedlam", tmp_path / name, tmp_path / "set", "synthetic", people=True)
    assert "turned by 90° clockwise" in done.notes[0]
    (source,) = written.values()
    (path,) = files(tmp_path / "set/synthetic", "depth")
    expected = np.where(source < 400, source, np.inf)[:, SQUARE]
    np.testing.assert_array_equal(bits(depth.decode(path)), bits(np.rot90(expected, -1)))
    (path,) = files(tmp_path / "set/synthetic", "color")
    (color,) = (tmp_path / name / "png").rglob("*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.rot90(np.asarray(Image.open(color))[:, SQUARE], -1))


def test_images_without_people_are_left_out(tmp_path: Path) -> None:
    bedlam_set(tmp_path / "scene")
    for path in (tmp_path / "scene/masks/seq_000001").glob("*_0005_00_*"):
        path.unlink()  # only the mask of the rest is left: nobody is in sight
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True)
    assert (done.written, done.broken) == (3, ())
    assert "1 images without people are left out" in done.notes[0]


def test_depth_of_every_frame_beside_colour_of_some(tmp_path: Path) -> None:
    bedlam_set(tmp_path / "scene")
    next((tmp_path / "scene/png").rglob("*_0005.png")).unlink()
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic")
    assert (done.written, done.broken) == (3, ())
    assert "1 images of colour or depth have no partner" in done.notes[0]


Spoil = Callable[[Path], object]


def _rewrite(path: Path, factor: float) -> None:
    values = depth.decode(path)
    write_exr(path, {"Depth": np.where(values < 65504, values * np.float32(factor), values)})


def _first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "depth"), r"expected depth in depth/SEQ.* \(it is a download of its own\)"),
        (lambda root: shutil.rmtree(root / "png"), r"expected colour in png/SEQ.* \(it is a download of its own\)"),
        (lambda root: shutil.rmtree(root / "masks"), r"expected masks of people in masks/SEQ.*, found none"),
        (
            lambda root: [path.unlink() for path in (root / "depth").rglob("*.exr")],
            "expected depth in depth/SEQ",
        ),
        (
            lambda root: [path.unlink() for path in (root / "masks").rglob("*_00_*")],
            "expected people in some of the 4 images, found masks of none",
        ),
        (
            lambda root: [path.rename(path.with_name(f"x{path.name}")) for path in (root / "png").rglob("*.png")],
            "expected colour and depth of the same frames, found none of 4 with both",
        ),
    ],
)
def test_incomplete_scene_sets(spoil: Spoil, message: str, tmp_path: Path) -> None:
    bedlam_set(tmp_path / "scene")
    spoil(tmp_path / "scene")
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True)
    (sentence,) = done.broken
    assert sentence.startswith(f"{tmp_path / 'scene'}: ")
    assert re.search(message, sentence)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: _rewrite(_first(root, "*_depth.exr"), 0.01),
            "median depth would be 0.03.* m; expected 0.1 to 200",
        ),
        (lambda root: _rewrite(_first(root, "*_depth.exr"), 100), "median depth would be 30.* m; expected 0.1 to 200"),
        (lambda root: _first(root, "*_depth.exr").write_bytes(b"no EXR"), "_depth.exr: "),
        (lambda root: write_png(_first(root, "*_0000.png"), np.zeros((24, 48, 3), np.uint8)), "expected 48 × 36"),
        (lambda root: _first(root, "*_0000.png").write_bytes(b"no PNG"), "expected a JPEG or PNG image"),
        (
            lambda root: write_mask(_first(root, "*_00_body.png"), np.ones((24, 48))),
            "mask of 48 × 24; expected 48 × 36",
        ),
        (lambda root: _first(root, "*_00_body.png").write_bytes(b"no PNG"), "expected a mask as PNG or JPEG"),
        (
            lambda root: [
                write_mask(path, np.zeros((36, 48)))
                for path in root.rglob("*_0000_00_*")
                if "01/" in str(path.relative_to(root))
            ],
            "expected pixels with depth, found none that are kept",
        ),
        (
            lambda root: [path.unlink() for path in root.rglob("seq_000000_0000_*.png")],
            "expected a mask of people for this frame, found none",
        ),
        (
            lambda root: write_exr(
                _first(root, "*_depth.exr"),
                {"N.X": np.ones((36, 48), np.float32)} | {"N.Y": np.ones((36, 48), np.float32)},
            ),
            "N.X",
        ),
        (
            lambda root: write_exr(_first(root, "*_depth.exr"), {"Depth": np.ones((36, 48), np.uint32)}),
            "uint32 depth; expected an EXR of floats",
        ),
    ],
)
def test_broken_frames_of_bedlam(spoil: Spoil, message: str, tmp_path: Path) -> None:
    """A broken frame gives one sentence, and the other three are written."""
    bedlam_set(tmp_path / "scene")
    spoil(tmp_path / "scene")
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True)
    (sentence,) = done.broken
    assert sentence.startswith(f"{tmp_path / 'scene'}/") and re.search(message, sentence)
    assert done.written == 3


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("cryptomatte", "expected a Cryptomatte with a manifest of its objects, found none"),
        ("ActorHitProxyMask00.R", r"expected a channel ActorHitProxyMask00.R, found A, "),
        ("R", "expected a channel R, found A, "),
    ],
)
def test_multilayer_files_that_lack_a_part(without: str, message: str, tmp_path: Path) -> None:
    import OpenEXR

    bedlam2_set(tmp_path / "scene", 1, 1, color=False)
    path = _first(tmp_path, "*.exr")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: c.pixels for name, c in file.parts[0].channels.items() if name != without}
        header = {k: v for k, v in file.parts[0].header.items() if k.startswith("cryptomatte")}
    write_exr(path, channels, "PIZ", **({} if without == "cryptomatte" else header))
    (sentence,) = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True).broken
    assert sentence.startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "manifest",
    [
        *("", "[]", "7", "{", "[" * 100_000),
        *('{"be_actor_0_a_body": 1}', '{"be_actor_0_a_body": "x"}', '{"be_actor_0_a_body": null}'),
        *('{"be_actor_0_a_body": "-1"}', '{"be_actor_0_a_body": "1ffffffff"}'),
    ],
)
def test_manifests_that_lie(manifest: str, tmp_path: Path) -> None:
    bedlam2_set(tmp_path / "scene", 1, 1, manifest=manifest)
    (sentence,) = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True).broken
    assert sentence.endswith("expected a Cryptomatte with a manifest of its objects, found none")


def test_a_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    bedlam_set(tmp_path / "scene")
    convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", limit=3)
    done = convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic")
    assert (done.written, done.kept) == (1, 3)


def test_frames_of_the_whole_scene_are_not_taken_for_people(tmp_path: Path) -> None:
    bedlam_set(tmp_path / "scene")
    convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic")
    assert convert("bedlam", tmp_path / "scene", tmp_path / "set", "synthetic", people=True).written == 4


def test_people_of_formats_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--people: tum does not say where people are; expected one of bedlam, humman"):
        convert("tum", tmp_path, tmp_path / "set", "real", people=True)


# HuMMan


def test_an_iphone_s_files_are_copied(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p000438_a000040")
    done = convert("humman-iphone", tmp_path, tmp_path / "set", "real")
    assert (done.written, done.broken, done.options, done.notes) == (2, (), "", ())
    stem = f"{tmp_path.name}-p000438_a000040-iphone-000006"
    source = tmp_path / "p000438_a000040"
    color, values = (tmp_path / "set/real" / part / f"{stem}.png" for part in ("color", "depth"))
    assert color.read_bytes() == (source / "iphone_color/iphone/000006.png").read_bytes()
    assert values.read_bytes() == (source / "iphone_depth/iphone/000006.png").read_bytes()


def test_people_of_an_iphone(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1")
    done = convert("humman-iphone", tmp_path / "p1_a1", tmp_path / "set", "real", people=True)
    assert (done.written, done.broken, done.options) == (2, (), "--data.real.background 65535")
    mask = body(0, *IPHONE_COLOR)
    rows, columns = (np.arange(n) * m // n + m // n // 2 for n, m in zip(IPHONE_DEPTH, IPHONE_COLOR, strict=True))
    expected = np.where(mask[np.ix_(rows, columns)], sensor(0, *IPHONE_DEPTH), 65535)
    np.testing.assert_array_equal(depth.decode(files(tmp_path / "set/real", "depth")[0]), expected)


def test_kinect_depth_arrives_in_the_view_of_colour(tmp_path: Path) -> None:
    """A wall at 2 m faces the colour camera. The depth camera, which is moved and turned, sees it at other depths."""
    humman_sequence(tmp_path / "p1_a1", 1)
    cameras = kinect_cameras()["kinect_depth_000"]
    matrix, turn, shift = (np.array(cameras[key]) for key in "KRT")
    v, u = np.mgrid[0 : KINECT_DEPTH[0], 0 : KINECT_DEPTH[1]]
    rays = np.linalg.solve(matrix, np.stack([u, v, np.ones_like(u)]).reshape(3, -1).astype(float))
    normal = turn @ [0, 0, 1]
    z = ((2 + normal @ shift) / (normal @ rays)).reshape(KINECT_DEPTH)
    assert np.ptp(z) > 0.03
    write_png(tmp_path / "p1_a1/kinect_depth/kinect_000/000000.png", np.rint(z * 1000).astype(np.uint16))
    done = convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "set", "real")
    assert (done.written, done.broken, done.options) == (1, (), "--data.real.unit m")
    (path,) = files(tmp_path / "set/real", "depth")
    assert path.stem == "p1_a1-kinect_000-000000"
    found = depth.decode(path)
    assert found.shape == (KINECT_COLOR[0] // 2, KINECT_COLOR[1] // 2)  # 91.8 / 50.4 pixels of colour to one of depth
    there = np.isfinite(found)
    assert there[5:-5, 30:-30].all(), "no gap in the middle"
    # A depth is rounded by half a millimetre, along a ray that is at most 45° from the axis.
    np.testing.assert_allclose(found[there], 2, atol=0.0005 * 1.5)


def test_people_of_a_kinect(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1")
    done = convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "set", "real", people=True)
    assert (done.written, done.broken) == (2, ())
    assert done.options == "--data.real.unit m --data.real.background inf"
    found = depth.decode(files(tmp_path / "set/real", "depth")[0])
    mask = body(0, *KINECT_COLOR)[1::2, 1::2]
    np.testing.assert_array_equal(np.isinf(found), ~mask)
    assert 1.9 < np.nanmin(found) < 2.1


@pytest.mark.parametrize("kind", ["humman-kinect", "humman-iphone"])
def test_colour_that_the_video_splitter_numbered_from_1(kind: str, tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1", 4, first=1, step=1)
    done = convert(kind, tmp_path / "p1_a1", tmp_path / "set", "real")
    assert (done.written, done.broken) == (4, ())
    assert "colour is numbered from 1 and depth from 0" in done.notes[0]
    folder = tmp_path / "p1_a1" / f"{kind.split('-')[1]}_color"
    first = next(folder.rglob("000001.png"))
    assert files(tmp_path / "set/real", "color")[0].read_bytes() == first.read_bytes()


def test_colour_whose_first_image_was_deleted_is_not_shifted(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1", 4, step=1)
    (tmp_path / "p1_a1/iphone_color/iphone/000000.png").unlink()
    done = convert("humman-iphone", tmp_path / "p1_a1", tmp_path / "set", "real")
    assert done.written == 3
    assert done.notes == (f"{tmp_path / 'p1_a1/iphone_color/iphone'}: 1 images of colour or depth have no partner",)


def test_masks_of_every_sixth_image(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1", 4)
    (tmp_path / "p1_a1/kinect_mask/kinect_000/000006.png").unlink()
    done = convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "set", "real", people=True)
    assert (done.written, done.broken) == (3, ())
    assert "1 images without a mask are left out" in done.notes[0]


def _edit_cameras(root: Path, edit: Callable[[dict[str, dict[str, list[float]]]], object]) -> None:
    cameras = json.loads((root / "cameras.json").read_text())
    edit(cameras)
    (root / "cameras.json").write_text(json.dumps(cameras))


def _set(key: str, value: object, camera: str = "kinect_depth_000") -> Spoil:
    return lambda root: _edit_cameras(root, lambda cameras: cameras[camera].update({key: value}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "cameras.json").unlink(), "cameras.json: cannot be read: No such file"),
        (
            lambda root: (root / "cameras.json").write_text("{"),
            "expected K, R and T of the cameras of kinect_000, found",
        ),
        (lambda root: (root / "cameras.json").write_text("[]"), "expected K, R and T of the cameras of kinect_000"),
        (
            lambda root: _edit_cameras(root, lambda cameras: cameras.pop("kinect_depth_000")),
            "found no 'kinect_depth_000'",
        ),
        (_set("T", [32, 2, -4]), r"would be 32.3 m apart; expected centimetres: is T not in metres\?"),
        (_set("K", [[50, 0], [0, 50]]), r"found shapes \(2, 2\), \(3, 3\) and \(3,\)"),
        (_set("K", [[0, 0, 32], [0, 50, 29], [0, 0, 1]]), "found K = "),
        (_set("K", [[50, 50, 32], [50, 50, 29], [0, 0, 1]]), "found K = "),
        (_set("K", [[50, 1, 32], [0, 50, 29], [0, 0, 1]]), "found K = "),
        (_set("K", [[50, 0, 32], [0, 50, 29], [0, 0, 2]]), "found K = "),
        (_set("T", [0, 2300, 0]), r"found T = .*, more than 100 m; is T not in metres\?"),
        (_set("R", [[1e300] * 3] * 3), "found R that is no rotation"),
        (_set("R", [[2, 0, 0], [0, 1, 0], [0, 0, 1]]), "found R that is no rotation"),
        (_set("R", [[math.nan, 0, 0], [0, 1, 0], [0, 0, 1]]), "found numbers that are not finite"),
        (_set("T", "far away"), "expected K, R and T of the cameras of kinect_000, found"),
        (lambda root: shutil.rmtree(root / "kinect_depth"), "found none among 2 of colour and 0 of depth"),
        (lambda root: shutil.rmtree(root / "kinect_mask"), "expected masks of people in .*kinect_mask/kinect_000"),
        (
            lambda root: [path.unlink() for path in (root / "kinect_depth/kinect_000").iterdir()],
            "found none among 2 of colour and 0 of depth",
        ),
    ],
)
def test_incomplete_sequences(spoil: Spoil, message: str, tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1")
    spoil(tmp_path / "p1_a1")
    (sentence,) = convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "set", "real", people=True).broken
    assert sentence.startswith(f"{tmp_path / 'p1_a1'}/") and re.search(message, sentence)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("camera", ["kinect_color_000", "kinect_depth_000"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("factor", [1e-310, 0.19, 5.1, 1e300])
def test_focal_lengths_that_no_camera_has(factor: float, axis: int, camera: str, tmp_path: Path) -> None:
    """The factor is of the image's width. Just inside the range, the same frame is read."""
    humman_sequence(tmp_path / "p1_a1", 1)
    width = (KINECT_COLOR if camera == "kinect_color_000" else KINECT_DEPTH)[1]
    matrix = kinect_cameras()[camera]["K"]
    matrix[axis][axis] = factor * width
    _set("K", matrix, camera)(tmp_path / "p1_a1")
    (sentence,) = convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "set", "real").broken
    assert sentence.startswith(f"{tmp_path / 'p1_a1/cameras.json'}: a focal length of ")
    assert re.search(
        rf"expected 0.2 to 5.0 times the width of \S*{camera[:12]}/kinect_000/\d+.png, which is {width}$", sentence
    )
    matrix[axis][axis] = (0.21 if factor < 1 else 4.9) * width
    _set("K", matrix, camera)(tmp_path / "p1_a1")
    assert not any(
        "focal" in line for line in convert("humman-kinect", tmp_path / "p1_a1", tmp_path / "ok", "real").broken
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**400), 10**400) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("KRT"), inner, max_size=3),
    max_leaves=12,
)


@given(value=json_values, key=st.sampled_from(["K", "R", "T", ""]))
@example(value=[False, False, False], key="T")
@example(value=[0.0, True, 0], key="T")
@example(value=["0", "0", "0"], key="T")
@example(value=[float("nan"), 0, 0], key="T")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_calibrations_that_lie(value: object, key: str, tmp_path: Path) -> None:
    """Any JSON in place of a camera, or of a part of it, is one sentence."""
    near = isinstance(value, list) and all(type(number) in (int, float) and abs(number) < 10 for number in value)
    assume(not (key == "T" and near and len(value) == 3))  # which may be where a camera stands
    cameras = kinect_cameras()
    broken = {**cameras["kinect_depth_000"], key: value} if key else value
    (tmp_path / "cameras.json").write_text(json.dumps({**cameras, "kinect_depth_000": broken}))
    with pytest.raises(DataError, match=r"expected K, R and T|is T not in metres"):
        read_cameras(tmp_path / "cameras.json", "kinect_000")


def test_a_video_that_was_not_split(tmp_path: Path) -> None:
    humman_sequence(tmp_path / "p1_a1")
    shutil.rmtree(tmp_path / "p1_a1/kinect_color/kinect_000")
    (tmp_path / "p1_a1/kinect_color/kinect_000.mp4").write_bytes(b"video")
    (sentence,) = convert("humman-kinect", tmp_path, tmp_path / "set", "real").broken
    assert sentence.startswith(f"{tmp_path / 'p1_a1/kinect_color/kinect_000.mp4'}: expected images in ")
    assert "split it with ffmpeg -i" in sentence


@pytest.mark.parametrize(
    ("kind", "path", "image", "message"),
    [
        (
            "humman-kinect",
            "kinect_depth/kinect_000",
            np.full(KINECT_DEPTH, 2, np.uint16),
            "would be 0.00.* m; expected 0.1",
        ),
        (
            "humman-kinect",
            "kinect_depth/kinect_000",
            np.full(KINECT_DEPTH, 15000, np.uint16),
            "would be 15 m; expected",
        ),
        ("humman-kinect", "kinect_depth/kinect_000", np.zeros(KINECT_DEPTH, np.uint16), "found none that are kept"),
        ("humman-kinect", "kinect_depth/kinect_000", np.full((200, 256), 2000, np.uint16), "centre is near 32, 29"),
        (
            "humman-kinect",
            "kinect_depth/kinect_000",
            np.full(KINECT_DEPTH, 9, np.uint8),
            "uint8 PNG; expected a 16-bit",
        ),
        ("humman-kinect", "kinect_color/kinect_000", np.zeros((720, 1280, 3), np.uint8), "centre is near 96, 54"),
        ("humman-kinect", "kinect_mask/kinect_000", np.zeros(KINECT_DEPTH, np.uint8), "mask of 64 × 58; expected 192"),
        (
            "humman-iphone",
            "iphone_depth/iphone",
            np.full((48, 48), 2000, np.uint16),
            "expected the aspect ratio of 192",
        ),
        ("humman-iphone", "iphone_depth/iphone", np.full(IPHONE_DEPTH, 20, np.uint16), "would be 0.02 m; expected 0.1"),
        ("humman-iphone", "iphone_mask/iphone", np.zeros(IPHONE_COLOR, np.uint8), "middle of the image, found none"),
    ],
)
def test_broken_frames_of_humman(kind: str, path: str, image: np.ndarray, message: str, tmp_path: Path) -> None:
    """A broken frame gives one sentence, and the other is written."""
    humman_sequence(tmp_path / "p1_a1")
    write_png(tmp_path / "p1_a1" / path / "000006.png", image)
    done = convert(kind, tmp_path / "p1_a1", tmp_path / "set", "real", people=True)
    (sentence,) = done.broken
    assert sentence.startswith(f"{tmp_path / 'p1_a1'}/") and re.search(message, sentence)
    assert done.written == 1
