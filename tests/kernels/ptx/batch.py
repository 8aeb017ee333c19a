"""Some programs of a launch: their registers, their shared memories, and the order in which their threads go on.

A register is an array with an element for each thread of these programs, so one numpy call executes an instruction for
all of them. Threads that go different ways at a branch become fragments of their own. The fragment that is furthest
behind goes on, until it meets another; so the threads of a loop meet at its end. A barrier waits until all threads of a
program have come.

An undefined register is no fault by itself: masked loads leave registers undefined in some threads, and the results
that follow from them are thrown away. It is a fault if an address, a stored value or a decision depends on one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ptx import arithmetic
from ptx.memory import Fault, GlobalMemory, SharedMemory
from ptx.operands import access_of, is_shared
from ptx.parse import Instruction, Kernel

Array = Any
MOST_STEPS = 1_000_000
MOST_TURNS = 2000
"""Backward jumps of one fragment while others could run, before another gets its turn."""


@dataclass(frozen=True)
class Grid:
    """A launch: programs in three dimensions, threads of each, bytes of shared memory of each."""

    shape: tuple[int, int, int]
    threads: int
    shared: int

    @property
    def programs(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class Code:
    instruction: Instruction
    step: Callable[[Batch, Array | None], Any]
    is_barrier: bool


@dataclass
class Fragment:
    at: int
    active: Array | None
    waits: bool = False  # at a barrier
    turns: int = 0


class Batch:
    """Some programs of a launch, with their registers and shared memories."""

    def __init__(
        self,
        kernel: Kernel,
        programs: Array,
        grid: Grid,
        memory: GlobalMemory,
        parameters: Array,
        rng: np.random.Generator,
        now: int,
        errors: bool,
    ) -> None:
        self.kernel, self.grid, self.memory, self.parameters, self.rng = kernel, grid, memory, parameters, rng
        self.errors = errors  # whether approximate instructions are off
        self.now, self.at = now, 0  # the time, and the instruction
        lanes = len(programs) * grid.threads
        self.lanes, self.all = lanes, np.arange(lanes)
        self.programs = programs  # their numbers in the grid
        self.program_of = programs[self.all // grid.threads]
        self.values = Registers(kernel, lanes)
        self.undefined: dict[str, Array] = dict.fromkeys(kernel.registers, np.ones(lanes, bool))
        units = [access_of(instruction)[1] for instruction in kernel.code if is_shared(instruction)]
        unit = min(units, default=4)
        self.shared = SharedMemory(len(programs), grid.shared, grid.threads, unit, rng)
        self.alive = np.ones(lanes, bool)
        self.copies: list[Copy] = []
        self.committed = np.zeros(lanes, np.int32)  # groups of asynchronous copies

    # ---- registers --------------------------------------------------------------------------------------------------

    def write(self, register: str, value: Array, active: Array | None, undefined: Array | None = None) -> None:
        """A register's new bits in the active threads; the threads in which they are undefined, or None."""
        if active is not None:
            before = self.values.get(register)
            if before is None:
                before = np.zeros(self.lanes, value.dtype)
            old = self.undefined.get(register)
            if old is not None or undefined is not None:
                empty = False if old is None else old
                undefined = np.where(active, False if undefined is None else undefined, empty)
                if not undefined.any():
                    undefined = None
            value = np.where(active, value, before if before.dtype == value.dtype else before.view(value.dtype))
        elif value.shape != (self.lanes,):
            value = np.full(self.lanes, value)
        self.values[register] = value
        if undefined is not None:
            self.undefined[register] = undefined
        else:
            self.undefined.pop(register, None)

    def undefined_of(self, registers: tuple[str, ...]) -> Array | None:
        """The threads in which any of them is undefined."""
        found = None
        for register in registers:
            one = self.undefined.get(register)
            if one is not None:
                found = one if found is None else found | one
        return found

    def refuse_undefined(self, registers: tuple[str, ...], active: Array | None, what: str) -> None:
        for register in registers:
            bad = self.undefined.get(register)
            if bad is not None and (bad if active is None else bad & active).any():
                raise Fault(f"{what} depends on register {register}, which nothing has written")

    def special(self, name: str) -> Array:
        """A register of `SPECIAL`: a number for each thread."""
        axis = "xyz".find(name[-1])
        if name.startswith("%tid."):
            return (self.all % self.grid.threads if axis == 0 else 0 * self.all).astype(np.uint32)
        if name.startswith("%ntid."):
            return np.full(self.lanes, self.grid.threads if axis == 0 else 1, np.uint32)
        if name.startswith("%nctaid."):
            return np.full(self.lanes, self.grid.shape[axis], np.uint32)
        if name.startswith("%ctaid."):
            x, y, _ = self.grid.shape
            place = (self.program_of % x, self.program_of // x % y, self.program_of // (x * y))[axis]
            return place.astype(np.uint32)
        return (self.all % 32).astype(np.uint32)  # %laneid

    # ---- the order of threads ---------------------------------------------------------------------------------------

    def run(self, code: list[Code]) -> None:
        """Execute until all threads have ended. Raises Fault, which names the instruction and a program."""
        fragments = [Fragment(0, None)]
        end = self.now + MOST_STEPS
        while fragments:
            fragment = self._choose(fragments)
            at, active = fragment.at, fragment.active
            meets = {other.at for other in fragments}
            while True:
                one = code[at]
                self.at = at
                self.now += 1
                if self.now > end:
                    raise Fault(f"{self.kernel.name} has not ended after {MOST_STEPS} steps, at {one.instruction}")
                try:
                    outcome = one.step(self, active)
                except Fault as fault:
                    raise Fault(f"{self.kernel.name}: {fault}; at {one.instruction}") from None
                if outcome is not None:
                    break
                at += 1
                if at in meets:
                    outcome = [(at, active)]
                    break
            for to, who in outcome:
                turns = fragment.turns + (to <= at)
                self._add(fragments, Fragment(to, who, waits=to == at and one.is_barrier, turns=turns))

    def _choose(self, fragments: list[Fragment]) -> Fragment:
        """The fragment that is furthest behind, and now and then another, since it may wait for what others do."""
        ready = [fragment for fragment in fragments if not fragment.waits]
        if not ready:
            places = ", ".join(sorted({str(self.kernel.code[f.at]) for f in fragments}))
            raise Fault(
                f"{self.kernel.name}: some threads of a program wait at a barrier to which others never come: {places}"
            )
        chosen = min(ready, key=lambda fragment: fragment.at)
        if chosen.turns > MOST_TURNS and len(ready) > 1:
            chosen.turns = 0
            chosen = ready[self.rng.integers(len(ready))]
        fragments.remove(chosen)
        return chosen

    def _add(self, fragments: list[Fragment], new: Fragment) -> None:
        for other in fragments:
            if other.at == new.at:
                other.active = None if other.active is None or new.active is None else other.active | new.active
                if other.active is not None and other.active.all():
                    other.active = None
                other.waits = False
                other.turns = max(other.turns, new.turns)
                return
        fragments.append(new)


class Registers(dict[str, Array]):
    """Registers that nothing has written hold 0, and are undefined."""

    def __init__(self, kernel: Kernel, lanes: int) -> None:
        self.kernel, self.lanes = kernel, lanes

    def __missing__(self, register: str) -> Array:
        width = self.kernel.width(register)
        return np.zeros(self.lanes, np.bool_ if width == 1 else arithmetic.UNSIGNED[width])


@dataclass
class Copy:
    """An asynchronous copy that has been started."""

    lanes: Array
    address: Array
    width: int
    group: Array  # of each thread
