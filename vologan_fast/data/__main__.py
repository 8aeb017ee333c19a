"""`python -m vologan_fast.data COMMAND`: make data sets, and look at them.

demo: render the demo data set.
inspect: what a data set holds, and what looks wrong with it.
convert: bring other people's recordings into the layout that training reads.
pack: put a data set into shards.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vologan_fast.config import DataConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.data.errors import DataError

app = tyro.extras.SubcommandApp()


@app.command
def demo(
    directory: Annotated[Path, tyro.conf.Positional],
    count: int = 256,
    size: int = 64,
    paired_test: int = 0,
    seed: int = 0,
) -> None:
    """Render people as a clean domain, and other people seen by a simulated phone LiDAR as the other domain.

    Args:
        directory: Folder to make; one that holds this very demo already is left as it is.
        count: Images per domain.
        size: Side of the square images in pixels, a multiple of 8.
        paired_test: Also this many scenes both rendered and photographed, for scoring.
        seed: Equal seeds give equal files.
    """
    print(make_demo(directory, count, size, seed, paired_test))


@app.command
def inspect(
    directory: Annotated[Path, tyro.conf.Positional],
    data: DataConfig = DataConfig(),  # noqa: B008  frozen
    all: bool = False,
    picture: Path | None = Path("inspect.png"),
) -> int:
    """Say what a data set holds, how training would read it, and what looks wrong; draw some of it.

    Exit code 1 if files are broken or training would refuse the data. A sound sample does not prove the rest sound.

    Args:
        directory: The data set, as for training.
        data: The settings of training; those that do not concern reading files change nothing here.
        all: Read all images, not only 64 of each domain.
        picture: PNG to write: colour, depth and histograms of both domains. None: do not.
    """
    from rich.console import Console

    from vologan_fast.data.inspection import SAMPLE, inspect_dataset
    from vologan_fast.report.inspection import print_report, write_picture

    domains, between = inspect_dataset(directory, data, None if all else SAMPLE)
    print_report(domains, between, Console())
    if picture is not None and write_picture(picture, domains, data.size):
        print(f"picture: {picture.resolve()}")
    return 1 if any(domain.broken or domain.refusal for domain in domains) else 0


@app.command
def convert(
    kind: Annotated[Literal["record3d", "scannet", "hypersim", "tum", "arkitscenes"], tyro.conf.Positional],
    source: Annotated[Path, tyro.conf.Positional],
    directory: Annotated[Path, tyro.conf.Positional],
    domain: Literal["synthetic", "real"],
    every: int = 1,
    limit: int | None = None,
) -> int:
    """Bring recordings into DIRECTORY/DOMAIN/color and depth: colour untouched, depth without loss.

    What is there from an earlier run is kept, so an interrupted conversion goes on where it stopped. Exit code 1 if
    frames could not be read; they are listed.

    Args:
        kind: What the recordings are.
        source: A recording, or a folder with some anywhere in it.
        directory: Data set to write into.
        domain: Which of its domains the recordings are.
        every: Take only every so many-th frame: neighbours of a video show the same.
        limit: Write at most this many frames.
    """
    from vologan_fast.data.convert import convert

    done = convert(kind, source, directory, domain, every, limit)
    for sentence in done.broken:
        print(f"broken: {sentence}", file=sys.stderr)
    print(f"{directory / domain}: {done.written} frames written, {done.kept} kept, {len(done.broken)} broken")
    if done.written or done.kept:
        print(f"settings of training: {done.options or 'none needed'}")
    return 1 if done.broken else 0


@app.command
def pack(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    shard_size: int = 512,
    seed: int = 0,
    verify: bool = True,
) -> None:
    """Pack a data set into shards: large tars, which slow disks and buckets read better than a million files.

    Args:
        source: Data set, as for training.
        target: Folder for the shards; packing that was stopped goes on.
        shard_size: At most as many images in a shard.
        seed: Of the order in which each domain is packed.
        verify: Read all shards again and compare them with their checksums, those that were there already too.
    """
    from vologan_fast.data import pack as packing

    print(packing.pack(source, target, shard_size, seed, verify))


def main() -> int:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        code = app.cli(prog="python -m vologan_fast.data", description="Make data sets, and look at them.")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
