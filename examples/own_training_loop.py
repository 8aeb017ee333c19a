"""Train your own network on a data set of RGB-D images: predict depth from colour.

    python -m vologan_fast.data demo DATA --count 64 --size 64
    python examples/own_training_loop.py DATA

This loop learns from the domain `synthetic` and tests on the held-out images of both. See docs/loading.md.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from vologan_kernels import InstanceNormAct2d, weighted_l1

from vologan_fast.config import DOMAINS, DataConfig
from vologan_fast.data import Dataset, held_out_batches, load_dataset, open_loader


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean absolute error where the depth is known: 0 means background or not measured."""
    return weighted_l1(model(batch[:, :3]), batch[:, 3:], mask=batch[:, 3:] > 0)


@torch.no_grad()
def held_out_loss(model: nn.Module, dataset: Dataset, domain: str) -> float:
    """Mean loss over the domain's held-out images, one after the other and without augmentation."""
    losses = [loss_of(model, image).item() for image in held_out_batches(dataset, domain, batch=1)]
    return sum(losses) / len(losses)


def main(folder: Path, size: int, steps: int) -> None:
    torch.manual_seed(0)
    dataset = load_dataset(folder, DataConfig(size=size), seed=0)
    model = nn.Sequential(  # colour (N, 3, S, S) to depth (N, 1, S, S) in [0, 1]
        nn.Conv2d(3, 16, 5, padding=2, bias=False),
        InstanceNormAct2d(16, activation="relu"),
        nn.Conv2d(16, 1, 5, padding=2),
        nn.Sigmoid(),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with open_loader(dataset, batch=4) as loader:
        print(*dataset.describe(), f"loader: {loader.describe()}", sep="\n")
        for step, (synthetic, _) in zip(range(steps), loader, strict=False):
            loss = loss_of(model, synthetic)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step}: loss {loss.item():.4f}")
        print(f"to continue, load {loader.state_dict()} into a loader with the same seed")
    for domain in DOMAINS:
        print(f"held-out {domain}: loss {held_out_loss(model, dataset, domain):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    main(**vars(parser.parse_args()))
