"""The sample grid: input, translation and cycle of some held-out images of both domains."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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


def write_grid(path: Path, rows: list[tuple[str, tuple[Tensor, ...]]]) -> Path:
    """Write a PNG with one row per image, atomically, and return its path.

    A row shows the colour and depth of an input, its translation and, if there is one, its cycle, each (4, H, W) in
    [0, 1]. All rows have as many. The row's name, such as "S to T", is above its first picture. Raises OSError.
    """
    font = ImageFont.load_default(size=13)
    strips = [np.concatenate([tile(image) for image in images], axis=1) for _, images in rows]
    height, width = strips[0].shape[:2]
    canvas = Image.new("RGB", (width, (height + _HEADER) * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, ((name, images), strip) in enumerate(zip(rows, strips, strict=True)):
        top = index * (height + _HEADER)
        canvas.paste(Image.fromarray(strip), (0, top + _HEADER))
        for column, label in enumerate(_COLUMNS[: len(images)]):
            text = f"{name}: {label}" if column == 0 else label
            draw.text((column * width // len(images), top + 2), text, "black", font)
    encoded = io.BytesIO()
    canvas.save(encoded, format="PNG")
    write_whole(path, encoded.getvalue(), alone=True)
    return path


def tile(image: Tensor) -> _Picture:
    """Return colour and depth of an image (4, H, W) side by side, with a gap at the right and at the bottom.

    A smaller image is magnified by the largest whole factor that keeps both sides within 128 pixels.
    """
    image = image.detach().float().cpu()
    pair = torch.cat((image[:3].permute(1, 2, 0), depth_to_colour(image[3])), dim=1).clamp(0, 1)
    pixels = (pair * 255).round().to(torch.uint8).numpy()
    zoom = max(128 // max(image.shape[1:]), 1)
    pixels = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return np.pad(pixels, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
