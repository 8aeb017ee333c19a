"""The sample grid: what it shows of a translation."""

import numpy as np
import pytest
import torch
from PIL import Image

from vologan_fast.config import CHANNELS
from vologan_fast.report.grid import write_grid


@pytest.mark.parametrize("channels", ["rgbd", "grey+depth", "rgb"])
def test_the_background_of_the_input_stays(channels, tmp_path):
    """Colour alone has no background: black is a colour there."""
    kind = CHANNELS[channels]
    source = torch.full((kind.number, 8, 8), 0.5)
    source[:, :4] = 0.0
    result = torch.full((kind.number, 8, 8), 0.5)
    path = write_grid(tmp_path / "grid.png", [("S to T", (source, result, result))], {"S": kind, "T": kind})
    pixels = np.asarray(Image.open(path)).astype(int).sum(2)[-132:-4]  # 8 pixels, magnified to 128; a gap of 4
    width = pixels.shape[1] // 3
    for start in (width, 2 * width):
        shown = pixels[:, start : start + width - 4]
        assert shown[64:].all()
        assert bool(shown[:64].any()) == (channels == "rgb")
