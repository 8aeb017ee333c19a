"""Instructions that compute: from registers to registers, each thread for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ptx import arithmetic
from ptx.arithmetic import Type, encode, type_of
from ptx.memory import Fault
from ptx.operands import Step, Unknown, registers_of, source_of, vector_of
from ptx.parse import Instruction, Kernel

if TYPE_CHECKING:
    from ptx.batch import Batch

Array = Any


def _compute(instruction: Instruction, kernel: Kernel) -> Step:
    """An instruction whose result depends on nothing but numbers of one type."""
    name, *modifiers, last = instruction.parts
    function, of = arithmetic.FUNCTIONS[name], type_of(last)
    strange = set(modifiers) - arithmetic.KNOWN_MODIFIERS
    if strange:
        raise Unknown(f"modifier {', '.join(sorted(strange))}")
    target, *operands = instruction.operands
    types, result = [of] * len(operands), of
    if name in ("shl", "shr"):
        types[1] = Type("u", 32)
    if "wide" in modifiers:
        result = Type(of.kind, 2 * of.bits)
        types[2:] = [result] * len(types[2:])
        number = (arithmetic.SIGNED if of.kind == "s" else arithmetic.UNSIGNED)[2 * of.bits]
        narrow = function
        function = lambda a, b, *c: narrow(a.astype(number), b.astype(number), *c)  # noqa: E731
    elif "hi" in modifiers:
        function = arithmetic.high_half if name == "mul" else lambda a, b, c: arithmetic.high_half(a, b) + c
    if name == "popc":
        result = Type("u", 32)
    if name in ("and", "or", "xor", "not") and of.kind != "p":
        types = [Type("u", of.bits)] * len(operands)
    reads = [source_of(operand, kind, kernel) for operand, kind in zip(operands, types, strict=True)]
    sources = registers_of(tuple(operands), kernel)
    ftz, divides = "ftz" in modifiers, name in ("div", "rem") and of.kind in "us"
    relu, saturates = "relu" in modifiers, "sat" in modifiers
    if saturates and of.kind != "f":
        raise Unknown("modifier sat of integers")
    if "approx" in modifiers and name not in arithmetic.MOST_ULPS:
        raise Unknown("its error")
    approximate = of == Type("f", 32) and bool({"approx", "full"} & set(modifiers))
    propagates_nan = "NaN" in modifiers
    if propagates_nan:
        function = {"min": np.minimum, "max": np.maximum}[name]

    def step(batch: Batch, active: Array | None) -> None:
        numbers = [read(batch) for read in reads]
        if divides:
            zero = np.broadcast_to(numbers[1] == 0, (batch.lanes,))
            if (zero if active is None else zero & active).any():
                raise Fault("division of an integer by 0")
        if ftz:
            numbers = [arithmetic.flushed(number) for number in numbers]
        found = function(*numbers)
        if approximate and batch.errors:
            found = arithmetic.approximated(found, arithmetic.MOST_ULPS[name])
        if ftz:
            found = arithmetic.flushed(found)
        if relu:
            found = np.maximum(found, found.dtype.type(0))
        if saturates:
            found = np.clip(np.nan_to_num(found, nan=0.0), 0, 1).astype(found.dtype)
        undefined = batch.undefined_of(sources)
        if undefined is not None and name in ("and", "or"):
            undefined = _undefined_logic(batch, name, numbers, operands, undefined)
        batch.write(target, encode(found, result), active, undefined)

    return step


def _undefined_logic(
    batch: Batch, name: str, numbers: list[Array], operands: list[str], undefined: Array
) -> Array | None:
    """`false and undefined` is false, and `true or undefined` is true: where an operand decides, all is defined."""
    for number, operand in zip(numbers, operands, strict=True):
        decides = number == 0 if name == "and" else ~number == 0
        own = batch.undefined.get(operand.lstrip("!"))
        undefined = undefined & ~(decides if own is None else decides & ~own)
    return undefined if undefined.any() else None


def _setp(instruction: Instruction, kernel: Kernel) -> Step:
    _, comparison, *modifiers, last = instruction.parts
    of = type_of(last)
    combine = next((part for part in modifiers if part in ("and", "or", "xor")), None)
    if set(modifiers) - {"and", "or", "xor", "ftz"}:
        raise Unknown(f"modifiers {modifiers}")
    compare = arithmetic.COMPARISONS[comparison]
    targets = [part.strip() for part in instruction.operands[0].split("|")]
    read_a, read_b = (source_of(operand, of, kernel) for operand in instruction.operands[1:3])
    with_third = source_of(instruction.operands[3], Type("p", 1), kernel) if combine else None
    sources = registers_of(instruction.operands[1:], kernel)

    def step(batch: Batch, active: Array | None) -> None:
        found = compare(read_a(batch), read_b(batch))
        both = [found[:, 0], found[:, 1]] if of.count == 2 else [found, ~found]
        undefined = batch.undefined_of(sources)
        for target, one in zip(targets, both, strict=False):
            if with_third is not None:
                one = arithmetic.LOGIC[combine](one, with_third(batch))
            if target != "_":
                batch.write(target, np.asarray(one, bool), active, undefined)

    return step


def _selp(instruction: Instruction, kernel: Kernel) -> Step:
    of = Type("b", type_of(instruction.parts[-1]).bits)
    target, a, b, condition = instruction.operands
    read_a, read_b, choose = (
        source_of(operand, kind, kernel) for operand, kind in ((a, of), (b, of), (condition, Type("p", 1)))
    )

    def step(batch: Batch, active: Array | None) -> None:
        chosen = choose(batch)
        undefined = None
        of_a, of_b, of_c = (batch.undefined.get(operand) for operand in (a, b, condition))
        if any(one is not None for one in (of_a, of_b, of_c)):
            undefined = np.where(chosen, False if of_a is None else of_a, False if of_b is None else of_b)
            undefined = undefined if of_c is None else undefined | of_c
            undefined = undefined if undefined.any() else None
        batch.write(target, np.where(chosen, read_a(batch), read_b(batch)), active, undefined)

    return step


def _mov(instruction: Instruction, kernel: Kernel) -> Step:
    of = type_of(instruction.parts[-1])
    target, operand = instruction.operands
    sources = registers_of((operand,), kernel)
    if target.startswith("{"):
        targets = vector_of(target)
        part, read = Type("u", of.bits // len(targets)), source_of(operand, Type("u", of.bits), kernel)

        def unpack(batch: Batch, active: Array | None) -> None:
            halves = np.atleast_1d(read(batch)).view(part.storage).reshape(-1, len(targets))
            for i, register in enumerate(targets):
                if register != "_":
                    batch.write(register, halves[:, i].copy(), active, batch.undefined_of(sources))

        return unpack
    if operand.startswith("{"):
        parts = vector_of(operand)
        part = Type("u", of.bits // len(parts))
        reads = [source_of(one, part, kernel) for one in parts]

        def pack(batch: Batch, active: Array | None) -> None:
            columns = [np.broadcast_to(one(batch), (batch.lanes,)) for one in reads]
            packed = np.stack(columns, 1).view(of.storage)[:, 0]
            batch.write(target, packed, active, batch.undefined_of(sources))

        return pack
    read = source_of(operand, of if of.kind == "p" else Type("u", of.bits), kernel)
    return lambda batch, active: batch.write(target, read(batch), active, batch.undefined_of(sources))


def _cvta(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.parts[-2:] != ("global", "u64"):
        raise Unknown("of another memory than global")
    target, operand = instruction.operands
    read = source_of(operand, Type("u", 64), kernel)
    return lambda batch, active: batch.write(target, read(batch), active, batch.undefined_of((operand,)))


def _cvt(instruction: Instruction, kernel: Kernel) -> Step:
    *modifiers, to_name, from_name = instruction.parts
    to, of = type_of(to_name), type_of(from_name)
    if set(modifiers) - {"cvt", "rn", "rni", "rzi", "rmi", "rpi"}:
        raise Unknown(f"modifiers {modifiers}")
    target, *operands = instruction.operands
    reads = [source_of(operand, of, kernel) for operand in operands]
    sources = registers_of(tuple(operands), kernel)
    one = to._replace(count=1)
    width = 1 if to.kind == "p" else kernel.width(target)

    def step(batch: Batch, active: Array | None) -> None:
        found = [arithmetic.converted(read(batch), one, instruction.parts) for read in reads]
        if len(found) == 2:  # the first operand is the upper half
            upper, lower = np.broadcast_arrays(*found)
            bits = encode(np.stack([lower, upper], 1), to)
        else:
            bits = encode(found[0], to)
            if bits.dtype.itemsize * 8 < width:  # extended to the register
                bits = bits.astype((arithmetic.SIGNED if to.kind == "s" else arithmetic.UNSIGNED)[width])
        batch.write(target, bits, active, batch.undefined_of(sources))

    return step


MAKERS = dict.fromkeys(arithmetic.FUNCTIONS, _compute) | {
    "setp": _setp,
    "selp": _selp,
    "mov": _mov,
    "cvta": _cvta,
    "cvt": _cvt,
}
