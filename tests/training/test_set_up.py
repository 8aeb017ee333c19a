"""What training sets for the whole process, and that the benchmark of a step sets the same."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vologan_fast.training.build import set_up_device


@pytest.fixture
def backends(monkeypatch):
    """Return stand-ins for the settings of cuDNN and cuBLAS. A build for the CPU does not keep them."""
    found = SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True), cuda=SimpleNamespace(matmul=SimpleNamespace()))
    monkeypatch.setattr(torch.backends, "cudnn", found.cudnn)
    monkeypatch.setattr(torch.backends, "cuda", found.cuda)
    return found


@pytest.mark.parametrize(
    ("precision", "tf32"), [("auto", False), ("bfloat16", False), ("float32", False), ("tf32", True)]
)
def test_cudnn_times_the_likely_plans_and_not_all(backends, precision, tf32):
    set_up_device(torch.device("cuda"), precision)
    assert backends.cudnn == SimpleNamespace(benchmark=True, benchmark_limit=10, allow_tf32=tf32)
    assert backends.cuda.matmul.allow_tf32 is tf32


def test_on_the_cpu_nothing_is_set(backends):
    set_up_device(torch.device("cpu"), "tf32")
    assert backends.cudnn == SimpleNamespace(allow_tf32=True)


def test_the_benchmark_of_a_step_is_set_up_as_training_is(backends, monkeypatch, counting_script):
    """The sides of today's code keep the convolutions of torch's default, TF32. The others are as in training."""
    counting_script("count_launches")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench" / "static_cost")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench" / "step")
    import sides

    config = sides.configuration("vologan-64", 8)
    state = sides.first_state(config)
    set_up, devices = sides.set_up_device, []
    monkeypatch.setattr(sides, "ON_GPU", True)  # on a CPU, the sides of today's code set nothing
    monkeypatch.setattr(
        sides, "set_up_device", lambda device, *rest: devices.append(device) or set_up(torch.device("cuda"), *rest)
    )
    seen = []
    for name in ("ours", "eager fp32"):
        step = sides.make_step(sides.SIDES[name], config, state)
        monkeypatch.setattr(step, "gradients", lambda *_: seen.append(dict(vars(backends.cudnn))))
        step(*sides.images(config, 1), 0)
    assert devices == [sides.DEVICE] * 2
    assert seen == [{"benchmark": True, "benchmark_limit": 10, "allow_tf32": tf32} for tf32 in (False, True)]
    assert backends.cudnn.allow_tf32 is False
