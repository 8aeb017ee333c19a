"""A trained generator as a module that says what its images mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from vologan_fast.config import Config, ConfigError, DepthSpec
from vologan_fast.files import absolute_path
from vologan_fast.networks import generator_of, layout_by_device
from vologan_fast.networks.generator import Generator
from vologan_fast.networks.stochastic import normal
from vologan_fast.training.checkpoint import (
    CheckpointError,
    DamagedError,
    list_checkpoints,
    listed,
    load_network,
    newest_whole,
)
from vologan_fast.training.run_folder import read_config

Direction = Literal["s2t", "t2s"]
_PART: dict[Direction, Literal["st", "ts"]] = {"s2t": "st", "t2s": "ts"}
_DOMAINS = {"s2t": ("synthetic", "real"), "t2s": ("real", "synthetic")}
MODEL_FILE = "model.safetensors"
"""The weights in a model folder (see `model_folder.py`). Its header says the direction."""


class Translator(nn.Module):
    """A generator in eval mode. It maps images (N, C, H, W) in [0, 1] to images of the other domain, of the same size.

    The channels are those of `source_channels` and `target_channels`: first colour (red, green and blue, or grey, or
    none), then the normalised depth, or none. Depth 0 is missing or background, and 1/1024 to 1 lies between near and
    far. Any H and W are allowed: the image is padded to a multiple of `size_multiple` by repeating its border, and the
    result is cut. For a generator with the published attention, it is padded to a square.

    A generator with noise (`noise_channels` > 0) has many results for an image. The seed, or the noise itself, chooses
    one. Equal arguments give equal results on one device.
    """

    def __init__(self, generator: Generator, config: Config, direction: Direction, weights: Path) -> None:
        super().__init__()
        self.generator = generator
        self.direction = direction
        self.source_channels, self.target_channels = (config.data.channel_sets[d] for d in _DOMAINS[direction])
        """The channels of the images that come in, and of those that come out."""
        self.channels = self.source_channels.number
        """Number of channels of the images that come in."""
        self.data = config.data
        self.domain = _DOMAINS[direction][0]
        """The domain of the images that come in: "synthetic" or "real"."""
        self.target_domain = _DOMAINS[direction][1]
        """The domain whose images the results resemble."""
        self.weights = weights
        """The file that holds the weights."""
        self.config_file = _config_file(weights)
        """The config.json of the run that the weights come from."""
        self.size = config.data.size
        """Size of the images that the generator was trained on: the side of squares, or (height, width) in pixels."""
        self.source, self.target = (_depth_spec(config, domain) for domain in _DOMAINS[direction])
        """The depth settings of the images that come in, and of the domain whose images the results resemble: unit,
        near, far, missing and background values. None for a domain without depth."""
        self.size_multiple = generator.size_multiple
        self.least_side = generator.size_multiple * generator.least_multiple
        """The shortest side that the generator takes."""
        self.square = generator.square
        """Whether the generator needs square images."""
        self.noise_channels = generator.config.noise_channels
        """Planes of noise beside each image. 0: the generator has one result for an image."""
        self.has_holes = generator.config.hole_head
        """Whether the generator says itself where depth is not measured."""
        self.eval().requires_grad_(False)

    @property
    def output_depth(self) -> DepthSpec | None:
        """The settings in which translated depth is written: of the depth that comes in, else of the target.

        None if the translations have no depth.
        """
        return (self.source or self.target) if self.target_channels.depth else None

    def forward(self, x: Tensor, noise: Tensor | None = None, *, seed: int = 0) -> Tensor:
        """Return the translation, float32.

        `noise` is (N, noise_channels, H, W), standard normal. None: the noise of the draws `seed`, 0 for the first
        image of x, `seed`, 1 for the second, and so on (`noise_of`). A generator without noise ignores the seed.

        Raises ValueError unless x is (N, C, H, W), and for noise of another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x: expected (N, {self.channels}, H, W), found {tuple(x.shape)}")
        height, width = x.shape[2:]
        if noise is None and self.noise_channels:
            noise = self.noise_of([draw_key(str(seed), str(i)) for i in range(len(x))], height, width)
        elif noise is not None and noise.shape != (len(x), self.noise_channels, height, width):
            raise ValueError(
                f"noise: expected {(len(x), self.noise_channels, height, width)}, found {tuple(noise.shape)}"
                if self.noise_channels
                else "noise: expected None, because the generator has no noise channels"
            )
        multiple = self.size_multiple
        rows, columns = (max(self.least_side, -(-side // multiple) * multiple) for side in (height, width))
        if self.square:
            rows = columns = max(rows, columns)
        if (rows, columns) != (height, width):
            border = (0, columns - width, 0, rows - height)
            x = F.pad(x, border, mode="replicate")
            noise = None if noise is None else F.pad(noise, border, mode="replicate")
        y: Tensor = self.generator(x) if noise is None else self.generator(x, noise=noise)
        return y[:, :, :height, :width]

    def noise_of(self, keys: Sequence[int], height: int, width: int) -> Tensor:
        """Return the noise (N, noise_channels, height, width) of N draws, float32, on the generator's device.

        Each of the `keys` is an integer of 64 bits (`draw_key`). The noise of a draw depends on its key alone.
        """
        device = next(self.generator.parameters()).device
        return normal(torch.tensor(list(keys), device=device), self.noise_channels, height, width)


def draw_key(*parts: str) -> int:
    """Return the key of a draw that these texts determine: 64 bits of their SHA-256 checksum, as a signed integer."""
    digest = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _depth_spec(config: Config, domain: str) -> DepthSpec | None:
    spec: DepthSpec = getattr(config.data, domain)
    return spec if config.data.channel_sets[domain].depth else None


def load(
    path: str | os.PathLike[str],
    direction: Direction | None = None,
    *,
    device: str | torch.device | None = None,
    averages: bool = True,
) -> Translator:
    """Return a trained generator, in eval mode on `device`.

    `path` is a run folder, whose last checkpoint is used, or a checkpoint's folder, or a .safetensors file in it. It
    may also be a model folder, as `python -m vologan_fast.export` writes it. `direction` is "s2t" (synthetic to real)
    or "t2s". By default, it is s2t for a run and a checkpoint, and their own for a file and a model folder. `averages`
    prefers the averaged weights if the run has them. `device` defaults to the GPU if there is one.

    Raises CheckpointError for a path without weights, and for damaged or foreign weights. Raises ConfigError for a
    checkpoint without the config.json of its run, for an unknown direction, and for another direction than a file or a
    model folder has.
    """
    check_direction(direction)
    file, found = _find_weights(Path(path), direction or "s2t", averages)
    if direction not in (None, found):
        raise ConfigError(f"{file}: holds {found}; expected --direction {found}")
    _, config = read_config(_config_file(file))
    generator = generator_of(config, _PART[found])
    try:
        load_network(file, generator)
    except DamagedError as error:
        raise _with_newest_whole(error, file) from error
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    translator = Translator(generator, config, found, file)
    return translator.to(device=chosen, memory_format=layout_by_device(chosen))  # type: ignore[call-overload]


def _with_newest_whole(error: DamagedError, file: Path) -> CheckpointError:
    """Return an error about a file that also says which checkpoint can be used instead."""
    checkpoints = absolute_path(file).parent.parent
    return CheckpointError(f"{error}; {newest_whole(checkpoints)}") if list_checkpoints(checkpoints) else error


def check_direction(direction: str | None) -> None:
    """Raise ConfigError for a direction that does not exist."""
    if direction is not None and direction not in _PART:
        raise ConfigError(f"direction is {direction!r}; expected s2t or t2s")


def _config_file(weights: Path) -> Path:
    """Return the config.json of weights: beside those of a model folder, else RUN/checkpoints/step-########/FILE."""
    folder = absolute_path(weights).parent
    return (folder if weights.name == MODEL_FILE else folder.parent.parent) / "config.json"


def _find_weights(path: Path, direction: Direction, averages: bool) -> tuple[Path, Direction]:
    """Return the file with the weights, and its direction. Raises CheckpointError.

    Links to checkpoints are followed, so that the result says which step it is.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    if path.is_file() and path.name == MODEL_FILE:
        return path, recorded_direction(path)
    path = path.resolve() if path.is_symlink() or path.parent.is_symlink() else path
    if path.is_file():
        for found, part in _PART.items():
            if path.name in (f"average_{part}.safetensors", f"generator_{part}.safetensors"):
                return path, found
        expected = "generator_st, generator_ts, average_st, average_ts or model.safetensors"
        if path.suffix in (".pth", ".pt"):
            expected += (
                "; for a generator of the PyTorch CycleGAN or of CUT, load_foreign, or python -m vologan_fast.export "
                "FILE --foreign --out DIR --format safetensors"
            )
        raise CheckpointError(f"{path}: expected {expected}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file; expected a run, checkpoint or model folder, or a .safetensors")
    folder = path
    for checkpoints in (path / "checkpoints", path):
        if found_here := list_checkpoints(checkpoints):
            folder = found_here[-1]
            break
    for kind in ("average", "generator") if averages else ("generator",):
        file = folder / f"{kind}_{_PART[direction]}.safetensors"
        try:
            if listed(folder, file.name):
                return file, direction
        except DamagedError as error:
            raise _with_newest_whole(error, file) from error
    if any((folder / f"generator_{part}.safetensors").is_file() for part in _PART.values()):
        raise CheckpointError(
            f"{folder}: expected generator_{_PART[direction]}.safetensors, found only the other direction; "
            "a run with --train.method cut has one generator, s2t"
        )
    raise CheckpointError(f"{path}: expected a run folder with a checkpoint, or a checkpoint, found no weights in it")


def recorded_direction(file: Path) -> Direction:
    """Return the direction in the header of a model folder's weights. Raises CheckpointError."""
    if not file.is_file():  # opening a pipe may never end
        raise CheckpointError(f"{file}: not a regular file; expected the weights of a model folder")
    try:
        with safe_open(file, "pt") as opened:
            found = (opened.metadata() or {}).get("direction")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    if found not in _PART:
        raise CheckpointError(f"{file}: direction in its header: expected s2t or t2s, found {found!r}")
    return found
