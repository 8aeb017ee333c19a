"""The order of the images: coverage, independence of processes and order, and a fixed run."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vologan_fast.config import AugmentConfig
from vologan_fast.data.sampling import Draw, Sampler, held_out_indices, lane_count, shuffled

AUGMENT = AugmentConfig()


def sampler(**changes: object) -> Sampler:
    values = {"seed": 3, "lengths": {"synthetic": 50, "real": 7}, "batch": 8, "size": (64, 64), "augment": AUGMENT}
    return Sampler(**{**values, **changes})  # type: ignore[arg-type]


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
    large = sampler(lengths={"synthetic": 4000, "real": 4000}, batch=4000, size=(100, 100))
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
    """These numbers are fixed. With other numbers, earlier runs could not be repeated or resumed with this version."""
    assert sampler().draw("synthetic", 12)[:4] == [
        Draw(6, False, 0, 0),
        Draw(12, False, 0, 0),
        Draw(11, True, 6, 16),
        Draw(4, False, 0, 0),
    ]
    assert held_out_indices(3, "real", 20, 0.2).tolist() == [3, 7, 8, 9]


@pytest.mark.parametrize(("length", "fraction", "count"), [(2, 0.2, 1), (2, 0.9, 1), (10, 0.2, 2), (5, 0.0, 1)])
def test_at_least_one_image_is_held_out_and_one_is_trained_on(length: int, fraction: float, count: int) -> None:
    held_out = set(held_out_indices(0, "synthetic", length, fraction).tolist())
    assert len(held_out) == count and held_out < set(range(length))


def test_bad_batches_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="batch is 8; expected a positive multiple of world_size = 3"):
        sampler(world_size=3)
    with pytest.raises(ValueError, match="rank is 2"):
        sampler(rank=2, world_size=2)


# Shards

shard_sets = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(tuple)


def in_shards(synthetic: tuple[int, ...], real: tuple[int, ...], **changes: object) -> Sampler:
    shards = {"synthetic": synthetic, "real": real}
    return sampler(lengths={domain: sum(found) for domain, found in shards.items()}, shards=shards, **changes)


def shard_of(shards: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(shards)), shards)


@settings(max_examples=60, deadline=None)
@given(shard_sets, shard_sets, st.integers(1, 100), st.integers(0, 3))
def test_every_pass_over_shards_is_a_permutation(
    synthetic: tuple[int, ...], real: tuple[int, ...], batch: int, number: int
) -> None:
    one = in_shards(synthetic, real, batch=batch)
    for domain, length in one.lengths.items():
        drawn = [draw.index for draw in epoch(one, domain, number)]
        assert len(drawn) == one.steps_per_epoch * batch
        for first in range(0, len(drawn), length):
            of_pass = drawn[first : first + length]
            assert len(set(of_pass)) == len(of_pass) and set(of_pass) <= set(range(length))
        assert set(drawn[: max(one.lengths.values())]) == set(range(length))


@settings(max_examples=60, deadline=None)
@given(shard_sets, shard_sets, st.sampled_from([4, 8, 12, 64, 96, 256]), st.integers(0, 3))
def test_ranks_read_different_shards_but_for_those_on_a_cut(
    synthetic: tuple[int, ...], real: tuple[int, ...], batch: int, number: int
) -> None:
    whole = in_shards(synthetic, real, batch=batch)
    ranks = [in_shards(synthetic, real, batch=batch, rank=rank, world_size=4) for rank in range(4)]
    for domain, shards in whole.shards.items():
        in_first_pass = whole.lengths[domain] // batch
        read = [set[int]() for _ in ranks]
        for step in range(in_first_pass):
            step += number * whole.steps_per_epoch
            parts = [[draw.index for draw in rank.draw(domain, step)] for rank in ranks]
            assert [index for part in parts for index in part] == [d.index for d in whole.draw(domain, step)]
            for shards_of_rank, part in zip(read, parts, strict=True):
                shards_of_rank.update(shard_of(shards)[part].tolist())
        assert sum(map(len, read)) <= len(set().union(*read)) + 3


@settings(max_examples=60, deadline=None)
@given(shard_sets, st.integers(1, 130), st.integers(0, 3))
def test_a_lane_reads_one_shard_after_the_other(shards: tuple[int, ...], batch: int, number: int) -> None:
    one = in_shards(shards, shards, batch=batch)
    length, lanes = sum(shards), lane_count(batch)
    assert batch % lanes == 0 and lanes <= 64
    read = shard_of(shards)[one.indices("real", number, 0, length)]
    for lane in range(lanes):
        of_lane = read[np.arange(length) % batch * lanes // batch == lane]
        assert abs(len(of_lane) - length / lanes) <= batch / lanes
        visits = of_lane[np.flatnonzero(np.diff(of_lane, prepend=-1))]
        assert len(set(visits.tolist())) == len(visits)


def test_shards_change_places_from_epoch_to_epoch() -> None:
    shards = (5,) * 40
    one = in_shards(shards, shards, batch=4)
    orders = [one.indices(domain, number, 0, 200).tolist() for domain in one.lengths for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == in_shards(shards, shards, batch=4, world_size=2).indices("synthetic", 0, 0, 200).tolist()
    of_shard = [index for index in orders[0] if index // 5 == 7]
    assert sorted(of_shard) == list(range(35, 40)) and of_shard != list(range(35, 40))


@pytest.mark.parametrize("step", [0, 3, 24, 25, 60])
def test_a_run_over_shards_goes_on_anywhere(step: int) -> None:
    shards = (7, 30, 2, 61)
    straight = in_shards(shards, (3, 4), batch=4)
    expected = [straight.draw(domain, s) for s in range(step, step + 30) for domain in straight.lengths]
    again = in_shards(shards, (3, 4), batch=4)
    assert [again.draw(domain, s) for s in range(step, step + 30) for domain in straight.lengths] == expected


def test_the_numbers_of_a_run_over_shards_never_change() -> None:
    one = in_shards((4, 9, 1, 6), (3, 2), batch=4)
    assert one.indices("synthetic", 1, 0, 20).tolist() == [
        9,
        11,
        15,
        14,
        8,
        4,
        17,
        1,
        10,
        7,
        16,
        3,
        6,
        5,
        18,
        0,
        12,
        13,
        19,
        2,
    ]
    assert one.indices("real", 1, 0, 12).tolist() == [3, 1, 0, 2, 4, 2, 4, 3, 1, 0, 2, 3]
    assert shuffled(3, "real", 8).tolist() == [7, 3, 2, 1, 0, 4, 6, 5]
