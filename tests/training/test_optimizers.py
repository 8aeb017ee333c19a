"""The optimisers that a configuration names, and SWATS before and after its switch."""

import dataclasses
import io
import shlex

import pytest
import torch
from torch import nn, optim
from vologan_kernels import NAdam

from vologan_fast.config import PRESETS, Config, ConfigError, OptimizerConfig, ScheduleConfig, check
from vologan_fast.data.demo import make_demo
from vologan_fast.train import main
from vologan_fast.training.optimizers import Swats, build_optimizer, start_epoch

FLAT = ScheduleConfig(epochs=4, warmup_epochs=0, decay="none")
SWATS = ["swats_adam", "swats_nadam"]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5,), (3, 2, 3, 3), ())]


def train(optimizer, trained, config, epochs):
    """Take two steps per epoch. The gradients depend only on the epoch and the step."""
    for epoch in epochs:
        for step in range(2):
            start_epoch(optimizer, config, FLAT, epoch)
            generator = torch.Generator().manual_seed(10 * epoch + step)
            for parameter in trained:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()


def saved_and_loaded(state):
    """Save and load a state as a checkpoint does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "expected"), [("adam", optim.Adam), ("nadam", NAdam), ("sgd", optim.SGD)])
def test_a_kind_is_its_optimizer(kind, expected):
    optimizer = build_optimizer(parameters(), OptimizerConfig(kind=kind))
    assert type(optimizer) is expected


@pytest.mark.parametrize(("kind", "adaptive"), [("swats_adam", optim.Adam), ("swats_nadam", NAdam)])
def test_swats_holds_two(kind, adaptive):
    optimizer = build_optimizer(parameters(), OptimizerConfig(kind=kind, momentum=0.8, beta1=0.4, epsilon=1e-3))
    assert isinstance(optimizer, Swats)
    assert type(optimizer.adaptive) is adaptive and optimizer.adaptive.defaults["betas"] == (0.4, 0.999)
    assert optimizer.adaptive.defaults["eps"] == 1e-3 and optimizer.sgd.defaults["momentum"] == 0.8


def test_plain_sgd_may_use_nesterovs_momentum():
    """Nesterov: v ← μ v + g, then w ← w − rate · (g + μ v). Here g is w, for the loss w²/2."""
    rate, momentum, w, v = 0.1, 0.9, 2.0, 0.0
    config = OptimizerConfig(kind="sgd", learning_rate=rate, momentum=momentum, nesterov=True)
    parameter = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimizer = build_optimizer([parameter], config)
    for _ in range(5):
        parameter.grad = parameter.detach().clone()
        optimizer.step()
        v = momentum * v + w
        w -= rate * (w + momentum * v)
    assert parameter.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("preset", ["vologan-512", "vologan-64"])
def test_the_generators_of_the_paper_use_nesterovs_momentum_and_the_discriminators_do_not(preset):
    generator, discriminator = PRESETS[preset].generator_optimizer, PRESETS[preset].discriminator_optimizer
    for config, nesterov in ((generator, True), (discriminator, False)):
        sgd = build_optimizer(parameters(), dataclasses.replace(config, kind="sgd"))
        assert sgd.defaults["nesterov"] == nesterov
        swats = build_optimizer(parameters(), dataclasses.replace(config, kind="swats_adam"))
        assert not swats.sgd.defaults["nesterov"]  # only the plain one


def test_swats_goes_on_with_the_published_rate():
    assert OptimizerConfig().switch_learning_rate == 1e-3


def test_amsgrad_is_adams():
    assert build_optimizer(parameters(), OptimizerConfig(kind="adam", amsgrad=True)).defaults["amsgrad"]
    optimizer = build_optimizer(parameters(), OptimizerConfig(kind="swats_adam", amsgrad=True))
    assert optimizer.adaptive.defaults["amsgrad"]


@pytest.mark.parametrize("options", [{"kind": "adam"}, {"kind": "adam", "amsgrad": True}, {"kind": "sgd"}])
def test_in_float32_the_bits_are_those_of_torchs_loop(options):
    """A run that an older version started had the loop over the parameters, and resumes to the bit."""
    config = OptimizerConfig(**options)
    ours, loop = parameters(), parameters()
    optimizers = build_optimizer(ours, config), build_optimizer(loop, config)
    for group in optimizers[1].param_groups:
        group["foreach"] = group["fused"] = False
    for trained, optimizer in zip((ours, loop), optimizers, strict=True):
        train(optimizer, trained, config, range(4))
    assert same(ours, loop)


@pytest.mark.parametrize("options", [{"kind": "adam"}, {"kind": "adam", "amsgrad": True}, {"kind": "sgd"}])
def test_the_form_for_bfloat16_differs_by_rounding(options):
    """Ten operations a step round an update of about the learning rate, and a parameter of about 1 once a step."""
    config = OptimizerConfig(**options)
    exact, fused = parameters(), parameters()
    optimizers = build_optimizer(exact, config), build_optimizer(fused, config, torch.bfloat16)
    assert optimizers[1].defaults["fused"]
    for trained, optimizer in zip((exact, fused), optimizers, strict=True):
        train(optimizer, trained, config, range(4))
    steps = int(max(state.get("step", 8) for state in optimizers[1].state.values()))
    eps = torch.finfo(torch.float32).eps
    for p, q in zip(exact, fused, strict=True):
        torch.testing.assert_close(p, q, rtol=steps * eps, atol=10 * steps * eps)


@pytest.mark.parametrize("kind", SWATS)
def test_swats_is_the_one_and_then_the_other(kind):
    config = OptimizerConfig(kind=kind, learning_rate=0.01, switch_learning_rate=0.1)
    trained, alone = parameters(), parameters()
    optimizer = build_optimizer(trained, config)
    train(optimizer, trained, config, range(4))
    first = dataclasses.replace(config, kind=kind.removeprefix("swats_"))
    second = OptimizerConfig(kind="sgd", learning_rate=0.1)
    train(build_optimizer(alone, first), alone, first, range(2))
    train(build_optimizer(alone, second), alone, second, range(2, 4))
    assert same(trained, alone)
    assert not optimizer.adaptive.state


@pytest.mark.parametrize(
    ("epochs", "switch_at", "first"), [(4, 0.5, 2), (5, 0.5, 3), (4, 0.0, 0), (4, 0.3, 2), (4, 1.0, 4)]
)
def test_swats_switches_at_the_start_of_an_epoch(epochs, switch_at, first):
    config = OptimizerConfig(kind="swats_adam", learning_rate=2.0, switch_at=switch_at, switch_learning_rate=3.0)
    optimizer = build_optimizer(parameters(), config)
    schedule = dataclasses.replace(FLAT, epochs=epochs)
    rates = [start_epoch(optimizer, config, schedule, epoch) for epoch in range(epochs + 1)]
    assert rates == [2.0] * first + [3.0] * (epochs + 1 - first)


def test_the_schedule_goes_on_over_the_switch():
    config = OptimizerConfig(kind="swats_adam", learning_rate=1.0, switch_learning_rate=10.0)
    schedule = ScheduleConfig(epochs=4, warmup_epochs=0, decay="linear")
    optimizer = build_optimizer(parameters(), config)
    assert [start_epoch(optimizer, config, schedule, epoch) for epoch in range(4)] == [1.0, 0.75, 5.0, 2.5]
    assert [group["lr"] for group in optimizer.param_groups] == [2.5]


@pytest.mark.parametrize("until", [1, 2, 3])
@pytest.mark.parametrize("kind", ["adam", "nadam", "sgd", *SWATS])
def test_resuming_changes_no_bit(kind, until):
    """The run is interrupted before the switch, at it, and after it."""
    config = OptimizerConfig(kind=kind, learning_rate=0.01, switch_learning_rate=0.1)
    straight, halves = parameters(), parameters()
    train(build_optimizer(straight, config), straight, config, range(4))
    first = build_optimizer(halves, config)
    train(first, halves, config, range(until))
    second = build_optimizer(halves, config)
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [group["lr"] for group in first.param_groups]
    train(second, halves, config, range(until, 4))
    assert same(straight, halves)


def test_swats_loads_what_was_saved_before_its_switch():
    config = OptimizerConfig(kind="swats_nadam")
    trained = parameters()
    optimizer = build_optimizer(trained, config)
    train(optimizer, trained, config, range(1))
    before = saved_and_loaded(optimizer.state_dict())
    train(optimizer, trained, config, range(2, 3))
    optimizer.load_state_dict(before)
    assert optimizer.active is optimizer.adaptive and int(optimizer.adaptive.state[trained[0]]["step"]) == 2


@pytest.mark.parametrize("kind", ["adam", "sgd", *SWATS])
def test_moments_take_the_order_of_the_parameters(kind):
    """A checkpoint from a GPU, where networks are channels_last, can be resumed on a CPU, where they are not."""
    config = OptimizerConfig(kind=kind)
    there, here = parameters(), parameters()
    there[1].data = there[1].data.contiguous(memory_format=torch.channels_last)
    optimizers = [build_optimizer(trained, config) for trained in (there, here)]
    for trained, optimizer in zip((there, here), optimizers, strict=True):
        train(optimizer, trained, config, range(1))
    optimizers[1].load_state_dict(saved_and_loaded(optimizers[0].state_dict()))
    active = optimizers[1].active if kind in SWATS else optimizers[1]
    if kind != "swats_nadam":
        assert all(value.is_contiguous() for value in active.state[here[1]].values())
    for trained, optimizer in zip((there, here), optimizers, strict=True):
        train(optimizer, trained, config, range(1, 4))
    assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(there, here, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "nadam", "amsgrad": True}, r"amsgrad is True: expected --\S+\.no-amsgrad with kind nadam"),
        (
            {"kind": "swats_nadam", "amsgrad": True},
            r"amsgrad is True: expected --\S+\.no-amsgrad with kind swats_nadam",
        ),
        ({"kind": "sgd", "amsgrad": True}, r"amsgrad is True: expected --\S+\.no-amsgrad with kind sgd"),
        ({"kind": "swats_adam", "switch_at": 1.5}, "switch-at is 1.5: expected a fraction from 0 to 1"),
    ],
)
@pytest.mark.parametrize("section", ["generator_optimizer", "discriminator_optimizer"])
def test_what_cannot_be_built_is_a_config_error(section, options, message):
    config = dataclasses.replace(Config(), **{section: OptimizerConfig(**options)})
    with pytest.raises(ConfigError, match=f"--{section.replace('_', '-')}.{message}"):
        check(config)


TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 1 --train.log-every 1 --generator.width 4
    --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --schedule.epochs 2 --schedule.decay none --train.validate-every 1000 --train.save-every 1000
    --generator-optimizer.kind swats_nadam --discriminator-optimizer.kind swats_adam
    --discriminator-optimizer.amsgrad
    --train.report-every -1
""")


@pytest.mark.parametrize(
    "stop", [pytest.param(2, marks=pytest.mark.slow, id="before the switch"), pytest.param(6, id="after the switch")]
)
def test_a_run_resumes_on_both_sides_of_the_switch(tmp_path, stop):
    data = make_demo(tmp_path / "data", count=5, size=64)

    def command(run, steps, *options):
        assert main(["--run-dir", str(tmp_path / run), "--max-steps", str(steps), *options]) == 0

    command("straight", 8, *TINY, "--data", str(data))
    command("halves", stop, *TINY, "--data", str(data))
    command("halves", 8, "--resume")
    states = [
        torch.load(tmp_path / run / "checkpoints/step-00000008/state.pt", weights_only=True)["optimizers"]
        for run in ("straight", "halves")
    ]
    for name in ("generator", "discriminator"):
        straight, halves = (state[name] for state in states)
        assert straight["switched"] and halves["switched"]
        buffers = [[s["momentum_buffer"] for s in each["active"]["state"].values()] for each in (straight, halves)]
        assert len(buffers[0]) > 5 and same(*buffers)
