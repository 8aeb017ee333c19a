"""A translator as a file that runs without this project: a program of torch.export, or ONNX.

`Program` is the network as such a file computes it. `as_torch` and `as_onnx` return the bytes of a file, `run_torch`
and `run_onnx` the function in such bytes. `compare` runs a function beside the network.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vologan_fast.config import CHANNELS, Channels, ConfigError, height_and_width
from vologan_fast.translation.translator import Translator

Precision = Literal["fp32", "fp16"]
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
_ROUNDINGS = 16
"""Roundings of the largest value that are allowed beside the network's own error. A network is some dozen sums, and
each runtime has its own order of adding."""
_FLIPPED = 10_000
"""One in so many pixels may be a hole for one rounding, and have depth for another."""
METADATA = "metadata.json"
"""Name of the metadata in a .pt2 file."""
LEAST_OPSET, LARGEST_OPSET = 18, 23
"""The versions of ONNX's operators that torch's exporter writes (torch 2.13)."""


class ExportError(RuntimeError):
    """A file cannot be made, or computes something else than the network. The message names the file."""


class Program(nn.Module):
    """The translation by a `Translator`, in a form that torch.export records for any batch, height and width.

    It maps (N, C, H, W) in [0, 1] to images of the other domain, of the same size and type. The network computes in
    `kind`, and its instance norms in float32 at least. Weights with spectral norm are stored divided. With noise
    channels, the noise (N, noise_channels, H, W) is a second input.
    """

    def __init__(self, model: Translator, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = copy.deepcopy(model.generator).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for layer in [layer for layer in generator.modules() if parametrize.is_parametrized(layer, "weight")]:
            weight = nn.Parameter(layer.weight)
            # Not by remove_parametrizations, which changes the class, and so `model` too (torch 2.13).
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.weight = weight
        self.generator = generator.to(kind)
        self.channels, self.size_multiple, self.square = model.channels, model.size_multiple, model.square
        self.noise_channels = model.noise_channels
        self.least_multiple = model.least_side // model.size_multiple
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        height, width = x.shape[2:]
        multiple = self.size_multiple
        least = self.least_multiple
        rows, columns = (torch.sym_max(least, (side + multiple - 1) // multiple) * multiple for side in (height, width))
        if self.square:
            rows = columns = torch.sym_max(rows, columns)
        border = (0, columns - width, 0, rows - height)
        padded, noise = (None if t is None else F.pad(t, border, mode="replicate") for t in (x, noise))
        y = (self.generator(padded) if noise is None else self.generator(padded, noise=noise)).to(x.dtype)
        # A slice would do the same, but torch.export cannot prove that height ≤ rows (torch 2.13).
        y = y.index_select(2, torch.arange(height, device=y.device))
        return y.index_select(3, torch.arange(width, device=y.device))


def describe(model: Translator, precision: Precision, weights_sha256: str) -> dict[str, Any]:
    """Return what a file says about itself. Raises ConfigError if the run did not record near and far.

    near, far and unit are there if the images that come in have depth. Those of translated depth are there too, as
    output_near and so on, if only the translations have depth.
    """
    depth: dict[str, Any] = {}
    spec, output = model.source, model.output_depth
    for prefix, domain, found in (("", model.domain, spec), ("output_", model.target_domain, None if spec else output)):
        if found is not None and (found.near is None or found.far is None):
            raise ConfigError(
                f"{model.config_file}: data.{domain}.near and far: expected numbers, as a run records them; "
                f"found {found.near} and {found.far}"
            )
        if found is not None:
            unit = (
                "normalized" if found.unit == "normalized" else "m"
            )  # near and far are metres, whatever the files hold
            depth |= {f"{prefix}near": found.near, f"{prefix}far": found.far, f"{prefix}unit": unit}
    inside, outside = model.source_channels, model.target_channels
    return {
        "direction": model.direction,
        "channels": channels_in_words(inside),
        **({} if inside == outside else {"output_channels": channels_in_words(outside)}),
        **depth,
        **({"noise_channels": model.noise_channels} if model.noise_channels else {}),
        "size": model.size,
        "size_multiple": model.size_multiple,
        "precision": precision,
        "weights_sha256": weights_sha256,
    }


def channels_in_words(channels: Channels) -> str:
    """Return the channels of images as the metadata has them: "grey, depth; all in [0, 1]; …"."""
    return f"{', '.join(channels.names)}; all in [0, 1]" + "; depth 0 is missing or background" * channels.depth


def record(program: Program) -> torch.export.ExportedProgram:
    """Return the program as torch.export records it: standard operations, for any batch, height and width."""
    with _quiet(), _single_pixels(program):
        recorded = torch.export.export(program, _example(program), dynamic_shapes=_dimensions(program))
    for node in recorded.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return recorded


def as_torch(model: Translator, precision: Precision, metadata: dict[str, Any]) -> bytes:
    """Return a program of torch.export (.pt2). Its extra file `metadata.json` holds the metadata."""
    recorded, file = record(Program(model, TYPES[precision])), io.BytesIO()
    with _quiet():
        torch.export.save(recorded, file, extra_files={METADATA: json.dumps(metadata, indent=2)})
    return file.getvalue()


def as_onnx(model: Translator, precision: Precision, metadata: dict[str, Any], opset: int | None = None) -> bytes:
    """Return an ONNX file. Its `metadata_props` hold the metadata. `opset` defaults to torch's choice.

    Raises ConfigError if onnx or onnxscript is not installed, or for an opset that torch cannot write.
    """
    check_onnx(opset)
    program = Program(model, TYPES[precision])
    with _quiet(), _single_pixels(program):
        recorded = torch.onnx.export(
            program,
            _example(program),
            dynamo=True,
            dynamic_shapes=_dimensions(program),
            input_names=["x", "noise"][: len(_example(program))],
            output_names=["y"],
            opset_version=opset,
            custom_translation_table={torch.ops.aten.instance_norm.default: _instance_norm()},
            verbose=False,
        )
    assert recorded is not None
    graph = recorded.model.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()  # names folders of this machine
        for value in node.outputs:
            value.metadata_props.clear()
    recorded.model.metadata_props.update({name: str(value) for name, value in metadata.items()})
    return recorded.model_proto.SerializeToString()


def check_onnx(opset: int | None) -> None:
    """Raise ConfigError if ONNX cannot be written here, or not with these operators."""
    _require("onnx", "onnxscript", "onnxruntime")
    if opset is not None and not LEAST_OPSET <= opset <= LARGEST_OPSET:
        raise ConfigError(f"--opset is {opset}: expected {LEAST_OPSET} to {LARGEST_OPSET}")


def _instance_norm() -> Callable[..., Any]:
    """Return what stands in ONNX for torch's instance norm: the formula, with means over rows, then over columns.

    onnxruntime's own InstanceNormalization adds up a plane number by number in float32, and so does its mean over both
    dimensions. Its error on planes of 1024 × 1024 is 6e-5 (onnxruntime 1.32, CPU). With two short means, it is below
    1e-6. As in the kernels' reference, the rounded mean leaves a rest, which is the mean of the deviations.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def mean(x: Any) -> Any:
        return op.ReduceMean(op.ReduceMean(x, op.Constant(value_ints=[3])), op.Constant(value_ints=[2]))

    def instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled):  # type: ignore[no-untyped-def]  # as torch's; weight and bias (C,), or both None
        deviation = op.Sub(x, mean(x))
        rest, variance = mean(deviation), mean(op.Mul(deviation, deviation))
        root = op.Sqrt(op.Add(variance, op.Constant(value_float=eps)))
        if weight is None:
            return op.Div(op.Sub(deviation, rest), root)
        scale, shift = (op.Unsqueeze(value, op.Constant(value_ints=[1, 2])) for value in (weight, bias))
        scale = op.Div(scale, root)
        return op.Add(op.Mul(deviation, scale), op.Sub(shift, op.Mul(rest, scale)))

    return instance_norm


def run_torch(data: bytes) -> Callable[..., Tensor]:
    """Return the function in a .pt2 file."""
    with _quiet():
        function: Callable[..., Tensor] = torch.export.load(io.BytesIO(data)).module()
    return function


def run_onnx(data: bytes) -> Callable[..., Tensor]:
    """Return the function in an ONNX file, as onnxruntime computes it on the CPU.

    Raises ConfigError if onnxruntime is not installed.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        named = {of.name: x.numpy() for of, x in zip(session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(session.run(None, named)[0])

    return run


@dataclass(frozen=True)
class Agreement:
    """How well a file agrees with the network on images of one shape. All numbers are largest absolute differences."""

    shape: tuple[int, ...]
    difference: float
    """Between the file and the network, run by PyTorch in the file's precision."""
    error: float
    """Between the file and the network in float64, with the weights as they were trained."""
    allowed: float
    """The largest error that is allowed."""

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed  # NaN does not hold


def compare(run: Callable[..., Tensor], model: Translator, precision: Precision) -> list[Agreement]:
    """Run the function of a file and the network on batches of 1 and 2 images of three sizes, two of them not square.

    A file does the operations of the network in another order, so the same bound holds for both errors. The network's
    error against float64 shows how large it is. The file's error may be twice as large. Some roundings of float32 are
    added to that, because the network's error may be 0.

    A hole head decides between depth and no depth, so a rounding may change a whole pixel. Such pixels are not
    compared. At most one in `_FLIPPED` may be one, or twice as many as the network's own rounding changes.
    """
    network, exact = Program(model, TYPES[precision]), Program(model, torch.float64)
    images = [_inputs(model, *size) for size in _sizes(model)]
    with torch.inference_mode():
        truths = [exact(*(t.double() for t in inputs)) for inputs in images]
        expected = [network(*inputs) for inputs in images]
    pairs = list(zip(expected, truths, strict=True))
    flips = 1 / _FLIPPED
    if model.has_holes:
        flips = max(flips, *(2 * float(_flipped(y, truth).float().mean()) for y, truth in pairs))
    compared = functools.partial(_largest_difference, flips=flips if model.has_holes else None)
    own = max(compared(y, truth) for y, truth in pairs)
    roundings = _ROUNDINGS * torch.finfo(torch.float32).eps
    found = []
    for inputs, (y, truth) in zip(images, pairs, strict=True):
        for count in (1, 2):
            result = run(*(t[:count].clone() for t in inputs))
            difference, error = compared(result, y[:count]), compared(result, truth[:count])
            found.append(Agreement(tuple(result.shape), difference, error, 2 * own + roundings * _largest(truth)))
    return found


def _largest_difference(a: Tensor, b: Tensor, flips: float | None) -> float:
    """Return the largest difference of two batches. Holes of only one of them do not count.

    It is infinite if they are more than the share `flips` of all pixels. None: all pixels count.
    """
    if flips is None:
        return _largest(a - b)
    flipped = _flipped(a, b)
    if flipped.float().mean() > flips:
        return math.inf
    return _largest((a - b).masked_fill(flipped, 0.0))


def _flipped(a: Tensor, b: Tensor) -> Tensor:
    """Return where only one of two batches has depth: (N, 1, H, W) bool."""
    return (a[:, -1:] == 0) != (b[:, -1:] == 0)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _sizes(model: Translator) -> list[tuple[int, int]]:
    """Return a square size near the size trained, at most 256; one that is no square; and one that needs padding."""
    multiple = model.size_multiple
    side = max(2, min(*height_and_width(model.size), 256) // multiple) * multiple
    return [(side, side), (side + multiple, 2 * multiple), (side - 3, side + 5)]


def _inputs(model: Translator, height: int, width: int) -> tuple[Tensor, ...]:
    """Return two images (2, C, height, width), and noise if the network has any.

    The images show smooth shapes and noise, with background at the left and holes.
    """
    generator, count = torch.Generator().manual_seed(height), model.channels
    shapes = F.interpolate(torch.rand(2, count, 5, 5, generator=generator), (height, width), mode="bicubic")
    x = (shapes + 0.05 * torch.randn(shapes.shape, generator=generator)).clamp(0, 1)
    if model.source_channels.depth:
        x[:, -1] *= torch.rand(2, height, width, generator=generator) > 0.05
    x[..., : width // 5] = 0
    planes = model.noise_channels
    return (x, torch.randn(2, planes, height, width, generator=generator)) if planes else (x,)


def _example(program: Program) -> tuple[Tensor, ...]:
    """Return inputs to record with. No side is special: the sizes differ, and need padding."""
    channels = [program.channels, *([program.noise_channels] if program.noise_channels else [])]
    return tuple(torch.rand(2, c, 2 * program.size_multiple + 3, 3 * program.size_multiple + 5) for c in channels)


def _dimensions(program: Program) -> tuple[Any, ...]:
    """Return the dimensions of each input that may be of any size. They are equal for image and noise."""
    sizes = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=1),
        3: torch.export.Dim("width", min=1),
    }
    return (sizes, sizes) if program.noise_channels else (sizes,)


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {' and '.join(missing)}: pip install 'vologan-fast[export]'")


def _single_pixels(program: Program) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch.export does not forbid sizes of 1, if the network's lowest level may have them.

    By default, it takes them for special (torch 2.13).
    """
    from torch.fx.experimental import _config

    if program.least_multiple > 1:
        return contextlib.nullcontext()
    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporters' notes about themselves, which say nothing about the file."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def how_to_run(file: Path, model: Translator) -> str:
    """Return a program of some ten lines that runs a file. It needs onnxruntime and NumPy, or torch alone."""
    reads, makes, spec = model.source_channels, model.target_channels, model.source or model.output_depth
    there = {"color in": reads.color, "depth in": reads.depth, "color out": makes.color, "depth out": makes.depth}
    there |= {"noise": model.noise_channels > 0, "no noise": model.noise_channels == 0}
    results = [*(["color"] if makes.color else []), *(["depth"] if makes.depth else [])]
    values = {
        "file": str(file.absolute()),
        "near": spec and spec.near,
        "far": spec and spec.far,
        "unit": "file units" if spec and spec.unit == "normalized" else "metres",
        "color": reads.color,
        "names": ", ".join(CHANNELS["rgb"].names if reads.color == 3 else CHANNELS["grey"].names),
        "zero": "; 0 in the background" if reads.depth else "",
        "planes": ", ".join([*(["color"] if reads.color else []), *(["z"] if reads.depth else [])]),
        "number": reads.number,
        "made": makes.color,
        "printed": ", ".join(f"{name}.shape, {name}.dtype" for name in results),
        "mean": f"{'depth' if makes.depth else 'color'}",
        "noise": model.noise_channels,
    }
    lines = _ONNX_LINES if file.suffix == SUFFIXES["onnx"] else _TORCH_LINES
    return "".join(line.format(**values) + "\n" for needs, line in lines if there.get(needs, spec or not needs))


_ONNX_LINES = (
    ("", "import numpy as np, onnxruntime"),
    ("any depth", "near, far = {near}, {far}  # {unit}"),
    ("", "session = onnxruntime.InferenceSession({file!r}, providers=onnxruntime.get_available_providers())"),
    ("color in", "color = np.random.rand(480, 640, {color})  # {names} in [0, 1]{zero}"),
    (
        "depth in",
        "depth = np.random.uniform(near, far, (480, 640))  # {unit}; NaN where missing, and in the background",
    ),
    ("depth in", "z = np.nan_to_num(np.clip((depth - near) / (far - near), 1 / 1024, 1))"),
    ("", "x = np.dstack([{planes}]).transpose(2, 0, 1)[None].astype(np.float32)  # (N, {number}, H, W), of any size"),
    ("noise", "noise = np.random.randn(1, {noise}, *x.shape[2:]).astype(np.float32)  # another result each time"),
    ("noise", 'y = session.run(None, {{"x": x, "noise": noise}})[0][0]'),
    ("no noise", 'y = session.run(None, {{"x": x}})[0][0]'),
    ("color out", "color = y[:{made}].transpose(1, 2, 0)"),
    ("depth out", "depth = np.where(y[-1] < 1 / 2048, np.nan, near + (far - near) * y[-1])"),
    ("", "print({printed}, np.nanmean({mean}))"),
)
"""Lines, each with what it needs: one of four parts, or noise or none of it, or "any depth", or nothing."""

_TORCH_LINES = (
    ("", "import torch"),
    ("any depth", "near, far = {near}, {far}  # {unit}"),
    ("", "program = torch.export.load({file!r}).module()"),
    ("color in", "color = torch.rand({color}, 480, 640)  # {names} in [0, 1]{zero}"),
    (
        "depth in",
        "depth = torch.empty(1, 480, 640).uniform_(near, far)  # {unit}; NaN where missing, and in the background",
    ),
    ("depth in", "z = ((depth - near) / (far - near)).clamp(1 / 1024, 1).nan_to_num()"),
    ("", "x = torch.cat([{planes}])[None]  # (N, {number}, H, W), of any size"),
    ("noise", "y = program(x, torch.randn(1, {noise}, *x.shape[2:]))[0]  # another result each time"),
    ("no noise", "y = program(x)[0]"),
    ("color out", "color = y[:{made}]"),
    ("depth out", 'depth = torch.where(y[-1] < 1 / 2048, float("nan"), near + (far - near) * y[-1])'),
    ("", "print({printed}, float({mean}.nanmean()))"),
)
