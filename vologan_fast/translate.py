"""The command `python -m vologan_fast.translate`: translate files with the generator of a run.

python -m vologan_fast.translate runs/first --data DIR --out translated
python -m vologan_fast.translate runs/first/checkpoints/step-00001200 --data DIR --out translated --direction t2s
torchrun --nproc-per-node=8 -m vologan_fast.translate runs/first --data DIR --out translated
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vologan_fast import stopping
from vologan_fast.config import ConfigError
from vologan_fast.training.distributed import PeerError, PeerLost, World
from vologan_fast.words import say, say_error

if TYPE_CHECKING:
    import torch

    from vologan_fast.translation.inputs import Input
    from vologan_fast.translation.job import Done
    from vologan_fast.translation.translator import Direction, Translator

_DIRECTIONS: dict[str | None, tuple[Direction | None, ...]] = {
    None: (None,),
    "s2t": ("s2t",),
    "t2s": ("t2s",),
    "both": ("s2t", "t2s"),
}


@dataclass
class Arguments:
    """Translate images with a trained generator. Outputs have the kind, the layout and the names of the inputs."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder, whose last checkpoint is used; or a checkpoint's folder; or a .safetensors file in it; or a model
    folder, as vologan_fast.export writes it."""
    out: Path
    """Folder to write. A second run writes only what is missing or has changed."""
    data: str | None = None
    """A data set, a folder of one domain's images, or one file: colour, or depth for a model that reads depth alone.
    Default: the data set of the run."""
    depth: Path | None = None
    """The depth file of a single colour file, for a model that reads both."""
    direction: Literal["s2t", "t2s", "both"] | None = None
    """`s2t`: translate the synthetic domain to look real. `t2s`: the real domain to look synthetic. Default: the
    direction of a file or a model folder, and s2t for a run or a checkpoint."""
    weights: Literal["average", "trained"] = "average"
    """`average`: the averaged weights, if the run has them. `trained`: the weights of the last step."""
    samples: int | None = None
    """Draws of each image, for a generator with noise. Draw k is written into the folder sample-k of the output folder.
    Default: one draw, the same as sample-0, without such a folder."""
    seed: int = 0
    """Seed of the draws. The same seed gives the same files."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network."""
    batch: int = 1
    """Images of equal size that go through the network together."""
    max_pixels: int | None = None
    """Most pixels of a file. Default: --data.max-pixels of the run."""
    threads: int = 0
    """Threads that read files, and that write files. 0: the cores of this machine, divided among its processes."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from vologan_fast.data import DataError
    from vologan_fast.training.checkpoint import CheckpointError

    arguments = tyro.cli(Arguments, args=argv, prog="python -m vologan_fast.translate")
    try:
        with World() as world:
            return _translate(arguments, world)
    except (ConfigError, DataError, CheckpointError, PeerError, PeerLost) as error:
        say_error(f"error: {error}")
        return 1


def _translate(arguments: Arguments, world: World) -> int:
    from vologan_fast.commands import chosen_device
    from vologan_fast.data.pixels import MOST_PIXELS
    from vologan_fast.translation.job import claimed

    if arguments.batch < 1 or arguments.threads < 0:
        raise ConfigError("--batch and --threads: expected at least 1 image, and 0 or more threads")
    if arguments.samples is not None and arguments.samples < 1:
        raise ConfigError(f"--samples is {arguments.samples}: expected at least 1")
    if arguments.max_pixels is not None and not 1 <= arguments.max_pixels <= MOST_PIXELS:
        raise ConfigError(f"--max-pixels is {arguments.max_pixels}: expected 1 to {MOST_PIXELS}")
    if arguments.data == "":
        raise ConfigError("--data is empty; expected a data set, a folder or a file, or no --data")
    with world.together():
        device = chosen_device(arguments.device)
    device = world.use(device)
    with world.together():
        jobs = _find_jobs(arguments, device)
    if world.is_main and arguments.seed != 0 and not any(job.model.noise_channels for job in jobs):
        say(
            "warning: --seed has no effect, because the generator has no noise (--generator.noise-channels in training)"
        )
    results = []
    with contextlib.ExitStack() as folder, stopping.noticed("the same command goes on") as stopped:
        with world.together():
            if world.is_main:
                folder.enter_context(claimed(arguments.out))
        with world.together():  # the claim holds until all processes have written
            for job in jobs:
                results.append(_translate_domain(arguments, job, world, stopped))
                if results[-1].stopped:
                    break
    if results[-1].stopped:
        say("stopped; the same command goes on")
        return stopping.EXIT
    return 1 if any(done.broken or _all_beyond(done) for done in results) else 0


def _all_beyond(done: Done) -> bool:
    """Return whether no depth that was translated seems to have the unit of the run."""
    return 0 < done.written + done.kept <= len(done.beyond)


@dataclass(frozen=True)
class _Job:
    """The images of one domain, and the network that translates them."""

    model: Translator
    data: str
    inputs: Sequence[Input]


def _find_jobs(arguments: Arguments, device: torch.device) -> list[_Job]:
    """Load the networks and find the images. Errors come here, before anything is written."""
    from vologan_fast.training.run_folder import read_config
    from vologan_fast.translation.inputs import Draws, Parts, find_inputs, refuse_common_outputs
    from vologan_fast.translation.translator import load

    jobs = []
    for direction in _DIRECTIONS[arguments.direction]:
        model = load(arguments.run, direction, device=device, averages=arguments.weights == "average")
        data = read_config(model.config_file)[0] if arguments.data is None else arguments.data
        inputs = find_inputs(data, model.domain, arguments.depth, Parts.of(model))
        if model.noise_channels:
            inputs = Draws(inputs, arguments.seed, arguments.samples)
        elif arguments.samples is not None:
            raise ConfigError(
                f"--samples is {arguments.samples}: expected no such option, because the generator {model.direction} "
                "has no noise (--generator.noise-channels in training)"
            )
        jobs.append(_Job(model, data, inputs))
    if len(jobs) == 2:
        refuse_common_outputs(jobs[0].inputs, jobs[1].inputs)
    return jobs


def _translate_domain(arguments: Arguments, job: _Job, world: World, stopped: Callable[[], bool]) -> Done:
    """Translate the images of one domain, or this process's part of them, and print what was done."""
    from vologan_fast.report.record import no_records
    from vologan_fast.translation.job import LOG, translate_files

    model, inputs = job.model, job.inputs
    if world.is_main:
        device = world.device.type
        say(f"{model.direction}: {len(inputs)} images of {job.data} with {model.weights} on {device}")
    with _progress(model.direction, len(range(world.rank, len(inputs), world.size)), world) as advance:
        done = translate_files(
            model,
            inputs,
            arguments.out,
            part=(world.rank, world.size),
            threads=arguments.threads or max(1, (os.cpu_count() or 1) // world.local_size),
            batch=arguments.batch,
            stop=stopped,
            advance=advance,
            max_pixels=arguments.max_pixels,
        )
    if world.is_main and done.no_records:
        say_error(f"warning: {arguments.out / LOG}: {no_records(done.no_records)} and left out")
    for sentence in done.broken:
        say_error(f"broken: {sentence}")
    if done.beyond:
        spec, count = model.source, f"{len(done.beyond)} of {done.written + done.kept}"
        assert spec is not None
        say_error(
            f"{'error' if _all_beyond(done) else 'warning'}: {count} images have depth far beyond near {spec.near:g} "
            f"and far {spec.far:g} of the run, so their translations are wrong (such as {min(done.beyond)}); expected "
            f"depth in the unit of the {model.domain} images of the run"
        )
    rate = f", {done.written / done.seconds:.1f} images/s" if done.written else ""
    say(
        f"{model.direction}: {done.written} written, {done.kept} kept, {len(done.broken)} broken{rate}: {arguments.out}"
    )
    return done


@contextlib.contextmanager
def _progress(direction: str, count: int, world: World) -> Iterator[Callable[[int], None]]:
    """Show a bar with the rate and the time left, if there is a terminal. Yields the function that moves it."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (world.is_main and console.is_terminal),
    )
    with bar:
        task = bar.add_task(direction, total=count, rate="")

        def advance(images: int) -> None:
            bar.advance(task, images)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed * world.size:.1f} images/s" if speed else "")

        yield advance


if __name__ == "__main__":
    stopping.run(main)
