"""KID and FID: distances of the features that an Inception network finds in colour and in depth.

The network comes from torch-fidelity, and its weights from a file. Nothing is downloaded. The published numbers use
torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. Depth is shown to the network as a grey image.

    KID = mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y)        k(a, b) = (a·b / D + 1)³, x ≠ x′, y ≠ y′
    FID = ‖μ_x − μ_y‖² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½)

[KID: Bińkowski et al. 2018, "Demystifying MMD GANs"; FID: Heusel et al. 2017, "GANs trained by a two time-scale update
rule"]. KID has no bias. FID has a bias that falls with the number of images, so compare it at equal numbers only.
torch-fidelity computes the same numbers, but without intervals, and its FID takes many seconds. With centred features A
and B as rows, Σ_x = AᵀA and Σ_y = BᵀB, the trace of (Σ_x Σ_y)^½ is the sum of the singular values of ABᵀ, which is
small.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vologan_fast.config import CHANNELS, Channels, ConfigError
from vologan_fast.evaluation.bootstrap import centring
from vologan_fast.evaluation.judge import Family

_BATCH = 16

Looked = tuple[Tensor, ...]
"""The features of colour, and of depth if the images have any: (N, 2048) float64 each."""


class Features(Family):
    """KID and FID of colour and, if there is any, of depth, with the weights in a file.

    Raises ConfigError if torch-fidelity is not installed, for a file that is missing or not of this network, and for
    images without three channels of colour, for which the network was trained.
    """

    def __init__(self, weights: Path, device: torch.device, channels: Channels = CHANNELS["rgbd"]) -> None:
        if channels.color != 3:
            found = ", ".join(channels.names)
            raise ConfigError(f"--features {weights}: expected translations with red, green and blue, found {found}")
        self.names = ("KID colour", "FID colour", *(("KID depth", "FID depth") if channels.depth else ()))
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except Exception as error:  # its torchvision raises RuntimeError if it was built for another torch
            raise ConfigError(
                f"--features needs torch-fidelity, and torchvision of this torch ({' '.join(str(error).split())}): "
                "pip install 'vologan-fast[fidelity]'"
            ) from None
        if not weights.is_file():
            raise ConfigError(f"--features {weights}: no such file; expected the weights of torch-fidelity's Inception")
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run code in the file
            self._network = FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # torch.load raises a dozen types for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--features {weights}: expected the weights of torch-fidelity's Inception; {reason}"
            ) from None
        self._device = device
        self._network.to(device)

    def look(self, images: Tensor, names: object) -> Looked:
        levels = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        parts = [levels[:, :3], levels[:, 3:].expand(-1, 3, -1, -1)][: len(self.names) // 2]
        return tuple(map(self._features, parts))

    def _features(self, levels: Tensor) -> Tensor:
        with torch.inference_mode():
            found = [self._network(part.contiguous().to(self._device))[0].cpu() for part in levels.split(_BATCH)]
        return torch.cat(found).double().clone()

    def count(self, looked: Looked) -> int:
        return len(looked[0])

    def resample(self, looked: Looked, counts: Tensor) -> tuple[Looked, Tensor]:
        return looked, counts

    def distances(self, x: tuple[Looked, Tensor], t: tuple[Looked, Tensor]) -> Tensor:
        found = []
        for of_x, of_t in zip(x[0], t[0], strict=True):
            found += [kid(of_x, x[1], of_t, t[1]), fid(of_x, x[1], of_t, t[1])]
        return torch.stack(found, 1)

    def floor(self, t: Looked, halves: Tensor) -> tuple[Tensor, Tensor]:
        return halves.square().mean(0).sqrt() / 2, halves / 2

    def centred(self, replicates: Tensor, whole: Tensor) -> Tensor:
        return replicates - replicates.mean(0) + whole


def kid(x: Tensor, counts_x: Tensor, y: Tensor, counts_y: Tensor) -> Tensor:
    """Return KID for resamples (B,) of features (N, D) and (M, D), with counts (B, N) and (B, M)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(of: Tensor, counts: Tensor) -> Tensor:
        k, n = kernel(of, of), counts.sum(1)
        return (((counts @ k) * counts).sum(1) - counts @ k.diagonal()) / (n * (n - 1))

    between = ((counts_x @ kernel(x, y)) * counts_y).sum(1) / (counts_x.sum(1) * counts_y.sum(1))
    return within(x, counts_x) + within(y, counts_y) - 2 * between


def fid(x: Tensor, counts_x: Tensor, y: Tensor, counts_y: Tensor) -> Tensor:
    """Return FID for resamples (B,) of features (N, D) and (M, D), with counts (B, N) and (B, M)."""
    xx, xy, yy = x @ x.T, x @ y.T, y @ y.T
    p, q = (counts / counts.sum(1, keepdim=True) for counts in (counts_x, counts_y))
    means = ((p @ xx) * p).sum(1) + ((q @ yy) * q).sum(1) - 2 * ((p @ xy) * q).sum(1)
    a, b = (centring(counts) / (counts.sum(1) - 1).sqrt()[:, None, None] for counts in (counts_x, counts_y))
    traces = sum((rows @ gram @ rows.mT).diagonal(dim1=1, dim2=2).sum(1) for rows, gram in ((a, xx), (b, yy)))
    return means + traces - 2 * torch.linalg.svdvals(a @ xy @ b.mT).sum(1)
