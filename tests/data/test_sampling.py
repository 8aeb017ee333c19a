"""Which image is drawn when: coverage, independence of processes and order, and a run that is pinned for good."""

from collections import Counter

import pytest

from vologan_fast.config import AugmentConfig
from vologan_fast.data.sampling import Draw, Sampler, held_out_indices

AUGMENT = AugmentConfig()


def sampler(**changes: object) -> Sampler:
    settings = {"seed": 3, "lengths": {"synthetic": 50, "real": 7}, "batch": 8, "size": 64, "augment": AUGMENT}
    return Sampler(**{**settings, **changes})  # type: ignore[arg-type]


def epoch(sampler: Sampler, domain: str, number: int) -> list[Draw]:
    steps = range(number * sampler.steps_per_epoch, (number + 1) * sampler.steps_per_epoch)
    return [draw for step in steps for draw in sampler.draw(domain, step)]


def test_an_epoch_is_the_longer_domain_in_whole_batches() -> None:
    assert sampler().steps_per_epoch == 7  # ceil(50 / 8)
    assert sampler(lengths={"synthetic": 7, "real": 48}).steps_per_epoch == 6


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_epoch_covers_the_longer_domain_and_spreads_over_the_shorter(number: int) -> None:
    longer = Counter(draw.index for draw in epoch(sampler(), "synthetic", number))
    assert set(longer) == set(range(50)) and max(longer.values()) <= 2
    shorter = Counter(draw.index for draw in epoch(sampler(), "real", number))
    assert set(shorter.values()) == {8}  # 56 draws of 7 images: each pass is a whole permutation


def test_epochs_passes_domains_and_seeds_are_shuffled_differently() -> None:
    def order(number: int, domain: str = "synthetic", seed: int = 3) -> list[int]:
        same = sampler(seed=seed, lengths={"synthetic": 50, "real": 50})
        return [draw.index for draw in epoch(same, domain, number)]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, domain="real")
    assert order(0) != order(0, seed=4)
    real = [draw.index for draw in epoch(sampler(), "real", 0)]
    assert real[:7] != real[7:14]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_together_draw_what_one_process_draws(world_size: int) -> None:
    for step in range(20):
        together = [
            draw for rank in range(world_size) for draw in sampler(rank=rank, world_size=world_size).draw("real", step)
        ]
        assert together == sampler().draw("real", step)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    forwards = [sampler().draw("synthetic", step) for step in range(30)]
    one = sampler()
    assert [one.draw("synthetic", step) for step in reversed(range(30))] == forwards[::-1]


def test_augmentation_has_the_stated_odds_and_range() -> None:
    large = sampler(lengths={"synthetic": 4000, "real": 4000}, batch=4000, size=100)
    draws = large.draw("synthetic", 0)
    assert abs(sum(draw.flip for draw in draws) / 4000 - 0.5) < 0.03
    shifted = [draw for draw in draws if draw.top or draw.left]
    assert abs(len(shifted) / 4000 - 0.2) < 0.02
    assert {draw.top for draw in draws} == set(range(11)) and {draw.left for draw in draws} == set(range(41))


def test_augmentation_can_be_turned_off() -> None:
    still = sampler(augment=AugmentConfig(flip=0, shift=0))
    assert all(draw == Draw(draw.index, False, 0, 0) for draw in still.draw("synthetic", 5))
    assert all(draw.flip for draw in sampler(augment=AugmentConfig(flip=1)).draw("real", 0))


def test_the_numbers_of_a_run_never_change() -> None:
    """Pinned: another result means that runs cannot be repeated or resumed with this version."""
    assert sampler().draw("synthetic", 12)[:4] == [
        Draw(6, False, 0, 0),
        Draw(12, False, 0, 0),
        Draw(11, True, 6, 16),
        Draw(4, False, 0, 0),
    ]
    assert sorted(held_out_indices(3, "real", 20, 0.2)) == [3, 7, 8, 9]


@pytest.mark.parametrize(("length", "fraction", "count"), [(2, 0.2, 1), (2, 0.9, 1), (10, 0.2, 2), (5, 0.0, 1)])
def test_at_least_one_image_is_held_out_and_one_is_trained_on(length: int, fraction: float, count: int) -> None:
    held_out = held_out_indices(0, "synthetic", length, fraction)
    assert len(held_out) == count and held_out < set(range(length))


def test_bad_batches_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="batch is 8; expected a positive multiple of world_size = 3"):
        sampler(world_size=3)
    with pytest.raises(ValueError, match="rank is 2"):
        sampler(rank=2, world_size=2)
