"""The operands of instructions: registers, numbers, addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ptx import arithmetic
from ptx.arithmetic import Type, decode, type_of
from ptx.memory import Fault
from ptx.parse import Instruction, Kernel

if TYPE_CHECKING:
    from ptx.batch import Batch

Array = Any
Step = Callable[["Batch", "Array | None"], Any]
"""An instruction as a function of the programs and of the mask of active threads, which is None for all threads. It
returns None, or where the threads go on: [(index of an instruction, mask), …]."""


SPECIAL = {f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"} | {"%laneid"}


class Unknown(NotImplementedError):
    """An instruction that the interpreter does not know."""


def is_register(operand: str, kernel: Kernel) -> bool:
    return operand.rstrip("0123456789") in kernel.widths


def registers_of(instruction_operands: tuple[str, ...], kernel: Kernel) -> tuple[str, ...]:
    """The registers in some operands, without the marks around them."""
    words = " ".join(instruction_operands).translate(str.maketrans("{}[],+|!", "        ")).split()
    return tuple(word for word in words if is_register(word, kernel))


def vector_of(operand: str) -> list[str]:
    """{a, b} → a, b"""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def source_of(operand: str, of: Type, kernel: Kernel) -> Callable[[Batch], Array]:
    """A function that reads an operand as numbers of a type."""
    storage = of.storage
    if of.kind == "p":
        if operand.startswith("!"):
            return lambda batch: ~batch.values[operand[1:]]
        if is_register(operand, kernel):
            return lambda batch: batch.values[operand]
        return lambda batch: np.bool_(int(operand, 0) != 0)
    if is_register(operand, kernel):
        width, bits = kernel.width(operand), of.bits * of.count
        if width == bits:
            return lambda batch: decode(batch.values[operand], of)
        if width < bits:
            raise Unknown(f"{operand} is narrower than the type")
        wide = arithmetic.UNSIGNED[width]
        return lambda batch: decode(batch.values[operand].view(wide).astype(storage), of)
    if operand in SPECIAL:
        return lambda batch: decode(batch.special(operand).astype(storage), of)
    number = decode(_immediate(operand, of, kernel), of)
    return lambda batch: number


def _immediate(operand: str, of: Type, kernel: Kernel) -> Array:
    if operand.startswith("0f"):
        return np.uint32(int(operand[2:], 16))
    if operand.startswith("0d"):
        return np.uint64(int(operand[2:], 16))
    if operand in kernel.shared:
        return of.storage(kernel.shared[operand])
    names = [name for name, _ in kernel.parameters]
    if operand in names:
        return of.storage(8 * names.index(operand))
    try:
        number = int(operand.rstrip("U"), 0)
    except ValueError:
        raise Unknown(f"operand {operand}") from None
    return of.storage(number & ((1 << (of.bits * of.count)) - 1))


def address_of(operand: str, bits: int, kernel: Kernel) -> Callable[[Batch], Array]:
    """[register or name + number]"""
    base, _, plus = operand.strip("[] ").partition("+")
    of = Type("u", bits)
    number = of.storage(int(plus.strip() or "0", 0) & ((1 << bits) - 1))
    read = source_of(base.strip(), of, kernel)
    return lambda batch: np.broadcast_to(read(batch) + number, (batch.lanes,))


def lanes_of(batch: Batch, active: Array | None) -> Array:
    return batch.all if active is None else np.flatnonzero(active)


def is_shared(instruction: Instruction) -> bool:
    return any(part in ("shared", "shared_cta") for part in instruction.parts)


def access_of(instruction: Instruction) -> tuple[int, int]:
    """(registers, bytes together) of a load or store."""
    name, parts = instruction.parts[0], instruction.parts
    if name in ("ldmatrix", "stmatrix"):
        return next(int(part[1:]) for part in parts if part in ("x1", "x2", "x4")), 16
    if name == "cp":
        return 1, int(instruction.operands[2], 0)
    of = type_of(parts[-1])
    count = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
    return count, count * of.bits // 8


def refuse_part_of_a_warp(batch: Batch, active: Array | None) -> None:
    if active is not None:
        warps = active.reshape(-1, 32)
        if (warps.any(1) & ~warps.all(1)).any():
            raise Fault("threads of one warp work together, but some of them went another way")
