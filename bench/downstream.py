"""Does a translation help the network that is trained on it? Refine depth, after training on four kinds of images.

    python bench/downstream.py [RUN] [--folder DIR] [--seeds 0 1 2] [--figure FILE]

RUN is a run folder of the demo preset. If it is missing, it is trained first, as bench/learn.py does it.

A small U-Net gets a sensor's RGB-D image and estimates the depth that a perfect sensor would have measured. It is
trained on images of N scenes, of one of these kinds:

    S        the rendered image itself
    noise(S) S seen through the parametric noise model of vologan_fast/evaluation/noise_model.py, with new noise in each
             step. The model is fitted to the training images of S and T, and then never changed.
    G(S)     S translated by the generator of RUN
    T        photographs by the simulated phone: the ceiling. This needs pairs, which nobody has for real sensors.

**The truth is the rendered depth**, the geometry of the scene before any sensor. For the first three kinds it is the
depth of S, from which the input was made. For T, scenes of the demo were both rendered and photographed
(`make_demo(paired_test=…)`). The phone's systematic errors are part of the task: the network must learn to undo them.

All networks are tested on photographs of further scenes. Nothing is chosen by the test set. Number of images, steps,
augmentation and the order of the images are the same for all kinds. Errors are over *surface* pixels, which are
foreground in the photograph and in the truth, in centimetres:

    error     mean absolute error (the headline)
    rmse      root of the mean squared error
    in 1 %    share of pixels with an error below 1 % of the true depth
    in 2 cm   share of pixels with an error below 2 cm
    holes     mean absolute error where the phone measured nothing
    edges     mean absolute error at most 2 pixels from the outline, or from a step of the true depth of 10 cm
    inside    mean absolute error elsewhere

Intervals hold 95 % of 2000 bootstrap samples, which draw test images and training seeds anew. Two kinds are compared
by the difference of their errors in the same samples.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from learn import IMAGES, PAIRED, SIZE, load, paired_records, train
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import vologan_fast
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.data.demo.scene import FAR, NEAR
from vologan_fast.data.pixels import NEAREST
from vologan_fast.evaluation.noise_model import fit_noise_model
from vologan_fast.training.run_folder import read_config

TEST, STEPS, BATCH, LEARNING_RATE = 128, 500, 8, 2e-3
BOOTSTRAP = 2000
CENTIMETRES = (FAR - NEAR) * 100
"""Centimetres in one unit of normalised depth."""
EDGE_STEP, EDGE_WIDTH = 0.1 / (FAR - NEAR), 2
KINDS = ("S", "noise(S)", "G(S)", "T")
SENSOR = "the sensor itself"
MEASURES = ("error", "rmse", "in 1 %", "in 2 cm", "holes", "edges", "inside")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/learn/seed-5"))
    parser.add_argument("--folder", type=Path, default=Path("runs/downstream"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="default: DIR/downstream.png")
    arguments = parser.parse_args()
    began = time.time()
    run = arguments.run if arguments.run.exists() else train_translator(arguments.run)
    torch.set_num_threads(1)  # several networks are trained at once
    images = Images(run, arguments.folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (kind, seed): pool.submit(train_refiner, images, kind, network(seed), seed)
            for seed in arguments.seeds
            for kind in KINDS
        }
        refiners = {job: future.result() for job, future in jobs.items()}
    sums = {SENSOR: np.stack([error_sums(images.test, images.truth, base(images.test))])}
    for kind in KINDS:
        estimates = [estimate(refiners[kind, seed], images.test) for seed in arguments.seeds]
        sums[kind] = np.stack([error_sums(images.test, images.truth, depth) for depth in estimates])
    result = judge(sums)
    result["settings"] = {
        "run": str(run),
        "seeds": arguments.seeds,
        "training images": len(images.clean),
        "test images": len(images.test),
        "steps": STEPS,
        "batch": BATCH,
        "noise model": images.noise.to_dict(),
    }
    (arguments.folder / "downstream.json").write_text(json.dumps(result, indent=2) + "\n")
    examples = {kind: estimate(refiners[kind, arguments.seeds[0]], images.test) for kind in KINDS}
    draw(arguments.figure or arguments.folder / "downstream.png", result, images, examples)
    print(table(result))
    print(f"{(time.time() - began) / 60:.1f} minutes")
    return 0


def train_translator(run: Path) -> Path:
    """Train the demo preset as bench/learn.py does, into the folder `run`, which is called seed-N."""
    name, _, seed = run.name.partition("-")
    if name != "seed" or not seed.isdigit():
        sys.exit(f"{run}: no such run; expected a run folder, or a name seed-N for a run that is trained now")
    data = make_demo(run.parent / "data", count=IMAGES, size=SIZE, paired_test=PAIRED)
    return train(run.parent, data, int(seed), [])


class Images:
    """The training images of all kinds and the test images, (N, 4, H, W) in [0, 1], and their truth (N, 1, H, W)."""

    def __init__(self, run: Path, folder: Path) -> None:
        data, config = read_config(run / "config.json")
        if config.data.channel_names != "rgbd":
            sys.exit(f"{run}: expected a run with --data.channels rgbd, found {config.data.channel_names}")
        dataset = load_dataset(data, config.data, config.train.seed)
        self.clean = load(dataset, "synthetic", dataset.train["synthetic"])
        unpaired_real = load(dataset, "real", dataset.train["real"])

        demo = json.loads((Path(data) / "demo.json").read_text())
        others = demo["seed"] + 1  # people that the translator never saw
        pairs = make_demo(folder / "pairs", 1, demo["size"], seed=others, paired_test=len(self.clean) + TEST)
        photographs = load(dataset, "real", paired_records(pairs, "real"))
        rendered = load(dataset, "synthetic", paired_records(pairs, "synthetic"))[:, 3:]
        self.photographs, self.test = photographs[:-TEST], photographs[-TEST:]
        self.photographed_depth, self.truth = rendered[:-TEST], rendered[-TEST:]

        self.noise = fit_noise_model(self.clean, unpaired_real)
        self.translated = translate(run, self.clean)

    def batch(self, kind: str, chosen: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return the sensor's images of a kind and the true depth, for some scenes. The seed makes the noise."""
        if kind == "T":
            return self.photographs[chosen], self.photographed_depth[chosen]
        clean = self.clean[chosen]
        if kind == "noise(S)":
            images = self.noise(clean, seed)
        elif kind == "G(S)":
            images = self.translated[chosen]
        else:
            images = clean
        return images, clean[:, 3:]


def translate(run: Path, images: Tensor) -> Tensor:
    """Translate (N, 4, H, W) images to T. Background stays 0, and a result without depth is a hole, as in files."""
    model = vologan_fast.load(run, device="cpu")
    result = torch.cat([model(part) for part in images.split(16)])
    result[:, 3:] *= result[:, 3:] >= NEAREST / 2
    return result * (images.amax(1, keepdim=True) > 0)


class Refiner(nn.Module):
    """A U-Net of three levels, which adds a correction to the measured depth. It has 118,000 parameters."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.outer = _convolutions(5, width)
        self.middle = _convolutions(width, 2 * width)
        self.inner = _convolutions(2 * width, 4 * width)
        self.middle_up = _convolutions(6 * width, 2 * width)
        self.outer_up = _convolutions(3 * width, width)
        self.correction = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.correction.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the estimated depth (N, 1, H, W) of RGB-D images (N, 4, H, W) in [0, 1]."""
        start = base(images)
        measured = (images[:, 3:] > 0).to(images)
        outer = self.outer(torch.cat([images[:, :3], start, measured], 1))
        middle = self.middle(functional.avg_pool2d(outer, 2))
        inner = self.inner(functional.avg_pool2d(middle, 2))
        middle = self.middle_up(torch.cat([middle, functional.interpolate(inner, scale_factor=2.0)], 1))
        outer = self.outer_up(torch.cat([outer, functional.interpolate(middle, scale_factor=2.0)], 1))
        correction: Tensor = self.correction(outer)
        return start + correction


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def base(images: Tensor) -> Tensor:
    """Return the measured depth, where holes and background hold the mean depth of their image."""
    depth = images[:, 3:]
    measured = depth > 0
    mean = depth.sum((1, 2, 3), keepdim=True) / measured.sum((1, 2, 3), keepdim=True).clamp_min(1)
    return torch.where(measured, depth, mean)


def surface(images: Tensor, truth: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool: the pixels that are foreground in the sensor's image and in the truth."""
    return (images.amax(1, keepdim=True) > 0) & (truth > 0)


def network(seed: int) -> Refiner:
    """Return a new network. The seed chooses its weights."""
    torch.manual_seed(seed)
    return Refiner()


def train_refiner(images: Images, kind: str, refiner: Refiner, seed: int) -> Refiner:
    """Train a network on one kind of images, and return it. All kinds see their images in the same order."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        chosen = torch.randint(len(images.clean), (BATCH,), generator=generator)
        flip = torch.rand((), generator=generator) < 0.5
        seen, truth = images.batch(kind, chosen, seed * STEPS + step)
        if flip:
            seen, truth = seen.flip(3), truth.flip(3)
        loss = (refiner(seen) - truth).abs()[surface(seen, truth)].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    print(f"trained on {kind}, seed {seed}: last loss {loss.item() * CENTIMETRES:.2f} cm", flush=True)
    return refiner.eval()


def estimate(refiner: Refiner, images: Tensor) -> Tensor:
    """Return the network's depth (N, 1, H, W)."""
    with torch.no_grad():
        return torch.cat([refiner(part) for part in images.split(32)])


def error_sums(images: Tensor, truth: Tensor, depth: Tensor) -> NDArray[np.float64]:
    """Return (8, 2, N): sum and number of pixels of each image, for the terms of MEASURES."""
    where = surface(images, truth)
    error = (depth.clamp(0, 1) - truth).abs() * CENTIMETRES
    metres = truth * (FAR - NEAR) + NEAR
    holes, edges = images[:, 3:] == 0, near_edges(truth)
    terms = (
        (error, where),
        (error**2, where),
        ((error < metres).float(), where),  # 1 % of a metre is 1 cm
        ((error < 2).float(), where),
        (error, where & holes),
        (error, where & edges),
        (error, where & ~edges),
    )
    return np.stack([[(value * at).sum((1, 2, 3)).numpy(), at.sum((1, 2, 3)).numpy()] for value, at in terms])


def near_edges(truth: Tensor) -> Tensor:
    """Return (N, 1, H, W) bool: True at most EDGE_WIDTH pixels from the outline or from a step of the depth."""
    farthest = functional.max_pool2d(torch.where(truth > 0, truth, torch.ones_like(truth)), 3, 1, 1)
    step = (farthest - truth > EDGE_STEP).float()
    return functional.max_pool2d(step, 2 * EDGE_WIDTH - 1, 1, EDGE_WIDTH - 1) > 0


def measure(sums: NDArray[np.float64], seeds: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the MEASURES (7,) of one kind over some seeds and test images. `sums` is (seeds, 7, 2, N)."""
    total = sums[seeds % len(sums)][..., images].sum((0, 3))
    found: NDArray[np.float64] = total[:, 0] / np.maximum(total[:, 1], 1)
    found[MEASURES.index("rmse")] **= 0.5
    return found


def judge(sums: dict[str, NDArray[np.float64]]) -> dict[str, object]:
    """Return the measures of each kind with their intervals, and the differences of the headline between kinds."""
    rng = np.random.default_rng(0)
    seeds, count = max(len(s) for s in sums.values()), next(iter(sums.values())).shape[-1]
    draws = [(rng.integers(seeds, size=seeds), rng.integers(count, size=count)) for _ in range(BOOTSTRAP)]
    samples = {kind: np.stack([measure(s, *draw) for draw in draws]) for kind, s in sums.items()}
    whole = np.arange(seeds), np.arange(count)
    result: dict[str, object] = {
        "measures": {
            kind: {
                name: [float(measure(s, *whole)[i]), *np.quantile(samples[kind][:, i], [0.025, 0.975]).tolist()]
                for i, name in enumerate(MEASURES)
            }
            for kind, s in sums.items()
        }
    }
    result["differences"] = {
        f"{a} - {b}": [
            float(measure(sums[a], *whole)[0] - measure(sums[b], *whole)[0]),
            *np.quantile(samples[a][:, 0] - samples[b][:, 0], [0.025, 0.975]).tolist(),
        ]
        for a, b in (("G(S)", "S"), ("G(S)", "noise(S)"), ("T", "G(S)"))
    }
    return result


def table(result: dict) -> str:  # type: ignore[type-arg]
    """Return the measures as a table in Markdown. Intervals stand in brackets."""
    lines = ["| trained on | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for kind, measures in result["measures"].items():
        cells = []
        for name in MEASURES:
            scale, digits = (100, 1) if name.startswith("in ") else (1, 2)
            value, low, high = (scale * x for x in measures[name])
            cells.append(f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", "| difference of the error | cm |", "|---|---|"]
    lines += [f"| {k} | {v:+.2f} ({low:+.2f} to {high:+.2f}) |" for k, (v, low, high) in result["differences"].items()]
    return "\n".join(lines)


def draw(path: Path, result: dict, images: Images, examples: dict[str, Tensor]) -> None:  # type: ignore[type-arg]
    """Draw the errors of all kinds, and the error pictures of one scene."""
    measures = result["measures"]
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    axes = above.subplots(1, 3)
    colours = dict(zip((SENSOR, *KINDS), ("0.75", "0.5", "tab:orange", "tab:blue", "tab:green"), strict=True))
    for axis, name in zip(axes, ("error", "inside", "edges"), strict=True):
        for place, (kind, colour) in enumerate(colours.items()):
            value, low, high = measures[kind][name]
            axis.barh(place, value, color=colour, xerr=[[value - low], [high - value]], capsize=3)
            axis.text(high, place, f" {value:.2f}", va="center")
        axis.set_yticks(range(len(colours)), list(colours) if axis is axes[0] else [""] * len(colours))
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title({"error": "all surface pixels", "inside": "inside", "edges": "near edges"}[name])
        axis.set_xlabel("mean absolute error, cm")
        axis.spines[["top", "right"]].set_visible(False)
    where = surface(images.test, images.truth)
    scene = int(where.sum((1, 2, 3)).argmax())
    errors = {SENSOR: base(images.test), **examples}
    axes = below.subplots(1, len(errors) + 1)
    axes[0].imshow(images.test[scene, :3].permute(1, 2, 0).numpy())
    axes[0].set_title("photograph", fontsize=9)
    for axis, (kind, depth) in zip(axes[1:], errors.items(), strict=True):
        error = (depth - images.truth)[scene, 0] * CENTIMETRES
        shown = axis.imshow(torch.where(where[scene, 0], error, torch.nan).numpy(), cmap="RdBu", vmin=-10, vmax=10)
        axis.set_title(kind, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    below.colorbar(shown, ax=axes, label="error, cm", shrink=0.9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
