"""Projection of generator features for the contrastive loss of CUT (Park et al., arXiv 2007.15651).

Each level of features has an MLP of two layers. It maps the features at single positions to unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels.precision import to_accumulator

_GAIN = 0.02  # as in the authors' code; the length of the vectors has no influence


class PatchProjector(nn.Module):
    """Features at positions, one tensor (N, P, C) a level → unit vectors (N, P, width), float32."""

    def __init__(self, feature_widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width)) for channels in feature_widths
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight, _GAIN)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        projected = (level(values) for level, values in zip(self.levels, features, strict=True))
        return [F.normalize(to_accumulator(vectors), dim=-1) for vectors in projected]
