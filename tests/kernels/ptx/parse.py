"""PTX text → instructions. PTX is the assembly language that Triton hands to NVIDIA's assembler.

The grammar is that of the PTX ISA, as far as Triton and LLVM write it: one entry function, without calls.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """@guard opcode operands;"""

    parts: tuple[str, ...]
    """The opcode, split at its dots: ("ld", "global", "v4", "b32")."""
    operands: tuple[str, ...]
    guard: str | None
    """A predicate: the threads in which it is false skip the instruction."""
    negated: bool
    text: str
    where: str
    """The place in the kernel's source, as file:line:column."""

    def __str__(self) -> str:
        return f"{self.text}  [{self.where}]" if self.where else self.text


@dataclass(eq=False)
class Kernel:
    """One entry function."""

    name: str
    parameters: list[tuple[str, int]]
    """Names and sizes in bytes, in order."""
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """The index of the instruction after each label."""
    widths: dict[str, int] = field(default_factory=dict)
    """Bits of the registers whose names start with this prefix. A predicate has 1."""
    shared: dict[str, int] = field(default_factory=dict)
    """Where each variable in shared memory starts."""

    @functools.cached_property
    def registers(self) -> set[str]:
        """The registers that any operand names."""
        words = " ".join(" ".join(instruction.operands) for instruction in self.code)
        found = set(words.translate(str.maketrans("{}[],+|!", "        ")).split())
        return {word for word in found if word.rstrip("0123456789") in self.widths}

    def width(self, register: str) -> int:
        """Bits of a register."""
        prefix = register.rstrip("0123456789")
        if prefix not in self.widths:
            raise ValueError(f"{self.name}: register {register} is not declared")
        return self.widths[prefix]


def parse(text: str) -> Kernel:
    """The only entry function of a PTX file. Raises ValueError if there is no such function, or a line is no PTX."""
    found = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)", text, re.DOTALL)
    if found is None:
        raise ValueError("the PTX has no .entry function")
    parameters = re.findall(r"\.param\s+\.[a-z](\d+)\s+[^,]*?([\w$]+)\s*(?:,|$)", found[2])
    kernel = Kernel(found[1], [(name, int(bits) // 8) for bits, name in parameters])
    for variable in re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text[: found.start()]):
        kernel.shared[variable] = 0  # the launch gives its size
    for statement, where in _statements(text[text.index("{", found.end()) :]):
        _add(kernel, statement, where)
    return kernel


def _statements(body: str) -> Iterator[tuple[str, str]]:
    """What stands between the braces of a function, cut at semicolons and colons of labels; with its place."""
    depth, statement, where = 0, "", ""
    for line in body.splitlines():
        if place := re.match(r"\s*\.loc\s.*?//\s*(\S+)", line):
            where = place[1]
            continue
        for character in line.split("//")[0]:
            if character == "{":
                depth += 1
                if not statement.strip():  # a scope, not a vector
                    continue
            elif character == "}":
                depth -= 1
                if not statement.strip():
                    if depth == 0:
                        return
                    continue
            elif character == ";" or (character == ":" and re.fullmatch(r"\s*[\w$]+", statement)):  # not shared::cta
                yield " ".join(statement.split()) + character.strip(";"), where
                statement = ""
                continue
            statement += character
        statement += " "
    raise ValueError("the function has no end")


def _add(kernel: Kernel, statement: str, where: str) -> None:
    if not statement:
        return
    if statement.endswith(":"):
        kernel.labels[statement[:-1]] = len(kernel.code)
    elif statement.startswith(".reg"):
        declared = re.fullmatch(r"\.reg \.(pred|[a-z]\d+) (.*)", statement)
        if declared is None:
            raise ValueError(f"{kernel.name}: cannot read {statement!r}")
        for name in declared[2].split(","):
            prefix = name.strip().split("<")[0].rstrip("0123456789")
            kernel.widths[prefix] = 1 if declared[1] == "pred" else int(declared[1][1:])
    elif not statement.startswith("."):
        found = re.fullmatch(r"(?:@(!?)([%\w$]+) )?([a-z][\w.:]*)\s*(.*)", statement)
        if found is None:
            raise ValueError(f"{kernel.name}: cannot read {statement!r}")
        parts = tuple(found[3].replace("::", "_").split("."))  # shared::cta, L1::evict_last
        kernel.code.append(Instruction(parts, _operands(found[4]), found[2], found[1] == "!", statement, where))


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are not inside braces or brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip())
