"""Executes a launch: each instruction becomes a function once, and the programs run in random order."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from ptx import accessing, computing, threads
from ptx.batch import Batch, Code, Grid
from ptx.memory import GlobalMemory
from ptx.operands import Step, Unknown
from ptx.parse import Instruction, Kernel

Array = Any
LANES = 8192
"""Threads that are executed together."""
_MAKERS = computing.MAKERS | accessing.MAKERS | threads.MAKERS
"""(instruction, kernel) → step, by the first part of an opcode."""


def execute(
    kernel: Kernel,
    grid: Grid,
    arguments: list[int | float],
    memory: GlobalMemory,
    seed: int,
    together: int | None = None,
    errors: bool = False,
) -> int:
    """Execute all programs, in an order that depends on `seed`. Returns the number of numpy steps.

    `together` programs run in turns; the others before or after them. Its default fills LANES. `errors` makes
    approximate instructions as wrong as they may be.
    """
    rng = np.random.default_rng(seed)
    parameters = _parameters(kernel, arguments)
    code = translated(kernel)
    memory.launch(grid.programs)
    order = rng.permutation(grid.programs)
    together = together or max(1, LANES // grid.threads)
    now = 0
    with np.errstate(all="ignore"):
        for first in range(0, grid.programs, together):
            batch = Batch(kernel, order[first : first + together], grid, memory, parameters, rng, now, errors)
            batch.run(code)
            now = batch.now
    return now


def _parameters(kernel: Kernel, arguments: list[int | float]) -> Array:
    """Parameter memory: eight bytes for each."""
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} parameters, found {len(arguments)} arguments")
    space = np.zeros(len(arguments), np.uint64)
    for i, ((_, size), value) in enumerate(zip(kernel.parameters, arguments, strict=True)):
        if isinstance(value, float):
            space[i] = np.array([value], f"f{size}").view(f"u{size}")[0]
        else:
            space[i] = value & ((1 << 8 * size) - 1)
    return space.view(np.uint8)


@functools.lru_cache(maxsize=64)
def translated(kernel: Kernel) -> list[Code]:
    """A function for each instruction. Raises Unknown, which names the instruction, for one that has none."""
    code = []
    for instruction in kernel.code:
        try:
            step = _MAKERS[instruction.parts[0]](instruction, kernel)
        except (Unknown, KeyError) as error:
            raise Unknown(f"{kernel.name}: the interpreter does not know {instruction} ({error})") from None
        if instruction.parts[0] != "bra":  # which looks at its guard itself
            step = _guarded(instruction, step)
        code.append(Code(instruction, step, is_barrier=instruction.parts[0] in ("bar", "barrier")))
    return code


def _guarded(instruction: Instruction, step: Step) -> Step:
    """The step, in the threads whose guard allows it."""
    guard, negated = instruction.guard, instruction.negated
    if guard is None:
        return step

    def guarded(batch: Batch, active: Array | None) -> Any:
        batch.refuse_undefined((guard,), active, "the guard")
        allows = ~batch.values[guard] if negated else batch.values[guard]
        allows = allows if active is None else allows & active
        if not allows.any():
            return None
        outcome = step(batch, None if allows.all() else allows)
        if outcome == [] and not allows.all():  # some have ended
            rest = ~allows if active is None else active & ~allows
            return [(batch.at + 1, rest)] if rest.any() else []
        return outcome

    return guarded
