"""Instructions that read and write memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx import arithmetic
from ptx.arithmetic import Type, decode, encode, type_of
from ptx.batch import Batch, Copy
from ptx.memory import Fault
from ptx.operands import (
    Step,
    Unknown,
    access_of,
    address_of,
    is_shared,
    lanes_of,
    refuse_part_of_a_warp,
    registers_of,
    source_of,
    vector_of,
)
from ptx.parse import Instruction, Kernel

Array = Any
_HINTS = {"cg", "ca", "cs", "wt", "volatile", "relaxed", "acquire", "release", "weak", "gpu", "sys", "cta", "nc"}


def _check_hints(instruction: Instruction) -> None:
    """Raise Unknown for a part of the opcode that may change what a load or store does."""
    known = _HINTS | {"global", "shared", "shared_cta", "param", "v2", "v4", "v8"}
    strange = [p for p in instruction.parts[1:-1] if p not in known and not p.startswith(("L1_", "L2_"))]
    if strange:
        raise Unknown(f"modifier {', '.join(strange)}")


def _is_strong(instruction: Instruction) -> bool:
    return any(part in ("volatile", "relaxed", "acquire", "release") for part in instruction.parts)


def _synchronise(batch: Batch, lanes: Array, address: Array, acquires: bool) -> None:
    for lane, at in zip(lanes, address, strict=True):
        batch.memory.order.synchronise(batch.program_of[lane], int(at), acquires, not acquires)


def _ld(instruction: Instruction, kernel: Kernel) -> Step:
    _check_hints(instruction)
    of = type_of(instruction.parts[-1])
    count, width = access_of(instruction)
    targets, place = vector_of(instruction.operands[0]), instruction.operands[1]
    space = "shared" if is_shared(instruction) else instruction.parts[1]
    space = "global" if space in _HINTS else space
    if space not in ("shared", "global", "param") or len(targets) != count:
        raise Unknown(f"memory {space}")
    read = address_of(place, 64 if space == "global" else 32, kernel)
    sources = registers_of((place,), kernel)
    size, strong = of.bits // 8, _is_strong(instruction)

    def step(batch: Batch, active: Array | None) -> None:
        batch.refuse_undefined(sources, active, "the address")
        lanes, address = lanes_of(batch, active), read(batch)
        address = address if active is None else address[lanes]
        if space == "global":
            data = batch.memory.load(batch.program_of[lanes], address, width, batch.now, strong)
            if "acquire" in instruction.parts:
                _synchronise(batch, lanes, address, acquires=True)
        elif space == "shared":
            data = batch.shared.load(lanes, address.astype(np.int64), width, batch.now)
        else:
            data = batch.parameters[address.astype(np.int64)[:, None] + np.arange(width)]
        for i, register in enumerate(targets):
            bits = np.ascontiguousarray(data[:, i * size : (i + 1) * size]).view(f"u{size}")[:, 0]
            bits = _extended(bits, of, kernel.width(register))
            if active is not None:
                whole = np.zeros(batch.lanes, bits.dtype)
                whole[lanes] = bits
                bits = whole
            batch.write(register, bits, active)

    return step


def _extended(bits: Array, of: Type, width: int) -> Array:
    """A loaded value may be narrower than its register."""
    if of.bits == width:
        return bits
    return decode(bits, of).astype((arithmetic.SIGNED if of.kind == "s" else arithmetic.UNSIGNED)[width])


def _st(instruction: Instruction, kernel: Kernel) -> Step:
    _check_hints(instruction)
    of = Type("u", type_of(instruction.parts[-1]).bits)
    place, operands = instruction.operands[0], vector_of(instruction.operands[1])
    shared = is_shared(instruction)
    if not shared and "global" not in instruction.parts:
        raise Unknown("memory other than global or shared")
    read = address_of(place, 32 if shared else 64, kernel)
    reads = [source_of(operand, of, kernel) for operand in operands]
    where, what = registers_of((place,), kernel), registers_of(tuple(operands), kernel)
    strong = _is_strong(instruction)

    def step(batch: Batch, active: Array | None) -> None:
        batch.refuse_undefined(where, active, "the address")
        batch.refuse_undefined(what, active, "the stored value")
        lanes, address = lanes_of(batch, active), read(batch)
        columns = [np.broadcast_to(one(batch), (batch.lanes,)) for one in reads]
        data = np.stack(columns, 1).view(np.uint8)
        if active is not None:
            address, data = address[lanes], data[lanes]
        if shared:
            batch.shared.store(lanes, address.astype(np.int64), data, batch.now)
        else:
            if "release" in instruction.parts:
                _synchronise(batch, lanes, address, acquires=False)
            batch.memory.store(batch.program_of[lanes], address, data, batch.now, strong)

    return step


def _atom(instruction: Instruction, kernel: Kernel) -> Step:
    parts = instruction.parts
    if "global" not in parts or set(parts[1:-2]) - {"global", "gpu", "sys", "acq_rel", "acquire", "release", "relaxed"}:
        raise Unknown("of another memory or kind")
    of, operation = type_of(parts[-1]), parts[-2]
    target, place, *operands = instruction.operands if parts[0] == "atom" else (None, *instruction.operands)
    read, reads = address_of(place, 64, kernel), [source_of(operand, of, kernel) for operand in operands]
    sources = registers_of((place, *operands), kernel)
    changes: dict[str, Any] = {
        "add": lambda old, new: old + new,
        "exch": lambda old, new: new,
        "cas": lambda old, expected, new: np.where(old == expected, new, old),
        "min": np.minimum,
        "max": np.maximum,
        "and": lambda old, new: old & new,
        "or": lambda old, new: old | new,
    }
    change = changes[operation]
    acquires = parts[0] == "atom" and any(part in ("acq_rel", "acquire") for part in parts)
    releases = any(part in ("acq_rel", "release") for part in parts)

    def step(batch: Batch, active: Array | None) -> None:
        batch.refuse_undefined(sources, active, "an atomic operation")
        address = read(batch)
        numbers = [np.broadcast_to(one(batch), (batch.lanes,)) for one in reads]
        found = np.zeros(batch.lanes, of.storage)
        for lane in batch.rng.permutation(lanes_of(batch, active)):
            given = [number[lane : lane + 1] for number in numbers]
            at = int(address[lane])
            found[lane] = batch.memory.exchange(
                at, of.bits // 8, lambda old, given=given: encode(change(decode(old, of), *given), of)
            )
            batch.memory.order.synchronise(batch.program_of[lane], at, acquires, releases)
        if target is not None:
            batch.write(target, found, active)

    return step


def _cp(instruction: Instruction, kernel: Kernel) -> Step:
    """cp.async: the bytes arrive when the thread has waited for them."""
    parts = instruction.parts
    if parts[:3] == ("cp", "async", "commit_group"):

        def commit(batch: Batch, active: Array | None) -> None:
            batch.committed[lanes_of(batch, active)] += 1

        return commit
    if parts[:3] in (("cp", "async", "wait_group"), ("cp", "async", "wait_all")):
        left = int(instruction.operands[0], 0) if parts[2] == "wait_group" else 0

        def wait(batch: Batch, active: Array | None) -> None:
            kept = []
            for copy in batch.copies:
                waits = np.isin(copy.lanes, lanes_of(batch, active))
                done = waits & ((copy.group < batch.committed[copy.lanes] - left) | (parts[2] == "wait_all"))
                if done.any():
                    batch.shared.arrive(copy.lanes[done], copy.address[done], copy.width, batch.now)
                if not done.all():
                    rest = ~done
                    kept.append(Copy(copy.lanes[rest], copy.address[rest], copy.width, copy.group[rest]))
            batch.copies = kept

        return wait
    if parts[1] != "async" or "shared" not in " ".join(parts) or parts[-1] != "global" or "mbarrier" in parts:
        raise Unknown("copy")
    to, of, width, *size = instruction.operands
    read_to, read_of, width = address_of(to, 32, kernel), address_of(of, 64, kernel), int(width, 0)
    read_size = source_of(size[0], Type("u", 32), kernel) if size else None
    sources = registers_of((to, of, *size), kernel)

    def step(batch: Batch, active: Array | None) -> None:
        batch.refuse_undefined(sources, active, "an asynchronous copy")
        lanes = lanes_of(batch, active)
        address = read_to(batch)[lanes].astype(np.int64)
        data = np.zeros((len(lanes), width), np.uint8)  # bytes beyond the size are 0
        sizes = np.broadcast_to(width if read_size is None else read_size(batch), (batch.lanes,))[lanes].astype(
            np.int64
        )
        some = sizes > 0
        if (some & (sizes != width)).any():
            raise Fault("an asynchronous copy of a part of its width, which the interpreter does not know")
        data[some] = batch.memory.load(batch.program_of[lanes[some]], read_of(batch)[lanes[some]], width, batch.now)
        batch.shared.store(lanes, address, data, batch.now, pending=True)
        batch.copies.append(Copy(lanes, address, width, batch.committed[lanes].copy()))

    return step


def _matrix(instruction: Instruction, kernel: Kernel) -> Step:
    """8×8 matrices of 16 bits. Thread 8 j + r of a warp has the address of row r of matrix j. Each thread has two
    elements of each matrix: thread 4 r + c those of row r, columns 2 c and 2 c + 1."""
    parts = instruction.parts
    if "m8n8" not in parts or parts[-1] != "b16" or not is_shared(instruction):
        raise Unknown("matrix")
    count, _ = access_of(instruction)
    loads, transposed = parts[0] == "ldmatrix", "trans" in parts
    place, vector = reversed(instruction.operands) if loads else instruction.operands
    registers = vector_of(vector)
    read, sources = address_of(place, 32, kernel), registers_of((place,), kernel)
    reads = [source_of(register, Type("u", 32), kernel) for register in registers]

    def step(batch: Batch, active: Array | None) -> None:
        refuse_part_of_a_warp(batch, active)
        lanes = lanes_of(batch, active)
        addresses = lanes[lanes % 32 < 8 * count]
        batch_address = read(batch)[addresses].astype(np.int64)
        batch.refuse_undefined(sources, _mask(batch, addresses), "the address")
        warps = len(lanes) // 32
        if loads:
            rows = batch.shared.load(addresses, batch_address, 16, batch.now)
            matrices = rows.view(np.uint16).reshape(warps, count, 8, 8)
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3) if transposed else matrices)
            pairs = matrices.view(np.uint32).reshape(warps, count, 32)
            for j, register in enumerate(registers):
                bits = np.zeros(batch.lanes, np.uint32)
                bits[lanes] = pairs[:, j].reshape(-1)
                batch.write(register, bits, active)
        else:
            batch.refuse_undefined(tuple(registers), active, "the stored value")
            pairs = np.stack([one(batch)[lanes].reshape(warps, 32) for one in reads], 1)
            matrices = np.ascontiguousarray(pairs).view(np.uint16).reshape(warps, count, 8, 8)
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3) if transposed else matrices)
            batch.shared.store(addresses, batch_address, matrices.view(np.uint8).reshape(-1, 16), batch.now)

    return step


def _mask(batch: Batch, lanes: Array) -> Array:
    mask = np.zeros(batch.lanes, bool)
    mask[lanes] = True
    return mask


MAKERS = {"ld": _ld, "st": _st, "atom": _atom, "red": _atom, "cp": _cp, "ldmatrix": _matrix, "stmatrix": _matrix}
