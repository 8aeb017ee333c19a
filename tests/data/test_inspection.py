"""The command `inspect`: its counts, its findings in bad data, and no findings in sound data."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from datasets import MakeDataset, picture, surface, write_image, write_manifest
from PIL import Image
from rich.console import Console

from vologan_fast.config import ConfigError, DataConfig, DepthSpec
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.inspection import Domain, inspect_dataset
from vologan_fast.data.manifest import find_records
from vologan_fast.data.pixels import DepthRule, normalize_depth
from vologan_fast.report.inspection import print_report, write_picture

SMALL = DataConfig(size=32)


def plane(seed: int, low: float = 0.8, high: float = 3.0, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return depth in metres without missing pixels."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def write_set(root: Path, real: list[np.ndarray], synthetic: list[np.ndarray] | None = None) -> Path:
    """Write depth images for both domains, with colour of the same size."""
    items = {}
    for seed, (domain, depths) in enumerate([("synthetic", synthetic or real), ("real", real)]):
        items[domain] = [
            write_image(root / domain, f"{i:03}", picture(1000 * seed + i, *depth.shape), depth)
            for i, depth in enumerate(depths)
        ]
    write_manifest(root, items)
    return root


def real(root: Path, sample: int | None = 64, **spec: Any) -> Domain:
    """Inspect a data set with the depth settings `spec`, and return the result for the real domain."""
    settings = DepthSpec(**spec)
    domains, _ = inspect_dataset(root, dataclasses.replace(SMALL, real=settings, synthetic=settings), sample)
    return domains[1]


def test_sound_data(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=7, real=4)
    domains, between = inspect_dataset(root, SMALL)
    assert between == []
    dataset = load_dataset(root, SMALL, seed=0)
    for domain, count in zip(domains, (7, 4), strict=True):
        assert (len(domain.records), domain.sampled, len(domain.sample)) == (count, count, count)
        assert (domain.refusal, domain.broken, domain.findings) == ("", (), ())
        assert domain.description == dataset.depth[domain.name]
        assert domain.spec == dataset.spec(domain.name)
        assert domain.depth_bytes == sum(r.depth.stat().st_size for r in domain.records)
        image = domain.sample[0]
        assert (image.color.format, image.color.size, image.depth.info.format) == ("JPEG", (64, 64), "npy")
        assert image.depth.background == 8 / 64  # the left edge of `surface`
        assert image.depth.missing == 0


def test_the_sample_is_bounded_and_all_can_be_read(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=9, real=9)
    assert [i.record.color.stem for i in real(root, 3).sample] == ["000", "003", "006"]
    assert len(real(root, None).sample) == 9


def test_fractions_of_missing_and_background(tmp_path: Path) -> None:
    depth = plane(0)
    depth[:12] = np.nan
    depth[12:18] = 1e10
    domain = real(write_set(tmp_path, [depth, depth]), unit="m", background=1e10)
    assert (domain.depths[0].missing, domain.depths[0].background) == (0.25, 0.125)
    assert domain.values.size == 2 * 30 * 64
    assert domain.metres == 1


def test_broken_files_are_listed_and_the_others_read(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=3, real=6)
    for name, content in (("001.jpg", b"no picture"), ("002.npy", b"no depth")):
        (root / "real" / name).write_bytes(content)
    whole = (root / "real/003.jpg").read_bytes()
    (root / "real/003.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "real/004.npy").unlink()
    np.save(root / "real/005.npy", np.full((64, 64), -1, np.float32))
    domain = real(root)
    assert [i.record.color.stem for i in domain.sample] == ["000"]
    names = [sentence.split(":")[0] for sentence in domain.broken]
    assert sorted(names) == [str(root / "real" / n) for n in ("001.jpg", "002.npy", "003.jpg", "004.npy", "005.npy")]
    assert any(s.endswith("005.npy: no valid depth; all of it is missing or background") for s in domain.broken)
    assert domain.spec.near == -1  # from the readable images
    assert domain.refusal == ""  # `broken` contains the error that training would raise
    assert domain.description == ""


def test_aspects_that_do_not_fit(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(0), plane(1)])
    image = Image.fromarray(picture(0, 48, 64).swapaxes(0, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "real/000.jpg", exif=exif)
    image.save(root / "real/001.jpg")
    turned, other = real(root, unit="m").broken
    assert turned.endswith("the colour is turned by EXIF orientation 6, which is not applied: turn its pixels")
    assert other.endswith("depth of 64 × 48 pixels does not fit the colour of 48 × 64; expected the same aspect ratio")


def finding(domain: Domain, words: str) -> str:
    """Return the only finding that contains these words."""
    (sentence,) = [sentence for sentence in domain.findings if words in sentence]
    return sentence


def test_mixed_types_and_sizes(tmp_path: Path) -> None:
    depths = [plane(0), plane(1), plane(2, shape=(24, 32)), plane(3).astype(np.float16)]
    domain = real(write_set(tmp_path, depths), unit="m")
    assert finding(domain, "types of") == "2 types of depth in one domain: float32 NPY (3), float16 NPY (1)"
    assert finding(domain, "sizes of depth") == "2 sizes of depth in one domain: 64 × 48 (3), 32 × 24 (1)"
    assert finding(domain, "enlarged").startswith("1 of 4 images have colour smaller than --data.size 32")


def test_integer_beside_float_is_refused_as_by_training(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(0), (plane(1) * 1000).astype(np.uint16)])
    with pytest.raises(DataError) as error:
        load_dataset(root, SMALL, seed=0)
    assert inspect_dataset(root, SMALL)[0][0].refusal == str(error.value)


def test_metres_in_a_normalised_domain(tmp_path: Path) -> None:
    domain = real(write_set(tmp_path, [plane(i) for i in range(3)]))
    assert "expected normalised depth in [-1, 1] (if these are metres, set --data.real.unit m" in domain.refusal
    assert domain.broken == ()
    assert len(domain.sample) == 3


def test_8_bit_depth(tmp_path: Path) -> None:
    domain = real(write_set(tmp_path, [(plane(i) * 80).astype(np.uint8) for i in range(2)]))
    assert finding(domain, "8-bit").startswith("2 of 2 images have 8-bit depth")
    assert "8-bit depth" in domain.refusal


def test_constant_depth(tmp_path: Path) -> None:
    domain = real(write_set(tmp_path, [plane(0), np.full((48, 64), 2, np.float32)]), unit="m")
    assert finding(domain, "everywhere").startswith("1 of 2 images have the same depth everywhere (such as ")
    assert finding(domain, "everywhere").endswith("001.npy)")


@pytest.mark.parametrize("value", [1e10, 65504, 20, 65535])
def test_an_undeclared_background(value: float, tmp_path: Path) -> None:
    depths = [plane(i) * (1000 if value == 65535 else 1) for i in range(3)]
    for depth in depths:
        depth[:, :16] = value
    if value == 65535:
        depths = [depth.astype(np.uint16) for depth in depths]
    unit = "mm" if value == 65535 else "m"
    root = write_set(tmp_path, depths)
    sentence = finding(real(root, unit=unit), "hold the depth")
    words = "1e+10" if value == 1e10 else f"{value}"
    assert sentence.startswith(f"3 of 3 images hold the depth {words}, in 25.0% of their valid pixels")
    assert f"set --data.real.background {words}" in sentence
    assert real(root, unit=unit, background=value).findings == ()


CODES = {
    "float16": [(0,), (-1,), (-9999,), (65504,), (32000,), (0, -1), (-9999, 32000)],
    "float32": [(0,), (65535,), (-1,), (-9999,), (0, -1), (-9999, 32000), (65534, 65535), (1e10,)],
    "uint16": [(0,), (65535,), (0, 65535), (65534, 65535)],
    "int32": [(0,), (65535,), (-1,), (0, 65535), (-9999, 32000)],
}


@pytest.mark.parametrize("unit", ["auto", "normalized", "m", "mm", "scale"])
@pytest.mark.parametrize(("dtype", "codes"), [(dtype, codes) for dtype, sets in CODES.items() for codes in sets])
def test_every_code_is_missing_already_or_advised_to_be_declared(
    dtype: str, codes: tuple[float, ...], unit: str, tmp_path: Path
) -> None:
    """Whoever follows the advice about "not measured" ends with all codes missing or background."""
    if unit in ("auto", "normalized") and "float" in dtype:
        low, high = -0.9, 0.9
    else:
        low, high = (0.8, 3.0) if unit == "m" and "float" in dtype else (800, 3000)
    depths = [plane(i, low, high).astype(dtype) for i in range(3)]
    for depth in depths:
        for k, code in enumerate(codes):
            depth[:, 8 * k : 8 * k + 4] = code
    root = write_set(tmp_path, depths)
    options = {"scale": ["--data.real.scale", "0.001"]}.get(unit, ["--data.real.unit", unit])
    if unit == "normalized" and "int" in dtype:
        options += ["--data.real.near", "800", "--data.real.far", "3000"]
    for _ in range(4):
        domain = by_options(root, options)
        advice = [sentence for sentence in domain.findings if '"not measured"' in sentence]
        if not advice:
            break
        options += advised(advice[0])[1]
    assert not advice
    for depth in depths:
        coded = np.isin(depth, np.array(codes, dtype))
        normalized = normalize_depth(depth.astype(np.float32), DepthRule.of(domain.spec))
        assert (normalized[coded] <= 0).all()
        assert (normalized[~coded] > 0).all()


def by_options(root: Path, options: list[str]) -> Domain:
    """Inspect a data set with options of the command line, and return the result for the real domain."""
    config = tyro.cli(Options, args=["--data.size", "32", *options]).data
    return inspect_dataset(root, dataclasses.replace(config, synthetic=config.real))[0][1]


@dataclasses.dataclass
class Options:
    data: DataConfig


def advised(sentence: str) -> list[list[str]]:
    """Return the options that a sentence advises, each with its values, as words of a command line."""
    found = re.findall(r"(--data\.real\.[a-z]+)((?: (?:-?[\d.]+(?:e[+-]?\d+)?|m|cm|mm|normalized)\b)*)", sentence)
    return [[option, *values.split()] for option, values in found]


def with_background(depth: np.ndarray, value: float) -> np.ndarray:
    depth[:, :16] = value
    return depth


@pytest.mark.parametrize(
    ("depth", "options", "words"),
    [
        (plane(0), "", "if these are metres"),
        (plane(0, 0.6, 1.4), "", "if these are metres"),
        (plane(0, 0.1, 0.9), "", "if these are metres"),
        (-plane(0), "--data.real.unit m", "point backwards"),
        (with_background(plane(0), 1e10), "--data.real.unit m", "reaches"),
        (with_background(plane(0), 12345.678), "--data.real.unit m", "reaches"),
        (with_background(100 * plane(0), 234567.8), "--data.real.unit cm", "reaches"),
        (with_background(plane(0, -0.9, 0.9), 7.7), "", "means background"),
        (with_background(plane(0, -0.9, 0.9), -9999), "", "means background"),
        (with_background(plane(0, -0.9, 1.7), -3.4e38), "--data.real.far 2", "means background"),
        (with_background(-plane(0), -1e10), "--data.real.scale -1", "reaches"),
        ((plane(0) * 80).astype(np.uint8), "", "expected 16 bits"),
        (plane(0, 0.1, 0.9), "", "is unused"),
        (plane(0, -0.9, -0.1), "", "is unused"),
        (plane(0, 0.76, 0.9), "", "is unused"),
    ],
)
def test_the_advice_ends_what_it_is_given_about(depth: np.ndarray, options: str, words: str, tmp_path: Path) -> None:
    root = write_set(tmp_path, [depth, depth[::-1]])
    domain = by_options(root, options.split())

    def about(domain: Domain) -> list[str]:
        return [s for s in (*domain.findings, domain.refusal, *domain.broken) if words in s]

    sentence = about(domain)[0].replace("DOMAIN", "real")
    follow = [word for option in advised(sentence) for word in option]
    if words == "if these are metres":  # the other advice is for depth that is no metres
        follow = advised(sentence)[0]
    if words == "is unused":
        follow = [word for option in advised(sentence) for word in option if not option[0].endswith("unit")]
    if words in ("reaches", "means background"):
        (follow,) = [option for option in advised(sentence) if option[0].endswith("background") and option[1:]]
    if words == "expected 16 bits":  # the reader chooses the unit
        follow = ["--data.real.unit", "mm"]
    after = by_options(root, [*options.split(), *follow])
    assert (about(after), after.refusal, after.broken) == ([], "", ())


def test_settings_that_cannot_be_are_refused_as_by_training(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(0), plane(1)])
    with pytest.raises(ConfigError, match=r"data\.size is 0"):
        inspect_dataset(root, DataConfig(size=0))


def test_a_pipe_in_place_of_a_file_is_no_file(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(0), plane(1)])
    (root / "real/000.jpg").unlink()
    os.mkfifo(root / "real/000.jpg")
    assert real(root, unit="m").broken == (f"{root / 'real/000.jpg'}: no such file",)


def test_negative_depth_in_metres_is_missing_and_named(tmp_path: Path) -> None:
    depth = plane(0)
    depth[:12] = -1
    domain = real(write_set(tmp_path, [depth, plane(1)]), unit="m")
    assert finding(domain, "negative").startswith("1 of 2 images hold negative depth, which counts as missing")
    assert domain.description.endswith("missing 0 and below, 12.5% of the pixels missing (12.5% negative)")
    assert domain.depths[0].missing == 0.25


def test_zeros_in_normalised_depth(tmp_path: Path) -> None:
    depth = plane(0, -0.9, 0.9)
    depth[:4] = 0
    root = write_set(tmp_path, [depth, plane(1, -0.9, 0.9)])
    assert "--data.real.invalid 0 " in finding(real(root), "1 of 2 images hold the depth 0")
    assert real(root, invalid=(0.0,)).findings == ()


def test_a_scale_gives_metres(tmp_path: Path) -> None:
    root = write_set(tmp_path, [(plane(i) * 5000).astype(np.uint16) for i in range(3)])
    domain = real(root, scale=0.0002)
    assert domain.metres == 0.0002
    domains, _ = inspect_dataset(root, dataclasses.replace(SMALL, real=DepthSpec(scale=0.0002)))
    assert domains[1].metres == 0.0002 and domains[0].metres == 0.001  # mm


def test_an_unlikely_unit(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(i) for i in range(3)])
    assert "the median depth is 0.001" in finding(real(root, unit="mm"), "is --data.real.unit")


def test_orientation_beside_depth_that_is_turned_with_it(tmp_path: Path) -> None:
    root = write_set(tmp_path, [plane(0), plane(1)])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(7, 48, 64)).save(root / "real/001.jpg", exif=exif)
    assert finding(real(root, unit="m"), "EXIF").startswith("1 of 2 images have colour with an EXIF orientation")


def test_exr_that_is_not_native(tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    for domain in ("synthetic", "real"):
        for i in range(2):
            write_image(tmp_path / domain / "color", f"{i}", picture(i, 48, 64), np.empty(0))
            (tmp_path / domain / "depth").mkdir(exist_ok=True)
            header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
            OpenEXR.File(header, {"Z": surface(i, 48, 64)}).write(str(tmp_path / domain / "depth" / f"{i}.exr"))
    sentence = finding(real(tmp_path), "OpenEXR")
    assert sentence.startswith(
        "2 of 2 images have EXR depth that only the OpenEXR library reads (piz compression): "
        "then the native loader runs (such as "
    )


def test_identical_files_of_both_domains(make_dataset: MakeDataset) -> None:
    root = make_dataset(synthetic=3, real=3)
    (root / "real/001.jpg").write_bytes((root / "synthetic/002.jpg").read_bytes())
    _, between = inspect_dataset(root, SMALL, sample=1)
    assert between == [
        f"1 colour files have the bytes of another one, such as {root / 'real/001.jpg'} those of "
        f"{root / 'synthetic/002.jpg'}"
    ]


def test_domains_that_barely_overlap(tmp_path: Path) -> None:
    near, far = [plane(i, 0.5, 1.5) for i in range(3)], [plane(i + 3, 1.4, 4) for i in range(3)]
    root = write_set(tmp_path, near, far)
    config = dataclasses.replace(SMALL, real=DepthSpec(unit="m"), synthetic=DepthSpec(unit="m"))
    (sentence,) = inspect_dataset(root, config)[1]
    assert sentence.startswith("the domains' depths barely overlap: 1.4")


def test_one_domain_alone_can_be_looked_at(tmp_path: Path) -> None:
    """A data set may have one domain alone, for example after the conversion of its recordings."""
    for i in range(2):
        write_image(tmp_path / "real", f"{i}", picture(i, 48, 64), surface(i, 48, 64))
        (tmp_path / f"real/{i}.npy").rename(tmp_path / f"real/{i}.depth.npy")
    domains, _ = inspect_dataset(tmp_path, SMALL)
    with pytest.raises(DataError) as error:
        find_records(tmp_path)
    assert domains[0].refusal == str(error.value) and "the synthetic domain is empty" in str(error.value)
    assert (len(domains[1].sample), domains[1].refusal) == (2, "")


def test_the_report_and_the_picture(tmp_path: Path) -> None:
    depths = [plane(i) for i in range(3)]
    depths[0][:24] = np.nan
    root = write_set(tmp_path / "set", depths)
    config = dataclasses.replace(SMALL, real=DepthSpec(unit="m"), synthetic=DepthSpec(unit="m"))
    domains, between = inspect_dataset(root, config)
    console = Console(file=io.StringIO(), width=100)
    print_report(domains, between, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "missing     16.7% of the pixels, at most 50.0% of one image's" in text
    assert "float32 NPY in m, near " in text
    assert text.count("█") > 16
    assert write_picture(tmp_path / "a.png", domains, (32, 48))
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1200
        assert np.asarray(image.convert("RGB")).std() > 20


def test_the_command(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """The exit code is 0 for sound data and 1 for broken data. The command takes the options of training."""
    root = make_dataset(synthetic=3, real=3)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vologan_fast.data", "inspect", *options]
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)

    done = run(str(root), "--data.size", "64", "--data.backend", "torch")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing looks wrong" in done.stdout
    assert done.stdout.endswith(f"picture: {tmp_path / 'inspect.png'}\n")
    assert (tmp_path / "inspect.png").is_file()
    (root / "real/001.npy").write_bytes(b"no depth")
    done = run(str(root), "--data.real.unit", "m", "--picture", "None", "--all")
    assert done.returncode == 1
    assert f"broken: {root / 'real/001.npy'}: " in done.stdout


def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "training_paths.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="expected an object"):
        inspect_dataset(tmp_path, SMALL)


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    record.write_text("{}")
    command = [sys.executable, "-m", "vologan_fast.data", "inspect", str(tmp_path), "--picture", str(record)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: --picture {record}: expected a name that ends in .png\n")
    assert record.read_text() == "{}"
