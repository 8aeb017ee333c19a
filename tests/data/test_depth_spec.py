"""The resolution of depth settings with files, and the files that it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vologan_fast.config import DepthSpec
from vologan_fast.data import DataError, Record
from vologan_fast.data.depth_spec import resolve_depth
from vologan_fast.data.pixels import read_depth

AUTO = DepthSpec()


@pytest.fixture
def write(tmp_path: Path):
    """Return write(depth, …), which saves float arrays as NPY and integer arrays as PNG, each with a colour image."""

    def write(*images: np.ndarray) -> list[Record]:
        records = []
        for i, depth in enumerate(images):
            record = Record(tmp_path / f"{i}.jpg", tmp_path / f"{i}{'.npy' if depth.dtype.kind == 'f' else '.png'}")
            Image.new("RGB", depth.shape[::-1]).save(record.color)
            if depth.dtype.kind == "f":
                np.save(record.depth, depth)
            else:
                Image.fromarray(depth).save(record.depth)
            records.append(record)
        return records

    return write


def ramp(low: float, high: float, dtype: type = np.float32) -> np.ndarray:
    return np.linspace(low, high, 40 * 50).reshape(40, 50).astype(dtype)


def refusal(records: list[Record], spec: DepthSpec = AUTO) -> str:
    with pytest.raises(DataError) as error:
        resolve_depth("real", records, spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_float_files_are_normalised_as_in_the_paper(write) -> None:
    resolved = resolve_depth("real", write(ramp(-1, 1), ramp(-0.5, 0.7)), AUTO)
    assert resolved.spec == DepthSpec("normalized", None, -1.0, 1.0, (), -1.0, None, "float")
    assert resolved.description == (
        "float32 NPY, near -1, far 1 (by convention), background -1, 0.0% of the pixels missing"
    )


def test_integer_files_are_millimetres_between_the_percentiles_of_what_was_measured(write) -> None:
    images = [ramp(1000, 3000, np.uint16), ramp(1000, 3000, np.uint16)]
    images[0][:20] = 0  # missing pixels, which do not enter the statistics
    images[1][0, 0] = 65535  # an outlier, which the percentiles exclude
    resolved = resolve_depth("real", write(*images), AUTO)
    values = np.concatenate([image[image > 0] for image in images]) / 1000
    near, far = np.percentile(values, (1, 99)).round(3)
    assert resolved.spec == DepthSpec("mm", None, near, far, (0.0,), None, None, "integer")
    assert "uint16 PNG in mm" in resolved.description and "of 2 files" in resolved.description


def test_real_sensor_images(real_images: Path) -> None:
    folder = real_images / "rooms" / "sensor"
    records = [Record(folder / f"color/{i}.png", folder / f"depth/{i}.png") for i in range(1, 6)]
    spec = resolve_depth("real", records, AUTO).spec
    assert spec.unit == "mm" and spec.invalid == (0.0,)
    assert spec.near is not None and spec.far is not None and 0.4 < spec.near < 1.5 and 3 < spec.far < 10


def test_a_scale_replaces_the_unit(write) -> None:
    tum = DepthSpec(scale=1 / 5000, near=0.5)
    spec = resolve_depth("real", write(ramp(5000, 15000, np.uint16)), tum).spec
    assert (spec.near, spec.far) == (0.5, pytest.approx(2.98, abs=0.001)) and spec.invalid == (0.0,)


def test_what_was_set_is_kept(write) -> None:
    said = DepthSpec("m", None, 0.25, 8.0, (9.0,), 1e10, "Y", "float")
    assert resolve_depth("real", write(ramp(0.3, 7)), said).spec == said


@pytest.mark.parametrize("said", [AUTO, DepthSpec("m"), DepthSpec(scale=0.1)])
def test_resolving_twice_changes_nothing(write, said: DepthSpec) -> None:
    records = write(ramp(-0.9, 0.9))
    if said.unit != "auto" or said.scale:
        records = write(ramp(0.1, 0.9))
    spec = resolve_depth("real", records, said).spec
    other = write(ramp(0.3, 0.6))  # other values, which have no effect any more
    assert resolve_depth("real", other, spec).spec == spec


def test_a_large_domain_is_sampled(write, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write(ramp(-1, 1)) * 1000
    seen = []
    found = read_depth(records[0].depth, None)
    monkeypatch.setattr("vologan_fast.data.depth_spec.read_depth", lambda path, *_: seen.append(path) or found)
    resolve_depth("real", records, AUTO)
    assert len(seen) == 64


def test_8_bit_depth_needs_to_be_meant(write) -> None:
    records = write(ramp(10, 250, np.uint8))
    message = refusal(records)
    assert message.startswith(f"{records[0].depth}: 8-bit depth") and "--data.real.scale" in message
    assert resolve_depth("real", records, DepthSpec(scale=0.01)).spec.far == pytest.approx(2.48, abs=0.02)


def test_metres_are_not_taken_for_normalised_depth(write) -> None:
    records = write(ramp(-0.9, 0.9), ramp(0.8, 6))
    message = refusal(records)
    assert message.startswith(f"{records[1].depth}: depth from 0.8 to 6") and "--data.real.unit m" in message


def test_near_and_far_in_another_unit_than_metres(write) -> None:
    records = write(ramp(500, 4000, np.uint16))
    assert "in metres" in refusal(records, DepthSpec("mm", near=500.0, far=4000.0))
    for name in ("near", "far"):
        message = refusal(records, DepthSpec("mm", **{name: float("nan")}))
        assert message == f"--data.real.{name}: expected a finite number, found nan"


def test_the_range_of_close_things_is_as_fine_as_they_are(write) -> None:
    spec = resolve_depth("real", write(ramp(0.0106, 0.0134)), DepthSpec("m")).spec
    assert (spec.near, spec.far) == (pytest.approx(0.010628, abs=3e-6), pytest.approx(0.013372, abs=3e-6))


def test_files_of_another_type_than_was_set(write) -> None:
    records = write(ramp(1000, 3000, np.uint16))
    assert "uint16 depth in a domain whose other files hold floats" in refusal(records, DepthSpec("mm", values="float"))
    assert resolve_depth("real", records, DepthSpec(values="8-bit")).spec.values == "8-bit"


def test_a_background_of_1e10_is_not_taken_for_the_farthest_depth(write) -> None:
    depth = ramp(1, 6)
    depth[:10] = 1e10
    records = write(depth)
    message = refusal(records, DepthSpec("m"))
    assert str(records[0].depth) in message and "--data.real.background" in message
    assert resolve_depth("real", records, DepthSpec("m", background=1e10)).spec.far == pytest.approx(6, abs=0.1)


def test_integer_beside_float_files(write) -> None:
    records = write(ramp(-1, 1), ramp(1000, 2000, np.uint16))
    assert refusal(records).startswith(f"{records[1].depth}: uint16 depth in a domain whose first file, 0.npy")


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_depth_without_a_valid_pixel(write, value: float) -> None:
    depth = np.full((4, 4), value, np.float32) if value else np.zeros((4, 4), np.uint16)
    records = write(depth)
    assert refusal(records) == f"{records[0].depth}: no valid depth; all of it is missing or background"


def test_constant_depth_leaves_nothing_between_near_and_far(write) -> None:
    records = write(np.full((4, 4), 1500, np.uint16))
    assert "near is 1.5 and far is 1.5" in refusal(records)
    assert "near is 2 and far is 1" in refusal(records, DepthSpec(near=2.0, far=1.0))


def test_colour_of_another_shape(write) -> None:
    records = write(ramp(-1, 1))
    Image.new("RGB", (40, 40)).save(records[0].color)
    assert refusal(records).startswith(f"{records[0].depth}: depth of 50 × 40 pixels does not fit")


def test_a_broken_file_is_named(write) -> None:
    records = write(ramp(-1, 1))
    records[0].depth.write_bytes(records[0].depth.read_bytes()[:500])
    assert str(records[0].depth) in refusal(records)


def test_files_that_the_dali_operator_leaves_to_openexr_are_noted(real_images: Path) -> None:
    folder = real_images / "vologan512" / "synthetic"
    records = [Record(path.with_suffix(".jpg"), path) for path in sorted(folder.glob("*.exr"))]
    assert "compression" in resolve_depth("synthetic", records, AUTO).not_native
    native = [record for record in records if record.depth.stem < "0010"]
    assert resolve_depth("synthetic", native, AUTO).not_native == ""


def test_infinite_background_can_be_named(write) -> None:
    depth = ramp(1, 6)
    depth[:10] = np.inf
    said = DepthSpec("m", background=float("inf"))
    spec = resolve_depth("real", write(depth), said).spec
    assert spec == dataclasses.replace(said, near=spec.near, far=spec.far, invalid=(), values="float")
