"""The parts of a training step: by the names of operations, and by annotations for what has no name of its own."""

from __future__ import annotations

from vologan_fast.training.places import (
    AVERAGE,
    IN_DISCRIMINATORS,
    IN_GENERATORS,
    OPTIMIZE_DISCRIMINATORS,
    OPTIMIZE_GENERATORS,
    STEP,
    WAIT,
)

CONVOLUTIONS, NORMS, REST = "convolutions", "norms", "rest of the networks"
LOSSES, SPECTRAL_NORM, OPTIMIZERS = "losses", "spectral norm", "optimisers, averages"
DATA, OTHER, IDLE = "waiting for data", "other", "idle"
PARTS = (CONVOLUTIONS, NORMS, REST, LOSSES, SPECTRAL_NORM, OPTIMIZERS, DATA, OTHER)
"""Of a step, and on a GPU IDLE. There, DATA is the copies that the loader makes."""
GENERATORS, DISCRIMINATORS, NEITHER = "generators", "discriminators", "neither"

_NAMES = {
    "aten::conv": CONVOLUTIONS,
    "ConvolutionBackward": CONVOLUTIONS,
    "vologan_kernels::instance_norm_act": NORMS,
    "_NormAct": NORMS,
    "vologan_kernels::pixel_losses": LOSSES,
    "_PixelLosses": LOSSES,
    "vologan_kernels::adversarial_losses": LOSSES,
    "_AdversarialLosses": LOSSES,
    "vologan_kernels::spectral_": SPECTRAL_NORM,
    "_Normalise": SPECTRAL_NORM,
    "Optimizer.": OPTIMIZERS,
}
"""How the names of a part's operations, autograd functions and annotations begin."""

PLACES = {
    STEP: (OTHER, NEITHER),
    WAIT: (DATA, NEITHER),
    IN_GENERATORS: (REST, GENERATORS),
    IN_DISCRIMINATORS: (REST, DISCRIMINATORS),
    OPTIMIZE_GENERATORS: (OPTIMIZERS, GENERATORS),
    OPTIMIZE_DISCRIMINATORS: (OPTIMIZERS, DISCRIMINATORS),
    AVERAGE: (OPTIMIZERS, GENERATORS),
}
"""Annotations in the trace → part and network of what runs in them, unless its name says otherwise."""


def part_of(name: str) -> str | None:
    """The part that the name of an operation, autograd function or annotation belongs to, if it has one of its own."""
    return next((part for beginning, part in _NAMES.items() if name.startswith(beginning)), None)
