"""Random numbers of samples: SplitMix64, computed again with Python's integers."""

import torch

from vologan_fast.training import sample_random
from vologan_fast.training.sample_random import uniform

WORD = 2**64


def split_mix(key, use, element):
    """The hash of `networks/dropout.py`, as the paper writes it, in exact integers."""
    z = (key * 0xD1342543DE82EF95 + (use << 32) + element) * 0x9E3779B97F4A7C15 % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_numbers_are_the_highest_bits_of_the_hash():
    keys = [0, 1, 2**20, 7 * 2**48 + 12345, 2**62]
    for use in (sample_random.POOL, sample_random.CUTOUT):
        found = uniform(torch.tensor(keys), use, 3)
        expected = [[(split_mix(key, use, i) >> 40) / 2**24 for i in range(3)] for key in keys]
        assert found.dtype == torch.float64 and found.tolist() == expected


def test_they_are_uniform_and_uses_are_independent():
    """Mean, variance and correlations of 20,000 numbers. Each bound is five standard deviations of its estimate."""
    n = 20_000
    uses = [uniform(torch.arange(n) + 2**40, use, 1)[:, 0] for use in range(2**16, 2**16 + 5)]
    for numbers in uses:
        assert numbers.min() >= 0 and numbers.max() < 1
        assert abs(numbers.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
        assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    correlations = torch.corrcoef(torch.stack(uses)) - torch.eye(len(uses))
    assert correlations.abs().max() < 5 / n**0.5
