"""Two training steps for combinations of networks, losses, channels, methods and all other options.

Each pair of main choices, and each value of each option, is in at least one combination of the default tests
(`matrix.py`). The slow tests take all combinations of the main choices, as many as their time allows.
"""

import dataclasses
import itertools
import json
import random
from pathlib import Path

import matrix
import pytest
import torch
from test_contrast import assert_equal_steps
from test_fast_step import assert_equal
from test_step import CONFIG, batch, step_of

from vologan_fast.config import Config, ConfigError, ContrastConfig, LossConfig, TrainConfig, check
from vologan_fast.data.demo import make_demo
from vologan_fast.networks import DISCRIMINATORS, GENERATORS
from vologan_fast.train import main
from vologan_fast.training.build import build_training
from vologan_fast.training.optimizers import start_epoch
from vologan_fast.training.run_folder import read_config

GENERATOR_NAMES, DISCRIMINATOR_NAMES = sorted(GENERATORS), sorted(DISCRIMINATORS)
NETWORKS = list(zip(GENERATOR_NAMES, itertools.cycle(DISCRIMINATOR_NAMES), strict=False))  # each is in a pair
SMALL = dataclasses.replace(
    CONFIG,
    generator=dataclasses.replace(CONFIG.generator, residual_blocks=1, cardinality=2, dropout=0.3),
    discriminator=dataclasses.replace(CONFIG.discriminator, width=4, max_width=8, levels=2, dropout=0.3),
)


ROWS = matrix.with_options(matrix.pairwise())
DRAWN = 300
"""Combinations of the slow test. There are more than fit into its time, so a seed draws them."""


def config_of(generator, discriminator, adversarial="mse", **options):
    return dataclasses.replace(
        SMALL,
        generator=dataclasses.replace(SMALL.generator, network=generator, **options),
        discriminator=dataclasses.replace(SMALL.discriminator, network=discriminator, **options),
        loss=LossConfig(adversarial=adversarial),
    )


def in_words(row):
    return " ".join(str(row[name]) for name in matrix.MAIN)


def test_the_rows_hold_all_pairs_and_all_options():
    """They are found again here, from the configurations of the rows alone."""
    configs = [matrix.flat(dataclasses.asdict(matrix.config_of(row))) for row in ROWS]
    for (first, values), (second, others) in itertools.combinations(matrix.MAIN.items(), 2):
        found = {(config[first], config[second]) for config in configs}
        impossible = {(("rgbd", "depth"), "cut")}  # CUT compares features of both domains
        assert found == set(itertools.product(values, others)) - impossible
    for path, values in matrix.options().items():
        assert {config[path] for config in configs} >= set(values), path
    for row in ROWS:
        check(matrix.config_of(row))


def test_options_of_other_tests_are_there():
    for path, file in matrix.ELSEWHERE.items():
        text = (Path(__file__).parents[1] / file).read_text()
        assert path.split(".")[1] in text.replace("-", "_"), path


def test_a_run_with_all_other_options(tmp_path):
    data = make_demo(tmp_path / "data", count=6, size=32)
    options = matrix.SMALL | {"generator.levels": 2, "data.size": 32, "generator.width": 4} | matrix.OF_A_RUN
    arguments = [
        text
        for path, value in options.items()
        for text in (f"--{path.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)]))
    ]
    run = tmp_path / "run"
    assert main(["--device", "cpu", "--data", str(data), "--run-dir", str(run), "--max-steps", "6", *arguments]) == 0
    recorded = matrix.flat(dataclasses.asdict(read_config(run / "config.json")[1]))
    for path, value in matrix.OF_A_RUN.items():
        assert recorded[path] in (value, (value,)), path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate/generator"] for line in lines if line["split"] == "train"]
    assert rates[-1] < rates[0], "the plateau has no effect"


def two_steps(row):
    """Two steps in two epochs: all losses are finite, and all networks change in both."""
    config = matrix.config_of(row)
    networks, optimizers, step = build_training(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.rand(config.train.batch, channels.number, *config.data.shape, generator=generator)
        for channels in config.data.channel_sets.values()
    ]
    settings = {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}
    for number in range(2):
        for name, optimizer in optimizers.items():
            start_epoch(optimizer, settings[name], config.schedule, number)
        before = [[p.clone() for p in network.parameters()] for network in networks.learning]
        terms = step(*images, number, number / config.schedule.epochs).terms()
        networks.update_averages(number + 1)
        assert all(torch.isfinite(value) for value in terms.values()), terms
        assert all(torch.isfinite(p).all() for p in networks.parameters())
        for network, old in zip(networks.learning, before, strict=True):
            assert any(not torch.equal(p, was) for p, was in zip(network.parameters(), old, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=in_words)
def test_two_steps_of_each_pair_and_of_each_option(row):
    two_steps(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", random.Random(0).sample(matrix.product(), DRAWN), ids=in_words)
def test_two_steps_of_all_combinations(row):
    two_steps(row)


@pytest.mark.parametrize(("generator", "discriminator"), NETWORKS)
@pytest.mark.parametrize("method", ["cyclegan, vologan", "cyclegan, cyclegan", "cut"])
def test_the_fast_step_is_the_plain_one_for_each_network(generator, discriminator, method):
    config = config_of(generator, discriminator)
    if method == "cut":
        contrast, train = ContrastConfig(patches=20, width=8), TrainConfig(method="cut", step="plain")
        assert_equal_steps(dataclasses.replace(config, contrast=contrast, train=train), micro_batch=2)
    else:
        assert_equal(dataclasses.replace(config, loss=LossConfig(routing=method.split()[1])), n=3, micro_batch=2)


@pytest.mark.parametrize("generator", [name for name in GENERATOR_NAMES if name != "resnet"])
def test_levels_that_run_again_change_nothing(generator):
    assert_equal(config_of(generator, "one_shot"), recompute=2)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "none", "bias": True, "padding": "reflection"},
        {"factorized_kernels": True, "input_range": "signed", "blocks": 3},
        {"down": "bare_space_to_depth", "up": "transposed_convolution", "norm_affine": False},
        {"down": "max_pooling", "up": "bilinear_residual"},
        {"down": "antialiased", "up": "antialiased", "padding": "reflection"},
    ],
    ids=str,
)
def test_the_fast_step_is_the_plain_one_for_the_options_of_all_networks(options):
    assert_equal(config_of("unet_residual", "unet", **options))


def test_batch_norm_needs_the_plain_step_because_the_fast_one_would_be_wrong():
    """The fast step puts cycle and identity, and real and fake images, into one batch with one mean."""
    config = config_of("resnet", "patch", norm="batch")
    with pytest.raises(ConfigError, match=r"expected plain with --generator\.norm batch"):
        check(config)
    check(dataclasses.replace(config, train=TrainConfig(step="plain"), data=Config().data))
    with pytest.raises(AssertionError):
        assert_equal(config)
    step = step_of(dataclasses.replace(config, train=TrainConfig(step="plain")))
    assert all(torch.isfinite(value) for value in step(*batch(), 0).terms().values())
