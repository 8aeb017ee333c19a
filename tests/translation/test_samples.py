"""Translation by a generator with noise: draws that depend on seed, number and name, and on nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import error, make_run, tiny

import vologan_fast
from vologan_fast import export, translate
from vologan_fast.data.pixels import read_depth
from vologan_fast.translation.programs import METADATA, Program, compare, run_torch
from vologan_fast.translation.translator import draw_key

STOCHASTIC = tiny(noise_channels=2, hole_head=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "stochastic", STOCHASTIC)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "still", tiny())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of S whose sides are no multiples of the network's, with depth in metres."""
    folder = tmp_path_factory.mktemp("data") / "rooms"
    folder.mkdir()
    rng = np.random.default_rng(0)
    from PIL import Image

    from vologan_fast.translation.encoding import encode_depth

    for i in range(5):
        Image.fromarray(rng.integers(1, 256, (33, 37, 3), np.uint8)).save(folder / f"{i}.png")
        depth = rng.uniform(0.6, 4.4, (33, 37)).astype(np.float32)
        (folder / f"{i}.depth.exr").write_bytes(encode_depth(depth, "exr", "Z"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".png", ".exr")
    }


def translated(run: Path, data: Path, out: Path, *options: str) -> dict[str, bytes]:
    assert translate.main([str(run), "--data", str(data), "--out", str(out), "--device", "cpu", *options]) == 0
    return contents(out)


@pytest.fixture(scope="module")
def three(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return translated(run, data, tmp_path_factory.mktemp("out") / "three", "--samples", "3")


def test_each_draw_has_a_folder_with_the_names_of_the_data(three: dict[str, bytes], data: Path) -> None:
    names = [path.name for path in data.iterdir()]
    assert set(three) == {f"sample-{k}/{name}" for k in range(3) for name in names}
    for name in names:
        assert len({three[f"sample-{k}/{name}"] for k in range(3)}) == 3, name


def test_the_files_depend_on_seed_draw_and_name_alone(
    three: dict[str, bytes], run: Path, data: Path, tmp_path: Path
) -> None:
    assert translated(run, data, tmp_path / "again", "--samples", "3", "--threads", "3") == three
    two = translated(run, data, tmp_path / "two", "--samples", "2")
    assert two == {name: three[name] for name in two}
    one = translated(run, data, tmp_path / "one")
    assert one == {name.removeprefix("sample-0/"): content for name, content in three.items() if "sample-0" in name}
    alone = translated(run, data / "3.png", tmp_path / "alone", "--samples", "3")
    assert alone == {name: three[name] for name in alone} and len(alone) == 6
    other = translated(run, data, tmp_path / "other", "--samples", "3", "--seed", "1")
    assert set(other) == set(three) and not set(other.values()) & set(three.values())


def test_images_that_are_translated_together_have_their_own_noise(run: Path, data: Path, tmp_path: Path) -> None:
    """The sums of a batch have other rounding errors, as without noise. So nearly all depth is equal to 1e-4 m."""
    one, four = tmp_path / "one", tmp_path / "four"
    for out, batch in ((one, "1"), (four, "4")):
        translated(run, data, out, "--samples", "3", "--batch", batch)
    for path in sorted(one.rglob("*.exr")):
        depth, other = (read_depth(folder / path.relative_to(one), None)[1] for folder in (one, four))
        assert np.isclose(depth, other, rtol=0, atol=1e-4, equal_nan=True).mean() > 0.998


@pytest.mark.slow
def test_two_processes_write_the_same_files(three: dict[str, bytes], run: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += ["-m", "vologan_fast.translate", str(run), "--data", str(data), "--out", str(tmp_path / "out")]
    subprocess.run([*command, "--samples", "3", "--device", "cpu"], check=True, capture_output=True)
    assert contents(tmp_path / "out") == three


def test_a_second_run_writes_what_is_missing(run: Path, data: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    before = translated(run, data, out, "--samples", "2")
    assert "10 written, 0 kept" in capsys.readouterr().out
    (out / "sample-1/2.png").unlink()
    assert translated(run, data, out, "--samples", "3") == before | {
        name: content for name, content in contents(out).items() if "sample-2" in name
    }
    assert "6 written, 9 kept" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "translated.jsonl").read_text().splitlines()]
    assert {(line["seed"], line["sample"]) for line in lines} == {(0, 0), (0, 1), (0, 2)}
    assert all(line["color"].startswith(f"sample-{line['sample']}/") for line in lines)
    translated(run, data, out, "--samples", "3", "--seed", "5")
    assert "15 written, 0 kept" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_refused(run: Path, still: Path, data: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    options = ["--data", str(data), "--out", str(tmp_path / "out")]
    assert "--samples is 0: expected at least 1" in error(translate.main, capsys, str(run), *options, "--samples", "0")
    said = "--samples is 2: expected no such option, because the generator s2t has no noise"
    assert said in error(translate.main, capsys, str(still), *options, "--samples", "2")
    back = error(translate.main, capsys, str(run), *options, "--samples", "2", "--direction", "both")
    assert "the generator t2s has no noise" in back
    assert not (tmp_path / "out").exists()


def test_a_loaded_model_draws(run: Path, still: Path) -> None:
    model = vologan_fast.load(run, device="cpu")
    x = torch.rand(2, 4, 33, 37)
    assert torch.equal(model(x), model(x, seed=0)) and not torch.equal(model(x), model(x, seed=1))
    noise = model.noise_of([draw_key("1", str(i)) for i in range(2)], 33, 37)
    assert torch.equal(model(x, seed=1), model(x, noise))
    torch.testing.assert_close(model(x[1:], noise[1:]), model(x, noise)[1:], rtol=0, atol=1e-5)
    assert model(x[:1].expand(2, -1, -1, -1))[0].ne(model(x[:1].expand(2, -1, -1, -1))[1]).any()
    with pytest.raises(ValueError, match=r"noise: expected \(2, 2, 33, 37\), found \(2, 1, 33, 37\)"):
        model(x, noise[:, :1])
    plain = vologan_fast.load(still, device="cpu")
    assert torch.equal(plain(x), plain(x, seed=9)) and plain.noise_channels == 0
    with pytest.raises(ValueError, match="noise: expected None, because the generator has no noise channels"):
        plain(x, noise)
    assert vologan_fast.load(run, "t2s", device="cpu").noise_channels == 0


def test_one_image_in_memory(run: Path) -> None:
    model = vologan_fast.load(run, device="cpu")
    rng = np.random.default_rng(0)
    color, depth = rng.integers(1, 256, (33, 37, 3), np.uint8), rng.uniform(0.6, 4.4, (33, 37)).astype(np.float32)
    first, again, other = (vologan_fast.translate_image(model, color, depth, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.color, again.color) and np.array_equal(first.depth, again.depth, equal_nan=True)
    assert not np.array_equal(first.color, other.color)


def test_an_exported_program_takes_the_noise(run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert export.main([str(run), "--out", str(tmp_path), "--format", "torch"]) == 0
    assert "torch.randn(1, 2, *x.shape[2:])" in capsys.readouterr().out
    file = tmp_path / "s2t.pt2"
    model, program = vologan_fast.load(run, device="cpu"), run_torch(file.read_bytes())
    x, noise = torch.rand(3, 4, 21, 30), torch.randn(3, 2, 21, 30)
    torch.testing.assert_close(program(x, noise), model(x, noise), rtol=0, atol=1e-5)
    extra = {METADATA: ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra[METADATA])["noise_channels"] == 2
    wrong = compare(lambda x, noise: program(x, noise.roll(1, 3)), model, "fp32")
    assert not all(agreement.holds for agreement in wrong)


@pytest.mark.slow
def test_an_onnx_file_takes_the_noise(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from vologan_fast.translation.programs import run_onnx

    assert export.main([str(run), "--out", str(tmp_path), "--format", "onnx"]) == 0
    function, network = run_onnx((tmp_path / "s2t.onnx").read_bytes()), Program(vologan_fast.load(run, device="cpu"))
    x, noise = torch.rand(1, 4, 21, 30), torch.randn(1, 2, 21, 30)
    torch.testing.assert_close(function(x, noise), network(x, noise), rtol=0, atol=1e-4)


def test_holes_are_missing_in_the_files(run: Path, data: Path, tmp_path: Path) -> None:
    """The head of random weights makes some; in the files they are NaN or 0, as in those of a sensor."""
    model = vologan_fast.load(run, device="cpu")
    assert model.has_holes
    holes = 0
    translated(run, data, tmp_path / "out", "--samples", "2")
    for path in (tmp_path / "out").rglob("*.exr"):
        _, depth = read_depth(path, None)
        holes += int((~np.isfinite(depth) | (depth == 0)).sum())
    assert holes > 0
