"""Loads in flight, counted in small texts of machine code that are made here, and in kernels that Triton compiles."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from vologan_fast.profiling.machine_code import count

TILES = {("tiles.py", 7)}


def text(*lines):
    """A text as nvdisasm prints it. A line is a label (`.L_x_0:`) or an instruction; `tile` marks loads of tiles."""
    made, address = [], 0
    for line in lines:
        if line.startswith(".L"):
            made.append(line)
            continue
        number = 7 if line.startswith("tile ") else 8
        made.append(f'\t//## File "/somewhere/tiles.py", line {number}')
        made.append(f"        /*{address:04x}*/                   {line.removeprefix('tile ')} ;")
        address += 16
    return "\n".join(made)


def loop(*body, before=(), after=()):
    return text(*before, ".L_x_0:", *body, "@P0 BRA `(.L_x_0)", *after, "EXIT")


def load(register, size=128):
    return f"tile LDG.E.{size} R{register}, desc[UR6][R2.64]"


def use(register):
    return f"FADD R90, R{register}, R90"


def test_loads_before_their_uses_are_in_flight_together():
    counted = count(loop(*map(load, (4, 8, 12)), *map(use, (4, 8, 12))), TILES)
    assert (counted.loads, counted.bytes, counted.trips, counted.bytes_in_flight) == (3, 48, 1, 48)
    assert not counted.ahead and counted.outside == 0 and counted.instructions == 7


def test_loads_that_wait_for_each_other_are_alone():
    counted = count(loop(load(4), use(7), load(4), use(4), load(8), use(8)), TILES)
    assert (counted.loads, counted.trips, counted.bytes_in_flight) == (3, 3, 16)


def test_a_register_that_is_loaded_again_has_arrived_before():
    assert count(loop(load(4), load(4)), TILES).trips == 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["load", "use"]), min_size=1, max_size=20), st.integers(1, 4))
def test_order_and_unrolling(order, times):
    """Loads that come first are never fewer in flight. A body that is repeated has the same bytes in flight."""
    loads, uses, body = 0, 0, []
    for kind in ["load", *order]:
        if kind == "load":
            body.append(load(4 + 4 * loads))
            loads += 1
        elif uses < loads:
            body.append(use(4 + 4 * uses))
            uses += 1
    body += [use(4 + 4 * i) for i in range(uses, loads)]
    counted = count(loop(*body), TILES)
    assert counted.bytes == 16 * loads
    assert 16 <= counted.bytes_in_flight <= 16 * loads
    first = count(loop(*sorted(body, key=lambda line: line.startswith("FADD"))), TILES)
    assert first.trips == 1 and first.bytes_in_flight >= counted.bytes_in_flight
    unrolled = count(loop(*body * times), TILES)
    assert unrolled.bytes_in_flight == pytest.approx(counted.bytes_in_flight)
    assert unrolled.instructions - 1 == times * (counted.instructions - 1)


COPY = "tile LDGSTS.E.BYPASS.128 [R29], desc[UR6][R2.64], P1"


def pipelined(stages, tensors=1):
    """A loop as Triton makes it: `stages` − 1 tiles are asked for before the loop, and one more in each pass."""
    copies = [COPY, "LDGDEPBAR"] * tensors
    waiting = f"DEPBAR.LE SB0, {tensors * (stages - 2):#x}"
    return loop(waiting, "LDS.128 R4, [R30]", use(4), *copies, before=copies * (stages - 1))


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
def test_asynchronous_copies_are_in_flight_for_all_stages_but_one(stages, tensors):
    counted = count(pipelined(stages, tensors), TILES)
    assert counted.bytes == 16 * tensors
    assert counted.trips == pytest.approx(1 / (stages - 1))
    assert counted.bytes_in_flight == pytest.approx(16 * tensors * (stages - 1))
    assert counted.ahead
    assert 0 <= counted.outside <= 1


def test_a_load_into_registers_for_the_next_pass_is_ahead():
    counted = count(loop(use(4), load(4), before=[load(4)]), TILES)
    assert counted.trips == 1 and counted.ahead
    assert not count(loop(load(4), use(4)), TILES).ahead


def test_other_loads_take_time_but_are_no_tiles():
    other = "LDG.E R40, desc[UR6][R2.64]"
    counted = count(loop(load(4), use(4), before=[other, use(40)]), TILES)
    assert (counted.loads, counted.bytes, counted.trips, counted.outside) == (1, 16, 1, 1)
    counted = count(loop(other, use(40), load(4), use(4)), TILES)
    assert (counted.loads, counted.bytes, counted.trips) == (1, 16, 2)


def test_the_loop_that_loads_most_of_a_tile_counts_and_not_a_wider_one_around_it():
    merge = [".L_x_1:", "LDG.E.128 R40, desc[UR6][R2.64]", "LDG.E.128 R44, desc[UR6][R2.64]", use(40), use(44)]
    merge.append("@P1 BRA `(.L_x_1)")
    inner = [".L_x_2:", load(4), use(4), "@P2 BRA `(.L_x_2)"]
    counted = count(text(*merge, ".L_x_0:", load(8, 32), use(8), *inner, "@P0 BRA `(.L_x_0)", "EXIT"), TILES)
    assert (counted.loads, counted.bytes) == (1, 16)


BORDER = [load(40), use(40), load(44), use(44)]


def test_a_branch_over_loads_is_taken_and_a_condition_is_not():
    counted = count(loop(load(4), "@P3 BRA `(.L_x_9)", *BORDER, ".L_x_9:", use(4)), TILES)
    assert (counted.loads, counted.trips) == (1, 1)
    conditional = [line.replace("tile ", "tile @P3 ") for line in BORDER]
    counted = count(loop(load(4), *conditional, use(4)), TILES)
    assert (counted.loads, counted.trips) == (3, 2)


def test_a_side_path_behind_the_loop_is_no_loop():
    """A compiler may put rare work behind the loop, from where a branch leads back into its middle."""
    body = [load(4), "@P3 BRA `(.L_x_8)", ".L_x_9:", use(4)]
    counted = count(loop(*body, after=["EXIT", ".L_x_8:", *BORDER, "BRA `(.L_x_9)"]), TILES)
    assert (counted.loads, counted.trips, counted.instructions) == (1, 1, 4)


def test_the_guard_of_the_loop_is_passed():
    """A branch may skip the whole loop, if there is nothing to do."""
    counted = count(loop(load(4), use(4), before=["@!P5 BRA `(.L_x_7)"], after=[".L_x_7:"]), TILES)
    assert (counted.loads, counted.trips) == (1, 1)
    counted = count(loop(load(4), use(4), before=["@P5 EXIT"]), TILES)
    assert (counted.loads, counted.trips) == (1, 1)


def test_a_kernel_without_a_loop_is_one_pass_from_the_first_load_of_a_tile():
    other = ["LDG.E R40, desc[UR6][R2.64]", use(40)]
    counted = count(text(*other, load(4), load(8), use(4), use(8), *other, "EXIT", "BRA `(.L_x_0)"), TILES)
    assert (counted.loads, counted.bytes, counted.trips, counted.outside) == (2, 32, 1, 2)
    assert count(text(*other, "EXIT"), TILES).bytes_in_flight == 0


@pytest.mark.parametrize(
    ("opcode", "size", "registers"),
    [
        ("LDG.E", 4, [4]),
        ("LDG.E.U16", 2, [4]),
        ("LDG.E.U8", 1, [4]),
        ("LDG.E.64", 8, [4, 5]),
        ("LDG.E.128.CONSTANT", 16, [4, 5, 6, 7]),
        ("LDG.E.128.STRONG.GPU", 16, [4, 5, 6, 7]),
    ],
)
def test_widths(opcode, size, registers):
    for register in registers:
        counted = count(loop(f"tile {opcode} R4, desc[UR6][R2.64]", use(register), load(12), use(12)), TILES)
        assert (counted.bytes, counted.trips) == (size + 16, 2)
    counted = count(loop(f"tile {opcode} R4, desc[UR6][R2.64]", use(8), load(12), use(12), use(4)), TILES)
    assert counted.trips == 1


def test_32_bytes_fill_two_groups_of_registers():
    wide = "tile LDG.E.ENL2.256 R4, R12, desc[UR6][R2.64]"
    for register in (4, 7, 12, 15):
        counted = count(loop(wide, use(register), load(20), use(20)), TILES)
        assert (counted.bytes, counted.trips) == (48, 2)


@pytest.mark.parametrize(
    "user",
    [
        "STG.E.128 desc[UR6][R10.64], R4",
        "STS.64 [R10], R6",
        "LDG.E R90, desc[UR6][R6.64]",
        "R2UR UR4, R5",
        "MOV R6, R80",
    ],
)
def test_every_operand_is_a_use(user):
    assert count(loop(load(4), user, load(12), use(12)), TILES).trips == 2


def test_uniform_registers_are_others():
    assert count(loop(load(4), "UIADD3 UR4, UR5, UR6, URZ", load(12), use(12), use(4)), TILES).trips == 1


def test_loads_of_other_kinds_are_an_error():
    with pytest.raises(ValueError, match=r"UTMALDG\.2D .*: loads of this kind are not counted"):
        count(loop("UTMALDG.2D [UR8], [UR4]"), TILES)


KERNEL = """
import json, sys
import torch, triton, triton.language as tl
from vologan_fast.profiling.compiled import code_of, compile_for
from vologan_kernels.layouts import View
from vologan_kernels.tiles_triton import load_tile


@triton.jit
def sum_kernel(x, y, size, STAGES: tl.constexpr, UNROLL: tl.constexpr):
    lane, channel = tl.arange(0, 64), tl.arange(0, 32)
    total = tl.zeros((64, 32), tl.float32)
    for first in tl.range(0, size, 64, num_stages=STAGES, loop_unroll_factor=UNROLL):
        position = first + lane
        mask = (position[:, None] < size) & (channel[None, :] < 32)
        total += load_tile(x, tl.full((), 0, tl.int64), position, channel, mask, tl.float32)
    tl.store(y + channel, tl.sum(total, axis=0))


x, y = (torch.empty(1, 32, 64, 64, device="meta", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
made = {}
for stages, unroll in ((1, 1), (1, 4), (3, 1), (4, 1)):
    arguments = {"x": View(x, 131072, 32, 1), "y": y, "size": 4096, "STAGES": stages, "UNROLL": unroll}
    code = code_of(compile_for(sum_kernel, arguments | {"num_warps": 4}, 90))
    made[f"{stages}, {unroll}"] = code.count.bytes_in_flight, code.shared, code.count.ahead
print(json.dumps(made))
"""


@pytest.mark.slow
def test_the_count_tells_what_triton_makes_of_stages(tmp_path):
    """A tile of 64 · 32 · 2 bytes is 32 bytes for each of 128 threads."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, tmp_path / "kernel.py"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout)
    assert made["1, 1"][0] <= 32 and not made["1, 1"][2]
    assert made["1, 1"][0] <= made["1, 4"][0] <= 128
    for stages in (3, 4):
        in_flight, shared, ahead = made[f"{stages}, 1"]
        assert in_flight == pytest.approx(32 * (stages - 1)) and ahead
        assert shared >= 4096 * (stages - 1)
