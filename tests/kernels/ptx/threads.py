"""Instructions in which threads meet: shuffles, barriers, branches and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx.arithmetic import Type
from ptx.batch import Batch
from ptx.operands import Step, Unknown, lanes_of, refuse_part_of_a_warp, source_of
from ptx.parse import Instruction, Kernel

Array = Any


def _shfl(instruction: Instruction, kernel: Kernel) -> Step:
    """Each thread reads a register of another thread of its warp."""
    if instruction.parts[1] != "sync" or instruction.parts[-1] != "b32":
        raise Unknown("shuffle")
    mode = instruction.parts[2]
    target, *valid = (part.strip() for part in instruction.operands[0].split("|"))
    operand = instruction.operands[1]
    of = Type("u", 32)
    read, read_b, read_c = (source_of(one, of, kernel) for one in instruction.operands[1:4])
    whole = int(instruction.operands[4], 0) & 0xFFFFFFFF == 0xFFFFFFFF
    if mode not in ("bfly", "idx", "up", "down") or not whole:
        raise Unknown("shuffle of a part of a warp")

    def step(batch: Batch, active: Array | None) -> None:
        refuse_part_of_a_warp(batch, active)
        lane = batch.all % 32
        b, c = read_b(batch).astype(np.int64), read_c(batch).astype(np.int64)
        segment = (c >> 8) & 31
        last, first = (lane & segment) | (c & 31 & ~segment), lane & segment
        to = {
            "bfly": lane ^ (b & 31),
            "idx": first | (b & 31 & ~segment),
            "up": lane - (b & 31),
            "down": lane + (b & 31),
        }
        inside = to[mode] >= last if mode == "up" else to[mode] <= last
        source = batch.all - lane + np.where(inside, to[mode], lane)
        undefined = batch.undefined.get(operand)
        value = np.broadcast_to(read(batch), (batch.lanes,))[source]
        batch.write(target, value, active, None if undefined is None else undefined[source])
        for register in valid:
            batch.write(register, inside, active)

    return step


def _bar(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.parts[:3] == ("bar", "warp", "sync"):

        def warp_step(batch: Batch, active: Array | None) -> None:
            refuse_part_of_a_warp(batch, active)
            batch.shared.warp_barrier[np.unique(lanes_of(batch, active) // 32)] = batch.now

        return warp_step
    if "sync" not in instruction.parts or instruction.operands != ("0",):
        raise Unknown("barrier of a part of a program")

    def step(batch: Batch, active: Array | None) -> Any:
        numbers = np.arange(len(batch.programs))
        if active is not None:
            here = active.reshape(len(batch.programs), -1)
            complete = (here == batch.alive.reshape(here.shape)).all(1)
            if not complete[here.any(1)].all():
                return [(batch.at, active)]  # wait for the others
            numbers = numbers[complete & here.any(1)]
        batch.shared.barrier[numbers] = batch.now
        batch.memory.order.pass_barrier(batch.programs[numbers], batch.now)
        return None

    return step


def _nothing(instruction: Instruction, kernel: Kernel) -> Step:
    """What only orders memory or gives hints. The order is that of barriers and of atomic operations."""
    return lambda batch, active: None


def _bra(instruction: Instruction, kernel: Kernel) -> Step:
    to, guard, negated = kernel.labels[instruction.operands[-1]], instruction.guard, instruction.negated

    def step(batch: Batch, active: Array | None) -> Any:
        if guard is None:
            return [(to, active)]
        batch.refuse_undefined((guard,), active, "a branch")
        goes = ~batch.values[guard] if negated else batch.values[guard]
        if active is not None:
            goes = goes & active
        if not goes.any():
            return None
        stays = ~goes if active is None else active & ~goes
        if not stays.any():
            return [(to, active)]
        return [(to, goes), (batch.at + 1, stays)]

    return step


def _ret(instruction: Instruction, kernel: Kernel) -> Step:
    def step(batch: Batch, active: Array | None) -> Any:
        batch.alive[lanes_of(batch, active)] = False
        return []

    return step


MAKERS = {
    "shfl": _shfl,
    "bra": _bra,
    "ret": _ret,
    "exit": _ret,
    **dict.fromkeys(("bar", "barrier"), _bar),
    **dict.fromkeys(("fence", "membar", "griddepcontrol", "pragma", "nanosleep", "prefetch"), _nothing),
}
