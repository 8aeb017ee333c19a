"""Static costs of each compiled Triton kernel, without a GPU: registers, stack, shared memory, width of tile loads.

    python bench/static_cost/static_cost.py [--write | --check]

Runs the launch code of representative layers on meta tensors, records the launches, compiles them for several GPU
generations, and prints a table. --write keeps the table as table.json beside this file. --check compares with it. It
ends with 1, and gives the reason, if a kernel uses the stack or more than 128 registers, or is worse than in
table.json. Needs Triton, not its interpreter.

`vector` is the narrowest load of a tile (`load_tile` in the kernels). 16 is the widest that a GPU has. It is 0
for kernels without such loads: those that merge, and the one that gathers kept images.

The columns after it say how far a kernel can hide the latency of memory. Those up to `in flight` are counted:

- `loads`, `bytes`: what a thread has in flight before it waits, on average (`vologan_fast.profiling.machine_code`);
- `resident`: programs that fit on a multiprocessor: registers, shared memory, threads, and the GPU's limit;
- `programs`: programs of the launch;
- `in flight`: bytes in flight on a multiprocessor;
- `share`: modelled, for norms: the time of the launch's bytes at the rate of a large copy, over the time that
  `vologan_fast.profiling.launch_model` gives it. More than 100 % means that bytes come from L2. The GPUs are A100
  (sm_80), H200 (sm_90), B200 (sm_100) and RTX 5090 (sm_120).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from vologan_kernels import NAdam, launch
from vologan_kernels.adversarial_loss import KINDS
from vologan_kernels.adversarial_loss import kernels as adversarial_loss
from vologan_kernels.instance_norm import kernels as instance_norm
from vologan_kernels.nadam import kernels as nadam
from vologan_kernels.pixel_loss import kernels as pixel_loss
from vologan_kernels.planned_triton import forget_plans
from vologan_kernels.pointer_table import PointerTable, Tables
from vologan_kernels.spectral_norm import kernels as spectral_norm

from vologan_fast.data.loaders import resident_triton
from vologan_fast.profiling.compiled import TILE_LOADS, code_of, compile_for
from vologan_fast.profiling.gpus import GPUS
from vologan_fast.profiling.launch_model import bytes_in_flight, moving, seconds
from vologan_fast.profiling.launches import Launch, recorded
from vologan_fast.profiling.norm_work import work_of

GPU_OF = {80: "A100", 90: "H200", 100: "B200", 120: "RTX 5090"}
"""Generation → the GPU that is modelled."""
ARCHITECTURES = tuple(GPU_OF)
SLACK = 8
"""Registers that may be added: a GPU allots them to a warp in steps of eight a thread."""
LEAST = 0.98
"""Share of the bytes in flight, or of the modelled speed, that must be left: rounding and a few instructions more are
no complaint."""
TABLE = Path(__file__).with_name("table.json")
PINNED_TRITON = (TABLE.parents[2] / "constraints.txt").read_text().partition("\ntriton==")[2].split()[0]
"""The version that made table.json. Another brings another ptxas, which allots other registers and may use the stack.
Then both are printed, but not judged."""


@dataclass(frozen=True)
class NormVariant:
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
    one_launch: bool = False

    def run(self) -> None:
        """A forward and a backward, on meta tensors."""
        with mock.patch.object(launch, "ONE_LAUNCH", self.one_launch):
            forget_plans()
            self._run()

    def _run(self) -> None:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        n, c, h, w = self.shape

        def image(grow: int = 0) -> torch.Tensor:
            shape = (n, c, h + grow, w + grow)
            return torch.empty(shape, dtype=self.dtype, device="meta").contiguous(memory_format=layout)

        parameter = torch.empty(c, device="meta")
        weight, bias = (parameter, parameter) if self.affine else (None, None)
        slopes = parameter if self.activation == "prelu" else None
        residual = image() if self.residual else None
        options: dict[str, Any] = {
            "activation": self.activation,
            "negative_slope": 0.3,
            "reflection_pad": self.pad,
            "min_scale": 2**-6 if self.affine else 0.0,
        }
        y, mean, rstd = instance_norm.forward(image(), weight, bias, slopes, residual, eps=1e-3, **options)
        instance_norm.backward(
            image(2 * self.pad),
            y if self.save_output else image(),
            mean,
            rstd,
            weight,
            bias,
            slopes,
            residual,
            from_output=self.save_output,
            **options,
        )


@dataclass(frozen=True)
class PixelVariant:
    """The pairs of a step: two cycles, two identities."""

    name: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    masked: bool = False
    of_targets: bool = False

    def run(self) -> None:
        """A forward and a backward, on meta tensors."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images = [torch.empty(self.shape, dtype=self.dtype, device="meta").contiguous(memory_format=layout)] * 4
        masks = [torch.empty(self.shape, dtype=torch.bool, device="meta")[:, :1].expand(self.shape)] * 4
        arguments = images, images, masks if self.masked else [], [1.0] * (4 * 3 * self.shape[1])
        loss, _, moments = pixel_loss.forward(*arguments, False)
        pixel_loss.backward(loss, *arguments, moments, False, self.of_targets)


@dataclass(frozen=True)
class LogitsVariant:
    """Both discriminators' outputs for a batch of real and of fake images."""

    name: str
    kind: str
    dtype: torch.dtype = torch.bfloat16

    def run(self) -> None:
        """A forward and a backward, on meta tensors."""
        shapes = [(1, 64, 512, 512), (1, 512, 1, 1), (1, 1, 64, 64)] * 4
        logits = [torch.empty(shape, dtype=self.dtype, device="meta") for shape in shapes]
        arguments = logits, [0, 0, 0, 1, 1, 1] * 2, [0.5] * len(logits), self.kind
        loss, _ = adversarial_loss.forward(*arguments)
        adversarial_loss.backward(loss, *arguments)


@dataclass(frozen=True)
class SpectralVariant:
    """Convolutions of `vologan-512`, normalised together."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    """The type of Ŵ and its gradient. The weights are float32."""

    def run(self) -> None:
        """A forward and a backward, on meta tensors."""
        shapes = [(64, 4, 7, 7), (128, 64, 3, 3), (512, 512, 3, 3), (512, 512, 1, 1), (1, 512, 3, 3)]
        weights = [torch.empty(shape, device="meta") for shape in shapes]
        us = [weight.new_empty(weight.shape[0]) for weight in weights]
        vs = [weight.new_empty(weight[0].numel()) for weight in weights]
        made = spectral_norm.forward(weights, us, vs, dtype=self.dtype, iterate=True)
        grads = [weight.to(self.dtype) for weight in weights]
        spectral_norm.backward(grads, range(len(weights)), *made, weights)


@dataclass(frozen=True)
class NAdamVariant:
    """Some parameters in one update."""

    name: str
    dtype: torch.dtype = torch.float32

    def run(self) -> None:
        """A step, on meta tensors."""
        parameters = [torch.nn.Parameter(torch.empty(size, dtype=self.dtype, device="meta")) for size in (64, 2**21)]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer = NAdam(parameters)
        for updates in optimizer._updates().values():
            nadam.update(updates, Tables(PointerTable(), PointerTable()))


@dataclass(frozen=True)
class ResidentVariant:
    """A batch from images that are kept decoded."""

    name: str
    depth: torch.dtype
    """The type in which depth is kept: uint16 codes, or float32."""
    dtype: torch.dtype = torch.float32

    def run(self) -> None:
        """A batch, on meta tensors."""
        color = torch.empty(64, 512, 512, 3, dtype=torch.uint8, device="meta")
        depth = torch.empty(64, 512, 512, dtype=self.depth, device="meta")
        levels = None if self.depth == torch.float32 else torch.empty(65536, device="meta")
        draws = torch.empty(8, 4, dtype=torch.int32, device="meta")
        batch = torch.empty(8, 512, 512, 4, dtype=self.dtype, device="meta")
        resident_triton.pack(color, depth, levels, draws, batch)


Variant = NormVariant | PixelVariant | LogitsVariant | SpectralVariant | NAdamVariant | ResidentVariant

VARIANTS = (
    NormVariant("512² × 64, bf16, pad 3, output saved", (1, 64, 512, 512), torch.bfloat16, pad=3, save_output=True),
    NormVariant("512² × 64, bf16, output saved", (1, 64, 512, 512), torch.bfloat16, save_output=True),
    NormVariant("256² × 128, bf16", (2, 128, 256, 256), torch.bfloat16),
    NormVariant("256² × 128, fp32", (2, 128, 256, 256), torch.float32),
    NormVariant(
        "256² × 64, bf16, relu, residual, pad 1", (1, 64, 256, 256), torch.bfloat16, True, "relu", False, 1, True
    ),
    NormVariant(
        *("512² × 64, bf16, output saved, one launch", (1, 64, 512, 512), torch.bfloat16),
        save_output=True,
        one_launch=True,
    ),
    NormVariant(
        *("256² × 128, bf16, gelu, pad 1, one launch", (2, 128, 256, 256), torch.bfloat16),
        activation="gelu",
        pad=1,
        one_launch=True,
    ),
    NormVariant("256² × 128, bf16, gelu", (2, 128, 256, 256), torch.bfloat16, activation="gelu"),
    NormVariant("256² × 128, bf16, prelu", (2, 128, 256, 256), torch.bfloat16, activation="prelu"),
    NormVariant("512² × 64, bf16, contiguous", (1, 64, 512, 512), torch.bfloat16, channels_last=False),
    NormVariant("512² × 64, fp32, contiguous", (1, 64, 512, 512), torch.float32, channels_last=False),
    NormVariant("128² × 256, bf16, contiguous", (1, 256, 128, 128), torch.bfloat16, channels_last=False),
    NormVariant("32² × 512, bf16, pad 1, output saved", (1, 512, 32, 32), torch.bfloat16, pad=1, save_output=True),
    NormVariant("32² × 512, fp32", (1, 512, 32, 32), torch.float32),
    NormVariant("16² × 512, bf16", (4, 512, 16, 16), torch.bfloat16),
    NormVariant("1² × 512, bf16", (1, 512, 1, 1), torch.bfloat16),  # H and W are compile-time constants
    PixelVariant("4 pairs 512² × 4, fp32", (1, 4, 512, 512)),
    PixelVariant("4 pairs 512² × 4, fp32, masked, both gradients", (1, 4, 512, 512), masked=True, of_targets=True),
    PixelVariant("4 pairs 512² × 4, bf16", (8, 4, 512, 512), torch.bfloat16),
    PixelVariant("4 pairs 512² × 3, fp32, contiguous", (1, 3, 512, 512), channels_last=False),
    *(LogitsVariant(f"12 outputs, bf16, {kind}", kind) for kind in KINDS),
    LogitsVariant("12 outputs, fp32, lsgan", "lsgan", torch.float32),
    SpectralVariant("5 convolutions, fp32 → bf16"),
    SpectralVariant("5 convolutions, fp32", torch.float32),
    NAdamVariant("fp32"),
    NAdamVariant("bf16", torch.bfloat16),
    ResidentVariant("8 × 512², codes → fp32", torch.uint16),
    ResidentVariant("8 × 512², codes → bf16", torch.uint16, torch.bfloat16),
    ResidentVariant("8 × 512², fp32", torch.float32),
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
    loads: float
    """Loads of tiles that a thread has in flight. The docstring of `profiling.machine_code` defines it."""
    bytes: float
    """Their bytes."""
    resident: int
    """Programs that fit on a multiprocessor."""
    programs: int
    """Programs of the launch."""
    in_flight: int
    """Bytes of tiles that a multiprocessor has in flight, without loads for borders."""
    share: float | None
    """The time of the launch's bytes at the rate of a large copy, over its modelled time. None: not modelled."""


def launches_of(variant: Variant) -> list[Launch]:
    """The first launch of each kernel."""
    with recorded() as launches:
        variant.run()
    return list({launch.kernel: launch for launch in reversed(launches)}.values())


LOADS = {function: max if function is nadam._update_block else min for function in TILE_LOADS}
"""The functions that load large tensors. For NAdam's the widest load counts: it serves whole blocks, and the rest of a
tensor with a mask that narrows the loads."""


def load_bytes(ptx: str) -> int:
    """The narrowest load of a large tensor, in bytes a thread."""
    files = {_tail(found[2]): found[1] for found in re.finditer(r"\.file\s+(\d+) \"([^\"]+)\"", ptx)}
    widths: dict[Any, list[int]] = {function: [] for function in LOADS}
    where = {}
    for function in LOADS:
        source, first = inspect.getsourcelines(function.fn)
        file = files.get(_tail(inspect.getsourcefile(function.fn)))
        where |= {(file, str(first + i)): function for i, text in enumerate(source) if "tl.load" in text}
    at, inline = None, False
    for text in ptx.splitlines():
        if "inline asm" in text:
            inline = "begin" in text
        elif inline and ".loc" in text:  # from Triton 3.8 on: the call's line, and one more for each line of assembly
            continue
        elif found := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", text):
            at = where.get((found[1], found[2]))
        elif at and (found := re.search(r"ld\.global(?:\.\w+(?:::\w+)?)*?(?:\.v(\d))?\.[bfu](\d+)", text)):
            widths[at].append(int(found[1] or 1) * int(found[2]) // 8)
    return min((LOADS[function](found) for function, found in widths.items() if found), default=0)


def _tail(path: str) -> tuple[str, ...]:
    """The folder and name of a file. The PTX may come from Triton's cache, and name the file in another checkout."""
    return Path(path).parts[-2:]


def rows_of(variant: Variant, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Row]:
    return [row_of(variant, launch, arch) for launch in launches_of(variant) for arch in architectures]


def row_of(variant: Variant, launch: Launch, arch: int) -> Row:
    made, gpu = compile_for(launch.kernel, launch.arguments, arch), GPUS[GPU_OF[arch]]
    code = code_of(made)
    if isinstance(variant, NormVariant):
        work = work_of(launch, code, gpu)
        in_flight, share = bytes_in_flight(work, gpu), round(moving(work, gpu) / seconds(work, gpu), 3)
    else:
        programs = min(code.resident(gpu), launch.programs / gpu.multiprocessors)
        in_flight, share = programs * code.threads * code.count.bytes_in_flight, None
    return Row(
        kernel=launch.kernel.__name__,
        variant=variant.name,
        arch=arch,
        registers=code.registers,
        stack=code.stack,
        shared=code.shared,
        vector_bytes=load_bytes(made.asm["ptx"]),
        loads=round(code.count.loads_in_flight, 2),
        bytes=round(code.count.bytes_in_flight, 1),
        resident=code.resident(gpu),
        programs=launch.programs,
        in_flight=round(in_flight),
        share=share,
    )


def table() -> Iterator[Row]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for rows in pool.map(rows_of, VARIANTS):
            yield from rows


def complaints(rows: list[Row], before: list[Row]) -> list[str]:
    """The faults of `rows`, and the places where they are worse than `before`."""
    kept = {(row.kernel, row.variant, row.arch): row for row in before}
    same_compiler = triton.__version__ == PINNED_TRITON
    found = []
    for row in rows:
        old = kept.pop((row.kernel, row.variant, row.arch), None)
        name = f"{row.kernel}, {row.variant}, sm_{row.arch}"
        if row.stack and same_compiler:
            found.append(f"{name}: {row.stack} bytes of stack, expected none")
        if row.registers > launch.MOST_REGISTERS:
            found.append(f"{name}: {row.registers} registers, expected at most {launch.MOST_REGISTERS}")
        if old is None:
            found.append(f"{name}: not in {TABLE.name}; write it anew")
            continue
        if row.registers > old.registers + SLACK and same_compiler:
            found.append(f"{name}: {row.registers} registers, {old.registers} in {TABLE.name}")
        if row.shared > old.shared:
            found.append(f"{name}: {row.shared} bytes of shared memory, {old.shared} in {TABLE.name}")
        if row.vector_bytes < old.vector_bytes:
            found.append(f"{name}: loads of {row.vector_bytes} bytes, {old.vector_bytes} in {TABLE.name}")
        if row.in_flight < LEAST * old.in_flight and same_compiler:
            found.append(
                f"{name}: {row.in_flight} bytes in flight on a multiprocessor, {old.in_flight} in {TABLE.name} "
                f"({row.bytes} a thread, {row.resident} programs fit, {row.programs} launched; "
                f"before {old.bytes}, {old.resident}, {old.programs})"
            )
        if (row.share or 0) < LEAST * (old.share or 0) and same_compiler:
            found.append(f"{name}: {row.share or 0:.1%} of the floor by the model, {old.share:.1%} in {TABLE.name}")
    found += [f"{', '.join(map(str, key))}: in {TABLE.name}, but no longer compiled" for key in kept]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="keep the table as table.json")
    action.add_argument("--check", action="store_true", help="compare with table.json")
    arguments = parser.parse_args()
    print(f"{'':72}{'a thread':>42}{'a multiprocessor':>24}")
    columns = ("sm", "registers", "stack", "shared", "vector", "loads", "bytes", "resident", "programs", "in flight")
    print(f"{'kernel':23} {'variant':44}", *(f"{name:>9}" for name in columns), f"{'share':>6}")
    rows = []
    for row in table():
        rows.append(row)
        numbers = row.arch, row.registers, row.stack, row.shared, row.vector_bytes, row.loads, row.bytes, row.resident
        share = "" if row.share is None else f"{row.share:.1%}"
        cells = (f"{number:9}" for number in (*numbers, row.programs, row.in_flight))
        print(f"{row.kernel:23} {row.variant:44}", *cells, f"{share:>6}", flush=True)
    if arguments.write:
        TABLE.write_text("[\n" + ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows) + "\n]\n")
    if arguments.check:
        found = complaints(rows, [Row(**row) for row in json.loads(TABLE.read_text())])
        print("\n".join(found), file=sys.stderr)
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
