"""Convert recordings whose frames have both clean depth and a sensor's depth into a paired test.

    DIR/paired-test/synthetic/color/NAME.png, depth/NAME.png    colour with the clean depth
    DIR/paired-test/real/color/NAME.png, depth/NAME.png         the same colour with the sensor's depth
    DIR/paired-test/paired_paths.json                           the list of both

The list is {"paired_data": [{"synthetic": …, "real": …, "truth": …}, …]}, as the demo's (`demo/dataset.py`). `truth` is
what a perfect translation of `synthetic` would be. Here it is `real` itself, which holds the sensor's noise. So the
error of the best translation is not 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vologan_fast.config import DOMAINS
from vologan_fast.data.convert.writer import RECORD, Recording, locked, write_frames
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import PAIRED, PAIRED_MANIFEST
from vologan_fast.files import write_whole


def write_paired(
    target: Path, synthetic: Sequence[Recording], real: Sequence[Recording], every: int, limit: int | None
) -> tuple[int, int, list[str]]:
    """Write every `every`-th frame that both domains have, at most `limit` frames, and list all that are there.

    Returns the number of written frames, the number of kept frames, and a sentence for each broken frame. A frame is in
    the list if both of its domains could be read. Raises DataError if the folder holds another paired test, and in the
    cases of `locked` and `write_frames`.
    """
    folder = target / PAIRED
    if (folder / PAIRED_MANIFEST).exists() and not (folder / DOMAINS[0] / RECORD).exists():
        raise DataError(f"{folder}: expected no paired test or a converted one, found another")
    frames = [[frame for recording in recordings for frame in recording.frames] for recordings in (synthetic, real)]
    both = {frame.name for frame in frames[0]} & {frame.name for frame in frames[1]}
    chosen = [[frame for frame in side if frame.name in both][::every][:limit] for side in frames]
    with locked(folder / DOMAINS[0], synthetic), locked(folder / DOMAINS[1], real):
        results = [write_frames(folder / domain, side) for domain, side in zip(DOMAINS, chosen, strict=True)]
        images = [_written(folder, domain) for domain in DOMAINS]
        items = [
            {"synthetic": images[0][name], "real": images[1][name], "truth": images[1][name]}
            for name in sorted(images[0].keys() & images[1].keys())
        ]
        try:
            write_whole(folder / PAIRED_MANIFEST, json.dumps({"paired_data": items}, indent=1).encode() + b"\n")
        except OSError as error:
            raise DataError(f"{folder / PAIRED_MANIFEST}: cannot be written: {error.strerror or error}") from None
    (written, kept, broken), (_, _, more) = results
    return written, kept, [*broken, *more]


def _written(folder: Path, domain: str) -> dict[str, dict[str, str]]:
    """Return the paths of the images of a domain, relative to `folder`, by name."""
    colors, depths = (
        {path.stem: str(path.relative_to(folder)) for path in (folder / domain / part).glob("[!.]*")}
        for part in ("color", "depth")
    )
    return {name: {"color_path": colors[name], "depth_path": depths[name]} for name in colors.keys() & depths.keys()}
