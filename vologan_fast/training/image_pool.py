"""A history of translations for a discriminator (Shrivastava et al., arXiv 1612.07828, as Zhu et al. use it).

Until the pool is full, it stores all translations, and the discriminator judges these. Then, for each new translation,
with probability 1/2, the discriminator judges a random one of the pool, which the new one replaces. Otherwise it
judges the new one, which is not stored.

Random choices depend on the samples' keys. A step reads the pool as the steps before have left it, and changes it only
at its end. So parts of a batch do not affect each other, and a step that starts again finds the same pool. With one
image per step, this is the algorithm of Zhu et al. In larger batches, theirs may also draw an image of the same batch.

All tensors stay on the device and keep their addresses, so a CUDA graph can capture the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vologan_fast.training.sample_random import POOL, uniform


@dataclass(frozen=True)
class _Exchange:
    """New images of one part of a batch, to be stored at the end of the step."""

    images: Tensor
    slots: Tensor  # (N,) int64: place of each in the pool
    stored: Tensor  # (N,) bool: whether it is stored there


class ImagePool:
    """A pool of at most `size` images of one shape. It returns images in the memory format `layout`."""

    def __init__(self, size: int, layout: torch.memory_format = torch.contiguous_format) -> None:
        self.size = size
        self.layout = layout
        self._images: Tensor | None = None  # (size, C, H, W), from the first step on
        self._count: Tensor | None = None  # how many of them are filled, a scalar int64
        self._exchanges: list[_Exchange] = []

    def exchange(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return images for the discriminator, each new or from the pool: (N, C, H, W), without a graph.

        `images` are the next translations of this step, and `keys` (N,) the keys of their samples. `store` ends the
        step.
        """
        images = images.detach()
        if self._images is None or self._count is None:
            self._images = images.new_zeros(self.size, *images.shape[1:])
            self._count = torch.zeros((), dtype=torch.int64, device=images.device)
        places = torch.arange(len(images), device=images.device) + sum(len(e.images) for e in self._exchanges)
        random = uniform(keys, POOL, 2)
        filling = self._count < self.size
        slots = torch.where(filling, (self._count + places) % self.size, (random[:, 0] * self.size).long())
        drawn = ~filling & (random[:, 1] < 0.5)
        self._exchanges.append(_Exchange(images, slots, filling | drawn))
        judged = torch.where(drawn.view(-1, 1, 1, 1), self._images.index_select(0, slots), images)
        return judged.contiguous(memory_format=self.layout)

    def store(self) -> None:
        """Store the translations of this step. If two have the same place, the later one stays."""
        for exchange in self._exchanges:
            assert self._images is not None and self._count is not None
            for image, slot, stored in zip(
                exchange.images.split(1), exchange.slots.split(1), exchange.stored.split(1), strict=True
            ):
                old = self._images.index_select(0, slot)
                self._images.index_copy_(0, slot, torch.where(stored.view(-1, 1, 1, 1), image, old))
            self._count.add_(len(exchange.images)).clamp_(max=self.size)
        self._exchanges.clear()

    def forget(self) -> None:
        """Forget the exchanges of a step that did not reach its end."""
        self._exchanges.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the filled part of the pool. It is empty before the first step."""
        if self._images is None or self._count is None:
            return {}
        return {"images": self._images[: int(self._count)].clone().cpu(), "count": self._count.clone().cpu()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` returned. Raises ValueError for too many images, and for what is no pool."""
        if not state:
            return
        images, count = state["images"].to(device), int(state["count"])
        if len(images) > self.size or len(images) != count:
            found = f"{len(images)}" + ("" if len(images) == count else f" and a count of {count}")
            raise ValueError(f"expected an image pool of at most {self.size} images, found {found}")
        if images.dim() != 4 or not images.is_floating_point() or not images.isfinite().all():
            raise ValueError(f"expected an image pool of finite images, found {images.dtype} {tuple(images.shape)}")
        self._images = images.new_zeros(self.size, *images.shape[1:])
        self._images[: len(images)] = images
        self._count = state["count"].clone().to(device)
