"""Training steps for combinations of generator, discriminator and adversarial loss.

Each pair of values is in at least one combination of the default tests. The slow test takes all combinations.
"""

import dataclasses
import itertools
from typing import get_args, get_type_hints

import pytest
import torch
from test_fast_step import assert_equal
from test_step import CONFIG, batch, step_of

from vologan_fast.config import Config, ConfigError, LossConfig, OptimizerConfig, TrainConfig, check
from vologan_fast.networks import DISCRIMINATORS, GENERATORS

GENERATOR_NAMES, DISCRIMINATOR_NAMES = sorted(GENERATORS), sorted(DISCRIMINATORS)
NETWORKS = list(zip(GENERATOR_NAMES, itertools.cycle(DISCRIMINATOR_NAMES), strict=False))  # each is in a pair
ADVERSARIAL = get_args(get_type_hints(LossConfig)["adversarial"])
SMALL = dataclasses.replace(
    CONFIG,
    generator=dataclasses.replace(CONFIG.generator, residual_blocks=1, cardinality=2, dropout=0.3),
    discriminator=dataclasses.replace(CONFIG.discriminator, width=4, max_width=8, levels=2, dropout=0.3),
)


def config_of(generator, discriminator, adversarial="mse", **options):
    return dataclasses.replace(
        SMALL,
        generator=dataclasses.replace(SMALL.generator, network=generator, **options),
        discriminator=dataclasses.replace(SMALL.discriminator, network=discriminator, **options),
        loss=LossConfig(adversarial=adversarial),
    )


def covering(*factors):
    """Rows that hold each pair of values of any two factors: all pairs of the two longest, and the others in turn.

    Row (i, j) takes value i + j · k of the further factor k. So each of its values meets each i and each j, as long as
    no factor is longer than the first two.
    """
    longest = sorted(range(len(factors)), key=lambda f: -len(factors[f]))
    first, second, *others = longest
    assert len(others) <= 1, "with more factors, pairs of them may be missing"
    for i, j in itertools.product(range(len(factors[first])), range(len(factors[second]))):
        row = {first: i, second: j, **{f: (i + j) % len(factors[f]) for f in others}}
        yield tuple(factors[f][row[f]] for f in range(len(factors)))


PAIRWISE = list(covering(GENERATOR_NAMES, DISCRIMINATOR_NAMES, ADVERSARIAL))
REST = [row for row in itertools.product(GENERATOR_NAMES, DISCRIMINATOR_NAMES, ADVERSARIAL) if row not in set(PAIRWISE)]


def test_the_rows_cover_all_pairs():
    for (i, first), (j, second) in itertools.combinations(
        enumerate((GENERATOR_NAMES, DISCRIMINATOR_NAMES, ADVERSARIAL)), 2
    ):
        assert {(row[i], row[j]) for row in PAIRWISE} == set(itertools.product(first, second))


def two_steps(generator, discriminator, adversarial):
    """Two fast steps: all losses are finite, and all networks change in both."""
    step = step_of(config_of(generator, discriminator, adversarial), OptimizerConfig(kind="adam", learning_rate=1e-3))
    step.networks.float()
    synthetic, real = (images.float() for images in batch(1))
    for number in range(2):
        before = [[p.clone() for p in network.parameters()] for network in step.networks.learning]
        terms = step(synthetic, real, number).terms()
        assert all(torch.isfinite(value) for value in terms.values()), terms
        for network, old in zip(step.networks.learning, before, strict=True):
            assert all(torch.isfinite(p).all() for p in network.parameters())
            assert any(not torch.equal(p, was) for p, was in zip(network.parameters(), old, strict=True))


@pytest.mark.parametrize(("generator", "discriminator", "adversarial"), PAIRWISE)
def test_two_steps_of_each_pair(generator, discriminator, adversarial):
    two_steps(generator, discriminator, adversarial)


@pytest.mark.slow
@pytest.mark.parametrize(("generator", "discriminator", "adversarial"), REST)
def test_two_steps_of_all_others(generator, discriminator, adversarial):
    two_steps(generator, discriminator, adversarial)


@pytest.mark.parametrize(("generator", "discriminator"), NETWORKS)
@pytest.mark.parametrize("routing", ["vologan", "cyclegan"])
def test_the_fast_step_is_the_plain_one_for_each_network(generator, discriminator, routing):
    config = config_of(generator, discriminator)
    assert_equal(dataclasses.replace(config, loss=LossConfig(routing=routing)), n=3, micro_batch=2)


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
