"""All probes, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vologan_fast.diagnosis import fast_paths, machine, parts
from vologan_fast.diagnosis.finding import Finding


class Probe(NamedTuple):
    """A function that looks at one part, and the finding if it fails."""

    look: Callable[[Path], Iterator[Finding]]
    """Gets the folder for run folders."""
    group: str
    name: str
    advice: str = ""
    needed: bool = False


PROBES = {
    "versions": Probe(machine.versions, machine.VERSIONS, "packages"),
    "processor": Probe(machine.processors, machine.PROCESSOR, "processor"),
    "gpu": Probe(machine.gpus, machine.GPU, "GPU", "see that `python -c 'import torch'` works"),
    "decoder": Probe(parts.decoder, parts.PARTS, "depth decoder", parts.SET_UP, needed=True),
    "batches": Probe(parts.batches, parts.PARTS, "batches", parts.SET_UP, needed=True),
    "jpeg": Probe(parts.jpeg_loader, parts.PARTS, "JPEG loader", parts.SET_UP),
    "norm": Probe(parts.native_norm, parts.PARTS, "native norm", parts.SET_UP),
    "triton": Probe(parts.triton, parts.PARTS, "Triton", parts.TRITON_NEEDS),
    "dali": Probe(parts.dali, parts.PARTS, "DALI", "only a GPU needs it"),
    "norms and losses": Probe(fast_paths.norms_and_losses, fast_paths.FAST, "kernels"),
    "loading": Probe(fast_paths.loading, fast_paths.FAST, "loading"),
    "kept images": Probe(fast_paths.kept_images, fast_paths.FAST, "kept images"),
    "depth on the GPU": Probe(fast_paths.depth_on_the_gpu, fast_paths.FAST, "depth on the GPU"),
    "numerics": Probe(fast_paths.numerics, fast_paths.FAST, "precision"),
    "compiling": Probe(fast_paths.compiling, fast_paths.FAST, "torch.compile"),
    "writing": Probe(fast_paths.writing, fast_paths.FAST, "ISA-L"),
    "memory": Probe(machine.memory, machine.ROOM, "memory"),
    "run folders": Probe(machine.run_folders, machine.ROOM, "run folders", needed=True),
    "other folders": Probe(machine.other_folders, machine.ROOM, "other folders"),
    "training": Probe(parts.training, parts.TRAINING, "a step", "see the lines above that are broken", needed=True),
}
"""Name → probe."""
