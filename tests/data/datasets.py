"""Small RGB-D data sets on disk, and the list of the loaders that are available here."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vologan_fast.config import DOMAINS

needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None,
    reason="DALI is not installed",
)
BACKENDS = ["torch", pytest.param("dali", marks=needs_dali)]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return a smooth colour image, different for each seed: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def surface(seed: int, height: int, width: int) -> np.ndarray:
    """Return depth in [-1, 1] with a background of -1 along the left edge: float32 (height, width)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    depth = np.sin(4 * x + rng.uniform(0, 6)) * np.cos(3 * y + rng.uniform(0, 6)) * 0.9
    depth[:, : width // 8] = -1
    return depth.astype(np.float32)


def write_image(
    folder: Path, name: str, color: np.ndarray, depth: np.ndarray, color_suffix: str = ".jpg"
) -> dict[str, str]:
    """Write folder/NAME.jpg and folder/NAME.npy. Returns the manifest's item, with names relative to the parent."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(color).save(folder / f"{name}{color_suffix}", quality=95)
    np.save(folder / f"{name}.npy", depth)
    return {
        "color_path": f"{folder.name}/{name}{color_suffix}",
        "depth_path": f"{folder.name}/{name}.npy",
    }


def write_manifest(root: Path, items: dict[str, list[dict[str, str]]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    manifest = {f"{domain}_data": items[domain] for domain in DOMAINS}
    (root / "training_paths.json").write_text(json.dumps(manifest))


MakeDataset = Callable[..., Path]
