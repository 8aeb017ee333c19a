"""The overlap of the principal components of two sets of RGB-D images.

The images are pooled to at most SIDE × SIDE pixels and flattened: 4 · SIDE² numbers each. Let U and V be orthonormal
bases of the first COMPONENTS principal components of two sets. The singular values of UᵀV are the cosines of the
principal angles between the two subspaces [Björck and Golub 1973, "Numerical methods for computing angles between
linear subspaces"]. The overlap is the mean of their squares,

    overlap = ‖UᵀV‖² / COMPONENTS

It is 1 if the sets vary in the same directions, and 0 if these are orthogonal. The VoloGAN paper (arXiv 2207.09204)
compares the pictures of such components by eye.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vologan_fast.evaluation.bootstrap import centring

COMPONENTS = 5
SIDE = 32


def flattened(images: Tensor) -> Tensor:
    """Return the images (N, 4, H, W), pooled and flattened: (N, D) float64."""
    images = images.float().cpu()
    if max(images.shape[2:]) > SIDE:
        images = functional.adaptive_avg_pool2d(images, SIDE)
    return images.flatten(1).double()


def overlap(a: Tensor, counts_a: Tensor, b: Tensor, counts_b: Tensor) -> Tensor:
    """Return the overlap for resamples of two sets: (B,), each in [0, 1].

    `a` (N, D) and `b` (M, D) are flattened images. `counts_a` (B, N) and `counts_b` (B, M) say how often each occurs.
    NaN if a resample has too few different images.
    """
    inner = a @ b.T
    of_a, of_b = _components(a @ a.T, counts_a), _components(b @ b.T, counts_b)
    return (of_a.mT @ inner @ of_b).square().sum((1, 2)) / COMPONENTS


def _components(gram: Tensor, counts: Tensor) -> Tensor:
    """Return (B, N, COMPONENTS): the coefficients of the images that give the orthonormal principal components.

    They are the eigenvectors of the inner products of the centred images, divided by the roots of the eigenvalues.
    """
    count, size = counts.shape
    if size <= COMPONENTS:
        return torch.full((count, size, COMPONENTS), torch.nan, dtype=torch.float64)
    rows = centring(counts)
    values, vectors = torch.linalg.eigh(rows @ gram @ rows.mT)
    values, vectors = values[:, -COMPONENTS:], vectors[:, :, -COMPONENTS:]
    usable = values[:, :1] > 1e-12 * values[:, -1:]
    return rows.mT @ (vectors / values.where(usable, torch.nan).sqrt()[:, None, :])
