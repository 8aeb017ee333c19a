"""What a launch of the instance norm does, for `launch_model`: from its arguments and its machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vologan_kernels.layouts import View

from vologan_fast.profiling.compiled import Code
from vologan_fast.profiling.gpus import Gpu
from vologan_fast.profiling.launch_model import KEPT, Work, seconds
from vologan_fast.profiling.launches import Launch

READ, WRITTEN = ("x", "grad", "saved", "residual"), ("y", "dx", "d_residual")
"""Names of the kernels' arguments that are large tensors."""


def moved(launch: Launch) -> tuple[int, int]:
    """Bytes of the layer's tensors that a launch (reads, writes)."""
    return sum(_visited(launch, tensor) for tensor in READ), sum(_visited(launch, tensor) for tensor in WRITTEN)


def merged(launch: Launch) -> int:
    """Bytes of the parts' sums that a launch reads or writes."""
    arguments, name = launch.arguments, launch.kernel.__name__
    if name not in ("statistics_kernel", "apply_fwd_kernel", "sums_kernel", "apply_bwd_kernel"):
        return 0
    rows, splits, c = arguments.get("ROWS", 2), arguments["SPLITS"], arguments["C"]
    channels = c / -(-c // arguments["CHANNELS"])  # of a program, on average
    if name in ("statistics_kernel", "sums_kernel"):
        values = launch.programs * rows * channels
    else:  # every program merges the two rows of its planes
        values = launch.programs * 2 * splits * channels
    if name == "apply_bwd_kernel":  # the first programs add up all samples
        values += rows * arguments["parts"] * c
    return round(values) * 4


def work_of(launch: Launch, code: Code, gpu: Gpu) -> Work:
    """What a launch does on a GPU.

    The second launch walks backwards. So it begins with what the first launch read last. `KEPT` of L2 holds that many
    bytes.
    """
    arguments, name, count = launch.arguments, launch.kernel.__name__, code.count
    common: dict[str, Any] = {
        "programs": launch.programs,
        "resident": code.resident(gpu),
        "warps": code.warps,
        "outside": count.outside,
        "instructions_outside": count.instructions_outside,
        "merged": merged(launch) if name.startswith("apply") else 0,
        "ahead": count.ahead,
    }
    if "POSITIONS" not in arguments:  # it reads sums, and no tiles
        return Work(tiles=1, tile_bytes=0, in_flight=0, instructions=count.instructions, **common)
    read, written = moved(launch)
    tensors = [_tensor(arguments[tensor]) for tensor in READ if arguments.get(tensor) is not None]
    tile = tensors[0].element_size() * arguments["POSITIONS"] * arguments["CHANNELS"]
    again = 0
    if name.startswith("single"):
        tiles = 1
        if name == "single_fwd_kernel" and arguments["PAD"]:  # it reads the plane again, tile by tile
            height, width = _tensor(arguments["y"]).shape[2:]
            tiles = -(-height * width // arguments["POSITIONS"])
            again = launch.programs * tiles * tile
        else:
            tile *= len(tensors)
    else:
        tiles = _tiles(arguments, arguments.get("outputs_length", arguments["length"]))
        tile *= len(tensors)
        if name.startswith("persistent"):
            # Each program reads its part of a unit twice, for some units. It waits for the others once: later, they
            # read the next unit meanwhile.
            rounds = -(-arguments["units"] // (launch.programs // arguments["SPLITS"]))
            tiles = rounds * (tiles + _tiles(arguments, arguments["length"]))
            again = read
            common |= {"barriers": 1, "outside": 2.0 * rounds}
        if name.startswith("apply"):
            again = min(read, round(KEPT * gpu.l2))
            read -= again
    # A loop may be unrolled, so that a pass has several tiles. With a padding, loads for borders make a pass larger.
    border = "grad" in arguments and arguments["PAD"] > 0
    of_pass = 1.0 if border else max(1.0, count.bytes * code.threads / tile)
    return Work(
        tiles=tiles,
        tile_bytes=tile,
        in_flight=of_pass * tile / count.trips if count.trips else 0,
        instructions=count.instructions / of_pass,
        dram_read=read,
        l2_read=again,
        written=written,
        **common,
    )


def _tiles(arguments: dict[str, Any], positions: int) -> int:
    return int(-(-positions // arguments["POSITIONS"]))


def time_of(launches: list[Launch], compiled: Callable[[Launch, int], Code], gpu: Gpu) -> float:
    """Seconds of launches that follow each other. `compiled` compiles a launch for a generation."""
    return sum(seconds(work_of(launch, compiled(launch, gpu.generation), gpu), gpu) for launch in launches)


def _visited(launch: Launch, tensor: str) -> int:
    """Bytes of one tensor that a launch reads or writes."""
    arguments, name = launch.arguments, launch.kernel.__name__
    if arguments.get(tensor) is None:
        return 0
    value = _tensor(arguments[tensor])
    n, c, height, width = value.shape
    if tensor == "saved" and arguments["FROM_OUTPUT"]:  # its padding is passed over
        height, width = height - 2 * arguments["PAD"], width - 2 * arguments["PAD"]
    if tensor in ("x", "residual") and name == "apply_fwd_kernel":  # which walks over the padded output
        height, width = height + 2 * arguments["PAD"], width + 2 * arguments["PAD"]
    return int(n * c * height * width * value.element_size())


def _tensor(value: Any) -> Any:
    return value.pointer if isinstance(value, View) else value
