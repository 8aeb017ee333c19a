"""What an import may load: people take one part without the others."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_the_kernels_need_torch_and_nothing_else():
    hidden = "nvidia.dali", "triton", "vologan_fast", "OpenEXR", "cv2", "PIL"
    code = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\nimport torch, vologan_kernels as k\n"
    result = run(code + "print(k.instance_norm_act(torch.rand(1, 2, 4, 4)).shape)")
    assert result.stdout.strip() == "torch.Size([1, 2, 4, 4])", result.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vologan_fast", ["torch", "numpy", "nvidia.dali"]),
        ("vologan_fast.config", ["torch", "nvidia.dali"]),
        ("vologan_fast.depth", ["torch", "OpenEXR"]),
        ("vologan_fast.data", ["nvidia.dali", "vologan_fast.networks"]),
        ("vologan_fast.networks", ["vologan_fast.data", "vologan_fast.losses"]),
        ("vologan_fast.step", ["vologan_fast.data", "vologan_fast.trainer"]),
    ],
)
def test_imports_stay_cheap_and_go_one_way(module, absent):
    result = run(f"import sys, {module}\nprint([name for name in {absent} if name in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr
