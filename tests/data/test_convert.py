"""Conversion of recordings: their content arrives in training, and broken content gives one sentence."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from recordings import (
    SCENE,
    arkitscenes_folder,
    encoded,
    hypersim_folder,
    jpeg,
    millimetres,
    record3d_file,
    scannet_file,
    sens,
    tum_folder,
)

from vologan_fast import depth
from vologan_fast.config import DataConfig, DepthSpec
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.convert import convert, record3d, scannet
from vologan_fast.data.convert.timestamps import nearest_pairs
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pixels import metres_per_unit, read_cropped

pytest.importorskip("OpenEXR")
pytest.importorskip("h5py")
pytest.importorskip("imagecodecs")


def trained_on(kind: str, source: Path, target: Path) -> list[tuple[bytes, np.ndarray]]:
    """Convert a recording and load it with the printed settings, as training does.

    Returns the bytes of colour and the depth in metres (NaN: missing).
    """
    spec = DepthSpec()
    for domain in ("synthetic", "real"):
        done = convert(kind, source, target, domain)
        assert (done.written, done.kept, done.broken) == (SCENE, 0, ())
        words = done.options.split()
        for name, value in zip(words[::2], words[1::2], strict=True):
            field = name.removeprefix(f"--data.{domain}.")
            spec = dataclasses.replace(spec, **{field: value if field == "unit" else float(value)})
    dataset = load_dataset(target, DataConfig(size=32, synthetic=spec, real=spec), seed=0)
    records = sorted((*dataset.train["real"], *dataset.held_out["real"]), key=lambda record: record.color)
    images = []
    for record in records:
        read_cropped(record, dataset.spec("real"), 32)
        values = depth.decode(record.depth)
        values[np.isin(values, dataset.spec("real").invalid)] = np.nan
        images.append((record.color.read_bytes(), values * metres_per_unit(dataset.spec("real"))))
    return images


def assert_images(
    found: list[tuple[bytes, np.ndarray]], expected: list[tuple[bytes, np.ndarray]], scale: float
) -> None:
    """Check that colour has the same bytes, and depth the same values up to float32's rounding of the scale."""
    assert len(found) == len(expected)
    for (color, values), (source_color, source) in zip(found, expected, strict=True):
        assert color == source_color
        np.testing.assert_allclose(values, np.where(source > 0, source * scale, np.nan), rtol=1e-6)


def test_scannet(tmp_path: Path) -> None:
    images = scannet_file(tmp_path / "scans/scene0000_00.sens")
    assert_images(trained_on("scannet", tmp_path / "scans", tmp_path / "set"), images, 0.001)
    names = sorted(path.name for path in (tmp_path / "set/real/depth").iterdir())
    assert names == [f"scans-scene0000_00-{i:06}.png" for i in range(SCENE)]


@pytest.mark.parametrize("kind", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_scannet_kinds(kind: str, packed: bool, tmp_path: Path) -> None:
    pixels, values = np.asarray(Image.open(io.BytesIO(jpeg(0, 36, 48)))), millimetres(0, 18, 24)
    stored = {"jpeg": jpeg(0, 36, 48), "png": encoded(pixels, "PNG"), "raw": pixels.tobytes()}[kind]
    body = [(stored, zlib.compress(values.tobytes()) if packed else values.tobytes())]
    code = ["raw", "png", "jpeg"].index(kind)
    (tmp_path / "a.sens").write_bytes(sens(body, (36, 48), (18, 24), color=code, depth=int(packed), shift=4000))
    done = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    assert (done.written, done.broken, done.options) == (1, (), "--data.real.scale 0.00025")
    (color,) = (tmp_path / "set/real/color").iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(color)), pixels)
    assert kind == "raw" or color.read_bytes() == stored
    np.testing.assert_array_equal(depth.decode(tmp_path / "set/real/depth/a-000000.png"), values)


@pytest.mark.parametrize("sizes", [{}, {"dw": None, "dh": None}])
def test_record3d(sizes: dict[str, None], tmp_path: Path) -> None:
    images = record3d_file(tmp_path / "scan.r3d", sizes)
    assert_images(trained_on("record3d", tmp_path / "scan.r3d", tmp_path / "set"), images, 1)


def test_record3d_is_exact(tmp_path: Path) -> None:
    images = record3d_file(tmp_path / "scan.r3d")
    assert convert("record3d", tmp_path / "scan.r3d", tmp_path / "set", "real").options == "--data.real.unit m"
    found = depth.decode(tmp_path / "set/real/depth/scan-000001.exr")
    np.testing.assert_array_equal(found, np.where(images[1][1] == 0, np.nan, images[1][1]))


def test_tum(tmp_path: Path) -> None:
    images = tum_folder(tmp_path / "rgbd_dataset_freiburg1_xyz")
    found = trained_on("tum", tmp_path / "rgbd_dataset_freiburg1_xyz", tmp_path / "set")
    assert_images(found, images, 0.0002)


def test_tum_pairs_at_most_20_ms_apart(tmp_path: Path) -> None:
    tum_folder(tmp_path / "far", apart=0.03)
    done = convert("tum", tmp_path / "far", tmp_path / "set", "real")
    assert done.written == 0
    assert "expected colour and depth images at most 0.02 s apart, found none among 3 and 4" in done.broken[0]


@pytest.mark.parametrize("line", ["1.0 ../outside.png", "1.0 /etc/passwd", "1.0", "soon rgb/0.png", "nan rgb/0.png"])
def test_tum_lists_that_lie(line: str, tmp_path: Path) -> None:
    tum_folder(tmp_path / "source")
    with (tmp_path / "source/rgb.txt").open("a") as file:
        file.write(line + "\n")
    (sentence,) = convert("tum", tmp_path / "source", tmp_path / "set", "real").broken
    assert "rgb.txt: line 6: " in sentence
    assert not (tmp_path / "set").exists()


def test_arkitscenes(tmp_path: Path) -> None:
    images = arkitscenes_folder(tmp_path / "raw/Training/4106")
    assert_images(trained_on("arkitscenes", tmp_path / "raw", tmp_path / "set"), images, 0.001)


def test_hypersim_depth_is_z(tmp_path: Path) -> None:
    images = hypersim_folder(tmp_path / "ai_001_001", color=False)
    found = trained_on("hypersim", tmp_path / "ai_001_001", tmp_path / "set")
    for (color, values), (preview, z) in zip(found, images, strict=True):
        assert color == preview
        np.testing.assert_allclose(values, z, rtol=2**-10)  # the files hold distance as half


def test_hypersim_color(tmp_path: Path) -> None:
    """The bright half is the 90th percentile and becomes 0.8. The other half is a sixth of it, before the gamma."""
    hypersim_folder(tmp_path / "ai_001_001")
    convert("hypersim", tmp_path, tmp_path / "set", "synthetic", limit=1)
    (path,) = (tmp_path / "set/synthetic/color").iterdir()
    color = np.asarray(Image.open(path))
    assert color.shape == (48, 64, 3)
    assert set(color[:24].ravel()) == {204}
    assert set(color[24:].ravel()) == {round(204 * 6 ** (-1 / 2.2))}


def test_hypersim_reads_no_other_file(tmp_path: Path) -> None:
    import h5py

    hypersim_folder(tmp_path / "ai_001_001")
    first, second, third = sorted(tmp_path.glob("ai_001_001/images/scene_cam_00_geometry_hdf5/*"))
    first.unlink()
    with h5py.File(first, "w") as file:
        file["dataset"] = h5py.ExternalLink(str(second), "dataset")
    third.unlink()
    with h5py.File(third, "w") as file:
        file.create_dataset("dataset", (48, 64), "f4", external=[(str(second), 0, 48 * 64 * 4)])
    done = convert("hypersim", tmp_path / "ai_001_001", tmp_path / "set", "real")
    assert done.written == 1
    assert [sentence.split(":")[0] for sentence in done.broken] == [str(first), str(third)]


def test_every_and_limit(tmp_path: Path) -> None:
    for scan in "ab":
        scannet_file(tmp_path / f"scans/{scan}.sens")
    done = convert("scannet", tmp_path / "scans", tmp_path / "set", "real", every=2, limit=2)
    assert done.written == 2
    assert sorted(path.stem for path in (tmp_path / "set/real/color").iterdir()) == ["scans-a-000000", "scans-a-000002"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    scannet_file(tmp_path / "a.sens")
    convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real", limit=2)
    folder = tmp_path / "set/real"
    (folder / "color/a-000001.jpg").unlink()  # as if killed between the two files
    (folder / "color/.a-000001.jpg.partial").write_bytes(b"half")
    before = (folder / "depth/a-000000.png").stat().st_mtime_ns
    done = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    assert (done.written, done.kept) == (2, 1)
    assert (folder / "depth/a-000000.png").stat().st_mtime_ns == before
    assert len(list((folder / "color").iterdir())) == len(list((folder / "depth").iterdir())) == SCENE


@pytest.mark.slow
def test_a_killed_conversion_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    values = millimetres(0, 480, 640)
    frames = [(jpeg(i % 3, 48, 64), zlib.compress(values.tobytes(), 1)) for i in range(120)]
    (tmp_path / "a.sens").write_bytes(sens(frames, (48, 64), (480, 640)))
    command = [sys.executable, "-m", "vologan_fast.data", "convert", "scannet", tmp_path / "a.sens", tmp_path / "set"]
    process = subprocess.Popen([*command, "--domain", "real"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("set/real/color/a-*"))) < 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no frames after a minute"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    written = list(tmp_path.glob("set/real/*/a-*"))
    assert 10 <= len(written) < 2 * len(frames)
    for path in written:
        if path.suffix == ".png":
            np.testing.assert_array_equal(depth.decode(path), values)
        else:
            assert path.read_bytes() in [color for color, _ in frames]
    kept = len(list(tmp_path.glob("set/real/color/a-*")))
    done = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    assert (done.kept, done.written, done.broken) == (kept, len(frames) - kept, ())
    with pytest.raises(DataError, match="the synthetic domain is empty"):
        find_records(tmp_path / "set")
    assert list(tmp_path.glob("set/real/*/.*")) == [], "what the killed run left is gone"


def test_one_conversion_at_a_time(tmp_path: Path) -> None:
    scannet_file(tmp_path / "a.sens")
    (tmp_path / "set/real").mkdir(parents=True)
    handle = os.open(tmp_path / "set/real", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another conversion is writing there"):
            convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    finally:
        os.close(handle)


def test_another_recording_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for folder in "ab":
        scannet_file(tmp_path / folder / "scan.sens")
    convert("scannet", tmp_path / "a/scan.sens", tmp_path / "set", "real")
    with pytest.raises(DataError, match=r"there are frames of scan from .*/a/scan.sens"):
        convert("scannet", tmp_path / "b/scan.sens", tmp_path / "set", "real")


def test_another_unit_in_the_same_domain_is_refused(tmp_path: Path) -> None:
    scannet_file(tmp_path / "a.sens")
    tum_folder(tmp_path / "sequence")
    convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    with pytest.raises(DataError, match=r"its depth needs scale 0.0002; expected no settings"):
        convert("tum", tmp_path / "sequence", tmp_path / "set", "real")
    assert convert("tum", tmp_path / "sequence", tmp_path / "set", "synthetic").written == SCENE


def test_broken_frames_are_listed_and_the_others_written(tmp_path: Path) -> None:
    frames = [(jpeg(i, 36, 48), zlib.compress(millimetres(i, 18, 24).tobytes())) for i in range(4)]
    frames[1] = (frames[1][0], zlib.compress(bytes(10)))
    frames[2] = (jpeg(2, 24, 48), frames[2][1])
    (tmp_path / "a.sens").write_bytes(sens(frames, (36, 48), (18, 24)))
    done = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    assert done.written == 2
    assert done.broken == (
        f"{tmp_path / 'a.sens'}: frame 1: depth: expected 864 bytes, found 10",
        f"{tmp_path / 'a.sens'}: frame 2: colour: expected 48 × 36 pixels, found 48 × 24",
    )


def test_a_cut_scannet_file_gives_its_whole_frames(tmp_path: Path) -> None:
    images = scannet_file(tmp_path / "a.sens")
    content = (tmp_path / "a.sens").read_bytes()
    (tmp_path / "a.sens").write_bytes(content[:-500])
    done = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real")
    assert (done.written, done.options) == (len(images) - 1, "")
    (sentence,) = done.broken
    assert sentence.startswith(f"{tmp_path / 'a.sens'}: frame 2: ") and sentence.endswith(": 1 of 3 frames are cut off")


@pytest.mark.parametrize(
    ("unit", "near", "far", "scale", "said"),
    [
        (5000, 0.5, 4.0, True, None),
        (5000, 0.2, 4.0, True, "omit scale"),  # perhaps rendered, with a near object
        (1000, 0.8, 12.0, True, "omit scale"),
        (5000, 0.5, 1.5, True, "omit scale"),
        (1000, 0.5, 4.0, False, r"taken for millimetres \(0.5.* to .* m\)"),
        (1000, 1.0, 6.0, False, "taken for millimetres"),
        (1000, 3.0, 9.0, True, r"0.6 to 1.78 m by TUM's .*millimetres \(3 to 8.88 m\), omit scale"),
    ],
)
def test_the_unit_of_recordings_in_tum_s_layout(
    unit: int, near: float, far: float, scale: bool, said: str | None, tmp_path: Path
) -> None:
    tum_folder(tmp_path / "a")
    depth = np.linspace(near, far, 24 * 32).reshape(24, 32) * unit
    for file in (tmp_path / "a/depth").iterdir():
        Image.fromarray(depth.astype(np.uint16)).save(file)
    done = convert("tum", tmp_path / "a", tmp_path / "set", "real")
    assert done.options == ("--data.real.scale 0.0002" if scale else "")
    assert len(done.notes) == (said is not None)
    assert said is None or re.search(f"^{tmp_path / 'a'}: .*{said}", done.notes[0])


# Recordings from other systems


@pytest.mark.parametrize("form", ["backslashes", "mark", "utf-16", "windows lines", "case", "spaces", "composed"])
def test_tum_lists_of_other_systems(form: str, tmp_path: Path) -> None:
    images = tum_folder(tmp_path / "a")
    for name in ("rgb.txt", "depth.txt"):
        text = (tmp_path / "a" / name).read_text()
        if form == "composed":
            (file,) = (tmp_path / "a" / name[:-4]).glob("1.*")
            file.rename(file.with_name(f"e\u0301{file.suffix}"))
            text = text.replace(file.name, f"\u00e9{file.suffix}")
        text = {
            "backslashes": text.replace("/", "\\"),
            "mark": "\ufeff" + text,
            "windows lines": text.replace("\n", "\r\n"),
            "case": text.replace("rgb/", "RGB/").replace("depth/", "Depth/").replace(".png", ".PNG"),
            "spaces": text.replace("\n", "  \n"),
        }.get(form, text)
        (tmp_path / "a" / name).write_bytes(text.encode("utf-16" if form == "utf-16" else "utf-8"))
    done = convert("tum", tmp_path / "a", tmp_path / "set", "real")
    assert (done.written, done.broken) == (len(images), ())


@pytest.mark.parametrize("kind", ["scannet", "record3d", "tum", "arkitscenes"])
def test_what_systems_add_is_left_alone(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if kind in ("scannet", "record3d"):
        file = source / f"A.{ {'scannet': 'SENS', 'record3d': 'R3D'}[kind] }"
        count = len({"scannet": scannet_file, "record3d": record3d_file}[kind](file))
        (source / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        (source / "__MACOSX").mkdir()
        (source / "__MACOSX" / f"._{file.name}").write_bytes(b"\0\5\x16\7")
    else:
        write = {"tum": tum_folder, "arkitscenes": arkitscenes_folder}[kind]
        count = len(write(source / "a"))
        folders = [path for path in (source / "a").rglob("*") if path.is_dir()]
        for file in [*(source / "a").iterdir(), *(file for folder in folders for file in folder.iterdir())]:
            if file.is_file():
                file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
        shutil.copytree(source / "a", source / "__MACOSX" / "a")
        (source / "a" / ".DS_Store").touch()
    done = convert(kind, source, tmp_path / "set", "real")
    assert (done.written, done.broken) == (count, ())


@pytest.mark.parametrize("prefix", ["", "scan/", "a b/c/"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_record3d_that_was_packed_again(separator: str, prefix: str, tmp_path: Path) -> None:
    images = record3d_file(tmp_path / "a.r3d")
    with zipfile.ZipFile(tmp_path / "a.r3d") as archive, zipfile.ZipFile(tmp_path / "b.r3d", "w") as again:
        for name in archive.namelist():
            again.writestr(f"{prefix}{name}".replace("/", separator), archive.read(name))
            again.writestr(f"__MACOSX/{prefix}._{name}", b"\0\5\x16\7")
    done = convert("record3d", tmp_path / "b.r3d", tmp_path / "set", "real")
    assert (done.written, done.broken) == (len(images), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 5}, "expected a .sens file of version 4, found 5"),
        ({"depth": 2}, "depth compression: expected one of .* found 2"),
        ({"color": -1}, "colour compression: expected one of .* found -1"),
        ({"shift": float("nan")}, "depth shift: expected file units per metre, such as 1000, found nan"),
        ({"count": 0}, "expected 1 to 16777216 frames, found 0 of them"),
        ({"count": 2**63}, "expected 1 to 16777216 frames, found 9223372036854775808 of them"),
    ],
)
def test_scannet_headers_that_lie(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    scannet_file(tmp_path / "a.sens", **changes)
    with pytest.raises(DataError, match=message):
        scannet.read(tmp_path / "a.sens", "a")


@pytest.mark.parametrize("size", [(0, 24), (18, 2**32 - 1), (16384, 16384)])
def test_scannet_sizes_are_capped(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.sens").write_bytes(sens([(b"", b"")], (36, 48), size))
    with pytest.raises(DataError, match="depth size: expected sides of 1 to 16384"):
        scannet.read(tmp_path / "a.sens", "a")


def test_a_zlib_bomb_is_not_inflated(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    (tmp_path / "a.sens").write_bytes(sens([(jpeg(0, 36, 48), bomb)], (36, 48), (18, 24)))
    (sentence,) = convert("scannet", tmp_path / "a.sens", tmp_path / "set", "real").broken
    assert sentence.endswith("expected 864 bytes, found more")


def test_an_lzfse_bomb_is_not_inflated(tmp_path: Path) -> None:
    import imagecodecs

    record3d_file(tmp_path / "a.r3d", depth1=imagecodecs.lzfse_encode(bytes(4_000_000)))
    done = convert("record3d", tmp_path / "a.r3d", tmp_path / "set", "real")
    assert done.written == 2
    assert done.broken[0].endswith("rgbd/1.depth: expected 1728 bytes for 18 × 24 float32, found more")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"dw": 2**40}, "metadata: dw is 1099511627776; expected 1 to 16384 pixels"),
        ({"dw": 16384, "dh": 16384}, "depth of 16384 × 16384; expected at most"),
        ({"dw": True}, "dw is True; expected 1 to 16384 pixels"),
        ({"dh": [1] * 100}, "dh is .*; expected 1 to 16384 pixels"),
    ],
)
def test_record3d_metadata_that_lies(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    record3d_file(tmp_path / "a.r3d", metadata)
    with pytest.raises(DataError, match=message):
        record3d.read(tmp_path / "a.r3d", "a")


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "in/a.r3d"
    record3d_file(path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("rgbd/../../9.depth", "/rgbd/9.depth", "rgbd/9/../../x.depth", "../evil.jpg", "rgbd/٣.depth"):
            archive.writestr(name, b"evil")
    assert convert("record3d", path, tmp_path / "out/set", "real").written == SCENE
    assert sorted(p.name for p in tmp_path.rglob("*") if (p.is_file() and "9" in p.name) or "evil" in p.name) == []


@pytest.mark.parametrize("kind", ["scannet", "record3d"])
def test_truncation(kind: str, tmp_path: Path) -> None:
    """A file truncated at any place gives a sentence for each broken frame. Some frames may still be whole."""
    path = tmp_path / "a"
    whole = {"scannet": scannet_file, "record3d": record3d_file}[kind]
    whole(path)
    content = path.read_bytes()
    unread = 8 if kind == "scannet" else 0  # the number of inertial frames, at the end
    for length in (*range(0, 450, 7), *range(450, len(content) - unread, 97)):
        path.write_bytes(content[:length])
        assert read_all(kind, path) >= 1, length


def read_all(kind: str, path: Path) -> int:
    """Read a whole recording. Returns the number of DataErrors. No other error may be raised."""
    try:
        recording = {"scannet": scannet, "record3d": record3d}[kind].read(path, "a")
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        return 1
    errors = len(recording.broken)
    assert all(sentence.startswith(f"{path}: ") for sentence in recording.broken)
    for frame in recording.frames:
        try:
            frame.read()
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            errors += 1
    return errors


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    scannet_file(folder / "a.sens")
    record3d_file(folder / "a.r3d")
    return {"scannet": (folder / "a.sens").read_bytes(), "record3d": (folder / "a.r3d").read_bytes()}


mutations = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=9)


@pytest.mark.parametrize("kind", ["scannet", "record3d"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations, cut=st.floats(0, 1), insert=st.binary(max_size=9), early=st.booleans())
def test_mutated_files(
    kind: str,
    whole_files: dict[str, bytes],
    tmp_path: Path,
    changes: list[tuple[float, int]],
    cut: float,
    insert: bytes,
    early: bool,
) -> None:
    content = bytearray(whole_files[kind])
    span = min(len(content), 400) if early else len(content)
    for where, value in changes:
        place = int(where * span)
        content[place if early or kind == "scannet" else len(content) - 1 - place] = value
    at = int(cut * len(content))
    content[at:at] = insert
    (tmp_path / "a").write_bytes(content)
    read_all(kind, tmp_path / "a")


@given(st.lists(st.integers(0, 40), max_size=12), st.lists(st.integers(0, 40), max_size=12), st.integers(0, 5))
def test_nearest_pairs(first: list[int], second: list[int], within: int) -> None:
    """The pairs follow the data set's tool: the nearest of all pairs come first, and each time is used once."""
    left = [(abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if abs(a - b) <= within]
    expected = []
    while left:
        distance, i, j = min(left)
        expected.append(distance)
        left = [pair for pair in left if pair[1] != i and pair[2] != j]
    found = nearest_pairs(first, second, within)
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    assert sorted(abs(first[i] - second[j]) for i, j in found) == sorted(expected)


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a .sens file, or a folder with some, found nothing"):
        convert("scannet", tmp_path / "absent", tmp_path / "set", "real")
    with pytest.raises(DataError, match="found a folder without one"):
        convert("tum", tmp_path, tmp_path / "set", "real")
    with pytest.raises(DataError, match="--every is 0; expected at least 1"):
        convert("tum", tmp_path, tmp_path / "set", "real", every=0)


def test_a_list_of_images_would_hide_what_is_converted(tmp_path: Path) -> None:
    tum_folder(tmp_path / "sequence")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "training_paths.json").write_text("{}")
    with pytest.raises(DataError, match=r"training_paths\.json lists this data set's images"):
        convert("tum", tmp_path / "sequence", tmp_path / "set", "real")


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record3d_file(tmp_path / "a.r3d")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    done = convert("record3d", tmp_path / "a.r3d", tmp_path / "set", "real")
    assert (
        done.broken[0]
        == "Record3D files need imagecodecs: pip install 'vologan-fast[convert]' (or pip install imagecodecs)"
    )


def test_the_command(tmp_path: Path) -> None:
    """The command prints the settings for training. The exit code is 1 for broken content and 2 for a mistake."""
    tum_folder(tmp_path / "sequence")
    command = [sys.executable, "-m", "vologan_fast.data", "convert", "tum"]

    def run(source: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, str(tmp_path / source), str(tmp_path / "set"), "--domain", "real"],
            check=False,
            capture_output=True,
            text=True,
        )

    done = run("sequence")
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'set/real'}: 3 frames written, 0 kept, 0 broken",
        "settings of training: --data.real.scale 0.0002",
    ]
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "sequence/depth/1.010000.png").write_bytes(b"no PNG")
    (tmp_path / "set/real/color/sequence-1.000000.png").unlink()
    done = run("sequence")
    assert done.returncode == 1
    assert done.stderr.startswith(f"broken: {tmp_path / 'sequence/depth/1.010000.png'}: ")
    assert run("absent").returncode == 2
