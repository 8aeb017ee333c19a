"""The image pool against Zhu et al.'s algorithm, written out on lists, with the same random numbers."""

import pytest
import torch

from vologan_fast.training.image_pool import ImagePool
from vologan_fast.training.sample_random import POOL, uniform

CPU = torch.device("cpu")


def step_of(pool, first, n, part=None):
    """One step with n images, each filled with its number. `part` images at a time. Returns the numbers judged."""
    numbers = torch.arange(first, first + n)
    images = numbers.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    keys = numbers + 2**50
    judged = [
        pool.exchange(image, key) for image, key in zip(images.split(part or n), keys.split(part or n), strict=True)
    ]
    pool.store()
    judged = torch.cat(judged)
    assert (judged == judged[:, :1, :1, :1]).all()  # whole images, not parts of two
    return judged[:, 0, 0, 0].int().tolist()


def test_with_single_images_it_is_the_algorithm_of_zhu_et_al():
    pool, stored, found, expected = ImagePool(5), [], [], []
    for number in range(200):
        found += step_of(pool, number, 1)
        slot, coin = uniform(torch.tensor([number + 2**50]), POOL, 2)[0].tolist()
        if len(stored) < 5:
            stored.append(number)
            expected.append(number)
        elif coin < 0.5:
            expected.append(stored[int(slot * 5)])
            stored[int(slot * 5)] = number
        else:
            expected.append(number)
    assert found == expected
    assert found[:5] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [2, 3, 7])
def test_with_batches_a_step_reads_what_the_steps_before_have_stored(n):
    """This includes a pool that is smaller than a batch, and a batch that finds the pool nearly full."""
    pool, stored, count = ImagePool(5), [None] * 5, 0
    for step in range(60):
        before, expected = list(stored), []
        for i, number in enumerate(range(step * n, step * n + n)):
            slot, coin = uniform(torch.tensor([number + 2**50]), POOL, 2)[0].tolist()
            if count < 5:
                stored[(count + i) % 5] = number
                expected.append(number)
            elif coin < 0.5:
                stored[int(slot * 5)] = number
                expected.append(before[int(slot * 5)])
            else:
                expected.append(number)
        count = min(count + n, 5)
        assert step_of(pool, step * n, n) == expected
        assert pool.state_dict()["images"][:, 0, 0, 0].int().tolist() == stored[:count]


@pytest.mark.parametrize("part", [1, 2, 3])
def test_parts_of_a_batch_give_the_whole(part):
    whole, parts = ImagePool(6), ImagePool(6)
    for first in range(0, 200, 4):
        assert step_of(whole, first, 4) == step_of(parts, first, 4, part)


def test_half_of_the_images_come_from_the_pool_evenly():
    """Of 3,990 images, half ± 5 σ are old. Their age has a geometric law: a slot is drawn in 1 of 2 · 10 steps."""
    pool = ImagePool(10)
    ages = [number - step_of(pool, number, 1)[0] for number in range(4000)]
    old = [age for age in ages[10:] if age]
    assert abs(len(old) - 3990 / 2) < 5 * (3990 / 4) ** 0.5
    mean, deviation = 20, 20  # of a geometric law with p = 1/20, nearly
    assert abs(sum(old) / len(old) - mean) < 5 * deviation / len(old) ** 0.5


def test_a_step_that_starts_again_finds_the_same_pool():
    pool, other = ImagePool(4), ImagePool(4)
    for number in range(0, 60, 2):
        if number % 3 == 0:
            pool.exchange(torch.zeros(2, 3, 2, 2), torch.tensor([number, number + 1]))
            pool.forget()
        assert step_of(pool, number, 2) == step_of(other, number, 2)


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_it_goes_on_from_its_state(steps):
    """This includes an empty and a partly filled pool."""
    pool, resumed = ImagePool(6), ImagePool(6)
    for number in range(0, 2 * steps, 2):
        step_of(pool, number, 2)
    resumed.load_state_dict(pool.state_dict(), CPU)
    for number in range(2 * steps, 2 * steps + 40, 2):
        assert step_of(pool, number, 2) == step_of(resumed, number, 2)


def test_more_images_than_its_size_are_refused():
    pool = ImagePool(6)
    for number in range(8):
        step_of(pool, number, 1)
    with pytest.raises(ValueError, match="at most 4 images, found 6"):
        ImagePool(4).load_state_dict(pool.state_dict(), CPU)


def test_images_have_no_graph_and_keep_their_values():
    images = torch.rand(2, 3, 2, 2, requires_grad=True)
    judged = ImagePool(2).exchange(images, torch.tensor([0, 1]))
    assert not judged.requires_grad and torch.equal(judged, images)
