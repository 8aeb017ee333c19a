"""The command `python -m vologan_fast.profile --estimate GPU`, and its model of a step."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from triton import knobs

from vologan_fast.config import PRESETS
from vologan_fast.profile import _parse, estimate_table, main
from vologan_fast.profiling import estimate as model
from vologan_fast.profiling.compiled import Code
from vologan_fast.profiling.counts import Counts
from vologan_fast.profiling.estimate import PARTS, SIDES, estimate, steps_of_run
from vologan_fast.profiling.gpus import GPUS, known
from vologan_fast.profiling.machine_code import Count
from vologan_fast.profiling.step_counts import CONVOLUTION, NORM, OPTIMIZERS, SPECTRAL_NORM, count
from vologan_fast.training.build import build_training

H200 = GPUS["H200"]
TINY = shlex.split("""
    --data.size 32 --train.batch 2 --generator.levels 1 --generator.width 8 --generator.max-width 8
    --discriminator.widths 8 8 --discriminator.down-widths 8 8 --discriminator.width 8
    --generator.no-spectral-norm --generator.attention none --discriminator.attention none
""")
CODE = Code(64, 0, 0, 4, Count(2, 32, 0.5, 2, 100, 50, True))


@pytest.fixture(scope="module", autouse=True)
def any_code():
    """Let all kernels have the same machine code, since the tests have Triton's interpreter and no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "compiled", lambda launch, generation: CODE)
        patch.setattr(knobs.runtime, "interpret", False)
        yield


def settings(*options, preset="vologan-512"):
    return _parse(["--estimate", "H200", "--preset", preset, *TINY, *options]).settings


@pytest.fixture(scope="module")
def found():
    """The estimate of a tiny configuration."""
    return estimate(settings(), H200)


RUN = ["--estimate", "rtx-4090", *TINY, "--json", "cost.json", "--images", "101", "--schedule.epochs", "3"]


def check_run(output, folder):
    """Check what the command printed and wrote."""
    lines = output.splitlines()
    assert lines[0] == "vologan-512: a run on one RTX 4090, modelled and not measured"
    assert "3 epochs of 41 steps, for 101 images" in lines[1]  # 81 are trained on, 2 a step
    for name in ("convolutions", "norms and paddings", "losses", "spectral norm", "optimisers", "hours of a run"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 120
    assert [file.name for file in folder.iterdir()] == ["cost.json"]  # no trace, and no folder for runs
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["gpu"] == "RTX 4090" and cost["images"] == 101 and cost["steps"] == 3 * 41
    for side in SIDES:
        for case in ("likely", "fast", "slow"):
            of = cost[side][case]
            assert tuple(of["parts"]) == PARTS
            assert of["seconds"] == pytest.approx(max(sum(of["parts"].values()), of["host"]))
            assert of["hours"] == pytest.approx(of["seconds"] * cost["steps"] / 3600)
            assert of["launches"] > 0 < of["memory"]
        fast, likely, slow = (cost[side][case]["seconds"] for case in ("fast", "likely", "slow"))
        assert fast < likely < slow
        row = next(line for line in lines if line.startswith("sum, on the GPU"))
        assert f"{1e3 * sum(cost[side]['likely']['parts'].values()):.0f} (" in row
    assert cost["ours"]["likely"]["launches"] < cost["compile"]["likely"]["launches"]
    assert cost["compile"]["likely"]["launches"] < cost["eager"]["likely"]["launches"]


def test_the_command_says_that_it_is_modelled_and_its_sums_add_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(RUN) == 0
    check_run(capsys.readouterr().out, tmp_path)


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own_compiles_the_kernels(tmp_path):
    command = [sys.executable, "-m", "vologan_fast.profile", *RUN]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    check_run(ended.stdout, tmp_path)


def test_a_run_has_the_steps_that_training_makes():
    assert steps_of_run(PRESETS["vologan-512"], 2048) == 60 * 205
    assert steps_of_run(settings("--train.batch", "3", "--schedule.epochs", "2"), 10) == 2 * 3  # 8 are trained on


def test_the_arithmetic_is_that_of_the_profiler():
    """`Counts` counts the same step while it runs on the CPU."""
    config = settings()
    counted = count("ours", config)
    flop = sum(operation.flop for operation in counted.accounting.operations if operation.part == CONVOLUTION)
    networks, _, step = build_training(config, torch.device("cpu"))
    images = [torch.rand(2, 4, 32, 32) for _ in range(2)]
    with Counts() as counts:
        step(*images, 0)
    assert flop == sum(operation.flop for operation in counts.operations if operation.part == "convolutions") > 0
    parameters = sum(4 * parameter.numel() for parameter in networks.learning.parameters())
    assert counted.constant >= 3 * parameters  # with gradients, and one moment or two
    assert counted.optimized >= 5 * parameters


def test_the_parts_that_differ_between_the_sides(found):
    found = {side: of.likely.parts for side, of in found.items()}
    assert found["compile"][CONVOLUTION] == found["eager"][CONVOLUTION]
    for part in (NORM, SPECTRAL_NORM):
        assert found["compile"][part] < found["eager"][part]
    assert found["ours"][SPECTRAL_NORM] < found["compile"][SPECTRAL_NORM]
    assert found["ours"][OPTIMIZERS] > 0


def test_a_larger_batch_takes_more_of_everything():
    costs = []
    for batch in ("2", "4"):
        config = settings("--train.batch", batch)
        costs.append(model._cost("ours", count("ours", config, torch.bfloat16), config, H200, model.LIKELY))
    small, large = costs
    assert all(large.parts[part] >= small.parts[part] for part in PARTS)
    assert large.parts[CONVOLUTION] > small.parts[CONVOLUTION] and large.memory > small.memory
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, cuda_graph=True))
    graph = model._cost("ours", count("ours", config, torch.bfloat16), config, H200, model.LIKELY)
    assert graph.host == 0 < large.host and graph.parts == large.parts


@pytest.mark.parametrize(
    ("name", "multiprocessors", "memory", "expected"),
    [
        ("NVIDIA H200", 132, 150_114_926_592, "H200"),
        ("NVIDIA A100-SXM4-80GB", 108, 85_094_825_984, "A100"),
        ("NVIDIA GeForce RTX 4090", 128, 25_386_352_640, "RTX 4090"),
        ("NVIDIA A100-PCIE-40GB", 108, 42_298_834_944, None),  # another memory
        ("NVIDIA H100 PCIe", 114, 85_024_112_640, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 17_170_956_288, None),
        ("NVIDIA GH200 480GB", 132, 102_005_473_280, None),
        ("Tesla T4", 40, 15_828_320_256, None),
    ],
)
def test_a_device_is_known_by_more_than_its_name(name, multiprocessors, memory, expected):
    found = known(name, multiprocessors, memory)
    assert (found and found.name) == expected


def test_a_step_that_recomputes_keeps_less():
    """Also the plain step, whose backward runs outside of autocast: the forward runs again as it ran before."""
    options = "--train.step", "plain"
    kept, recomputed = (
        count("ours", settings(*options, *more), torch.bfloat16) for more in ((), ("--train.recompute", "1"))
    )
    assert recomputed.kept < kept.kept
    more = len(recomputed.accounting.operations) - len(kept.accounting.operations)
    assert more > 0 and recomputed.constant == kept.constant


def test_too_little_memory_is_said(found):
    config = settings()
    small = dataclasses.replace(H200, memory=2**20)
    assert "Too large" not in estimate_table(found, config, H200, 10, 60)
    assert "Too large for the memory of one H200: ours, torch.compile, eager." in estimate_table(
        found, config, small, 10, 60
    )


SMALL_ZHU = shlex.split("""
    --generator.width 4 --generator.max-width 8 --generator.residual-blocks 2 --data.size 32 --discriminator.width 4
""")
SMALL = {"vologan-64": TINY, "demo": ["--data.size", "32"], "cyclegan-256": SMALL_ZHU, "cut-256": SMALL_ZHU}


@pytest.mark.parametrize(
    "preset", ["cut-256", *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != "cut-256")]
)
def test_each_preset_can_be_estimated(preset):
    config = _parse(["--estimate", "A100", "--preset", preset, *SMALL[preset]]).settings
    for side, of in estimate(config, GPUS["A100"]).items():
        for cost in of.range:
            assert cost.parts[CONVOLUTION] > 0 < cost.parts[NORM], side
            assert cost.launches > 0 < cost.memory


def test_all_presets_are_estimated_here():
    assert {*SMALL, "vologan-512"} == set(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimate", "V100"], "--estimate V100: expected one of A100, H100, H200, RTX-4090, RTX-5090, B200"),
        (["--estimate", "H200", "--images", "1"], "--images 1: expected at least 2"),
        (["--estimate", "H200", "--trace", "t.json"], "--trace: expected no such option with --estimate"),
        (["--estimate", "H200", "--preset", "demos"], "--preset demos: expected one of"),
        (["--estimate", "H200", "--data.size", "100"], "--data.size is 100: expected a multiple of"),
        (["--estimate", "H200", "--json", "old.json"], "--json old.json: exists"),
    ],
)
def test_bad_commands_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").touch()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_interpreter_of_triton_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    assert main(["--estimate", "H200", *TINY]) == 1
    assert "--estimate: TRITON_INTERPRET is set" in capsys.readouterr().err
