"""The parts of a training step, by the names of operations, and by annotations for operations without such a name."""

from __future__ import annotations

from vologan_fast.training.places import (
    AUGMENT,
    AVERAGE,
    COMPARE,
    EXCHANGE,
    IN_DISCRIMINATORS,
    IN_GENERATORS,
    IN_PROJECTOR,
    MIX,
    OPTIMIZE_DISCRIMINATORS,
    OPTIMIZE_GENERATORS,
    STEP,
    WAIT,
)

CONVOLUTIONS, NORMS, REST = "convolutions", "norms", "rest of the networks"
LOSSES, SPECTRAL_NORM, OPTIMIZERS = "losses", "spectral norm", "optimisers, averages"
DATA, OTHER, IDLE = "waiting for data", "other", "idle"
PARTS = (CONVOLUTIONS, NORMS, REST, LOSSES, SPECTRAL_NORM, OPTIMIZERS, DATA, OTHER)
"""All parts of a step. On a GPU, IDLE is one more, and DATA holds the copies that the loader makes."""
PROJECTOR, CONTRAST, AUGMENTATION, MIXTURES, POOL = (
    "projector",
    "contrastive loss",
    "DiffAugment",
    "CutMix",
    "image pool",
)
OF_OPTIONS = (PROJECTOR, CONTRAST, AUGMENTATION, MIXTURES, POOL)
"""Parts that only some steps have. Their backwards belong to them, too."""
GENERATORS, DISCRIMINATORS, NEITHER = "generators", "discriminators", "neither"

NORM = "vologan_kernels::instance_norm_act"
"""Beginning of the names of the norm's operations."""

_NAMES = {
    "aten::conv": CONVOLUTIONS,
    "ConvolutionBackward": CONVOLUTIONS,
    NORM: NORMS,
    "_NormAct": NORMS,
    "vologan_kernels::pixel_losses": LOSSES,
    "_PixelLosses": LOSSES,
    "vologan_kernels::adversarial_losses": LOSSES,
    "_AdversarialLosses": LOSSES,
    "vologan_kernels::spectral_": SPECTRAL_NORM,
    "_Normalise": SPECTRAL_NORM,
    "Optimizer.": OPTIMIZERS,
}
"""Beginnings of the names of operations, autograd functions and annotations → their part."""

PLACES = {
    STEP: (OTHER, NEITHER),
    WAIT: (DATA, NEITHER),
    IN_GENERATORS: (REST, GENERATORS),
    IN_DISCRIMINATORS: (REST, DISCRIMINATORS),
    OPTIMIZE_GENERATORS: (OPTIMIZERS, GENERATORS),
    OPTIMIZE_DISCRIMINATORS: (OPTIMIZERS, DISCRIMINATORS),
    AVERAGE: (OPTIMIZERS, GENERATORS),
    IN_PROJECTOR: (PROJECTOR, GENERATORS),
    COMPARE: (CONTRAST, GENERATORS),
    AUGMENT: (AUGMENTATION, DISCRIMINATORS),
    MIX: (MIXTURES, DISCRIMINATORS),
    EXCHANGE: (POOL, DISCRIMINATORS),
}
"""Annotations in the trace → part and network of the operations inside, unless an operation's name gives its part."""


def part_of(name: str) -> str | None:
    """Return the part for the name of an operation, autograd function or annotation. None if the name decides none."""
    return next((part for beginning, part in _NAMES.items() if name.startswith(beginning)), None)
