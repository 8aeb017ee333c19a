"""Configuration: the file format, and the errors for invalid values."""

import copy
import dataclasses
import json
import math
import random
import re

import pytest
import torch
from vologan_kernels import NAdam

from vologan_fast.config import (
    PRESETS,
    Config,
    ConfigError,
    DataConfig,
    DepthSpec,
    OptimizerConfig,
    ScheduleConfig,
    check,
    differences,
    from_dict,
    to_dict,
)
from vologan_fast.training.optimizers import build_optimizer
from vologan_fast.training.run_folder import read_config
from vologan_fast.training.schedules import learning_rate_factor


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_survive_json_and_are_consistent(preset):
    config = PRESETS[preset]
    check(config)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_missing_field_takes_its_default():
    assert from_dict({"train": {"seed": 3}}).train == dataclasses.replace(Config().train, seed=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "trian: no such setting; known here: data, generator"),
        ({"train": {"sed": 1}}, r"train\.sed: no such setting"),
        ({"train": {"seed": "one"}}, r"train\.seed: found 'one', expected int"),
        ({"train": {"seed": True}}, r"train\.seed: found True"),
        ({"loss": {"routing": "both"}}, r"loss\.routing: found 'both', expected vologan, cyclegan"),
        ({"data": {"real": {"near": "0"}}}, r"data\.real\.near: found '0'"),
        ({"loss": 3}, r"loss\.: expected an object, found 3"),
    ],
)
def test_a_damaged_configuration_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


def test_numbers_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match=r"--data.size is 100: expected a multiple of 32"):
        check(Config(data=DataConfig(size=100)))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"grid_images": 0}, "--train.grid-images is 0: expected at least 1"),
        ("train", {"seed": -1}, "--train.seed is -1"),
        ("generator", {"levels": 0}, "--generator.levels is 0"),
        ("generator", {"kernel": 4}, "--generator.kernel is 4: expected an odd number"),
        ("generator", {"kernel": 7, "padding": "reflection", "levels": 8}, "padding by reflection"),
        ("generator", {"dropout": 1.0}, "--generator.dropout is 1.0"),
        ("generator", {"width": 0}, "--generator.width is 0"),
        ("discriminator", {"widths": (4,) * 10, "down_widths": (4,) * 10}, "--discriminator.widths"),
        ("discriminator", {"first_kernel": 2}, "--discriminator.first-kernel is 2"),
        ("discriminator", {"norm_min_scale": -1.0}, "--discriminator.norm-min-scale is -1.0"),
        ("discriminator", {"attention_eps": 0.0}, "--discriminator.attention-eps is 0.0"),
        ("generator", {"dropout_levels": -1}, "--generator.dropout-levels is -1"),
        ("generator", {"attention": "matrix", "attention_size": 48}, "--generator.attention-size is 48"),
        (
            "generator_optimizer",
            {"kind": "sgd", "momentum": 0.0, "nesterov": True},
            "momentum is 0.0: expected more than",
        ),
        ("schedule", {"constant_epochs": -1}, "--schedule.constant-epochs is -1"),
        (
            "schedule",
            {"decay": "constant_linear", "constant_epochs": 51},
            "is 51: expected at most 50, the epochs after",
        ),
        ("schedule", {"step_epochs": 0}, "--schedule.step-epochs is 0"),
        ("schedule", {"step_factor": 0.0}, "--schedule.step-factor is 0.0"),
        ("schedule", {"plateau_factor": 1.5}, "--schedule.plateau-factor is 1.5"),
        ("schedule", {"plateau_patience": -1}, "--schedule.plateau-patience is -1"),
        ("schedule", {"plateau_threshold": 1.0}, "--schedule.plateau-threshold is 1.0"),
        ("generator_optimizer", {"beta1": 1.0}, "--generator-optimizer.beta1 is 1.0"),
        ("discriminator_optimizer", {"learning_rate": -1.0}, "--discriminator-optimizer.learning-rate is -1.0"),
    ],
)
def test_each_number_that_cannot_work_is_named(section, values, message):
    part = dataclasses.replace(getattr(Config(), section), **values)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(dataclasses.replace(Config(), **{section: part}))


def changed(preset, **sections):
    config = PRESETS[preset]
    parts = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **parts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed("cut-256", data={"channels": ("rgb", "grey")}),
            "--train.method is cut: expected cyclegan for domains",
        ),
        (
            changed("cut-256", data={"channels": ("rgbd", "depth")}, loss={"channel_weights": (1.0, 1.0)}),
            "--train.method is cut: expected cyclegan for domains",
        ),
        (
            changed("cyclegan-256", data={"size": 16}),
            "--discriminator.levels is 3: expected at least 1, and at most 2 for images with a side of 16 pixels",
        ),
        (
            changed("cyclegan-256", data={"size": (32, 16)}, discriminator={"network": "patch_vologan", "levels": 5}),
            "--discriminator.levels is 5: expected at least 1, and at most 4 for images with a side of 16 pixels",
        ),
        (changed("demo", discriminator={"levels": 0}), "--discriminator.levels is 0: expected at least 1"),
        (changed("demo", generator={"levels": 10**20}), f"--generator.levels is {10**20}: expected at most 32"),
        (changed("demo", train={"keep_every": -1}), "--train.keep-every is -1: expected 0 for none, or steps"),
        (changed("demo", train={"nan_limit": -1}), "--train.nan-limit is -1: expected at least 0"),
        (
            changed("demo", train={"on_nan": "skip", "cuda_graph": True}),
            "--train.on-nan is skip: expected stop or rollback with --train.cuda-graph",
        ),
        (
            changed("demo", train={"on_nan": "skip", "step": "plain"}, generator={"norm": "batch"}),
            "--train.on-nan is skip: expected stop or rollback with batch norms",
        ),
        (
            changed("demo", discriminator={"widths": (4,) * 7, "down_widths": (4,) * 7}),
            "--discriminator.widths is 4 4 4 4 4 4 4: expected at most 6 numbers, all from 1 on, for images",
        ),
        (
            changed("cyclegan-256", loss={"cutmix": 0.5}),
            "--loss.cutmix is 0.5: expected 0, or --discriminator.network unet, as patch has no logits of pixels",
        ),
        (
            changed("cyclegan-256", generator={"hole_head": True}),
            "--generator.hole-head is True: expected --generator.no-hole-head for a real domain without depth (rgb)",
        ),
        (
            changed("demo", loss={"channel_weights": (1.0, 3.0)}),
            "--loss.channel-weights is 1.0 3.0: expected 4 numbers",
        ),
    ],
)
def test_an_error_says_what_to_write(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(config)


def test_the_largest_discriminators_that_an_error_names_are_accepted():
    check(changed("cyclegan-256", data={"size": 16}, discriminator={"levels": 2}))
    check(changed("cyclegan-256", data={"size": 16}, discriminator={"network": "patch_vologan", "levels": 4}))
    check(changed("demo", discriminator={"widths": (4,) * 6, "down_widths": (4,) * 6}))


def test_what_cut_does_not_use_is_not_refused():
    check(
        changed("cut-256", loss={"channel_weights": (1.0,) * 4, "ssim_statistics": "batch"}, train={"micro_batch": 1})
    )


def test_nan_is_no_difference():
    config = Config(data=DataConfig(real=DepthSpec(background=math.nan)))
    assert differences(config, from_dict(json.loads(json.dumps(to_dict(config))))) == {}


def test_differences_name_the_field():
    other = Config(data=DataConfig(real=DepthSpec(unit="mm")))
    assert differences(Config(), other) == {"data.real.unit": ("auto", "mm")}


def test_learning_rate_warms_up_and_follows_the_cosine():
    factors = [learning_rate_factor(epoch, ScheduleConfig(epochs=60, warmup_epochs=10)) for epoch in range(61)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[9] == pytest.approx(10 / 11)
    assert factors[10] == 1.0
    assert factors[35] == pytest.approx(0.5)
    assert factors[59] == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 50)))


LAST = 19 / 20


@pytest.mark.parametrize(
    ("decay", "last"),
    [
        ("cosine", 0.5 * (1 + math.cos(math.pi * LAST))),
        ("linear", 1 - LAST),
        ("exponential", math.exp(-2 * math.pi * LAST)),
        ("exponential_hundredth", 0.01**LAST),
        ("none", 1.0),
    ],
)
def test_decays_start_at_one_and_a_longer_run_goes_on_at_the_last_rate(decay, last):
    schedule = ScheduleConfig(epochs=20, warmup_epochs=0, decay=decay)
    assert learning_rate_factor(0, schedule) == 1.0
    for epoch in (19, 20, 500):
        assert learning_rate_factor(epoch, schedule) == pytest.approx(last)


def test_a_schedule_of_warm_up_alone_ends_in_it():
    assert learning_rate_factor(5, ScheduleConfig(epochs=5, warmup_epochs=5)) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("adam", torch.optim.Adam), ("nadam", NAdam), ("sgd", torch.optim.SGD)],
)
def test_optimizers_take_their_settings(kind, expected):
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerConfig(kind=kind, learning_rate=0.5))
    assert type(optimizer) is expected
    assert optimizer.defaults["lr"] == 0.5
    if kind != "sgd":
        assert optimizer.defaults["betas"] == (0.5, 0.999) and optimizer.defaults["eps"] == 1e-7
    else:
        assert optimizer.defaults["momentum"] == 0.9 and not optimizer.defaults["nesterov"]


def places(tree, path=()):
    for name, value in tree.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places(value, (*path, name))


ABSURD = [-1, 0, 1e308, math.inf, math.nan, 10**20, 10**400, -(10**400), "x", None, [], {}, True, [[[[1]]]], {"a": 1}]


@pytest.mark.parametrize("seed", range(3))
def test_absurd_records_get_one_sentence(tmp_path, seed):
    """Each value of a config.json is replaced by an absurd one. The record is then refused, or has a meaning."""
    rng, record = random.Random(seed), {"data": "/data", "config": to_dict(PRESETS["demo"])}
    for path in places(record):
        changed = copy.deepcopy(record)
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = rng.choice(ABSURD)
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            check(read_config(tmp_path / "config.json")[1])
        except ConfigError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error), path


@pytest.mark.parametrize(
    "text",
    [
        *('{"data": "x", "config": ' + "[" * depth + "]" * depth + "}" for depth in (1, 300, 900, 100_000)),
        '{"data": "x", "config": ' + "1" * 5000 + "}",
        '{"data": 3, "config": {}}',
        '{"data": ["x"], "config": {}}',
        "\x00" * 4096,
        "",
        "nul",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_what_is_no_record_is_named(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(file))) as error:
        read_config(file)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="not readable as JSON"):
        read_config(file)
