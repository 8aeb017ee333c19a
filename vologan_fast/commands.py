"""What the commands share: the settings to start from, the device, and the demo data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from vologan_fast.config import PRESETS, Config, ConfigError
from vologan_fast.files import cache_folder

_DEMO_IMAGES = 256  # images a domain of the demo data, rendered in seconds up to this size
_SMALL = 128
_LARGE_DEMO_IMAGES = 64


@dataclass(frozen=True)
class StartingPoint:
    """The settings that the options of a command line change, and where they come from."""

    settings: Config
    preset: str | None = None
    """The preset's name; None for recorded settings."""
    data: str | None = None
    """The data set that was recorded with the settings."""


def first_parser() -> argparse.ArgumentParser:
    """A parser for the arguments that choose the starting point.

    A command line is parsed twice: what the settings start from is itself an argument.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--device", default="auto")
    return parser


def starting_point(preset: str | None, recorded: Path | None, device: str) -> StartingPoint:
    """The settings in the `config.json` at `recorded`, or a preset: by default vologan-512 on a GPU, else demo.

    Raises ConfigError for a preset that is not known, for both at once, and for a file that cannot be read.
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
    """The device for "auto", "cpu" or "cuda". Raises ConfigError for "cuda" without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; expected one, or --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def demo_data(size: int) -> Path:
    """The demo data at `size` in the user's cache folder. It is rendered first if it is not there yet."""
    from vologan_fast.data.demo import FORMAT, make_demo

    count = _DEMO_IMAGES if size <= _SMALL else _LARGE_DEMO_IMAGES
    return make_demo(cache_folder(f"demo-{FORMAT}-{size}"), count=count, size=size)
