"""The model of a launch: more work never takes less time, and its limits are those of the GPU."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vologan_fast.profiling.gpus import GPUS
from vologan_fast.profiling.launch_model import BARRIER, START, Work, bytes_in_flight, seconds

H200 = GPUS["H200"]
gpus = st.sampled_from(list(GPUS.values()))


GROWING = ["programs", "tiles", "instructions", "outside", "instructions_outside", "merged", "written", "barriers"]
"""Fields of `Work` of which more is more work."""


@st.composite
def works(draw):
    tile = draw(st.integers(512, 65536))
    programs, tiles = draw(st.integers(1, 5000)), draw(st.integers(1, 64))
    read = programs * tiles * tile
    far = draw(st.integers(0, read))
    return Work(
        programs=programs,
        resident=draw(st.integers(1, 32)),
        warps=draw(st.sampled_from([1, 4, 8, 32])),
        tiles=tiles,
        tile_bytes=tile,
        in_flight=tile * draw(st.floats(0.25, 4)),
        instructions=draw(st.integers(1, 2000)),
        ahead=draw(st.booleans()),
        outside=draw(st.floats(0, 10)),
        instructions_outside=draw(st.integers(0, 2000)),
        merged=draw(st.integers(0, read)),
        dram_read=far,
        l2_read=read - far,
        written=draw(st.integers(0, read)),
        barriers=draw(st.integers(0, 3)),
    )


@given(works(), gpus, st.sampled_from(GROWING))
def test_more_work_never_takes_less_time(work, gpu, name):
    more = dataclasses.replace(work, **{name: 2 * getattr(work, name)})
    assert seconds(more, gpu) >= seconds(work, gpu)


@given(works(), gpus, st.sampled_from(["in_flight", "resident"]))
def test_more_bytes_in_flight_never_take_more_time(work, gpu, name):
    more = dataclasses.replace(work, **{name: 2 * getattr(work, name)})
    assert seconds(more, gpu) <= seconds(work, gpu)
    assert bytes_in_flight(more, gpu) >= bytes_in_flight(work, gpu)


@given(works(), gpus)
def test_reading_from_l2_never_takes_more_time_than_reading_from_dram(work, gpu):
    near = dataclasses.replace(work, dram_read=0, l2_read=work.dram_read + work.l2_read)
    far = dataclasses.replace(work, dram_read=work.dram_read + work.l2_read, l2_read=0)
    assert seconds(near, gpu) <= seconds(work, gpu) * (1 + 1e-9)
    assert seconds(work, gpu) <= seconds(far, gpu) * (1 + 1e-9)


@given(works(), gpus)
def test_loads_that_are_made_ahead_never_take_more_time(work, gpu):
    before, ahead = (dataclasses.replace(work, ahead=ahead) for ahead in (False, True))
    assert seconds(ahead, gpu) <= seconds(before, gpu)


@given(works(), gpus)
def test_no_launch_beats_the_bandwidth(work, gpu):
    fixed = START + gpu.gap + work.barriers * BARRIER
    assert seconds(work, gpu) - fixed >= (work.dram_read + work.written) / gpu.copy * (1 - 1e-9)


def test_enough_bytes_in_flight_reach_the_bandwidth_and_half_of_them_half_of_it():
    """Little's law: 4.3 TB/s · 700 ns = 3 MB, on 132 multiprocessors."""
    needed = H200.copy * H200.dram_latency / H200.multiprocessors
    tile, tiles = needed / 8, 1000
    programs = 8 * H200.multiprocessors
    read = round(tile * programs * tiles)
    work = Work(programs, 8, 4, tiles, tile_bytes=tile, in_flight=tile, instructions=0, ahead=False, dram_read=read)
    assert bytes_in_flight(work, H200) == pytest.approx(needed) and 22_000 < needed < 24_000
    fixed = START + H200.gap
    assert seconds(work, H200) - fixed == pytest.approx(read / H200.copy, rel=1e-6)
    half = dataclasses.replace(work, in_flight=tile / 2)
    assert seconds(half, H200) - fixed == pytest.approx(2 * read / H200.copy, rel=1e-6)


def test_instructions_that_the_schedulers_cannot_issue_in_time_limit_a_launch():
    """1000 instructions of each of 4 warps take a multiprocessor 1000 cycles, since it has 4 schedulers."""
    programs = 8 * H200.multiprocessors
    work = Work(
        programs, 8, 4, 10, tile_bytes=64, in_flight=64, instructions=1000, ahead=True, dram_read=640 * programs
    )
    assert seconds(work, H200) == pytest.approx(START + H200.gap + 8 * 10 * 1000 / H200.clock)


def test_the_gpus_are_what_their_data_sheets_say():
    """Each has memory behind its L2 that is slower, farther and larger."""
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert gpu.l2 < gpu.memory and gpu.copy < gpu.l2_copy and gpu.l2_latency < gpu.dram_latency
        assert gpu.float32 <= gpu.tf32 < gpu.bfloat16
        assert gpu.threads % 32 == gpu.registers % (32 * 8) == 0
        assert 1e9 < gpu.clock < 3e9 and gpu.shared < 2**20 and gpu.programs <= 32
