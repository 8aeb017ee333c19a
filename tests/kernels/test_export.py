"""Models with the instance norm as files that need neither this package nor, for ONNX, PyTorch.

A recorded model must compute what the model computes, for other batches and sizes too, to rounding: its error against
a float64 copy is at most twice the model's error, plus some roundings.
"""

import io
import itertools

import pytest
import torch
from exactness import assert_as_exact
from torch import nn
from vologan_kernels import ACTIVATIONS, InstanceNormAct2d, instance_norm_act, windowed_ssim

ULPS = 4
"""Roundings of the largest value: of the sums' order, and of activations that a runtime approximates. A rounding of a
plane's mean μ moves x̂ by |μ| / σ roundings, so as many are added."""


class EveryForm(nn.Module):
    """Each activation, with and without γ and β, residual, padding, and a bound for γ."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList()
        for activation, affine, pad in itertools.product(ACTIVATIONS, (False, True), (0, 2)):
            norm = InstanceNormAct2d(
                3,
                1e-3,
                affine=affine,
                activation=activation,
                negative_slope=0.3,
                reflection_pad=pad,
                min_scale=0.5 if pad and affine else 0.0,
            )
            if affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
            self.norms.append(norm)
        self.tracking = InstanceNormAct2d(3, track_running_stats=True, activation="relu")

    def forward(self, x):
        residual = x.flip(3)
        found = [norm(x, r) for norm in self.norms for r in (None, residual)]
        return [*found, self.tracking(x), instance_norm_act(x[:, :1, :1, :1] * 0 + 3, activation="relu")]


INPUTS = [
    lambda: 3 + torch.randn(2, 3, 6, 5),
    lambda: torch.randn(1, 3, 4, 9).contiguous(memory_format=torch.channels_last),
    lambda: 100 + torch.randn(3, 3, 12, 8),
]


def check(model, run, inputs):
    """`run` computes what `model` does on all `inputs`."""
    truth = model_in_float64(model)
    for x in inputs:
        expected, found, exact = (f(x) for f in (model, run, lambda x: truth(x.double())))
        for ours, eager, true in zip(found, expected, exact, strict=True):
            offset = float(x.mean().abs() / x.std())
            # A runtime subtracts a rounded mean, and squares what is left.
            assert_as_exact(torch.as_tensor(ours), eager, true, ulps=ULPS + 2 * offset)


def model_in_float64(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False).double()


def inputs():
    torch.manual_seed(1)
    return [make() for make in INPUTS]


def test_torch_export():
    model = EveryForm().eval()
    n, h, w = (torch.export.Dim(name, min=least) for name, least in (("n", 1), ("h", 3), ("w", 3)))
    program = torch.export.export(model, (torch.randn(2, 3, 6, 5),), dynamic_shapes=({0: n, 2: h, 3: w},))
    assert "vologan_kernels" not in str(program.graph)
    check(model, program.module(), inputs())


@pytest.mark.filterwarnings("ignore")
def test_jit_trace():
    model = EveryForm().eval()
    traced = torch.jit.trace(model, (torch.randn(2, 3, 6, 5),))
    assert "vologan_kernels::" not in str(traced.inlined_graph)
    check(model, traced, inputs())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_trace_keeps_half_types_in_float32(dtype):
    model = EveryForm().eval().to(dtype)
    x = (3 + torch.randn(2, 3, 6, 5)).to(dtype)
    traced = torch.jit.trace(model, (x,))
    for found, expected in zip(traced(x), model(x), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")
def test_onnx(dynamo, tmp_path):
    model = EveryForm().eval()
    run = onnx_session(model, torch.randn(2, 3, 6, 5), tmp_path / "model.onnx", dynamo, least=3)
    check(model, run, inputs())


@pytest.mark.filterwarnings("ignore")
def test_onnx_has_torchs_operator_for_the_norm(tmp_path):
    onnx = pytest.importorskip("onnx")
    norm = InstanceNormAct2d(3, affine=True, activation="relu", reflection_pad=1)
    onnx_session(norm.eval(), torch.randn(2, 3, 6, 5), tmp_path / "model.onnx", dynamo=False)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type != "Constant"]
    assert "InstanceNormalization" in kinds and "ReduceMean" not in kinds


class Score(nn.Module):
    def forward(self, images):
        return (windowed_ssim(*images.split(3, 1), reduction="none"),)


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_windowed_ssim(tmp_path):
    torch.manual_seed(1)
    images = torch.rand(2, 6, 16, 16)
    run = onnx_session(Score(), images, tmp_path / "model.onnx", dynamo=False, fixed=True)
    check(Score(), run, [images])


def onnx_session(model, x, path, dynamo, *, least=2, fixed=False):
    """Export for any batch and size, and return the function that onnxruntime computes."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        runtime = pytest.importorskip(library)
    axes = {0: "n", 2: "h", 3: "w"}
    if dynamo:
        shapes = {0: torch.export.Dim("n", min=1)} | {i: torch.export.Dim(axes[i], min=least) for i in (2, 3)}
        options = {"dynamic_shapes": (shapes,), "verbose": False}
    else:
        options = {} if fixed else {"dynamic_axes": {"x": axes}}
    torch.onnx.export(model, (x,), path, dynamo=dynamo, input_names=["x"], **options)
    session = runtime.InferenceSession(path)
    return lambda x: session.run(None, {"x": x.numpy()})
