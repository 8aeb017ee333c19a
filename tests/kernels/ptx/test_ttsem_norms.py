"""ttsem beside our interpreter: it executes Triton's own IR, before the passes that make PTX of it.

It sees faults at the level of tensors: accesses out of bounds, and programs that race. It has no threads, no shared
memory and no barriers. It also reports what is no fault; `FALSE_ALARMS` lists it, with the reason.

The tests are skipped where ttsem is not installed. `tools/setup` installs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("ttsem")

NORMS = """
import sys
import torch
from vologan_kernels import instance_norm_act, launch

if sys.argv[1] == "streamed":
    launch.SINGLE_FORWARD = launch.SINGLE_BACKWARD = 0
for activation, pad, dtype, layout in (
    ("gelu", 1, torch.float32, torch.channels_last),
    ("leaky_relu", 0, torch.bfloat16, torch.channels_last),
    ("tanh", 2, torch.float64, torch.contiguous_format),
    ("elu", 0, torch.float16, torch.contiguous_format),
):
    x, residual = (
        torch.randn(2, 5, 24, 17, device="cuda", dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        for _ in range(2)
    )
    weight, bias = (torch.randn(5, device="cuda", requires_grad=True) for _ in range(2))
    options = {"activation": activation, "reflection_pad": pad, "residual": residual}
    results = []
    for impl in ("triton", "reference"):
        y = instance_norm_act(x, weight, bias, impl=impl, **options)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, residual, weight, bias])])
    tolerance = 1e-9 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
"""

PIXELS = """
import torch
from vologan_kernels import pixel_losses
a, b = (torch.rand(2, 4, 40, 40, device="cuda") for _ in range(2))
pixel_losses([(a, b)], [(1, 1, 1)], impl="triton")
"""

LOGITS = """
import torch
from vologan_kernels import adversarial_losses
adversarial_losses([torch.rand(2, 4, 40, 40, device="cuda")], ["real"], impl="triton")
"""

SPECTRAL = """
import torch
from vologan_kernels import spectral_norm, spectral_norm_step
layer = spectral_norm(torch.nn.Conv2d(3, 5, 3).cuda())
with spectral_norm_step(layer, impl="triton"):
    layer.weight
"""

ONE_ROW_TOO_MANY = """
import torch
from vologan_kernels import instance_norm_act
from vologan_kernels.instance_norm import kernels
kernel = kernels.single_fwd_kernel

class Wrong:
    def __getitem__(self, grid):
        def launch(x, residual, y, affine, statistics, c, h, w, **options):
            kernel[grid](x, residual, y, affine, statistics, c, h + 1, w, **options)
        return launch

kernels.single_fwd_kernel = Wrong()
instance_norm_act(torch.rand(1, 4, 5, 5, device="cuda"), impl="triton")
"""

FALSE_ALARMS = {
    # The last program reads what all have written. An atomic counter orders the two, which ttsem does not follow.
    "pixel losses": (PIXELS, "race", "kernel `pixel_loss_fwd_kernel`"),
    "adversarial losses": (LOGITS, "race", "kernel `adversarial_fwd_kernel`"),
    # The address of the weight comes from a table. ttsem counts from a tensor that happens to lie near it.
    "spectral norm": (SPECTRAL, "oob_read", r"`rows_kernel`.*tl\.load\(weight \+ offset, .* of the tensor passed as"),
}


ONE_STREAM = """
import types
import torch
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.current_stream = lambda device=None: types.SimpleNamespace(cuda_stream=0)
"""
"""ttsem makes tensors that say they are on a GPU. Questions about streams go on to torch, whose CPU build has none."""


def sanitized(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text(ONE_STREAM + program)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "ttsem.sanitize", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize(("tier", "launches"), [("single", 12), ("streamed", 16)])
def test_the_norms_have_no_fault(tier: str, launches: int, tmp_path: Path) -> None:
    found = sanitized(NORMS, tier, folder=tmp_path)
    text = found.stdout + found.stderr
    assert found.returncode == 0 and f"ok: {launches} launch(es)" in text, text


@pytest.mark.slow
@pytest.mark.parametrize(("program", "kind", "message"), FALSE_ALARMS.values(), ids=FALSE_ALARMS)
def test_the_false_alarms_are_those_that_are_listed(program: str, kind: str, message: str, tmp_path: Path) -> None:
    found = sanitized(program, folder=tmp_path)
    text = found.stdout + found.stderr
    assert f"{kind}: 1 launch(es)" in text and re.search(message, text), text


@pytest.mark.slow
def test_a_norm_of_one_row_too_many_is_found(tmp_path: Path) -> None:
    found = sanitized(ONE_ROW_TOO_MANY, folder=tmp_path)
    assert found.returncode != 0 and "past the end of the tensor passed as `" in found.stdout + found.stderr
