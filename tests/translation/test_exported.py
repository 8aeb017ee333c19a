"""The command `python -m vologan_fast.export`: its files compute what the network computes, and run elsewhere.

The allowed error is derived as in `programs.compare`: against float64, a file may have twice the network's own error,
plus some roundings.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import error, make_run, tiny
from torch import Tensor, nn
from vologan_kernels import InstanceNormAct2d, fuse

import vologan_fast
from vologan_fast.config import PRESETS, DepthSpec
from vologan_fast.export import main
from vologan_fast.networks import UNetGenerator
from vologan_fast.translation import programs
from vologan_fast.translation.translator import Translator

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library)

SHAPES = [(1, 3, 2), (1, 32, 32), (2, 48, 36), (3, 7, 50), (1, 65, 8), (1, 640, 512)]
"""Batch, height and width: smaller than the least size; with no common divisor; with sums of many numbers. (An image of
one pixel makes planes of one value. The norms divide their rounding by √ε, one after the other, so nothing agrees.)"""
RUNS = {".pt2": programs.run_torch, ".onnx": programs.run_onnx}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with both programs, and what the command printed."""
    out, printed = tmp_path_factory.mktemp("exported") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([str(run), "--out", str(out)]) == 0
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def loaded(exported: tuple[Path, str]) -> tuple[torch.export.ExportedProgram, str]:
    """The .pt2 file, and the metadata in it."""
    extra = {programs.METADATA: ""}
    return torch.export.load(exported[0] / "s2t.pt2", extra_files=extra), extra[programs.METADATA]


def images(batch: int, height: int, width: int) -> Tensor:
    x = torch.rand(batch, 4, height, width, generator=torch.Generator().manual_seed(height))
    x[..., : width // 3] = 0  # background
    return x


def assert_agrees(
    function: Callable[[Tensor], Tensor],
    model: Translator,
    kind: torch.dtype = torch.float32,
    shapes: list[tuple[int, int, int]] = SHAPES,
) -> None:
    """`function` computes what `model` does, for images of these shapes."""
    exact = copy.deepcopy(model).double()
    network = programs.Program(model, kind)
    own, found, largest = 0.0, 0.0, 0.0
    for shape in shapes:
        x = images(*shape)
        truth, y = exact(x.double()), function(x)
        assert y.shape == x.shape and y.dtype == torch.float32
        own = max(own, float((network(x) - truth).abs().max()))
        found = max(found, float((y - truth).abs().max()))
        largest = max(largest, float(truth.abs().max()))
    assert 0 < found <= 2 * own + 16 * torch.finfo(torch.float32).eps * largest


def test_files_compute_what_the_network_computes(
    run: Path, exported: tuple[Path, str], loaded: tuple[torch.export.ExportedProgram, str]
) -> None:
    model = vologan_fast.load(run, device="cpu")
    assert_agrees(loaded[0].module(), model)
    onnx = programs.run_onnx((exported[0] / "s2t.onnx").read_bytes())
    assert_agrees(onnx, model)
    for function in (loaded[0].module(), onnx):
        y = function(images(1, 1, 1))
        assert y.shape == (1, 4, 1, 1) and y.isfinite().all()


def test_a_file_says_what_its_images_mean(
    run: Path, exported: tuple[Path, str], loaded: tuple[torch.export.ExportedProgram, str]
) -> None:
    import onnx

    weights = run / "checkpoints" / "step-00000007" / "average_st.safetensors"
    expected = {
        "direction": "s2t",
        "near": 0.5,
        "far": 4.5,
        "unit": "m",
        "size": 32,
        "size_multiple": 2,
        "precision": "fp32",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    found = json.loads(loaded[1])
    assert "depth" in found.pop("channels")
    assert found == expected
    properties = {entry.key: entry.value for entry in onnx.load(exported[0] / "s2t.onnx").metadata_props}
    assert "depth" in properties.pop("channels")
    assert properties == {key: str(value) for key, value in expected.items()}


def test_a_file_holds_standard_operations_and_no_folders_of_this_machine(
    exported: tuple[Path, str], loaded: tuple[torch.export.ExportedProgram, str]
) -> None:
    import onnx

    model = onnx.load(exported[0] / "s2t.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    names = [dimension.dim_param for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "", "height", "width"]
    assert "vologan_kernels" not in str(loaded[0].graph)
    root = str(Path(vologan_fast.__file__).parents[1]).encode()
    assert root not in (exported[0] / "s2t.onnx").read_bytes()
    with zipfile.ZipFile(exported[0] / "s2t.pt2") as archive:
        assert not [name for name in archive.namelist() if root in archive.read(name)]


def programs_in(text: str) -> list[str]:
    """Return the programs that the command printed."""
    blocks = [block for block in text.split("\n\n") if block.startswith("import ")]
    assert [len(block.splitlines()) for block in blocks] == [11] * len(blocks)
    return blocks


@pytest.mark.parametrize(
    ("order", "absent"), [pytest.param(0, ("numpy",), marks=pytest.mark.slow), (1, ("torch",))], ids=RUNS
)
def test_the_printed_lines_run_without_the_project(
    exported: tuple[Path, str], tmp_path: Path, order: int, absent: tuple[str, ...]
) -> None:
    hidden = ("vologan_fast", "vologan_kernels", "safetensors", "onnx", "onnxscript", *absent)
    start = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"
    lines = programs_in(exported[1])[order]
    program = [sys.executable, "-I", "-c", start + lines]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "480, 640" in done.stdout and "float32" in done.stdout
    assert 0.5 < float(done.stdout.split()[-1]) < 4.5  # the mean depth, in metres
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_differences(exported: tuple[Path, str]) -> None:
    lines = [line for line in exported[1].splitlines() if "from the network" in line]
    assert len(lines) == 12  # two files, three sizes, batches of 1 and 2
    assert [line.split(":")[0].strip() for line in lines[:2]] == ["1 × 4 × 32 × 32", "2 × 4 × 32 × 32"]


def changed_at_a_pixel(y: Tensor) -> Tensor:
    y[..., 3, 1, -1] += 1e-4
    return y


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a pixel": changed_at_a_pixel,
    "NaN": lambda y: y.clone().fill_(float("nan")),
    "shifted": lambda y: y.roll(1, dims=3),
    "channels": lambda y: y.flip(1),
    "of another image": lambda y: y.flip(0) if len(y) > 1 else y,
    "half": lambda y: y.half().float(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_differs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    network = programs.Program(vologan_fast.load(run, device="cpu"))
    monkeypatch.setattr(programs, "as_torch", lambda *_: b"a program")
    monkeypatch.setattr(programs, "run_torch", lambda _: lambda x: FAULTS[fault](network(x)))
    (tmp_path / "s2t.pt2").write_bytes(b"an older file")
    assert main([str(run), "--out", str(tmp_path), "--format", "torch"]) == 1
    assert f"error: {tmp_path / 's2t.pt2'}: not written" in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("s2t.pt2", b"an older file")]


def test_errors_are_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    for opset in (7, 99):
        assert f"--opset is {opset}: expected 18 to 23" in error(
            main, capsys, str(run), *out, "--format", "onnx", "--opset", str(opset)
        )
    assert "no such file" in error(main, capsys, str(tmp_path / "none"), *out)
    (tmp_path / "file").touch()
    assert "file" in error(main, capsys, str(run), "--out", str(tmp_path / "file"), "--format", "safetensors")
    unresolved = tiny()
    data = dataclasses.replace(unresolved.data, synthetic=DepthSpec())
    make_run(tmp_path / "unresolved", dataclasses.replace(unresolved, data=data))
    assert "data.synthetic.near and far: expected numbers" in error(main, capsys, str(tmp_path / "unresolved"), *out)
    for name in ("onnx", "onnxruntime", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            found = error(main, capsys, str(run), *out, "--format", "onnx")
            assert f"needs {name}: pip install 'vologan-fast[export]'" in found
    assert not (tmp_path / "out").exists()


class Plain(nn.Sequential):
    """The layers that `InstanceNormAct2d` stands for, with its parameters."""

    def __init__(self, norm: InstanceNormAct2d) -> None:
        plain = nn.InstanceNorm2d(norm.num_features, norm.eps, affine=True)
        plain.load_state_dict(norm.state_dict())
        layers: list[nn.Module] = [plain, nn.LeakyReLU(norm.negative_slope)]
        super().__init__(*layers, *([nn.ReflectionPad2d(norm.reflection_pad)] if norm.reflection_pad else []))


def plain_twin(generator: UNetGenerator) -> UNetGenerator:
    """Return a copy with PyTorch's own layers."""
    twin = copy.deepcopy(generator)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InstanceNormAct2d):
                setattr(parent, name, Plain(child))
    return twin.requires_grad_(True).train()


def train(generator: nn.Module) -> None:
    """Make three steps, so that the weights are those of a model that was trained with these layers."""
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for step in range(3):
        x = images(2, 32, 32 + 4 * step)
        optimizer.zero_grad()
        (generator(x) - x.flip(3)).square().mean().backward()
        optimizer.step()


def layers_of_each_kind(folder: Path, **generator: Any) -> dict[str, Translator]:
    """Return a network trained with plain layers, the same network fused, and the project's layers with its weights."""
    config = tiny(norm_min_scale=0.0, **generator)
    ours = vologan_fast.load(make_run(folder, config), device="cpu")
    twin = plain_twin(ours.generator)
    train(twin)
    weights = {name.replace("norm.0.", "norm."): value for name, value in twin.state_dict().items()}
    ours.generator.load_state_dict(weights)
    plain = Translator(twin, config, "s2t", ours.weights)
    fused = copy.deepcopy(plain)
    fused.generator, report = fuse(fused.generator)
    assert len(report.fused) == 2 + 6 * config.generator.levels and not report.left
    return {"plain": plain, "fused": fused, "ours": ours}


def test_plain_and_fused_layers_are_recorded_alike(tmp_path: Path) -> None:
    models = layers_of_each_kind(tmp_path / "run", padding="reflection")
    recorded = {name: programs.record(programs.Program(model)).module() for name, model in models.items()}
    check_alike(recorded, models["plain"])


@pytest.mark.slow
def test_plain_and_fused_layers_are_alike_in_onnx(tmp_path: Path) -> None:
    models = layers_of_each_kind(tmp_path / "run", padding="zero")
    metadata = programs.describe(models["plain"], "fp32", "")
    files = {name: programs.as_onnx(model, "fp32", metadata) for name, model in models.items()}
    check_alike({name: programs.run_onnx(file) for name, file in files.items()}, models["plain"])


def check_alike(functions: dict[str, Callable[[Tensor], Tensor]], plain: Translator) -> None:
    """All compute what the plain network computes, and `fuse` changes no bit."""
    for function in functions.values():
        assert_agrees(function, plain)
    x = images(2, 37, 41)
    assert torch.equal(functions["fused"](x), functions["plain"](x))


def test_half(run: Path) -> None:
    model = vologan_fast.load(run, device="cpu")
    recorded = programs.record(programs.Program(model, torch.float16))
    assert {parameter.dtype for parameter in recorded.parameters()} == {torch.float16}
    assert_agrees(recorded.module(), model, torch.float16)


def test_a_residual_network_in_half_keeps_what_it_does_not_change(run: Path) -> None:
    model = vologan_fast.load(run, device="cpu")
    nn.init.zeros_(model.generator.to_image.weight)
    nn.init.zeros_(model.generator.to_image.bias)
    x = images(2, 37, 18)
    assert torch.equal(programs.Program(model, torch.float16)(x), x)


def test_the_published_attention_gets_squares(tmp_path: Path) -> None:
    """The image is padded to a square by repeating its border, and the result is cut. A program does the same."""
    model = vologan_fast.load(make_run(tmp_path / "run", tiny("vologan-512")), device="cpu")
    assert model.square
    x = images(1, 20, 33)
    square = torch.cat((x, x[:, :, -1:].expand(-1, -1, 14, -1)), dim=2)
    square = torch.cat((square, square[:, :, :, -1:]), dim=3)
    assert square.shape[2:] == (34, 34)
    expected = model.generator(square)[:, :, :20, :33]
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(programs.Program(model)(x), expected, rtol=1e-4, atol=1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "vologan-512": {},
    "pooling": {"attention": "matrix", "down": "max_pooling", "join": "add", "output": "sigmoid", "activation": "elu"},
    "space_to_depth": {"down": "space_to_depth", "output": "tanh", "activation": "prelu"},
    "resnet": {
        "network": "resnet",
        "residual_blocks": 1,
        "attention": "none",
        "norm_affine": False,
        "up": "transposed_convolution",
        "input_range": "signed",
    },
    "batch norm": {
        "network": "unet_residual",
        "residual_blocks": 1,
        "attention": "none",
        "norm": "batch",
        "factorized_kernels": True,
        "up": "bilinear_residual",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "suffix"), [("vologan-512", ".pt2"), *((name, ".onnx") for name in VARIANTS)])
def test_other_generators(tmp_path: Path, variant: str, suffix: str) -> None:
    """Spectral norm, attention, padding by reflection, other samplings. ONNX starts from the program of the .pt2."""
    run = make_run(tmp_path / "run", tiny("vologan-512", **VARIANTS[variant]))
    assert main([str(run), "--out", str(tmp_path), "--format", {".pt2": "torch", ".onnx": "onnx"}[suffix]]) == 0
    function, model = RUNS[suffix]((tmp_path / f"s2t{suffix}").read_bytes()), vologan_fast.load(run, device="cpu")
    # Attention between all positions takes memory for the square of their number.
    assert_agrees(function, model, shapes=SHAPES[:-1] if variant == "pooling" else SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_demo_generator(tmp_path: Path, precision: str) -> None:
    demo = dataclasses.replace(PRESETS["demo"], data=tiny().data)
    run = make_run(tmp_path / "run", demo)
    assert (
        main([str(run), "--out", str(tmp_path), "--direction", "t2s", "--precision", precision, "--opset", "18"]) == 0
    )
    name = "t2s" if precision == "fp32" else "t2s-fp16"
    assert {path.name for path in tmp_path.iterdir()} == {"run", f"{name}.onnx", f"{name}.pt2"}
    model = vologan_fast.load(run, "t2s", device="cpu")
    for suffix, function in RUNS.items():
        kind = torch.float32 if precision == "fp32" else torch.float16
        assert_agrees(function((tmp_path / f"{name}{suffix}").read_bytes()), model, kind)


def test_options_without_an_effect_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(run), "--out", str(tmp_path / "out"), "--format"]
    assert "--opset: expected" in error(main, capsys, *command, "torch", "safetensors", "--opset", "18")
    assert "--precision: expected" in error(main, capsys, *command, "safetensors", "--precision", "fp16")
    assert "--license: expected" in error(main, capsys, *command, "onnx", "--license", "mit")
    assert "--weights: expected" in error(main, capsys, *command, "torch", "--foreign", "--weights", "trained")
    # What cannot work is refused before anything is written.
    assert "--opset is 7" in error(main, capsys, *command, "torch", "onnx", "--opset", "7")
    assert not (tmp_path / "out").exists()
