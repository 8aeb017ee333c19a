"""What discriminators say about images: maps of their outputs, scores, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.floating]

_SURE = {"bce": np.log(19.0), "hinge": 1.0, "hinge_both": 1.0}
"""Distance of an output from the border between real and fake, from which the discriminator is sure. `bce`: the
probability is 0.95. `hinge`: the loss is 0."""
_LEAST_SQUARES_SURE = 0.4
"""The same for least squares, where the border is 1/2 and the targets are 0 and 1."""


def border(adversarial: str) -> float | None:
    """Return the output between real and fake. None for `wgan`, whose outputs have no such point."""
    return {"mse": 0.5, "wgan": None}.get(adversarial, 0.0)


@dataclass(frozen=True)
class Judgement:
    """What a discriminator says about one image. Larger is more real."""

    maps: tuple[Floats, ...]
    """The outputs with more than one place, each (h, w): the mean over an output's channels."""
    means: tuple[float, ...]
    """The mean of each output."""

    @property
    def score(self) -> float:
        """The mean over the outputs' means."""
        return float(np.mean(self.means))


def judgements(outputs: Sequence[Tensor]) -> list[Judgement]:
    """Return what the `outputs` of a discriminator, each (N, C, h, w), say about each of the N images."""
    means = [output.detach().float().cpu().mean(1).numpy() for output in outputs]
    return [
        Judgement(
            tuple(output[i] for output in means if output[i].size > 1),
            tuple(float(output[i].mean()) for output in means),
        )
        for i in range(len(means[0]))
    ]


def sure_and_right(outputs: Sequence[Tensor], real: bool, adversarial: str) -> float:
    """Return the share of places at which a discriminator is sure and right, averaged over its outputs.

    `outputs` are for images that are all `real`, or all translations. 0 for `wgan`.
    """
    middle = border(adversarial)
    if middle is None:
        return 0.0
    distance = _SURE.get(adversarial, _LEAST_SQUARES_SURE)
    sign = 1 if real else -1
    return float(np.mean([float((sign * (output.float() - middle) >= distance).float().mean()) for output in outputs]))


def separation(real: Sequence[float], fake: Sequence[float]) -> float:
    """Return the probability that a real image has a larger score than a translation, with half of the ties.

    This is the area under the ROC curve. 1/2: the discriminator cannot tell them apart. 1: it always can.
    """
    a, b = np.asarray(real)[:, None], np.asarray(fake)[None, :]
    return float((a > b).mean() + (a == b).mean() / 2)
