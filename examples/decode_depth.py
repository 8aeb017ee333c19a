"""Decode all depth files in a folder to float32 arrays, and print one line for each.

    python examples/decode_depth.py FOLDER [--save DEPTH.npz]

Values are in the files' own units; docs/data-formats.md says what these may be. The exit code is 1 if a file cannot
be decoded. See docs/depth-decoder.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vologan_fast import depth

SUFFIXES = (".exr", ".png", ".npy", ".pfm", ".tif", ".tiff", ".npz")


def summary(info: depth.Info, image: np.ndarray) -> str:
    """Format, size, range of the finite values, and the share of the others."""
    channels = ", ".join(f"{channel.name} {channel.dtype}" for channel in info.channels)
    known = image[np.isfinite(image)]
    values = f"{known.min():g} to {known.max():g}" if known.size else "no finite value"
    missing = f"{1 - known.size / image.size:.1%} not finite"
    return f"{info.format} {info.compression}, {info.width} × {info.height}, {channels}: {values}, {missing}"


def main(folder: Path, save: Path | None) -> int:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        print(f"{folder}: expected files that end with {', '.join(SUFFIXES)}, found none", file=sys.stderr)
        return 1
    images, broken = {}, 0
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            images[name] = depth.decode(file)
            print(f"{name}: {summary(depth.probe(file), images[name])}")
        except depth.DecodeError as error:  # it names the file, what was expected and what was found
            print(f"broken: {error}", file=sys.stderr)
            broken += 1
    print(f"{len(images)} decoded, {broken} broken")
    if save is not None:
        np.savez_compressed(save, **images)
    return 1 if broken else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save", type=Path, help="an .npz file with all images by name")
    arguments = parser.parse_args()
    sys.exit(main(arguments.folder, arguments.save))
