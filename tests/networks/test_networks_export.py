"""Generators and discriminators as ONNX and torch.export files: the same images and logits, for any batch and size.

The error against a float64 copy is at most a few times what one rounding of the weights and the image does to that
copy, plus some roundings of the result. The network's own error would be no measure: where a norm divides by a small
deviation of six pixels, one runtime is lucky and the next is not.
"""

import copy
import dataclasses
from typing import get_args, get_type_hints

import pytest
import torch

from vologan_fast.config import DiscriminatorConfig, GeneratorConfig
from vologan_fast.networks import build_discriminator, build_generator

GENERATOR = GeneratorConfig(width=8, max_width=16, levels=2, residual_blocks=1, cardinality=2, attention_size=0)
DISCRIMINATOR = DiscriminatorConfig(widths=(8, 8, 16), down_widths=(8, 16, 16), width=8, max_width=16, levels=2)
ULPS = 16
"""Roundings of the largest value: a network is some dozen sums, each in an order of the runtime's own."""
TRIES = 8
"""Networks with rounded weights that show how far roundings move an output."""


NO_VALUES_HERE = ("initializer", "elementwise")
"""An option that changes no operation; and the attention whose images must be square, which have one size here."""


def variants(make, config):
    """The network of `config`, and of each value of each option that has names, one by one."""
    yield pytest.param(make, config, id=f"{make.__name__}, as it is")
    for name, kind in get_type_hints(type(config)).items():
        for value in get_args(kind):
            if isinstance(value, str) and value != getattr(config, name) and not {name, value} & set(NO_VALUES_HERE):
                changed = dataclasses.replace(config, **{name: value})
                marks = [] if name == "padding" else [pytest.mark.slow]
                yield pytest.param(make, changed, id=f"{make.__name__}, {name} {value}", marks=marks)


NETWORKS = [*variants(build_generator, GENERATOR), *variants(build_discriminator, DISCRIMINATOR)]
QUICK = [variant for variant in NETWORKS if not variant.marks]
AXES = {0: "n", 2: "h", 3: "w"}


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(n, 4, h, w, generator=generator) for n, h, w in ((2, 16, 24), (1, 24, 16), (3, 32, 32))]


def network(make, config):
    torch.manual_seed(0)
    return make(config).eval()


def outputs_of(run, x):
    with torch.no_grad():
        outputs = run(x)
    return [torch.as_tensor(o).double() for o in (outputs if isinstance(outputs, list | tuple) else [outputs])]


def sensitivity(exact, x):
    """The largest change of each output of the float64 network `exact` by one float32 rounding of weights and `x`."""
    generator = torch.Generator().manual_seed(2)

    def rounded(t):
        noise = torch.rand(t.shape, generator=generator, dtype=t.dtype) * 2 - 1
        return t * (1 + noise * torch.finfo(torch.float32).eps)

    truth, changes = outputs_of(exact, x), []
    for _ in range(TRIES):
        other = copy.deepcopy(exact)
        for parameter in other.parameters():
            parameter.data = rounded(parameter.data)
        moved = outputs_of(other, rounded(x))
        changes.append([(m - t).abs().max() for m, t in zip(moved, truth, strict=True)])
    return [max(of_one) for of_one in zip(*changes, strict=True)]


def check(model, run, inputs):
    """`run` gives what `model` gives."""
    exact = copy.deepcopy(model).double()
    for x in inputs:
        outputs, truth = outputs_of(run, x), outputs_of(exact, x.double())
        for found, true, moves in zip(outputs, truth, sensitivity(exact, x.double()), strict=True):
            assert found.shape == true.shape
            allowed = 4 * moves + ULPS * torch.finfo(torch.float32).eps * true.abs().max()
            assert (found - true).abs().max() <= allowed


def session(path):
    """The function that onnxruntime computes from a file."""
    runtime = pytest.importorskip("onnxruntime")
    file = runtime.InferenceSession(path)
    return lambda x: file.run(None, {"x": x.numpy()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "config"), NETWORKS)
def test_onnx_by_torchscript(make, config, tmp_path):
    pytest.importorskip("onnx")
    model, path = network(make, config), tmp_path / "model.onnx"
    torch.onnx.export(model, (images()[0],), path, dynamo=False, input_names=["x"], dynamic_axes={"x": AXES})
    check(model, session(path), images())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "config"), NETWORKS)
def test_onnx_by_dynamo(make, config, tmp_path):
    pytest.importorskip("onnxscript")
    model, path = network(make, config), tmp_path / "model.onnx"
    options = {"dynamic_shapes": ({i: torch.export.Dim(name) for i, name in AXES.items()},), "verbose": False}
    torch.onnx.export(model, (images()[0],), path, dynamo=True, input_names=["x"], **options)
    check(model, session(path), images())


@pytest.mark.slow
@pytest.mark.parametrize(("make", "config"), QUICK)  # the exporter above begins with the same program
def test_torch_export(make, config):
    model = network(make, config)
    program = torch.export.export(model, (images()[0],))
    assert "vologan_kernels" not in program.graph_module.code
    check(model, program.module(), images()[:1])
