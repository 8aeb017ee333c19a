"""Launches of a training step, as bench/static_cost/count_launches.py counts them."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
FOLDER = Path(__file__).parents[2] / "bench" / "static_cost"


@pytest.fixture(scope="module")
def counting():
    sys.path.insert(0, str(FOLDER))
    import count_launches

    sys.path.remove(str(FOLDER))
    return count_launches


def test_losses_spectral_norm_and_optimisers_take_twenty_launches_and_wait_for_nothing(counting):
    step = counting.count(before=False)
    assert sum(step.launches[part].total() for part in counting.OURS) <= 20
    # Three launches each way for each norm of 6 generator and 4 and 2 discriminator passes, not dozens for a batch.
    assert step.launches["norm"].total() <= 1000


def test_the_count_finds_what_plain_pytorch_is_known_to_do(counting):
    """Six passes of two generators of 35 normalised convolutions, each with two products of a matrix and a vector."""
    step = counting.count(before=True)
    assert step.launches["spectral norm"]["aten::mv"] >= 2 * 6 * 35
    assert step.launches["losses"].total() > 100


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: torch.equal(x, x), bool]
)
def test_a_step_that_waits_cannot_be_counted(counting, wait):
    with counting.Accounting(), pytest.raises((NotImplementedError, RuntimeError)):
        wait(torch.ones((), device="meta"))


@pytest.mark.parametrize(
    ("sizes", "lists", "launches"),
    [
        ([10] * 110, 1, 1),
        ([10] * 111, 1, 2),
        ([10] * 97, 3, 3),
        ([65536 * 321], 2, 2),
        ([65536 * 320], 2, 1),
        ([], 1, 0),
    ],
)
def test_torchs_multi_tensor_launches(counting, sizes, lists, launches):
    tensors = [torch.empty(size, device="meta") for size in sizes]
    assert counting.multi_tensor_launches([tensors] * lists) == launches
