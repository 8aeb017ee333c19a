"""What the compiler makes of each Triton kernel, without a GPU: registers, stack, shared memory, width of tile loads.

    python bench/static_cost/static_cost.py [--write | --check]

Compiles the launches that representative layers really make (the launch code runs on meta tensors and is recorded) for
several GPU generations, and prints a table. --write keeps it as table.json beside this file; --check ends with 1, and
says why, for a kernel that uses the stack or more than 128 registers, or that is worse than in table.json. Needs
Triton, not its interpreter.

`vector_bytes` is the narrowest load of a tile (`_load` in the kernels): 16 is the widest there is. The kernels that
merge have no such loads: 0.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from launches import Launch, recorded
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vologan_kernels import instance_norm_triton
from vologan_kernels.launch import MOST_REGISTERS

ARCHITECTURES = (80, 90, 100, 120)
SLACK = 8
"""Registers that another version of the compiler may add."""
TABLE = Path(__file__).with_name("table.json")


@dataclass(frozen=True)
class Variant:
    """A layer: its tensor and the options of its norm."""

    name: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    channels_last: bool = True
    activation: str = "leaky_relu"
    affine: bool = True
    pad: int = 0
    residual: bool = False
    save_output: bool = False


VARIANTS = (
    Variant("512² × 64, bf16, pad 3, output saved", (1, 64, 512, 512), torch.bfloat16, pad=3, save_output=True),
    Variant("512² × 64, bf16, output saved", (1, 64, 512, 512), torch.bfloat16, save_output=True),
    Variant("256² × 128, bf16", (2, 128, 256, 256), torch.bfloat16),
    Variant("256² × 128, fp32", (2, 128, 256, 256), torch.float32),
    Variant("256² × 64, bf16, relu, residual, pad 1", (1, 64, 256, 256), torch.bfloat16, True, "relu", False, 1, True),
    Variant("256² × 128, bf16, gelu", (2, 128, 256, 256), torch.bfloat16, activation="gelu"),
    Variant("256² × 128, bf16, prelu", (2, 128, 256, 256), torch.bfloat16, activation="prelu"),
    Variant("512² × 64, bf16, contiguous", (1, 64, 512, 512), torch.bfloat16, channels_last=False),
    Variant("512² × 64, fp32, contiguous", (1, 64, 512, 512), torch.float32, channels_last=False),
    Variant("128² × 256, bf16, contiguous", (1, 256, 128, 128), torch.bfloat16, channels_last=False),
    Variant("32² × 512, bf16, pad 1, output saved", (1, 512, 32, 32), torch.bfloat16, pad=1, save_output=True),
    Variant("32² × 512, fp32", (1, 512, 32, 32), torch.float32),
    Variant("16² × 512, bf16", (4, 512, 16, 16), torch.bfloat16),
)


@dataclass(frozen=True)
class Row:
    kernel: str
    variant: str
    arch: int
    registers: int
    stack: int
    shared: int
    vector_bytes: int


def launches_of(variant: Variant) -> list[Launch]:
    """The first launch of each kernel in a forward and a backward."""
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    n, c, h, w = variant.shape

    def image(grow: int = 0) -> torch.Tensor:
        shape = (n, c, h + grow, w + grow)
        return torch.empty(shape, dtype=variant.dtype, device="meta").contiguous(memory_format=layout)

    parameter = torch.empty(c, device="meta")
    weight, bias = (parameter, parameter) if variant.affine else (None, None)
    slopes = parameter if variant.activation == "prelu" else None
    residual = image() if variant.residual else None
    options: dict[str, Any] = {
        "activation": variant.activation,
        "negative_slope": 0.3,
        "reflection_pad": variant.pad,
        "min_scale": 2**-6 if variant.affine else 0.0,
    }
    with recorded() as launches:
        y, mean, rstd = instance_norm_triton.forward(image(), weight, bias, slopes, residual, eps=1e-3, **options)
        instance_norm_triton.backward(
            image(2 * variant.pad),
            y if variant.save_output else image(),
            mean,
            rstd,
            weight,
            bias,
            slopes,
            residual,
            from_output=variant.save_output,
            **options,
        )
    return list({launch.kernel: launch for launch in reversed(launches)}.values())


_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}


def compile_for(kernel: Any, arguments: dict[str, Any], arch: int) -> Any:
    """Compiled as a launch would: specialised on 1, on multiples of 16, on None."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        else:
            signature[parameter.name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={name: arguments[name] for name in ("num_warps", "maxnreg") if name in arguments},
    )


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack) of the only function in a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump did not say what the kernel uses: {said.stdout}")
    return int(found[1]), int(found[2])


def tile_load_bytes(ptx: str) -> int:
    """The narrowest global load that comes from `_load`, in bytes a thread."""
    source, first = inspect.getsourcelines(instance_norm_triton._load.fn)
    line = next(first + i for i, text in enumerate(source) if "tl.load" in text)
    widths, at = [], 0
    for text in ptx.splitlines():
        if found := re.match(r"\s*\.loc\s+\d+\s+(\d+)", text):
            at = int(found[1])
        elif at == line and (found := re.search(r"ld\.global(?:\.\w+(?:::\w+)?)*?(?:\.v(\d))?\.[bfu](\d+)", text)):
            widths.append(int(found[1] or 1) * int(found[2]) // 8)
    return min(widths, default=0)


def rows_of(variant: Variant, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    rows = []
    for launch in launches_of(variant):
        for arch in architectures:
            made = compile_for(launch.kernel, launch.arguments, arch)
            registers, stack = resources(made.asm["cubin"])
            width = tile_load_bytes(made.asm["ptx"])
            rows.append(Row(launch.kernel.__name__, variant.name, arch, registers, stack, made.metadata.shared, width))
    return rows


def table() -> Iterator[Row]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for rows in pool.map(rows_of, VARIANTS):
            yield from rows


def complaints(rows: list[Row], before: list[Row]) -> list[str]:
    """What is wrong with `rows`, and where they are worse than `before`."""
    kept = {(row.kernel, row.variant, row.arch): row for row in before}
    found = []
    for row in rows:
        old = kept.pop((row.kernel, row.variant, row.arch), None)
        name = f"{row.kernel}, {row.variant}, sm_{row.arch}"
        if row.stack:
            found.append(f"{name}: {row.stack} bytes of stack, expected none")
        if row.registers > MOST_REGISTERS:
            found.append(f"{name}: {row.registers} registers, expected at most {MOST_REGISTERS}")
        if old is None:
            found.append(f"{name}: not in {TABLE.name}; write it anew")
            continue
        if row.registers > old.registers + SLACK:
            found.append(f"{name}: {row.registers} registers, {old.registers} in {TABLE.name}")
        if row.shared > old.shared:
            found.append(f"{name}: {row.shared} bytes of shared memory, {old.shared} in {TABLE.name}")
        if row.vector_bytes < old.vector_bytes:
            found.append(f"{name}: loads of {row.vector_bytes} bytes, {old.vector_bytes} in {TABLE.name}")
    found += [f"{', '.join(map(str, key))}: in {TABLE.name}, but no longer compiled" for key in kept]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="keep the table as table.json")
    action.add_argument("--check", action="store_true", help="compare with table.json")
    arguments = parser.parse_args()
    print(f"{'kernel':23} {'variant':42} {'sm':>4} {'registers':>9} {'stack':>5} {'shared':>6} {'vector':>6}")
    rows = []
    for row in table():
        rows.append(row)
        print(
            f"{row.kernel:23} {row.variant:42} {row.arch:4} {row.registers:9} {row.stack:5} {row.shared:6} "
            f"{row.vector_bytes:6}",
            flush=True,
        )
    if arguments.write:
        TABLE.write_text("[\n" + ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows) + "\n]\n")
    if arguments.check:
        found = complaints(rows, [Row(**row) for row in json.loads(TABLE.read_text())])
        print("\n".join(found), file=sys.stderr)
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
