"""Executes a kernel: some programs of a launch at a time, all their threads in lockstep.

A register is an array with an element for each thread of these programs, so one numpy call executes an instruction for
all of them. Threads that go different ways at a branch become fragments of their own. The fragment that is furthest
behind goes on, until it meets another; so the threads of a loop meet at its end. A barrier waits until all threads of a
program have come.

Each instruction becomes a function once, `(batch, active) → None`. `active` is a mask of the fragment's threads, or
None if it is all threads.

An undefined register is no fault by itself: masked loads leave registers undefined in some threads, and the results
that follow from them are thrown away. It is a fault if an address, a stored value or a decision depends on one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ptx import arithmetic
from ptx.arithmetic import Type, decode, encode, type_of
from ptx.memory import Fault, GlobalMemory, SharedMemory
from ptx.parse import Instruction, Kernel

Array = Any
Step = Callable[["Batch", "Array | None"], None]
LANES = 8192
"""Threads that are executed together."""
MOST_STEPS = 1_000_000
MOST_TURNS = 2000
"""Backward jumps of one fragment while others could run, before another gets its turn."""


class Unknown(NotImplementedError):
    """An instruction that the interpreter does not know."""


@dataclass(frozen=True)
class Grid:
    """A launch: programs in three dimensions, threads of each, bytes of shared memory of each."""

    shape: tuple[int, int, int]
    threads: int
    shared: int

    @property
    def programs(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass
class _Fragment:
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
    ) -> None:
        self.kernel, self.grid, self.memory, self.parameters, self.rng = kernel, grid, memory, parameters, rng
        self.now, self.at = now, 0  # the time, and the instruction
        lanes = len(programs) * grid.threads
        self.lanes, self.all = lanes, np.arange(lanes)
        self.programs = programs  # their numbers in the grid
        self.program_of = programs[self.all // grid.threads]
        self.values = _Registers(self)
        self.undefined: dict[str, Array] = {}
        units = [_access(instruction)[1] for instruction in kernel.code if _is_shared(instruction)]
        unit = min(units, default=4)
        self.shared = SharedMemory(len(programs), grid.shared, grid.threads, unit, rng)
        self.alive = np.ones(lanes, bool)
        self.copies: list[_Copy] = []
        self.committed = np.zeros(lanes, np.int32)  # groups of asynchronous copies

    # ---- registers --------------------------------------------------------------------------------------------------

    def write(self, register: str, value: Array, active: Array | None, undefined: Array | None = None) -> None:
        """A register's new bits in the active threads; the threads in which they are undefined, or None."""
        if active is not None:
            before = self.values.get(register)
            if before is None:
                before = np.zeros(self.lanes, value.dtype)
                self.undefined[register] = np.ones(self.lanes, bool)
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
        """%tid.x and the like: a number for each thread."""
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
        if name == "%laneid":
            return (self.all % 32).astype(np.uint32)
        raise Unknown(f"special register {name}")

    # ---- the order of threads ---------------------------------------------------------------------------------------

    def run(self, code: list[_Code]) -> None:
        """Execute until all threads have ended. Raises Fault, which names the instruction and a program."""
        fragments = [_Fragment(0, None)]
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
                self._add(fragments, _Fragment(to, who, waits=to == at and one.is_barrier, turns=turns))

    def _choose(self, fragments: list[_Fragment]) -> _Fragment:
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

    def _add(self, fragments: list[_Fragment], new: _Fragment) -> None:
        for other in fragments:
            if other.at == new.at:
                other.active = None if other.active is None or new.active is None else other.active | new.active
                if other.active is not None and other.active.all():
                    other.active = None
                other.waits = False
                other.turns = max(other.turns, new.turns)
                return
        fragments.append(new)


class _Registers(dict[str, Array]):
    """Registers that nothing has written are undefined."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __missing__(self, register: str) -> Array:
        width = self.batch.kernel.width(register)
        storage = np.bool_ if width == 1 else arithmetic.UNSIGNED[width]
        self[register] = np.zeros(self.batch.lanes, storage)
        self.batch.undefined[register] = np.ones(self.batch.lanes, bool)
        return self[register]


@dataclass
class _Copy:
    """An asynchronous copy that has been started."""

    lanes: Array
    address: Array
    width: int
    group: Array  # of each thread


@dataclass(frozen=True)
class _Code:
    instruction: Instruction
    step: Callable[[Batch, Array | None], Any]
    is_barrier: bool


# ---- a launch -------------------------------------------------------------------------------------------------------


def execute(
    kernel: Kernel,
    grid: Grid,
    arguments: list[int | float],
    memory: GlobalMemory,
    seed: int,
    together: int | None = None,
) -> int:
    """Execute all programs, in an order that depends on `seed`. Returns the number of numpy steps.

    `together` programs run in turns; the others before or after them. Its default fills LANES.
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
            batch = Batch(kernel, order[first : first + together], grid, memory, parameters, rng, now)
            batch.run(code)
            now = batch.now
    return now


def _parameters(kernel: Kernel, arguments: list[int | float]) -> Array:
    """Parameter memory: eight bytes for each."""
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} parameters, found {len(arguments)} arguments")
    space = np.zeros(8 * len(arguments), np.uint8)
    for i, ((_, size), value) in enumerate(zip(kernel.parameters, arguments, strict=True)):
        if isinstance(value, float):
            space[8 * i : 8 * i + size] = np.array([value], f"f{size}").view(np.uint8)
        else:
            space[8 * i : 8 * i + size] = np.frombuffer(int(value).to_bytes(8, "little", signed=value < 0), np.uint8)[
                :size
            ]
    return space


@functools.lru_cache(maxsize=64)
def translated(kernel: Kernel) -> list[_Code]:
    """A function for each instruction. Raises Unknown, which names the instruction, for one that has none."""
    code = []
    for instruction in kernel.code:
        make = _MAKERS.get(instruction.parts[0], _compute)
        try:
            step = make(instruction, kernel)
        except (Unknown, KeyError) as error:
            raise Unknown(f"{kernel.name}: the interpreter does not know {instruction} ({error})") from None
        is_barrier = instruction.parts[0] in ("bar", "barrier")
        code.append(
            _Code(instruction, step if instruction.parts[0] == "bra" else _guarded(instruction, step), is_barrier)
        )
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


# ---- operands -------------------------------------------------------------------------------------------------------

_MAKERS: dict[str, Callable[[Instruction, Kernel], Step]] = {}


def _makes(*names: str) -> Callable[[Any], Any]:
    """Registers a function that makes the steps of these instructions."""

    def register(make: Any) -> Any:
        for name in names:
            _MAKERS[name] = make
        return make

    return register


def _is_register(operand: str, kernel: Kernel) -> bool:
    return operand.rstrip("0123456789") in kernel.widths


def _registers(instruction_operands: tuple[str, ...], kernel: Kernel) -> tuple[str, ...]:
    """The registers in some operands, without the marks around them."""
    words = " ".join(instruction_operands).translate(str.maketrans("{}[],+|!", "        ")).split()
    return tuple(word for word in words if _is_register(word, kernel))


def _vector(operand: str) -> list[str]:
    """{a, b} → a, b"""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _source(operand: str, of: Type, kernel: Kernel) -> Callable[[Batch], Array]:
    """A function that reads an operand as numbers of a type."""
    storage = of.storage
    if of.kind == "p":
        if operand.startswith("!"):
            return lambda batch: ~batch.values[operand[1:]]
        if _is_register(operand, kernel):
            return lambda batch: batch.values[operand]
        return lambda batch: np.bool_(int(operand, 0) != 0)
    if _is_register(operand, kernel):
        width, bits = kernel.width(operand), of.bits * of.count
        if width == bits:
            return lambda batch: decode(batch.values[operand], of)
        if width < bits:
            raise Unknown(f"{operand} is narrower than the type")
        wide = arithmetic.UNSIGNED[width]
        return lambda batch: decode(batch.values[operand].view(wide).astype(storage), of)
    if operand.startswith("%"):
        return lambda batch: decode(batch.special(operand).astype(storage), of)
    return lambda batch, number=decode(_immediate(operand, of, kernel), of): number


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


def _address(operand: str, bits: int, kernel: Kernel) -> Callable[[Batch], Array]:
    """[register or name + number]"""
    base, _, plus = operand.strip("[] ").partition("+")
    of = Type("u", bits)
    number = of.storage(int(plus.strip() or "0", 0) & ((1 << bits) - 1))
    read = _source(base.strip(), of, kernel)
    return lambda batch: np.broadcast_to(read(batch) + number, (batch.lanes,))


def _lanes(batch: Batch, active: Array | None) -> Array:
    return batch.all if active is None else np.flatnonzero(active)


# ---- arithmetic -----------------------------------------------------------------------------------------------------


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
    reads = [_source(operand, kind, kernel) for operand, kind in zip(operands, types, strict=True)]
    sources = _registers(tuple(operands), kernel)
    ftz, divides = "ftz" in modifiers, name in ("div", "rem") and of.kind in "us"
    relu, saturates = "relu" in modifiers, "sat" in modifiers
    if saturates and of.kind != "f":
        raise Unknown("modifier sat of integers")
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
        if ftz:
            found = arithmetic.flushed(found)
        if relu:
            found = np.maximum(found, found.dtype.type(0))
        if saturates:
            found = np.clip(np.nan_to_num(found, nan=0.0), 0, 1).astype(found.dtype)
        undefined = batch.undefined_of(sources) if batch.undefined else None
        if undefined is not None and name in ("and", "or"):
            undefined = _undefined_logic(batch, name, numbers, operands, undefined)
        batch.write(target, encode(found, result), active, undefined)

    return step


for _name in ("shl", "shr", "prmt", "bfe"):
    arithmetic.FUNCTIONS[_name] = {
        "shl": arithmetic.shifted_left,
        "shr": arithmetic.shifted_right,
        "prmt": arithmetic.permuted,
        "bfe": arithmetic.field_of,
    }[_name]


def _undefined_logic(
    batch: Batch, name: str, numbers: list[Array], operands: list[str], undefined: Array
) -> Array | None:
    """`false and undefined` is false, and `true or undefined` is true: where one operand decides, nothing is undefined."""
    for number, operand in zip(numbers, operands, strict=True):
        decides = number == 0 if name == "and" else ~number == 0
        own = batch.undefined.get(operand.lstrip("!"))
        undefined = undefined & ~(decides if own is None else decides & ~own)
    return undefined if undefined.any() else None


@_makes("setp")
def _setp(instruction: Instruction, kernel: Kernel) -> Step:
    _, comparison, *modifiers, last = instruction.parts
    of = type_of(last)
    combine = next((part for part in modifiers if part in ("and", "or", "xor")), None)
    if set(modifiers) - {"and", "or", "xor", "ftz"}:
        raise Unknown(f"modifiers {modifiers}")
    compare = arithmetic.COMPARISONS[comparison]
    targets = [part.strip() for part in instruction.operands[0].split("|")]
    read_a, read_b = (_source(operand, of, kernel) for operand in instruction.operands[1:3])
    with_third = _source(instruction.operands[3], Type("p", 1), kernel) if combine else None
    sources = _registers(instruction.operands[1:], kernel)

    def step(batch: Batch, active: Array | None) -> None:
        found = compare(read_a(batch), read_b(batch))
        both = [found[:, 0], found[:, 1]] if of.count == 2 else [found, ~found]
        undefined = batch.undefined_of(sources) if batch.undefined else None
        for target, one in zip(targets, both, strict=False):
            if with_third is not None:
                one = arithmetic.LOGIC[combine](one, with_third(batch))
            if target != "_":
                batch.write(target, np.asarray(one, bool), active, undefined)

    return step


@_makes("selp")
def _selp(instruction: Instruction, kernel: Kernel) -> Step:
    of = Type("b", type_of(instruction.parts[-1]).bits)
    target, a, b, condition = instruction.operands
    read_a, read_b, choose = (
        _source(operand, kind, kernel) for operand, kind in ((a, of), (b, of), (condition, Type("p", 1)))
    )

    def step(batch: Batch, active: Array | None) -> None:
        chosen = choose(batch)
        undefined = None
        if batch.undefined:
            of_a, of_b, of_c = (batch.undefined.get(operand) for operand in (a, b, condition))
            if any(one is not None for one in (of_a, of_b, of_c)):
                undefined = np.where(chosen, False if of_a is None else of_a, False if of_b is None else of_b)
                undefined = undefined if of_c is None else undefined | of_c
                undefined = undefined if undefined.any() else None
        batch.write(target, np.where(chosen, read_a(batch), read_b(batch)), active, undefined)

    return step


@_makes("mov")
def _mov(instruction: Instruction, kernel: Kernel) -> Step:
    of = type_of(instruction.parts[-1])
    target, operand = instruction.operands
    sources = _registers((operand,), kernel)
    if target.startswith("{"):
        targets = _vector(target)
        part, read = Type("u", of.bits // len(targets)), _source(operand, Type("u", of.bits), kernel)

        def unpack(batch: Batch, active: Array | None) -> None:
            halves = np.atleast_1d(read(batch)).view(part.storage).reshape(-1, len(targets))
            for i, register in enumerate(targets):
                if register != "_":
                    batch.write(register, halves[:, i].copy(), active, batch.undefined_of(sources))

        return unpack
    if operand.startswith("{"):
        parts = _vector(operand)
        part = Type("u", of.bits // len(parts))
        reads = [_source(one, part, kernel) for one in parts]

        def pack(batch: Batch, active: Array | None) -> None:
            columns = [np.broadcast_to(one(batch), (batch.lanes,)) for one in reads]
            packed = np.stack(columns, 1).view(of.storage)[:, 0]
            batch.write(target, packed, active, batch.undefined_of(sources))

        return pack
    read = _source(operand, of if of.kind == "p" else Type("u", of.bits), kernel)
    return lambda batch, active: batch.write(target, read(batch), active, batch.undefined_of(sources))


@_makes("cvta")
def _cvta(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.parts[-2:] != ("global", "u64"):
        raise Unknown("of another memory than global")
    target, operand = instruction.operands
    read = _source(operand, Type("u", 64), kernel)
    return lambda batch, active: batch.write(target, read(batch), active, batch.undefined_of((operand,)))


@_makes("cvt")
def _cvt(instruction: Instruction, kernel: Kernel) -> Step:
    *modifiers, to_name, from_name = instruction.parts
    to, of = type_of(to_name), type_of(from_name)
    if set(modifiers) - {"cvt", "rn", "rni", "rzi", "rmi", "rpi"}:
        raise Unknown(f"modifiers {modifiers}")
    target, *operands = instruction.operands
    reads = [_source(operand, of, kernel) for operand in operands]
    sources = _registers(tuple(operands), kernel)
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
        batch.write(target, bits, active, batch.undefined_of(sources) if batch.undefined else None)

    return step


# ---- memory ---------------------------------------------------------------------------------------------------------


def _is_shared(instruction: Instruction) -> bool:
    return any(part in ("shared", "shared_cta") for part in instruction.parts)


def _access(instruction: Instruction) -> tuple[int, int]:
    """(registers, bytes together) of a load or store."""
    name, parts = instruction.parts[0], instruction.parts
    if name in ("ldmatrix", "stmatrix"):
        return next(int(part[1:]) for part in parts if part in ("x1", "x2", "x4")), 16
    if name == "cp":
        return 1, int(instruction.operands[2], 0)
    of = type_of(parts[-1])
    count = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
    return count, count * of.bits // 8


_HINTS = {"cg", "ca", "cs", "wt", "volatile", "relaxed", "acquire", "release", "weak", "gpu", "sys", "cta", "nc"}


def _check_hints(instruction: Instruction) -> None:
    """Raise Unknown for a part of the opcode that may change what a load or store does."""
    known = _HINTS | {"global", "shared", "shared_cta", "param", "v2", "v4", "v8"}
    strange = [p for p in instruction.parts[1:-1] if p not in known and not p.startswith(("L1_", "L2_"))]
    if strange:
        raise Unknown(f"modifier {', '.join(strange)}")


@_makes("ld")
def _ld(instruction: Instruction, kernel: Kernel) -> Step:
    _check_hints(instruction)
    of = type_of(instruction.parts[-1])
    count, width = _access(instruction)
    targets, place = _vector(instruction.operands[0]), instruction.operands[1]
    space = "shared" if _is_shared(instruction) else instruction.parts[1]
    space = "global" if space in _HINTS else space
    if space not in ("shared", "global", "param") or len(targets) != count:
        raise Unknown(f"memory {space}")
    read = _address(place, 64 if space == "global" else 32, kernel)
    sources = _registers((place,), kernel)
    size = of.bits // 8

    def step(batch: Batch, active: Array | None) -> None:
        if batch.undefined:
            batch.refuse_undefined(sources, active, "the address")
        lanes, address = _lanes(batch, active), read(batch)
        address = address if active is None else address[lanes]
        if space == "global":
            data = batch.memory.load(batch.program_of[lanes], address, width, batch.now)
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


@_makes("st")
def _st(instruction: Instruction, kernel: Kernel) -> Step:
    _check_hints(instruction)
    of = Type("u", type_of(instruction.parts[-1]).bits)
    place, operands = instruction.operands[0], _vector(instruction.operands[1])
    shared = _is_shared(instruction)
    if not shared and "global" not in instruction.parts:
        raise Unknown("memory other than global or shared")
    read = _address(place, 32 if shared else 64, kernel)
    reads = [_source(operand, of, kernel) for operand in operands]
    where, what = _registers((place,), kernel), _registers(tuple(operands), kernel)

    def step(batch: Batch, active: Array | None) -> None:
        if batch.undefined:
            batch.refuse_undefined(where, active, "the address")
            batch.refuse_undefined(what, active, "the stored value")
        lanes, address = _lanes(batch, active), read(batch)
        columns = [np.broadcast_to(one(batch), (batch.lanes,)) for one in reads]
        data = np.stack(columns, 1).view(np.uint8)
        if active is not None:
            address, data = address[lanes], data[lanes]
        if shared:
            batch.shared.store(lanes, address.astype(np.int64), data, batch.now)
        else:
            batch.memory.store(batch.program_of[lanes], address, data, batch.now)

    return step


@_makes("atom", "red")
def _atom(instruction: Instruction, kernel: Kernel) -> Step:
    parts = instruction.parts
    if "global" not in parts or set(parts[1:-2]) - {"global", "gpu", "sys", "acq_rel", "acquire", "release", "relaxed"}:
        raise Unknown("of another memory or kind")
    of, operation = type_of(parts[-1]), parts[-2]
    target, place, *operands = instruction.operands if parts[0] == "atom" else (None, *instruction.operands)
    read, reads = _address(place, 64, kernel), [_source(operand, of, kernel) for operand in operands]
    sources = _registers((place, *operands), kernel)
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
        for lane in batch.rng.permutation(_lanes(batch, active)):
            given = [number[lane : lane + 1] for number in numbers]
            at = int(address[lane])
            found[lane] = batch.memory.exchange(
                at, of.bits // 8, lambda old, given=given: encode(change(decode(old, of), *given), of)
            )
            batch.memory.order.synchronise(batch.program_of[lane], at, acquires, releases)
        if target is not None:
            batch.write(target, found, active)

    return step


@_makes("cp")
def _cp(instruction: Instruction, kernel: Kernel) -> Step:
    """cp.async: the bytes arrive when the thread has waited for them."""
    parts = instruction.parts
    if parts[:3] == ("cp", "async", "commit_group"):

        def commit(batch: Batch, active: Array | None) -> None:
            batch.committed[_lanes(batch, active)] += 1

        return commit
    if parts[:3] in (("cp", "async", "wait_group"), ("cp", "async", "wait_all")):
        left = int(instruction.operands[0], 0) if parts[2] == "wait_group" else 0

        def wait(batch: Batch, active: Array | None) -> None:
            kept = []
            for copy in batch.copies:
                waits = (
                    np.isin(copy.lanes, _lanes(batch, active)) if active is not None else np.ones(len(copy.lanes), bool)
                )
                done = waits & ((copy.group < batch.committed[copy.lanes] - left) | (parts[2] == "wait_all"))
                if done.any():
                    batch.shared.arrive(copy.lanes[done], copy.address[done], copy.width, batch.now)
                if not done.all():
                    rest = ~done
                    kept.append(_Copy(copy.lanes[rest], copy.address[rest], copy.width, copy.group[rest]))
            batch.copies = kept

        return wait
    if parts[1] != "async" or "shared" not in " ".join(parts) or parts[-1] != "global" or "mbarrier" in parts:
        raise Unknown("copy")
    to, of, width, *size = instruction.operands
    read_to, read_of, width = _address(to, 32, kernel), _address(of, 64, kernel), int(width, 0)
    read_size = _source(size[0], Type("u", 32), kernel) if size else None
    sources = _registers((to, of, *size), kernel)

    def step(batch: Batch, active: Array | None) -> None:
        batch.refuse_undefined(sources, active, "an asynchronous copy")
        lanes = _lanes(batch, active)
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
        batch.copies.append(_Copy(lanes, address, width, batch.committed[lanes].copy()))

    return step


@_makes("ldmatrix", "stmatrix")
def _matrix(instruction: Instruction, kernel: Kernel) -> Step:
    """8×8 matrices of 16 bits. Thread 8 j + r of a warp has the address of row r of matrix j. Each thread has two
    elements of each matrix: thread 4 r + c those of row r, columns 2 c and 2 c + 1."""
    parts = instruction.parts
    if "m8n8" not in parts or parts[-1] != "b16" or not _is_shared(instruction):
        raise Unknown("matrix")
    count, _ = _access(instruction)
    loads, transposed = parts[0] == "ldmatrix", "trans" in parts
    place, vector = reversed(instruction.operands) if loads else instruction.operands
    registers = _vector(vector)
    read, sources = _address(place, 32, kernel), _registers((place,), kernel)
    reads = [_source(register, Type("u", 32), kernel) for register in registers]

    def step(batch: Batch, active: Array | None) -> None:
        _refuse_part_of_a_warp(batch, active)
        lanes = _lanes(batch, active)
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


# ---- threads together -----------------------------------------------------------------------------------------------


def _refuse_part_of_a_warp(batch: Batch, active: Array | None) -> None:
    if active is not None:
        warps = active.reshape(-1, 32)
        if (warps.any(1) & ~warps.all(1)).any():
            raise Fault("threads of one warp work together, but some of them went another way")


@_makes("shfl")
def _shfl(instruction: Instruction, kernel: Kernel) -> Step:
    """Each thread reads a register of another thread of its warp."""
    if instruction.parts[1] != "sync" or instruction.parts[-1] != "b32":
        raise Unknown("shuffle")
    mode = instruction.parts[2]
    target, *valid = (part.strip() for part in instruction.operands[0].split("|"))
    operand = instruction.operands[1]
    of = Type("u", 32)
    read, read_b, read_c = (_source(one, of, kernel) for one in instruction.operands[1:4])
    whole = int(instruction.operands[4], 0) & 0xFFFFFFFF == 0xFFFFFFFF
    if mode not in ("bfly", "idx", "up", "down") or not whole:
        raise Unknown("shuffle of a part of a warp")

    def step(batch: Batch, active: Array | None) -> None:
        _refuse_part_of_a_warp(batch, active)
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


@_makes("bar", "barrier")
def _bar(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.parts[:3] == ("bar", "warp", "sync"):

        def warp_step(batch: Batch, active: Array | None) -> None:
            _refuse_part_of_a_warp(batch, active)
            batch.shared.warp_barrier[np.unique(_lanes(batch, active) // 32)] = batch.now

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


@_makes("fence", "membar", "griddepcontrol", "pragma", "nanosleep", "prefetch")
def _nothing(instruction: Instruction, kernel: Kernel) -> Step:
    """What only orders memory or gives hints. The order is that of barriers and of atomic operations."""
    return lambda batch, active: None


@_makes("bra")
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


@_makes("ret", "exit")
def _ret(instruction: Instruction, kernel: Kernel) -> Step:
    def step(batch: Batch, active: Array | None) -> Any:
        batch.alive[_lanes(batch, active)] = False
        return []

    return step
