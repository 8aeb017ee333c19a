"""How near the native instance norm comes to the rate at which a CPU copies memory.

    python bench/norm_cpu.py [--threads N …] [--turns N] [--json FILE]

The planes are larger than the second cache, so a norm reads its input twice. Bytes are counted per call:

- *issued*: all loads and stores of the tensors. A forward reads x twice and writes y: 3 tensors. A backward reads the
  kept tensor and the gradient twice and writes dx: 5 tensors.
- *required*: each tensor once. Forward 2 tensors, backward 3.

A share is the rate of these bytes over the rate of `Tensor.copy_` of a tensor of the same size, which reads it once and
writes it once. Copy and norm run in turn, and the times are lower quartiles. The norm has a leaky ReLU behind it, and
keeps its output, because it has no γ and β. Values are compared with the plain PyTorch form before anything is timed.
As in training, `malloc` keeps freed memory. Otherwise, the operating system would clear the pages of each large result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vologan_kernels import instance_norm_act

from vologan_fast.host import processor
from vologan_fast.training.allocator import keep_freed_memory

SHAPES = [(1, 32, 256, 256), (1, 64, 512, 512), (4, 64, 128, 128), (1, 256, 64, 64)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TENSORS = {"forward": (3, 2), "backward": (5, 3)}
"""Issued and required bytes of a call, in tensors."""


def calls(x: Tensor) -> dict[str, Callable[[], Any]]:
    """Return a copy, a forward and a backward of a tensor of x's shape."""
    kept = x.detach().requires_grad_()
    y = instance_norm_act(kept, activation="leaky_relu", negative_slope=0.2, impl="native")
    reference = instance_norm_act(x, activation="leaky_relu", negative_slope=0.2, impl="reference")
    torch.testing.assert_close(y.detach(), reference, rtol=2e-2, atol=2e-2)
    grad, target = torch.randn_like(y), torch.empty_like(x)
    return {
        "copy": lambda: target.copy_(x),
        "forward": lambda: instance_norm_act(x, activation="leaky_relu", negative_slope=0.2, impl="native"),
        "backward": lambda: torch.autograd.grad(y, kept, grad, retain_graph=True),
    }


def seconds(sides: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Return the lower quartile of each side's time. They run in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 2):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.quantiles(of_side, n=4)[0] for name, of_side in times.items()}


def measure(shape: Sequence[int], dtype: torch.dtype, layout: str, turns: int) -> dict[str, Any]:
    """Return a row of the table."""
    torch.manual_seed(0)
    x = torch.randn(*shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    found = seconds(calls(x), turns)
    rate = 2 * x.nbytes / found["copy"]
    row: dict[str, Any] = {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "copy_gb_s": rate / 1e9,
    }
    for side, (issued, required) in TENSORS.items():
        row[side] = {
            "ms": found[side] * 1e3,
            "issued": issued * x.nbytes / found[side] / rate,
            "required": required * x.nbytes / found[side] / rate,
        }
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--json", type=Path, help="file for all numbers")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{processor()}, torch {torch.__version__}, threads: {threads}; shares of a copy's rate\n")
        print("| x | type | layout | copy, GB/s | forward, ms | issued | required | backward, ms | issued | required |")
        print("|" + "---|" * 10)
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for layout in LAYOUTS:
                    row = measure(shape, dtype, layout, arguments.turns)
                    rows.append({"threads": threads, **row})
                    cells = [" × ".join(map(str, shape)), row["dtype"], layout, f"{row['copy_gb_s']:.1f}"]
                    for side in TENSORS:
                        found = row[side]
                        cells += [f"{found['ms']:.2f}", f"{found['issued']:.0%}", f"{found['required']:.0%}"]
                    print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
