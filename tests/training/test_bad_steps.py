"""Gradients that are not finite: the run stops, skips the step, or goes back, and keeps the names of the images."""

import json
import re

import pytest
import torch
from test_train import metrics, resume, train, weights

from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.data.sampling import Sampler
from vologan_fast.training.fast_step import FastStep
from vologan_fast.training.finite import FirstBadStep
from vologan_fast.training.run_folder import read_config

STEPS = ["--max-steps", "7", "--train.save-every", "2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=7, size=64)


@pytest.fixture
def bad(monkeypatch):
    """Return the set of the steps, counted from 1, whose gradients hold a NaN or an infinite number."""
    steps, gradients = set(), FastStep.gradients

    def with_a_fault(step, *arguments):
        losses = gradients(step, *arguments)
        if int(step._number) + 1 in steps:
            network = (step.networks.generator_st, step.networks.discriminator_s)[len(steps) % 2]
            next(network.parameters()).grad[0] = (float("nan"), float("inf"))[len(steps) % 2]
        return losses

    monkeypatch.setattr(FastStep, "gradients", with_a_fault)
    return steps


def assert_same(run, expected):
    assert metrics(run) == metrics(expected)
    found, there = weights(run, 7), weights(expected, 7)
    assert len(found) > 100 and all(torch.equal(value, there[name]) for name, value in found.items())
    assert all(value.isfinite().all() for value in found.values())


def test_a_bad_step_is_named_with_its_images(tmp_path, demo, bad, capsys):
    run = tmp_path / "run"
    bad.add(4)
    assert train(run, demo, *STEPS) == 1
    file = run / "bad_steps" / "step-00000004.json"
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: step \d: .* {file} names the images of the first such step; last saved: ", error)
    record = json.loads(file.read_text())
    config = read_config(run / "config.json")[1]
    images = load_dataset(demo, config.data, config.train.seed).train
    sampler = Sampler(config.train.seed, {d: len(of) for d, of in images.items()}, 2, (32, 32), config.data.augment)
    for domain, files in record["images"].items():
        drawn = [images[domain][i] for i in sampler.drawn(domain, 3)]
        assert files == [[str(path) for path in image.files] for image in drawn]
    assert record["step"] == 4 and record["seed"] == config.train.seed
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000002"]


@pytest.mark.parametrize("steps", [{4}, pytest.param({1, 4, 6}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_a_bad_step_is_left_out(tmp_path, demo, bad, capsys, how, steps):
    """A run that was stopped and resumed leaves out the same steps, and has the same bits."""
    bad |= steps
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    options = ["--train.on-nan", how, "--train.validate-every", "3"]
    assert train(straight, demo, *options, *STEPS) == 0
    errors = capsys.readouterr().err
    for step in steps:
        assert f"warning: step {step} made numbers that are not finite; " in errors
        assert (straight / "bad_steps" / f"step-{step:08d}.json").exists()
    assert ("going back to step" in errors) == (how == "rollback") and "lines up to" not in errors
    assert [line["step"] for line in metrics(straight)] == sorted({1, 2, 3, 4, 5, 6, 7} - steps)
    assert [line["step"] for line in metrics(straight, "held_out")] == [3, 6, 7]
    assert train(parts, demo, *options, *STEPS[2:], "--max-steps", "5") == 0
    assert resume(parts, "--max-steps", "7") == 0
    assert_same(parts, straight)
    state = torch.load(straight / "checkpoints/step-00000007/state.pt", weights_only=True)
    assert set(state["left_out"]) == steps


@pytest.mark.parametrize("how", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_there_is_a_limit(tmp_path, demo, bad, capsys, how):
    bad |= {3, 4}
    assert train(tmp_path / "run", demo, *STEPS, "--train.on-nan", how, "--train.nan-limit", "1") == 1
    assert "--train.nan-limit allows 1 of such steps; last saved: " in capsys.readouterr().err.splitlines()[-1]


def test_the_first_bad_step_is_found():
    found, parameter = FirstBadStep(torch.device("cpu")), torch.zeros(3)
    assert found.arrived() is None and found.now() is None
    for step, value in ((1, 1e18), (2, float("inf")), (3, 0.0), (4, float("nan"))):
        parameter[1] = value
        found.note(step, [torch.ones(2), parameter])
    assert found.arrived() is None  # as it was at the call before
    assert found.arrived() == 2 and found.now() == 2
    found.forget()
    assert found.arrived() is None and found.now() is None
