"""The sample grid: input, translation and cycle of some held-out images of both domains."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vologan_fast.config import CHANNELS, Channels
from vologan_fast.files import write_whole

_GAP = 4
_HEADER = 20
_COLUMNS = ("input", "translation", "cycle")
_Picture = npt.NDArray[np.uint8]


def depth_to_colour(depth: Tensor) -> Tensor:
    """Convert depth (H, W) in [0, 1] to RGB (H, W, 3) in [0, 1]: near is red, far is blue, missing (0) is black."""
    table = torch.tensor(matplotlib.colormaps["turbo_r"](np.linspace(0, 1, 256))[:, :3], dtype=torch.float32)
    colours = table[(depth.clamp(0, 1) * 255).round().long()]
    return torch.where(depth.unsqueeze(-1) > 0, colours, torch.zeros_like(colours))


def write_grid(
    path: Path, rows: list[tuple[str, tuple[Tensor, ...]]], channels: Mapping[str, Channels] | None = None
) -> Path:
    """Write a PNG with one row per image, atomically, and return its path.

    A row shows an input, its translation and, if there is one, its cycle, each (C, H, W) in [0, 1]. All rows have as
    many. The row's name, such as "S to T", is above its first picture. `channels` gives the channels of the images of
    "S" and of "T". Default: RGB-D. The background of an input with colour and depth, which is 0 in all channels,
    stays, as `vologan_fast.translate` writes it. Raises OSError.
    """
    font = ImageFont.load_default(size=13)
    strips = []
    for name, images in rows:
        source, _, target = name.split()
        of_pictures = (source, target, source)  # input, translation and cycle
        kinds = [channels[domain] if channels else CHANNELS["rgbd"] for domain in of_pictures[: len(images)]]
        if kinds[0].color and kinds[0].depth:
            images = tuple(image * (images[0].amax(0) > 0) for image in images)
        strips.append([tile(image, kind) for image, kind in zip(images, kinds, strict=True)])
    height, width = strips[0][0].shape[0], max(sum(picture.shape[1] for picture in strip) for strip in strips)
    canvas = Image.new("RGB", (width, (height + _HEADER) * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, ((name, _), strip) in enumerate(zip(rows, strips, strict=True)):
        top, left = index * (height + _HEADER), 0
        for label, picture in zip(_COLUMNS, strip, strict=False):
            canvas.paste(Image.fromarray(picture), (left, top + _HEADER))
            draw.text((left, top + 2), label if left else f"{name}: {label}", "black", font)
            left += picture.shape[1]
    encoded = io.BytesIO()
    canvas.save(encoded, format="PNG")
    write_whole(path, encoded.getvalue(), alone=True)
    return path


def tile(image: Tensor, channels: Channels = CHANNELS["rgbd"]) -> _Picture:
    """Return colour and depth of an image (C, H, W) side by side, with a gap at the right and at the bottom.

    A smaller image is magnified by the largest whole factor that keeps both sides within 128 pixels.
    """
    image = image.detach().float().cpu()
    pictures = []
    if channels.color:
        pictures.append(image[: channels.color].expand(3, -1, -1).permute(1, 2, 0))
    if channels.depth:
        pictures.append(depth_to_colour(image[-1]))
    pixels = (torch.cat(pictures, dim=1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    zoom = max(128 // max(image.shape[1:]), 1)
    pixels = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return np.pad(pixels, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
