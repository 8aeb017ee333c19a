"""Check that the demo preset learns to translate: train it on the demo data, one run per seed, and score the results.

    python bench/learn.py [--seeds 5 6 7] [--folder DIR] [options of vologan_fast.train]

There are two scores, on images that were not used in training (vologan_fast/evaluation/distances.py has the formulas):

- Distribution: the sliced Wasserstein distance of translated synthetic images to held-out real images, separately for
  colour, depth and depth gradient.
- Accuracy: the error of translations of the paired test scenes against their denoised truth.

`GOALS` says by how much they must be smaller than those of the untranslated images, or of the best affine map per
channel. The default seeds are 5, 6 and 7, because no setting was ever tuned on them.

It prints a table for each seed, and the spread over the seeds. The exit code is 1 if a goal is missed. Runs and data
are kept in DIR and reused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

import vologan_fast
from vologan_fast.config import DOMAINS
from vologan_fast.data import Dataset, Record, held_out_batches, load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.evaluation.distances import best_affine, noise_floor, paired_error, sliced_wasserstein
from vologan_fast.training.run_folder import read_config

IMAGES, PAIRED, SIZE = 320, 64, 64
ASPECTS = ("colour", "depth", "depth_gradient")
GOALS: dict[str, tuple[float, float | None]] = {
    "colour": (-0.30, None),
    "depth": (-0.60, None),
    "depth_gradient": (-0.60, -0.80),
    "sum, against affine": (-0.20, -0.35),
    "paired error, against affine": (-0.10, None),
}
"""The largest allowed change (`changes`) of each seed, and of the mean of several seeds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7])
    parser.add_argument("--folder", type=Path, default=Path("runs/learn"))
    arguments, options = parser.parse_known_args()
    data = make_demo(arguments.folder / "data", count=IMAGES, size=SIZE, paired_test=PAIRED)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda seed: train(arguments.folder, data, seed, options), arguments.seeds))
    results = []
    for seed, run in zip(arguments.seeds, runs, strict=True):
        results.append(score(run))
        print(f"\nseed {seed}: {run}")
        print_score(results[-1])
    print_spread(results)
    processor_minutes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime / 60 / len(runs)
    print(f"{processor_minutes:.1f} minutes of processor time a seed")
    (arguments.folder / "learn.json").write_text(json.dumps(results, indent=2) + "\n")
    return 1 if missed(results) else 0


def train(folder: Path, data: Path, seed: int, options: list[str]) -> Path:
    """Train the demo preset in its own process, on one core, and return the run folder. Resume the run if it exists.

    The output of the process goes to seed-N.log beside the run folder.
    """
    run = folder / f"seed-{seed}"
    settings = ["--resume"] if run.exists() else ["--data", str(data), "--preset", "demo", "--train.seed", str(seed)]
    command = [sys.executable, "-m", "vologan_fast.train", "--run-dir", str(run), *settings, *options]
    print(f"training seed {seed}: {run}.log", flush=True)
    with Path(f"{run}.log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    return run


def score(run: Path) -> dict[str, dict[str, float]]:
    """Return distances and errors for the last checkpoint of a run: {name of the images: {aspect: number}}."""
    data, config = read_config(run / "config.json")
    dataset = load_dataset(data, config.data, config.train.seed)
    translate = torch.inference_mode()(vologan_fast.load(run))
    train_s, train_t = (load(dataset, domain, dataset.train[domain]) for domain in DOMAINS)
    synthetic, real = (load(dataset, domain) for domain in DOMAINS)
    affine = best_affine(train_s, train_t)
    result = {
        name: vars(sliced_wasserstein(images, real))
        for name, images in (("S", synthetic), ("affine(S)", affine(synthetic)), ("G(S)", translate(synthetic)))
    }
    result["noise floor"] = vars(noise_floor(real))
    paired_s, truth = (load(dataset, "synthetic", paired_records(Path(data), kind)) for kind in ("synthetic", "truth"))
    for name, images in (("S", paired_s), ("affine(S)", affine(paired_s)), ("G(S)", translate(paired_s))):
        result[name]["paired_error"] = paired_error(images, truth).total
    return result


def load(dataset: Dataset, domain: str, records: tuple[Record, ...] | None = None) -> Tensor:
    """Return the held-out images of a domain, or its `records`, as one tensor."""
    return torch.cat(list(held_out_batches(dataset, domain, 16, records=records)))


def paired_records(data: Path, kind: str) -> tuple[Record, ...]:
    """Return the images of `kind` ("synthetic", "real" or "truth") of the paired test scenes."""
    folder = data / "paired-test"
    scenes = json.loads((folder / "paired_paths.json").read_text())["paired_data"]
    return tuple(Record(folder / scene[kind]["color_path"], folder / scene[kind]["depth_path"]) for scene in scenes)


def changes(result: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the relative changes that the goals limit. They are negative if the translation is closer."""
    before, affine, after = result["S"], result["affine(S)"], result["G(S)"]
    found = {aspect: after[aspect] / before[aspect] - 1 for aspect in ASPECTS}
    found["sum, against affine"] = sum(after[a] for a in ASPECTS) / sum(affine[a] for a in ASPECTS) - 1
    found["paired error, against affine"] = after["paired_error"] / affine["paired_error"] - 1
    return found


def missed(results: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Return the names of the goals that one of the results misses, or their mean if there are several."""
    found = [changes(result) for result in results]
    names = []
    for name, (limit, limit_of_mean) in GOALS.items():
        values = [of_seed[name] for of_seed in found]
        names += [name] if max(values) > limit else []
        if limit_of_mean is not None and len(values) > 1 and statistics.mean(values) > limit_of_mean:
            names.append(f"mean of {name}")
    return names


def print_score(result: dict[str, dict[str, float]]) -> None:
    columns = (*ASPECTS, "paired_error")
    print(f"{'':12}" + "".join(f"{column:>16}" for column in columns))
    for name, row in result.items():
        print(f"{name:12}" + "".join(f"{row[c]:16.4f}" if c in row else f"{'':16}" for c in columns))
    print("  ".join(f"{name} {change:+.1%}" for name, change in changes(result).items()))
    print_goals([result])


def print_spread(results: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n{len(results)} seeds: mean, worst")
    for name in GOALS:
        values = [changes(result)[name] for result in results]
        print(f"  {name:30} {statistics.mean(values):+7.1%} {max(values):+7.1%}")
    print_goals(results)


def print_goals(results: Sequence[dict[str, dict[str, float]]]) -> None:
    names = missed(results)
    print(f"GOALS MISSED: {', '.join(names)}" if names else "goals met")


if __name__ == "__main__":
    sys.exit(main())
