"""bench/fuse_cpu.py: both models compute the same before they are timed. Nothing is timed here."""

import sys
from pathlib import Path

import pytest
import torch
from vologan_kernels import fuse

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import fuse_cpu


@pytest.mark.parametrize("mode", fuse_cpu.MODES, ids=str)
@pytest.mark.parametrize("name", ["ResnetGenerator", "unet", "MultiscaleDiscriminator"])
def test_both_calls_run_in_each_mode(name, mode):
    for call in fuse_cpu.pair(name, mode):
        call()


def test_the_generator_of_cyclegan_is_fused_in_23_places():
    model, report = fuse(fuse_cpu.resnet_9(4))
    assert len(report.fused) == 2 * 9 + 5 and not report.left
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_a_model_without_anything_to_fuse_has_no_row():
    assert fuse_cpu.row("with BatchNorm", 1) is None


def test_a_fused_model_that_computes_something_else_is_not_timed(monkeypatch):
    def damaged(model):
        model, report = fuse(model)
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        return model, report

    monkeypatch.setattr(fuse_cpu, "fuse", damaged)
    with pytest.raises(AssertionError, match="unet, float32, contiguous: the fused model computes something else"):
        fuse_cpu.pair("unet", fuse_cpu.MODES[0])


def test_a_model_that_cannot_run_in_a_mode_has_no_number(monkeypatch):
    def refuse(name, mode):
        raise RuntimeError("not in this mode")

    monkeypatch.setattr(fuse_cpu, "pair", refuse)
    assert fuse_cpu.row("unet", 1) == ["unet", *"––––"]
