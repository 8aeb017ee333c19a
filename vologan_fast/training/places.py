"""Names of the places in a training step that a profiler can tell apart.

A training step enters the context `TrainingStep.around(name)` around each place. By default it is `recorded`, so any
trace of a run shows the places.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import record_function

STEP, WAIT = "vologan: step", "vologan: wait for data"
IN_GENERATORS, IN_DISCRIMINATORS = "vologan: generator", "vologan: discriminator"
OPTIMIZE_GENERATORS, OPTIMIZE_DISCRIMINATORS = "vologan: optimise generators", "vologan: optimise discriminators"
AVERAGE = "vologan: average generators"
IN_PROJECTOR, COMPARE = "vologan: projector", "vologan: contrastive loss"
AUGMENT, MIX, EXCHANGE = "vologan: DiffAugment", "vologan: CutMix", "vologan: image pool"

PHASE = "phase: "
"""Beginning of the names of the phases below. No two phases overlap, so memory can be measured for each."""
ADVERSARIAL = f"{PHASE}translation and its judgement"
RECONSTRUCTION = f"{PHASE}cycle and identity"
CYCLE = f"{PHASE}translation, cycle and identity"
CONTRAST = f"{PHASE}translation, its judgement and contrast"
DISCRIMINATION = f"{PHASE}discrimination"
PENALTY = f"{PHASE}gradient penalty"
ALL_GRADIENTS = f"{PHASE}all forwards and backwards"


def recorded(name: str) -> AbstractContextManager[Any]:
    """Return a context that records a place, if a profiler is running.

    Without a profiler there is nothing to record, and `record_function` alone took 2 % of a demo step on a CPU.
    """
    return record_function(name) if torch.autograd._profiler_enabled() else contextlib.nullcontext()
