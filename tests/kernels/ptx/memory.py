"""The memories of the GPU, with the checks that a GPU does not make.

Global memory consists of the storages of CPU tensors. Each has an address space of 2⁴⁰ bytes for itself, so an address
outside of a tensor is outside of all. Shared memory belongs to one program, and is undefined until it is written.

Both know who touched each place last, and when. Time is the number of an instruction. Two threads, of which one
writes, must have something between them that orders them: a barrier in a program, and a release and an acquire (the
halves of an atomic operation) between programs of one launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = Any
SPACE = 1 << 40
"""Bytes from one storage to the next."""
NOBODY, MANY = -1, -2
"""In place of the number of a thread or of a program."""


class Fault(Exception):
    """A kernel did what no kernel may do."""


# ---- shared memory --------------------------------------------------------------------------------------------------


class SharedMemory:
    """The shared memories of some programs, `size` bytes each, and of their threads.

    `unit` divides the width of every access: the bytes whose history is kept together.
    """

    def __init__(self, programs: int, size: int, threads: int, unit: int, rng: np.random.Generator) -> None:
        self.size, self.unit, self.threads = size, unit, threads
        self.places = -(-size // unit)
        count = programs * self.places
        self.bytes = rng.integers(0, 256, count * unit, dtype=np.uint8)
        self.written, self.read = (np.full(count, NOBODY, np.int32) for _ in range(2))  # by which thread
        self.written_at, self.read_at = (np.zeros(count, np.int32) for _ in range(2))
        self.read_by_many = np.zeros(count, bool)  # since read_at's barrier
        self.pending = np.zeros(count, bool)  # an asynchronous copy has not been waited for
        self.barrier = np.zeros(programs, np.int32)  # when each program passed its last
        self.warp_barrier = np.zeros(programs * threads // 32, np.int32)

    def load(self, lanes: Array, address: Array, width: int, now: int) -> Array:
        """(lanes, width) bytes."""
        place = self._places(lanes, address, width)
        if self.pending[place].any():
            raise Fault("reads shared memory that an asynchronous copy may not have written: wait_group is missing")
        writer = self.written[place]
        if (writer == NOBODY).any():
            raise Fault("reads shared memory that nothing has written")
        self._check_order(lanes, writer, self.written_at[place], "reads what thread {} wrote")
        before, since = self.read[place], self._last_barrier(lanes)[:, None]
        fresh = self.read_at[place] <= since
        reader = np.broadcast_to(lanes[:, None], place.shape)
        many = ~fresh & ((before != reader) | self.read_by_many[place])
        self.read[place], self.read_at[place] = reader, now
        many |= self.read[place] != reader  # another thread reads it in this instruction
        self.read_by_many[place] = False
        self.read_by_many[place[many]] = True
        return self.bytes.reshape(-1, self.unit)[place].reshape(len(lanes), width)

    def store(self, lanes: Array, address: Array, data: Array, now: int, pending: bool = False) -> None:
        """Write (lanes, width) bytes. If `pending`, none may read them before `arrive`."""
        width = data.shape[1]
        place = self._places(lanes, address, width)
        if self.pending[place].any():
            raise Fault("writes where an asynchronous copy is still going to write")
        self._check_order(lanes, self.written[place], self.written_at[place], "writes where thread {} wrote")
        many = self.read_by_many[place] & (self.read_at[place] > self._last_barrier(lanes)[:, None])
        if many.any():
            raise Fault("writes what several threads read, without a barrier between")
        self._check_order(lanes, self.read[place], self.read_at[place], "writes what thread {} read")
        writer = np.broadcast_to(lanes[:, None], place.shape)
        self.written[place], self.written_at[place], self.pending[place] = writer, now, pending
        units = self.bytes.reshape(-1, self.unit)
        units[place] = data.reshape(*place.shape, self.unit)
        if (units[place] != data.reshape(*place.shape, self.unit)).any():
            raise Fault("two threads write different values to one place in shared memory")

    def arrive(self, lanes: Array, address: Array, width: int, now: int) -> None:
        """Asynchronous copies of these threads have written their bytes."""
        place = self._places(lanes, address, width)
        self.pending[place], self.written_at[place] = False, now

    def _places(self, lanes: Array, address: Array, width: int) -> Array:
        """(lanes, width / unit) indices."""
        if (address % width).any():
            raise Fault(f"address {int(address[address % width != 0][0])} is no multiple of {width}")
        if ((address < 0) | (address + width > self.size)).any():
            raise Fault(f"address {int(address.max())} is outside of the {self.size} bytes of shared memory")
        first = lanes // self.threads * self.places + address.astype(np.int64) // self.unit
        return first[:, None] + np.arange(width // self.unit)

    def _last_barrier(self, lanes: Array) -> Array:
        return self.barrier[lanes // self.threads]

    def _check_order(self, lanes: Array, other: Array, when: Array, what: str) -> None:
        """All that `other` threads did must lie before a barrier that these threads have passed too."""
        us = lanes[:, None]
        apart = (other != NOBODY) & (other != us) & (when > self._last_barrier(lanes)[:, None])
        if apart.any():
            apart &= (other // 32 != us // 32) | (when > self.warp_barrier[lanes // 32][:, None])
        if apart.any():
            lane, column = np.argwhere(apart)[0]
            who = other[lane, column] % self.threads
            raise Fault(f"thread {lanes[lane] % self.threads} {what.format(who)}, without a barrier between")


# ---- global memory --------------------------------------------------------------------------------------------------


@dataclass
class _Allocation:
    """The storage of a tensor. `unit` bytes have one history."""

    bytes: Array
    unit: int
    owner: torch.Tensor
    written: Array
    written_at: Array
    read: Array
    read_at: Array
    touched: bool = False  # in this launch
    changed: bool = False  # in this launch


class GlobalMemory:
    """The storages of all tensors whose address was taken."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._allocations: list[_Allocation] = []
        self.order = Order(1)

    def address_of(self, tensor: torch.Tensor) -> int:
        """Where the GPU finds the first element. Storages start at multiples of 512, as torch allocates them."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return 0
        start = storage.data_ptr()
        if start not in self._number:
            self._number[start] = len(self._allocations)
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            unit = tensor.element_size()
            count = -(-storage.nbytes() // unit)
            nobody, never = np.full(count, NOBODY, np.int32), np.zeros(count, np.int32)
            histories = nobody, never, nobody.copy(), never.copy()
            self._allocations.append(_Allocation(flat.numpy(), unit, flat, *histories))
        return SPACE * (self._number[start] + 1) + TENSOR_ADDRESS(tensor) - start

    def launch(self, programs: int) -> None:
        """A launch begins: all that was done before lies before it."""
        self.order = Order(programs)
        for allocation in self._allocations:
            if allocation.touched:
                allocation.written.fill(NOBODY)
                allocation.read.fill(NOBODY)
                allocation.touched = allocation.changed = False

    def load(self, programs: Array, address: Array, width: int, now: int, strong: bool = False) -> Array:
        """(lanes, width) bytes. A `strong` access (volatile, relaxed, acquire, release) is never a race."""
        found = np.empty((len(address), width), np.uint8)
        for here, allocation, offset in self._split(address, width):
            found[here] = _wide(allocation, width)[offset // width].view(np.uint8).reshape(-1, width)
            if strong:
                continue
            who = programs[here]
            place = self._places(allocation, offset, width)
            if allocation.changed:
                self.order.check(who, allocation.written[place], allocation.written_at[place], "reads what {} wrote")
            allocation.touched = True
            before, reader = allocation.read[place], np.broadcast_to(who[:, None], place.shape)
            allocation.read[place], allocation.read_at[place] = reader, now
            others = ((before != NOBODY) & (before != reader)) | (allocation.read[place] != reader)
            allocation.read[place[others]] = MANY
        return found

    def store(self, programs: Array, address: Array, data: Array, now: int, strong: bool = False) -> None:
        """Write (lanes, width) bytes."""
        width = data.shape[1]
        for here, allocation, offset in self._split(address, width):
            if not strong:
                self._record_store(programs[here], allocation, self._places(allocation, offset, width), now)
            values = np.ascontiguousarray(data[here]).view(_wide(allocation, width).dtype).reshape(len(offset))
            memory = _wide(allocation, width)
            memory[offset // width] = values
            if (memory[offset // width] != values).any():
                raise Fault("two threads write different values to one place in global memory")

    def _record_store(self, who: Array, allocation: _Allocation, place: Array, now: int) -> None:
        if allocation.touched:
            self.order.check(who, allocation.written[place], allocation.written_at[place], "writes where {} wrote")
            self.order.check(who, allocation.read[place], allocation.read_at[place], "writes what {} read")
        allocation.touched = allocation.changed = True
        allocation.written[place], allocation.written_at[place] = who[:, None], now
        if (allocation.written[place] != who[:, None]).any():
            raise Fault("two programs write to one place in global memory")

    def exchange(self, address: int, width: int, change: Any) -> Array:
        """One atomic operation: replace the value there by `change` of it. Returns the value that was there."""
        ((_, allocation, offset),) = self._split(np.array([address], np.uint64), width)
        memory = _wide(allocation, width)
        before = memory[offset // width].view(f"u{width}").copy()
        memory[offset // width] = change(before).view(memory.dtype)
        return before[0]

    def _split(self, address: Array, width: int) -> list[tuple[Any, _Allocation, Array]]:
        """(lanes, allocation, offsets) of each storage that is accessed."""
        misaligned = address % np.uint64(width) != 0
        if misaligned.any():
            raise Fault(f"address {int(address[misaligned][0]):#x} is no multiple of {width}")
        number = (address >> np.uint64(40)).astype(np.int64) - 1
        offset = (address & np.uint64(SPACE - 1)).astype(np.int64)
        found = []
        for one in np.unique(number):
            if not 0 <= one < len(self._allocations):
                raise Fault(f"address {int(address[number == one][0]):#x} is in no tensor that the kernel was given")
            here = number == one
            allocation, there = self._allocations[one], offset[here]
            beyond = there + width > len(allocation.bytes)
            if beyond.any():
                where, size = int(there[beyond][0]), len(allocation.bytes)
                if where >= SPACE // 2:
                    where -= SPACE
                raise Fault(f"out of bounds: {width} bytes at {where} of a tensor of {size} bytes")
            found.append((here, allocation, there))
        return found

    @staticmethod
    def _places(allocation: _Allocation, offset: Array, width: int) -> Array:
        first = offset // allocation.unit
        return first[:, None] + np.arange(max(1, width // allocation.unit))


TENSOR_ADDRESS = torch.Tensor.data_ptr
"""The function itself, for a launch replaces it."""


def _wide(allocation: _Allocation, width: int) -> Array:
    """A storage as elements of `width` bytes. Its last bytes are left out if they are no whole element."""
    whole = allocation.bytes[: len(allocation.bytes) // width * width]
    return whole.view(f"u{width}" if width <= 8 else f"V{width}")


class Order:
    """Which programs of a launch know of each other, by vector clocks (Fidge, 1988; Mattern, 1989).

    `known[p, q]` is the time up to which p sees all that q did. A release publishes what the program's threads did
    before its last barrier. An acquire holds for all threads of a program from its next barrier on.
    """

    def __init__(self, programs: int) -> None:
        self.known = np.zeros((programs, programs), np.int32)
        self.acquired = np.zeros((programs, programs), np.int32)
        self.barrier = np.zeros(programs, np.int32)
        self._released: dict[int, Array] = {}

    def pass_barrier(self, programs: Array, now: int) -> None:
        self.barrier[programs] = now
        self.known[programs] = np.maximum(self.known[programs], self.acquired[programs])

    def synchronise(self, program: int, address: int, acquires: bool, releases: bool) -> None:
        """An atomic operation of a program at an address."""
        there = self._released.setdefault(address, np.zeros(len(self.known), np.int32))
        if acquires:
            self.acquired[program] = np.maximum(self.acquired[program], there)
        if releases:
            np.maximum(there, self.known[program], out=there)
            there[program] = max(there[program], self.barrier[program])

    def check(self, us: Array, other: Array, when: Array, what: str) -> None:
        """All that the `other` programs did must be known to us."""
        apart = (other != NOBODY) & (other != us[:, None])
        if not apart.any():
            return
        others = self.known.copy()
        np.fill_diagonal(others, np.iinfo(np.int32).max)
        known = np.where(other == MANY, others.min(1)[us][:, None], self.known[us[:, None], np.maximum(other, 0)])
        apart &= when > known
        if apart.any():
            lane, column = np.argwhere(apart)[0]
            one = other[lane, column]
            them = what.format("other programs" if one == MANY else f"program {one}")
            raise Fault(f"program {us[lane]} {them} in the same launch, and nothing orders the two")
