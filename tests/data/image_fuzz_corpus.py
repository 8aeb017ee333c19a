"""Writes the files that csrc/batch/fuzz.cpp begins from: `python tests/data/image_fuzz_corpus.py FOLDER`.

They are JPEGs of all kinds that Pillow writes, each with a few blocks, and a depth file for all of them. The files are
the same every time, about 20 KB in all.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 24
SAMPLINGS = {"444": 0, "422": 1, "420": 2}


def jpegs() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each JPEG."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).resize((40, 32))
    for name, sampling in SAMPLINGS.items():
        for progressive in (False, True):
            kind = f"{name}{'-progressive' * progressive}"
            yield f"{kind}.jpg", saved(image, subsampling=sampling, progressive=progressive)
    exif = Image.Exif()
    exif[0x0112] = 3
    yield "exif.jpg", saved(image, exif=exif, comment=b"x" * 20)
    yield "restart.jpg", saved(image, restart_marker_blocks=2)
    yield "optimised.jpg", saved(image, optimize=True)
    yield "rgb.jpg", saved(image, keep_rgb=True)
    yield "grey.jpg", saved(image.convert("L"))
    yield "grey-progressive.jpg", saved(image.convert("L"), progressive=True)
    yield "cmyk.jpg", saved(image.convert("CMYK"))
    yield "mpo.jpg", saved(image, "MPO", save_all=True, append_images=[image])
    yield "small.jpg", saved(image.resize((1, 1)))


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, quality=60, **options)
    return stream.getvalue()


def depth() -> bytes:
    """Return a depth image under all of the JPEGs, with holes and background."""
    image = np.random.default_rng(1).choice(np.array([-1, 0.2, 0.7, np.nan], np.float32), (32, 40))
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


def write_corpus(folder: Path) -> None:
    (folder / "jpeg").mkdir(parents=True, exist_ok=True)
    for name, content in jpegs():
        (folder / "jpeg" / name).write_bytes(content)
    (folder / "depth.npy").write_bytes(depth())


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
