"""What the launches of the instance norm do, as the model of a launch gets it."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from vologan_kernels.instance_norm import kernels
from vologan_kernels.planned_triton import forget_plans

from vologan_fast.profiling.compiled import Code
from vologan_fast.profiling.gpus import GPUS
from vologan_fast.profiling.launch_model import KEPT, bytes_in_flight, moving
from vologan_fast.profiling.launches import cut_for, recorded
from vologan_fast.profiling.machine_code import Count
from vologan_fast.profiling.norm_work import moved, time_of, work_of

H200 = GPUS["H200"]
CODE = Code(64, 0, 0, 8, Count(2, 32, 0.25, 2, 200, 100, True))


def launches(n, c, side, pad=0):
    """The launches of a forward and a backward in bfloat16 and channels_last."""

    def image(grow=0):
        empty = torch.empty(n, c, side + 2 * grow, side + 2 * grow, dtype=torch.bfloat16, device="meta")
        return empty.contiguous(memory_format=torch.channels_last)

    scale = torch.empty(c, device="meta")
    options = {"activation": "leaky_relu", "negative_slope": 0.3, "reflection_pad": pad, "min_scale": 2**-6}
    with recorded() as found:
        y, mean, rstd = kernels.forward(image(), scale, scale, None, None, eps=1e-3, **options)
        kernels.backward(image(pad), y, mean, rstd, scale, scale, None, None, from_output=True, **options)
    return found


@pytest.mark.parametrize(("n", "c", "side", "passes"), [(1, 64, 512, 8), (8, 128, 256, 8), (2, 512, 16, 5)])
def test_the_bytes_of_all_launches_are_those_of_eight_passes_or_of_five(n, c, side, passes):
    found = launches(n, c, side)
    assert sum(sum(moved(launch)) for launch in found) == passes * 2 * n * c * side**2
    for launch in found:
        work = work_of(launch, CODE, H200)
        assert work.dram_read + work.l2_read + work.written == sum(moved(launch))
        assert moving(work, H200) == pytest.approx(sum(moved(launch)) / H200.copy)


def test_the_programs_read_all_that_the_launch_reads():
    for launch in launches(1, 64, 512):
        work = work_of(launch, CODE, H200)
        assert work.programs * work.tiles * work.tile_bytes >= sum(moved(launch)[:1])
        assert work.programs * (work.tiles - 2) * work.tile_bytes < moved(launch)[0]


def test_a_second_launch_finds_in_l2_what_was_read_last():
    second = [launch for launch in launches(8, 64, 512) if launch.kernel.__name__.startswith("apply")]
    assert len(second) == 2
    for launch in second:
        assert work_of(launch, CODE, H200).l2_read == round(KEPT * H200.l2) < moved(launch)[0]
    for launch in launches(1, 128, 128):
        if launch.kernel.__name__.startswith("apply"):
            assert work_of(launch, CODE, H200).dram_read == 0


def test_loads_for_borders_are_not_bytes_in_flight():
    """With a padding, a pass may have nine loads of a gradient of which eight are for borders."""
    sums = next(launch for launch in launches(1, 64, 512, pad=1) if launch.kernel.__name__ == "sums_kernel")
    with_borders = dataclasses.replace(CODE, count=dataclasses.replace(CODE.count, loads=10, bytes=160))
    work, same = work_of(sums, CODE, H200), work_of(sums, with_borders, H200)
    assert bytes_in_flight(work, H200) == bytes_in_flight(same, H200)
    assert work.in_flight == pytest.approx(work.tile_bytes / CODE.count.trips)


def test_more_loads_in_flight_take_less_time():
    found = launches(1, 64, 512)
    times = []
    for trips in (4, 2, 1, 0.5):
        code = dataclasses.replace(CODE, count=dataclasses.replace(CODE.count, trips=trips))
        times.append(time_of(found, lambda launch, generation, code=code: code, H200))
    assert times == sorted(times, reverse=True) and times[0] > 1.5 * times[-1]


def test_the_programs_that_fit_a_multiprocessor():
    """65,536 registers, 228 KiB of shared memory of which each program costs one more, 2048 threads, 32 programs."""
    assert Code(64, 0, 0, 8, CODE.count).resident(H200) == 4
    assert Code(65, 0, 0, 8, CODE.count).resident(H200) == 3
    assert Code(16, 0, 56 * 1024, 4, CODE.count).resident(H200) == 4
    assert Code(16, 0, 75 * 1024, 4, CODE.count).resident(H200) == 3
    assert Code(16, 0, 0, 1, CODE.count).resident(H200) == 32
    assert Code(16, 0, 0, 1, CODE.count).resident(GPUS["RTX 4090"]) == 24
    assert Code(16, 0, 0, 16, CODE.count).resident(H200) == 4


def test_launches_are_cut_for_the_multiprocessors_of_the_gpu():
    """Of each GPU, also if the same launches were planned for another one before."""

    def programs(multiprocessors):
        with cut_for(multiprocessors):
            return [one.programs for one in launches(1, 64, 510)]

    alone = {}
    for multiprocessors in (10, 100, 132):
        forget_plans()
        alone[multiprocessors] = programs(multiprocessors)
    assert alone[10][0] < alone[100][0] < alone[132][0]
    for multiprocessors in (132, 10, 100, 10):
        assert programs(multiprocessors) == alone[multiprocessors]
    assert [one.programs for one in launches(1, 64, 510)] == alone[132]  # as for an H200, as before
