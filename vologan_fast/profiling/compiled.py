"""Kernels compiled for a GPU generation as a launch would compile them. No GPU is needed, but Triton is."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vologan_kernels import tiles_triton
from vologan_kernels.nadam import kernels as nadam

from vologan_fast.profiling.gpus import Gpu
from vologan_fast.profiling.launches import Launch
from vologan_fast.profiling.machine_code import Count, Place, count, disassembled

TILE_LOADS = (tiles_triton.load_tile, tiles_triton.load_flat, nadam._update_block)
"""The functions that load large tensors."""
OPTIONS = "num_warps", "maxnreg", "launch_cooperative_grid"
"""Options of a launch that belong to the compiler."""
_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.uint16: "*u16",
}


@dataclass(frozen=True)
class Code:
    """What the compiler made of a kernel."""

    registers: int
    """Registers of a thread."""
    stack: int
    """Bytes of a thread's stack."""
    shared: int
    """Bytes of a program's shared memory."""
    warps: int
    """Warps of a program."""
    count: Count

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def resident(self, gpu: Gpu) -> int:
        """Programs that fit on a multiprocessor at once."""
        registers = -(-self.registers // 8) * 8 * self.threads
        shared = self.shared + 1024  # which the system takes
        return min(gpu.programs, gpu.threads // self.threads, gpu.registers // registers, gpu.shared // shared)


def compile_for(kernel: Any, arguments: dict[str, Any], generation: int) -> Any:
    """The kernel as Triton compiles it: specialised on 1, on multiples of 16, and on None.

    `generation` is 90 for sm_90. Tensors among the arguments may be on meta.
    """
    return triton.compile(
        ASTSource(kernel, *_specialised(kernel, arguments)),
        target=GPUTarget("cuda", generation, 32),
        options=_options(arguments),
    )


def _specialised(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """(signature, constants, attributes) of a launch, as `ASTSource` takes them."""
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def type_of(value: Any, path: tuple[int, ...], specialize: bool, constant: bool = False) -> Any:
        if isinstance(value, tuple):
            types = [type_of(item, (*path, i), specialize) for i, item in enumerate(value)]
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)  # a NamedTuple keeps its names
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return _POINTERS[value.dtype]
        if constant or value is None or (value == 1 and specialize):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if value % 16 == 0 and specialize:
            attributes[path] = [["tt.divisibility", 16]]
        return "i64" if value >= 2**31 else "i32"

    signature = {
        parameter.name: type_of(
            arguments[parameter.name], (i,), not parameter.do_not_specialize, parameter.is_constexpr
        )
        for i, parameter in enumerate(kernel.params)
    }
    return signature, constants, attributes


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in OPTIONS if name in arguments}


def code_of(made: Any) -> Code:
    """Count what a kernel from `compile_for` takes."""
    registers, stack = _resources(made.asm["cubin"])
    counted = count(disassembled(made.asm["cubin"]), tile_places())
    return Code(registers, stack, made.metadata.shared, made.metadata.num_warps, counted)


_COMPILED: dict[Any, Code] = {}


def compiled(launch: Launch, generation: int) -> Code:
    """Compile the kernel of a launch, and count what it takes. Launches that run the same code are compiled once."""
    key = repr((_specialised(launch.kernel, launch.arguments), _options(launch.arguments))), launch.kernel, generation
    if key not in _COMPILED:
        _COMPILED[key] = code_of(compile_for(launch.kernel, launch.arguments, generation))
    return _COMPILED[key]


@functools.cache
def tile_places() -> frozenset[Place]:
    """The lines of the source that load large tensors."""
    places = set()
    for function in TILE_LOADS:
        source, first = inspect.getsourcelines(function.fn)
        file = Path(inspect.getsourcefile(function.fn) or "").name
        places |= {(file, first + i) for i, text in enumerate(source) if "tl.load" in text}
    return frozenset(places)


def _resources(cubin: bytes) -> tuple[int, int]:
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
