"""Code that the commands share: choose the starting settings, the device and the demo data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from vologan_fast.config import PRESETS, Config, ConfigError
from vologan_fast.files import cache_folder

_DEMO_IMAGES = 256  # demo images per domain, for sizes up to _SMALL, where rendering takes seconds
_SMALL = 128
_LARGE_DEMO_IMAGES = 64


@dataclass(frozen=True)
class StartingPoint:
    """The settings before the command line's options change them, and their origin."""

    settings: Config
    preset: str | None = None
    """Name of the preset. None for recorded settings."""
    data: str | None = None
    """Data set that was recorded with the settings. None for a preset."""


def first_parser() -> argparse.ArgumentParser:
    """Return a parser for the arguments that choose the starting point.

    The command line is parsed twice, because one of its arguments chooses the settings that the others change.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--device", default="auto")
    return parser


def starting_point(preset: str | None, recorded: Path | None, device: str) -> StartingPoint:
    """Return the settings in the `config.json` at `recorded`, or the settings of a preset.

    Without both, the preset is vologan-512 on a GPU, else demo. Raises ConfigError for an unknown preset, for both
    arguments at once, and for a file that cannot be read.
    """
    if preset and recorded:
        raise ConfigError("--preset and --config: expected one of them, as what the settings start from")
    if recorded is not None:
        from vologan_fast.training.run_folder import read_config

        data, settings = read_config(recorded)
        return StartingPoint(settings, data=data)
    preset = preset or ("vologan-512" if chosen_device(device).type == "cuda" else "demo")
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    return StartingPoint(PRESETS[preset], preset=preset)


def chosen_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda". Raises ConfigError for "cuda" without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; expected one, or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def demo_data(shape: tuple[int, int]) -> Path:
    """Return the folder of the demo data, in the user's cache folder. Render the data if it is missing.

    The images are square, and as large as the longer side of `shape` = (height, width).
    """
    size = max(shape)
    from vologan_fast.data.demo import FORMAT, make_demo

    count = _DEMO_IMAGES if size <= _SMALL else _LARGE_DEMO_IMAGES
    return make_demo(cache_folder(f"demo-{FORMAT}-{size}"), count=count, size=size)
