"""Launches of a training step, as bench/static_cost/count_launches.py counts them."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from vologan_fast.profiling import step_counts


@pytest.fixture(scope="module")
def counting(counting_script):
    return counting_script("count_launches")


def test_losses_spectral_norm_and_optimisers_take_twenty_launches_and_wait_for_nothing(counting):
    step = counting.count("after")
    assert sum(step.launches[part].total() for part in counting.OURS) <= 20
    # Three launches each way for each norm of 6 generator and 4 and 2 discriminator passes, not dozens for a batch.
    assert step.launches["norm"].total() <= 1000


@pytest.mark.slow
def test_the_fast_step_waits_for_nothing_either_and_takes_fewer_launches(counting):
    fast, plain = counting.count("fast"), counting.count("after")
    assert sum(fast.launches[part].total() for part in counting.OURS) <= 40
    totals = [sum(launches.total() for launches in step.launches.values()) for step in (fast, plain)]
    assert totals[0] < 0.7 * totals[1]


@pytest.mark.slow
def test_the_count_finds_what_plain_pytorch_is_known_to_do(counting):
    """Six passes of two generators of 35 normalised convolutions, each with two products of a matrix and a vector."""
    step = counting.count("before")
    assert step.launches["spectral norm"]["aten::mv"] >= 2 * 6 * 35
    assert step.launches["losses"].total() > 100


def test_the_count_is_the_profilers():
    """The launches of the plain losses are those that the profiler sees, forward and backward, on the CPU."""

    def losses(device):
        images = [torch.empty(2, 4, 16, 16, device=device).requires_grad_(i % 2 == 0) for i in range(4)]
        pairs = [(images[0], images[1]), (images[2], images[3])]
        loss, _ = step_counts.plain_pixel_losses(pairs, [(10, 0, 1), (1, 0, 0)], (1, 1, 1, 3))
        logits = [torch.empty(2, 3, device=device, requires_grad=True) for _ in range(3)]
        (loss + step_counts.plain_adversarial_losses(logits, ["real", "fake", "generator"], "bce")[0]).backward()

    with step_counts.Accounting() as accounting:
        losses("meta")
    counted = Counter()
    for name, times in sum(accounting.launches.values(), Counter()).items():
        counted[name.removesuffix("_")] += times
    with torch.profiler.profile() as profiler:
        losses("cpu")
    # The profiler also sees views, and operations inside an operation. A sum in place counts as a sum.
    profiled = Counter()
    for event in profiler.events():
        parent, name = event.cpu_parent, event.name.removesuffix("_")
        if name in counted and not (parent and parent.name.removesuffix("_") in counted):
            profiled[name] += 1
    assert profiled == counted


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: torch.equal(x, x), bool]
)
def test_a_step_that_waits_cannot_be_counted(wait):
    with step_counts.Accounting(), pytest.raises((NotImplementedError, RuntimeError)):
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
def test_torchs_multi_tensor_launches(sizes, lists, launches):
    tensors = [torch.empty(size, device="meta") for size in sizes]
    assert step_counts.multi_tensor_launches([tensors] * lists) == launches
