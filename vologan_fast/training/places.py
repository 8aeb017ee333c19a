"""The places of a training step that a profiler can tell apart: the names of its annotations.

`TrainingStep.around` is entered around each of them. By default it is `torch.profiler.record_function`, so that any
trace of a run shows them.
"""

from __future__ import annotations

STEP, WAIT = "vologan: step", "vologan: wait for data"
IN_GENERATORS, IN_DISCRIMINATORS = "vologan: generator", "vologan: discriminator"
OPTIMIZE_GENERATORS, OPTIMIZE_DISCRIMINATORS = "vologan: optimise generators", "vologan: optimise discriminators"
AVERAGE = "vologan: average generators"

PHASE = "phase: "
"""How the names of the phases below begin. No two phases overlap, so memory can be told for each."""
ADVERSARIAL = f"{PHASE}translation and its judgement"
RECONSTRUCTION = f"{PHASE}cycle and identity"
CYCLE = f"{PHASE}translation, cycle and identity"
DISCRIMINATION = f"{PHASE}discrimination"
ALL_GRADIENTS = f"{PHASE}all forwards and backwards"
