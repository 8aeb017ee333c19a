"""Schedules of the learning rate: formulas written out, the plateau beside torch's, and runs that stop and resume."""

import dataclasses
import itertools
import json
import math
import random
import shlex
import typing

import pytest
import torch
from test_channel_sets import SHAPE, batch, step_of

from vologan_fast.config import (
    Config,
    ConfigError,
    ContrastConfig,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    ScheduleConfig,
    TrainConfig,
    check,
)
from vologan_fast.data.demo import make_demo
from vologan_fast.train import main
from vologan_fast.training.schedules import Plateau, learning_rate_factor


def factors(epochs, **options):
    schedule = ScheduleConfig(**{"epochs": epochs, "warmup_epochs": 0} | options)
    return [learning_rate_factor(epoch, schedule) for epoch in range(epochs)]


def test_exponential_is_the_published_one():
    """It ends near e^(−2π) = 0.0019. The former one ended near 0.01."""
    found = factors(60, warmup_epochs=10, decay="exponential")[10:]
    assert found == pytest.approx([math.e ** (-2 * math.pi * i / 50) for i in range(50)])
    former = factors(60, warmup_epochs=10, decay="exponential_hundredth")[10:]
    assert former == pytest.approx([0.01 ** (i / 50) for i in range(50)])


def test_constant_then_linear_is_that_of_the_cyclegan():
    """100 epochs at the full rate. Then it falls by 1/101 with each epoch, and the 101st of these would have 0."""
    found = factors(200, decay="constant_linear", constant_epochs=100)
    assert found == pytest.approx([1.0] * 100 + [(101 - i) / 101 for i in range(1, 101)])


@pytest.mark.parametrize(("warmup", "constant", "epochs"), [(0, 0, 1), (0, 0, 7), (3, 4, 9), (2, 5, 7), (5, 0, 5)])
def test_constant_then_linear_falls_in_equal_steps_to_zero_after_the_last_epoch(warmup, constant, epochs):
    found = factors(epochs, warmup_epochs=warmup, decay="constant_linear", constant_epochs=constant)
    assert found[warmup : warmup + constant] == [1.0] * constant
    tail = [1.0, *found[warmup + constant :], 0.0]
    falls = [before - after for before, after in itertools.pairwise(tail)]
    assert falls == pytest.approx([1 / (len(tail) - 1)] * len(falls))


def test_steps():
    found = factors(8, warmup_epochs=1, decay="step", step_epochs=3, step_factor=0.5)
    assert found == [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


def terms(loss):
    """Return held-out terms whose watched sum is `loss`, and others, which do not count."""
    watched = {"generator_st/cycle": 0.25 * loss, "generator_ts/cycle": 0.75 * loss}
    return watched | {"generator_st/total": 1e6 * random.random(), "discriminator_s/cycle": 1e6 * random.random()}


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_plateau_is_torchs(patience, threshold):
    random.seed(patience)
    schedule = ScheduleConfig(
        epochs=200,
        warmup_epochs=2,
        decay="plateau",
        plateau_loss="cycle",
        plateau_patience=patience,
        plateau_threshold=threshold,
        plateau_factor=0.5,
    )
    ours = Plateau(schedule)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.5, patience=patience, threshold=threshold, eps=0)
    ours.end_epoch(0, terms(1e-9))  # in the warm-up
    ours.end_epoch(1, terms(1e-9))
    loss = 10.0
    for epoch in range(2, 60):
        loss *= random.choice([0.9, 0.97, 1.0, 1.01])
        ours.end_epoch(epoch, terms(loss))
        ours.end_epoch(epoch, terms(0.0))  # a repeated call
        torchs.step(loss)
        assert ours.factor == sgd.param_groups[0]["lr"]
        again = Plateau(schedule)
        again.load_state_dict(json.loads(json.dumps(ours.state_dict())))
        ours = again
    assert ours.factor < 1
    assert factors(9, decay="plateau") == [1.0] * 9


def test_another_decay_has_no_plateau():
    plateau = Plateau(dataclasses.replace(ScheduleConfig(), plateau_patience=0))
    for epoch in range(20, 25):
        plateau.end_epoch(epoch, terms(1.0))
    assert plateau.factor == 1.0


def run_of(method="cyclegan", channels="rgb", contrast=(), hole_head=False, **loss):
    return Config(
        data=DataConfig(size=SHAPE, channels=channels),
        generator=GeneratorConfig(width=4, max_width=8, levels=2, dropout=0.0, hole_head=hole_head),
        discriminator=DiscriminatorConfig(network="patch", width=4, levels=1),
        loss=LossConfig(**loss),
        contrast=ContrastConfig(**{"patches": 4, "width": 4, **dict(contrast)}),
        train=TrainConfig(method=method),
    )


RUNS = {
    "all": run_of(),
    "no SSIM": run_of(ssim=0.0),
    "SSIM of T only": run_of(ssim=0.0, ssim_t=2.0),
    "SSIM of S only": run_of(ssim_t=0.0),
    "no cycle, no identity": run_of(cycle=0.0, identity=0.0),
    "different channels": run_of(channels=("rgbd", "depth"), identity=0.0),
    "holes": run_of(channels="rgbd", hole_head=True),
    "holes without a weight": run_of(channels="rgbd", hole_head=True, hole_share=0.0),
    "CUT": run_of("cut"),
    "CUT without identity": run_of("cut", contrast={"identity": 0.0}),
    "CUT without contrast": run_of("cut", contrast={"weight": 0.0}),
    "CUT with holes": run_of("cut", "depth", hole_head=True),
}


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_a_plateau_watches_every_term_that_the_run_has_and_no_other(config):
    """The terms that `check` accepts are those whose held-out values are not 0 in a step of this run."""
    step = step_of(config)
    if config.generator.hole_head:
        torch.nn.init.zeros_(step.networks.generator_st.hole_head.blocks[-1].bias)  # some holes
    losses, _ = step.evaluate(*batch(config))
    logged = {name.split("/")[1] for name, value in losses.terms().items() if name.startswith("generator") and value}
    accepted = set()
    for term in typing.get_args(typing.get_type_hints(ScheduleConfig)["plateau_loss"]):
        schedule = ScheduleConfig(decay="plateau", plateau_loss=term)
        check(dataclasses.replace(config, schedule=dataclasses.replace(schedule, decay="none")))
        try:
            check(dataclasses.replace(config, schedule=schedule))
            accepted.add(term)
        except ConfigError as error:
            said = f"--schedule.plateau-loss is {term}: expected a loss term of this run whose weight is not 0: "
            assert str(error).startswith(said)
            assert set(str(error).removeprefix(said).split(", ")) == logged
    assert accepted == logged


TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 1 --train.log-every 1 --generator.width 4
    --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --schedule.epochs 9 --schedule.decay plateau --schedule.plateau-patience 0 --schedule.plateau-threshold 0.9
    --schedule.plateau-factor 0.5
    --train.report-every -1
""")


def rates(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["learning_rate/generator"] for line in lines if line["split"] == "train"}


@pytest.mark.parametrize("stop", [8, pytest.param(10, marks=pytest.mark.slow)], ids=["epoch's end", "within an epoch"])
def test_a_run_on_a_plateau_resumes_to_the_bit(tmp_path, stop):
    """Four steps an epoch. The loss never falls by 90 %, so each epoch from the second on halves the rate.

    Neither the steps of other validations nor the stops change that.
    """
    data = make_demo(tmp_path / "data", count=5, size=64)

    def command(run, steps, *options):
        assert main(["--run-dir", str(tmp_path / run), "--max-steps", str(steps), *options]) == 0

    command("straight", 14, *TINY, "--data", str(data), "--train.validate-every", "1000")
    command("halves", stop, *TINY, "--data", str(data), "--train.validate-every", "3")
    command("halves", 14, "--resume", "--train.validate-every", "5")
    expected = {step: 1e-3 * 0.5 ** max((step - 1) // 4 - 1, 0) for step in range(1, 15)}
    for run in ("straight", "halves"):
        assert rates(tmp_path / run) == pytest.approx(expected)
    states = [
        torch.load(tmp_path / run / "checkpoints/step-00000014/state.pt", weights_only=True)
        for run in ("straight", "halves")
    ]
    assert states[0]["plateau"] == states[1]["plateau"]
    assert states[0]["plateau"]["factor"] == 0.25 and states[0]["plateau"]["epoch"] == 2
    moments = [[each["exp_avg"] for each in state["optimizers"]["generator"]["state"].values()] for state in states]
    assert len(moments[0]) > 5 and all(map(torch.equal, *moments))
