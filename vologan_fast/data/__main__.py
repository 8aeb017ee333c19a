"""The command line `python -m vologan_fast.data COMMAND`, which makes and inspects data sets.

demo: render the demo data set.
inspect: describe a data set, and report problems in it.
convert: convert recordings from other sources into the layout that training reads.
pack: pack a data set into shards.
checksums: record the checksums of a folder's files, which every reader then compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vologan_fast import stopping
from vologan_fast.config import ConfigError, DataConfig
from vologan_fast.data.demo import make_demo
from vologan_fast.data.errors import DataError
from vologan_fast.words import say, say_error

app = tyro.extras.SubcommandApp()


@app.command
def demo(
    directory: Annotated[Path, tyro.conf.Positional],
    count: int = 256,
    size: int = 64,
    paired_test: int = 0,
    repeats: int = 0,
    seed: int = 0,
) -> None:
    """Render people as a clean domain, and other people seen by a simulated phone LiDAR as the other domain.

    Args:
        directory: Folder to make. A folder that holds the same demo already is not changed.
        count: Images per domain.
        size: Side of the square images in pixels, a multiple of 8.
        paired_test: Number of additional scenes that are both rendered and photographed, for scoring.
        repeats: More photographs of each of these scenes, with other noise.
        seed: Equal seeds give equal files.
    """
    say(make_demo(directory, count, size, seed, paired_test, repeats))


@app.command
def inspect(
    directory: Annotated[Path, tyro.conf.Positional],
    data: DataConfig = DataConfig(),  # noqa: B008  frozen
    all: bool = False,
    picture: Path | None = Path("inspect.png"),
) -> int:
    """Describe a data set and its meaning for training, report problems, and draw some of its images.

    The exit code is 1 if files are broken or training would refuse the data. Only a sample is read, so other files may
    still have problems.

    Args:
        directory: Folder of the data set.
        data: The settings of training. Settings that do not concern reading files have no effect here.
        all: Read all images, not only 64 of each domain.
        picture: PNG file to write, with colour, depth and histograms of both domains. None: write no picture.
    """
    if picture is not None and picture.suffix.lower() != ".png":  # a slip, such as the name of a record
        raise ConfigError(f"--picture {picture}: expected a name that ends in .png")
    from rich.console import Console

    from vologan_fast.data.inspection import SAMPLE, inspect_dataset
    from vologan_fast.report.inspection import print_report, write_picture

    domains, between = inspect_dataset(directory, data, None if all else SAMPLE)
    print_report(domains, between, Console())
    if picture is not None and write_picture(picture, domains, data.shape):
        say(f"picture: {picture.resolve()}")
    return 1 if any(domain.broken or domain.refusal for domain in domains) else 0


@app.command
def convert(
    kind: Annotated[
        Literal[
            "record3d",
            "scannet",
            "hypersim",
            "tum",
            "arkitscenes",
            "bedlam",
            "humman-kinect",
            "humman-iphone",
            "hammer-truth",
            "hammer-tof",
            "hammer-d435",
            "hammer-l515",
        ],
        tyro.conf.Positional,
    ],
    source: Annotated[Path, tyro.conf.Positional],
    directory: Annotated[Path, tyro.conf.Positional],
    domain: Literal["synthetic", "real", "paired-test"],
    every: int = 1,
    limit: int | None = None,
    people: bool = False,
) -> int:
    """Convert recordings into DIRECTORY/DOMAIN/color and DIRECTORY/DOMAIN/depth. Depth is stored without loss.

    Colour that is JPEG or PNG already is copied unchanged. Frames from an earlier run are kept, so an interrupted
    conversion continues where it stopped. The exit code is 1 if frames could not be read. These frames are listed.

    Args:
        kind: Format of the recordings.
        source: A recording, or a folder that contains recordings at any depth.
        directory: Data set to write into.
        domain: Domain of the data set to write into. paired-test: images for scoring, of hammer-tof, -d435 and -l515.
        every: Take only every N-th frame, because neighbouring frames of a video are nearly the same.
        limit: Write at most this many frames.
        people: Make everything except people background, of bedlam, humman-kinect and humman-iphone.
    """
    from vologan_fast.data.convert import convert

    done = convert(kind, source, directory, domain, every, limit, people)
    for sentence in done.broken:
        say_error(f"broken: {sentence}")
    say(f"{directory / domain}: {done.written} frames written, {done.kept} kept, {len(done.broken)} broken")
    if done.written or done.kept:
        say(f"settings of training: {done.options or 'none needed'}")
        for note in done.notes:
            say(f"note: {note}")
    return 1 if done.broken else 0


@app.command
def pack(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    shard_size: int = 512,
    seed: int = 0,
    verify: bool = True,
    max_pixels: int = DataConfig.max_pixels,
) -> None:
    """Pack a data set into shards, which are large tars. Slow disks and buckets read them faster than many small files.

    Args:
        source: Folder of the data set.
        target: Folder for the shards. If packing was stopped there, it continues.
        shard_size: Largest number of images in a shard.
        seed: Seed for the order in which each domain is packed.
        verify: Read all shards again, also the shards of an earlier run, and compare them with their checksums.
        max_pixels: Most pixels of a file of colour or depth.
    """
    from vologan_fast.data import pack as packing

    say(packing.pack(source, target, shard_size, seed, verify, max_pixels))


@app.command
def checksums(directory: Annotated[Path, tyro.conf.Positional]) -> None:
    """Record the size and the CRC-32 of all files in a folder, in its checksums.json. Every reader then compares them.

    Run it while you know that the files are good, and again when you have added or changed files on purpose.

    Args:
        directory: Folder of a data set in any layout, or of images to translate.
    """
    from vologan_fast.data.checksums import make_checksums

    for line in make_checksums(directory):
        say(line)


def main() -> int:
    """Run the command line. A mistake of the user gives one line and exit code 2."""
    try:
        with stopping.interrupting():
            code = app.cli(prog="python -m vologan_fast.data", description="Make data sets, and look at them.")
    except (ConfigError, DataError) as error:
        say_error(f"error: {error}")
        return 2
    return code or 0


if __name__ == "__main__":
    stopping.run(main, mistake=2)
