"""What a thread of a compiled kernel has asked for before it waits: counted in SASS, the machine code of NVIDIA GPUs.

A thread issues its instructions in order. A load does not stop it, but the first instruction that needs the loaded
register does. `count` follows a thread with a clock whose unit is the latency of a load, a *round trip*:

- a load arrives one round trip after it was issued. An instruction that names one of its registers waits for it;
- an asynchronous copy to shared memory (LDGSTS) belongs to a group, which LDGDEPBAR closes. `DEPBAR.LE SB0, n` waits
  until at most n groups are on their way;
- all other instructions take no time.

*Tiles* are what a kernel reads of large tensors. The *main loop* is the innermost loop that reads most of them. It is
passed many times, so that loads for a later pass count. The bytes of a pass over its round trips are the bytes in
flight, by Little's law. A kernel without such a loop counts as one pass, from its first load of a tile to the last wait
for one.

The thread takes the usual path. It makes each load that has a condition. A branch with a condition is taken if it skips
loads, but not if it skips (a part of) the main loop: so the work for borders, which most tiles do not have, is left
out if it stands in a branch. If it has a condition only, it counts. Loops other than the main one are passed once.

Left out: loads that hit the L1 cache, and how many loads the hardware can have on their way.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

PASSES = 120
"""Passes of the main loop before the passes that are counted, and number of these. It is a multiple of the numbers of
tiles that a kernel may have on their way."""
_LINE = re.compile(
    r"//## File \"(?P<file>[^\"]+)\", line (?P<line>\d+)|^(?P<label>\.L\w+):"
    r"|/\*[0-9a-f]{4,}\*/\s+(?:@!?(?P<condition>U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);",
    re.MULTILINE,
)
_REGISTER = re.compile(r"(?<![A-Z])R(\d+)")
_LOADS = ("LDG", "LD", "ATOMG", "ATOM", "LDGSTS")
_STORES = ("STG", "STS", "ST")
_OTHER_LOADS = ("UBLKCP", "UTMALDG", "UTMAPF", "UTMACMDFLUSH", "TMALDG", "TEX", "TLD", "TLD4", "SULD")
Place = tuple[str, int]
"""The name of a source file, and a line."""


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: str
    conditional: bool = False
    label: str | None = None
    """The label at the instruction."""
    of_tile: bool = False
    """Whether it loads (a part of) a tile."""

    @cached_property
    def kind(self) -> str:
        return self.opcode.partition(".")[0]

    @cached_property
    def loads(self) -> bool:
        return self.kind in _LOADS

    @cached_property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        found = re.search(r"`\((\.L\w+)\)", self.operands)
        return found[1] if self.kind == "BRA" and found else None

    @cached_property
    def size(self) -> int:
        """Bytes that a thread loads or stores."""
        bits = re.search(r"\.[US]?(8|16|32|64|128|256)(?:\.|$)", self.opcode)
        return int(bits[1]) // 8 if bits else 4

    @cached_property
    def filled(self) -> set[int]:
        """The registers that a load fills. 32 bytes go to two groups of registers."""
        groups = self.operands.split(",")[: 2 if self.size == 32 else 1]
        words = max(1, self.size // 4 // len(groups))
        return {int(first) + i for group in groups for first in _REGISTER.findall(group) for i in range(words)}

    @cached_property
    def named(self) -> set[int]:
        """The registers that must have arrived before the instruction starts."""
        found = [int(number) for number in _REGISTER.findall(self.operands)]
        words = max(1, self.size // 4) if self.kind in _STORES and found else 1
        return {*found, *(found[-1] + i for i in range(words) if found)}


@dataclass(frozen=True)
class Count:
    """The loads of tiles in a pass, by one thread."""

    loads: int
    bytes: int
    trips: float
    """Round trips of a pass: how often the thread waits for a whole latency. It is less than 1 if loads are made
    ahead."""
    outside: float
    """Round trips besides those of the passes: before the first pass, and after the last."""
    instructions: int
    """All instructions of a pass."""
    instructions_outside: int
    """Instructions besides those of the passes."""
    ahead: bool
    """Whether loads for a later pass are on their way at the end of a pass."""

    @property
    def loads_in_flight(self) -> float:
        return self.loads / self.trips if self.trips else 0.0

    @property
    def bytes_in_flight(self) -> float:
        return self.bytes / self.trips if self.trips else 0.0


def disassembled(cubin: bytes) -> str:
    """The machine code in a cubin with the source lines, as nvdisasm prints it."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", "-g", file.name], capture_output=True, text=True, check=True).stdout


def instructions_of(text: str, tiles: Collection[Place]) -> list[Instruction]:
    """The instructions in a text of nvdisasm. `tiles` are the lines of the source that load tiles.

    Raises ValueError for an instruction that loads in a way that is not counted here, such as TMA.
    """
    found: list[Instruction] = []
    place, label = None, None
    for line in _LINE.finditer(text):
        if line["file"]:
            place = (Path(line["file"]).name, int(line["line"]))
        elif line["label"]:
            label = line["label"]
        else:
            made = Instruction(line["opcode"], line["operands"].strip(), bool(line["condition"]), label, place in tiles)
            if made.kind in _OTHER_LOADS:
                raise ValueError(f"{made.opcode} {made.operands}: loads of this kind are not counted")
            found.append(made)
            label = None
    return found


def count(text: str, tiles: Collection[Place]) -> Count:
    """Count the loads of tiles in a text of nvdisasm. `tiles` are the lines of the source that load tiles."""
    code = instructions_of(text, tiles)
    loop = _main_loop(code)
    if loop is None:
        path = list(_path(code, range(len(code)), None))
        clock = _Clock()
        clock.walk(path)
        trips = clock.last_wait_for_tile - clock.first_tile
        return _count(path, trips, clock.now - trips, 0, ahead=False)
    clock = _Clock()
    around = [list(_path(code, part, loop)) for part in (range(loop.start), range(loop.stop, len(code)))]
    clock.walk(around[0])
    path = list(_path(code, loop, loop))
    times = []
    for _ in range(2 * PASSES):
        clock.walk(path)
        times.append(clock.now)
    ahead = clock.on_their_way
    trips = (times[-1] - times[PASSES - 1]) / PASSES
    clock.walk(around[1])
    return _count(path, trips, max(0.0, clock.now - 2 * PASSES * trips), sum(map(len, around)), ahead)


def _count(path: list[Instruction], trips: float, outside: float, around: int, ahead: bool) -> Count:
    loads = [instruction for instruction in path if instruction.loads and instruction.of_tile]
    return Count(len(loads), sum(load.size for load in loads), trips, outside, len(path), around, ahead)


def _main_loop(code: list[Instruction]) -> range | None:
    """The instructions of the innermost loop that loads most of a tile."""
    labels = _labels(code)
    ends = [(labels[code[i].target or ""], i) for i in range(len(code)) if code[i].target in labels]
    loops = [range(first, last + 1) for first, last in ends if first < last and _is_loop(code, labels, first, last)]
    sizes = {loop: sum(code[i].size for i in loop if code[i].loads and code[i].of_tile) for loop in loops}
    loading = [loop for loop in loops if sizes[loop]]
    inner = [a for a in loading if not any(b != a and a.start <= b.start and b.stop <= a.stop for b in loading)]
    return max(inner, key=sizes.__getitem__, default=None)


def _labels(code: list[Instruction]) -> dict[str, int]:
    return {instruction.label: i for i, instruction in enumerate(code) if instruction.label}


def _is_loop(code: list[Instruction], labels: dict[str, int], first: int, last: int) -> bool:
    """Whether each way to the branch at `last` leads through its target `first`. Else it returns from a side path."""
    waiting, seen = [0], {first}
    while waiting:
        i = waiting.pop()
        if i in seen or i >= len(code):
            continue
        if i == last:
            return False
        seen.add(i)
        instruction = code[i]
        if instruction.target and instruction.target in labels:
            waiting.append(labels[instruction.target])
        if instruction.conditional or instruction.kind not in ("BRA", "EXIT", "RET"):
            waiting.append(i + 1)
    return True


def _path(code: list[Instruction], part: range, loop: range | None) -> Iterator[Instruction]:
    """The usual path of a thread through a part of the code."""
    labels = _labels(code)
    i = part.start
    while i < part.stop:
        instruction = code[i]
        yield instruction
        target = labels.get(instruction.target, -1) if instruction.target else -1
        if target > i and (not instruction.conditional or _is_detour(code, range(i + 1, target), loop)):
            i = target
        elif instruction.kind == "EXIT" and not instruction.conditional:
            return
        else:
            i += 1


def _is_detour(code: list[Instruction], skipped: range, loop: range | None) -> bool:
    """Whether a part has loads, and is neither around the main loop nor leads out of it."""
    if loop is None or not any(code[i].loads for i in skipped):
        return False
    return skipped.stop <= loop.start or skipped.start >= loop.stop or _holds(loop, skipped)


def _holds(loop: range, part: range) -> bool:
    return loop.start <= part.start and part.stop < loop.stop


class _Clock:
    """The time of a thread, in round trips."""

    def __init__(self) -> None:
        self.now = 0.0
        self.first_tile: float = 0.0
        """When the first load of a tile was made."""
        self.last_wait_for_tile: float = 0.0
        self._tiles_seen = False
        self._arrivals: dict[int, tuple[float, bool]] = {}
        """Register → when the load that fills it arrives, and whether it is of a tile."""
        self._open_group: float = 0.0
        """When the last copy of the open group arrives."""
        self._groups: list[float] = []

    @property
    def on_their_way(self) -> bool:
        return max([self._open_group, *self._groups, *(arrival for arrival, _ in self._arrivals.values())]) > self.now

    def walk(self, path: list[Instruction]) -> None:
        for instruction in path:
            self._wait_for(instruction)
            if not instruction.loads:
                if instruction.kind == "LDGDEPBAR":
                    self._groups.append(self._open_group)
                continue
            if instruction.of_tile and not self._tiles_seen:
                self.first_tile, self._tiles_seen = self.now, True
            if instruction.kind == "LDGSTS":
                self._open_group = self.now + 1
            else:
                self._arrivals |= dict.fromkeys(instruction.filled, (self.now + 1, instruction.of_tile))

    def _wait_for(self, instruction: Instruction) -> None:
        for register in instruction.named & self._arrivals.keys():
            arrival, of_tile = self._arrivals.pop(register)
            self.now = max(self.now, arrival)
            if of_tile:
                self.last_wait_for_tile = self.now
        if instruction.kind == "DEPBAR" and self._groups:
            kept = re.search(r"0x([0-9a-f]+)", instruction.operands)
            done = self._groups[: len(self._groups) - (int(kept[1], 16) if kept else 0)]
            self._groups = self._groups[len(done) :]
            self.now = max([self.now, *done])
            if done:
                self.last_wait_for_tile = self.now
