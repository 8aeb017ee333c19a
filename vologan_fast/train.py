"""The command `python -m vologan_fast.train`: train on RGB-D images of two domains, in a folder or a bucket.

    python -m vologan_fast.train --data DIR --preset vologan-512 --run-dir runs/first
    python -m vologan_fast.train --run-dir runs/first --resume
    torchrun --nproc-per-node=8 -m vologan_fast.train --data DIR --run-dir runs/eight

Without --data it trains on the demo data, which are rendered on first use. The options `--section.option` change the
settings of the preset.

With --resume, the first command can also be repeated as it is, at any time: it starts the run if nothing is recorded in
the run folder, and else continues it. A scheduler can therefore restart it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from vologan_fast import stopping
from vologan_fast.commands import StartingPoint, chosen_device, demo_data, first_parser, starting_point
from vologan_fast.config import DOMAINS, Config, ConfigError, DepthSpec, check, differences, former, without_effect
from vologan_fast.training.distributed import PeerError, PeerLost, World
from vologan_fast.training.endings import OUT_OF_MEMORY, is_out_of_memory
from vologan_fast.words import in_a_sentence, in_words, say, say_error

if TYPE_CHECKING:
    from vologan_fast.data import Dataset
    from vologan_fast.training.run_folder import RunFolder

MAY_CHANGE_ON_RESUME = (
    "data.backend",
    "data.cache",
    "data.max_pixels",
    "data.max_skipped",
    "data.on_error",
    "data.patience",
    "data.shard_cache",
    "data.threads",
    "train.log_every",
    "train.log_limit",
    "train.validate_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.on_nan",
    "train.nan_limit",
    "train.evaluate_every",
    "train.grid_images",
    "train.grid_limit",
    "train.report_every",
    "train.step",
    "train.micro_batch",
    "train.recompute",
    "train.compile",
    "train.cuda_graph",
    "train.split_kernels",
    "train.pad_channels",
    "train.memory_format",
)
"""Settings that may change when a run is resumed. They change neither the losses nor the weights of the later steps.
Only data.backend and the last eight, from train.step on, change their rounding."""

_LESS_MEMORY = "--train.micro-batch, --train.recompute, or a smaller --train.batch or --data.size"


@dataclass
class Arguments:
    """Train two generators to translate RGB-D images between two domains that are not paired."""

    data: str | None = None
    """Data set: a folder with shards.json, training_paths.json, or synthetic/ and real/; or the URL of shards, such as
    s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or hf://datasets/USER/NAME. Default: the demo data."""
    preset: str | None = None
    """Starting point of all settings: demo, cyclegan-256, cut-256, vologan-64 or vologan-512. Default: vologan-512 on a
    GPU, else demo."""
    config: Path | None = None
    """config.json of a run folder. The run starts from its settings and data set instead of a preset."""
    run_dir: Path | None = None
    """Folder for all files that the run writes. Default: runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint. If nothing is recorded there, start it."""
    init_from: Path | None = None
    """Checkpoint folder with the first weights of a new run. A run that has a checkpoint of its own ignores it."""
    max_steps: int | None = None
    """Stop after this many steps in total. The schedule stays the same. Default: the end of the schedule."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on. `auto`: the GPU if there is one, else the CPU."""
    dry_run: bool = False
    """Say what memory, disk and time the run will take, and train nothing. It takes some steps in a folder that is
    removed again."""
    log: str = "tensorboard"
    """Where the numbers and pictures go beside metrics.jsonl: tensorboard, wandb, trackio, with commas between them, or
    none. All of them stay on this machine, unless you set WANDB_MODE=online or TRACKIO_SPACE_ID."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        with World() as world:
            return _run(argv, world)
    except ConfigError as error:  # about the environment; errors in the command are handled in _run
        return _say(error)


def _run(argv: list[str], world: World) -> int:
    """Run the command as one rank of `world`. All ranks fail together; only rank 0 prints the error."""
    from vologan_fast.data import DataError
    from vologan_fast.training.checkpoint import CheckpointError
    from vologan_fast.training.trainer import TrainingError

    arguments: Arguments | None = None
    with contextlib.nullcontext() if world.is_main else contextlib.redirect_stdout(None):
        try:
            with world.together():
                first = _first_arguments(argv)
                recorded = _recorded(first) if world.is_main else None
            recorded = world.share(recorded)  # a network's file system may show other ranks an older folder
            with world.together():
                arguments = _parse(argv, first, recorded)
            return _train(arguments, recorded, world)
        except (ConfigError, DataError, CheckpointError, TrainingError, PeerError, PeerLost) as error:
            return _say(error) if world.is_main else 1
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = in_a_sentence(error)
    # Another rank may have enough, so the rank that has not says it. The memory of the step is free now.
    return _say_out_of_memory(reason, None if arguments is None else arguments.settings, world.device)


def _say_out_of_memory(reason: str, settings: Config | None, device: torch.device) -> int:
    """Say what was used and what helps, and return the exit code. The estimates come later, as they take seconds."""
    from vologan_fast.host import allowed_memory
    from vologan_fast.profiling.less_memory import options_for_less_memory
    from vologan_fast.training.trainer import peak_memory

    most = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else allowed_memory()
    sizes = f"{in_words(peak_memory(device))} were in use at the peak, {in_words(most)} are the most"
    code = _say(RuntimeError(f"{OUT_OF_MEMORY} ({reason}); {sizes}; less is needed with {_LESS_MEMORY}"))
    options: list[str] = []
    if settings is not None:
        with contextlib.suppress(Exception):  # there is not even memory for this
            options = options_for_less_memory(settings, device)
    if options:
        say_error(f"by a count of what a step keeps: {', '.join(options)}")
    return code


def _say(error: Exception) -> int:
    say_error(f"error: {error}")
    return 1


def _first_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments that choose the settings which the others change."""
    parser = first_parser()
    parser.add_argument("--data")
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--init-from", "--init_from", type=Path)
    parser.add_argument("--resume", action="store_true")
    first, _ = parser.parse_known_args(argv)
    if first.resume and first.run_dir is None:
        raise ConfigError("--resume: expected --run-dir with the run to go on with, found none")
    return first


def _recorded(first: argparse.Namespace) -> StartingPoint | None:
    """Return the settings and the data set of the run to resume. None if this command starts a run."""
    if not first.resume:
        return None
    from vologan_fast.training.run_folder import check_unused

    path = first.run_dir / "config.json"
    if os.path.lexists(path):
        return starting_point(None, path, first.device)
    if first.data is None and not (first.preset or first.config):
        raise ConfigError(f"{path}: no such file; expected a run to go on with, or --data or --preset, to start one")
    check_unused(first.run_dir)
    return None


def _parse(argv: list[str], first: argparse.Namespace, recorded: StartingPoint | None) -> Arguments:
    """Parse the whole command. What it leaves open is as in the recorded run."""
    if recorded is None or first.preset or first.config:
        start = starting_point(first.preset, first.config, first.device)
    else:
        start = recorded
    data = start.data if recorded is None else recorded.data
    default = Arguments(data=data, preset=start.preset, settings=start.settings)
    arguments = tyro.cli(Arguments, args=argv, default=default, prog="python -m vologan_fast.train")
    for sentence in without_effect(start.settings, arguments.settings):
        say(f"warning: {sentence}")
    if recorded is not None:
        settings = _with_found(arguments.settings, recorded.settings)
        if _changes(recorded.settings, settings) and not _changes(recorded.settings, former(settings)):
            settings = former(settings)  # the repeated command has started this run with an older version
        arguments = dataclasses.replace(arguments, settings=settings)
        _check_changes(recorded.settings, settings, arguments.run_dir)
    return arguments


def _with_found(settings: Config, recorded: Config) -> Config:
    """Return the settings with the recorded ones where they are open, such as near and far of a preset.

    These are depth settings, the channels' weights, and the precision and the memory format where they are auto.
    """
    open_spec, found = DepthSpec(), {}
    for domain in DOMAINS:
        given, before = getattr(settings.data, domain), getattr(recorded.data, domain)
        names = [field.name for field in dataclasses.fields(DepthSpec)]
        still_open = [name for name in names if getattr(given, name) == getattr(open_spec, name)]
        found[domain] = dataclasses.replace(given, **{name: getattr(before, name) for name in still_open})
    weights = settings.loss.channel_weights or recorded.loss.channel_weights
    loss = dataclasses.replace(settings.loss, channel_weights=weights)
    names = [name for name in ("precision", "memory_format") if getattr(settings.train, name) == "auto"]
    train = dataclasses.replace(settings.train, **{name: getattr(recorded.train, name) for name in names})
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, **found), loss=loss, train=train)


def _changes(before: Config, settings: Config) -> dict[str, tuple[Any, Any]]:
    """Return the differences that a resumed run may not have."""
    changes = differences(before, settings)
    return {name: changes[name] for name in sorted(set(changes) - set(MAY_CHANGE_ON_RESUME))}


def _check_changes(before: Config, settings: Config, run: Path | None) -> None:
    for name, (old, new) in _changes(before, settings).items():
        raise ConfigError(
            f"--{name.replace('_', '-')}: {new} in this command, {old} in {run}/config.json; "
            f"a resumed run may only change {', '.join(MAY_CHANGE_ON_RESUME)}"
        )


def _train(arguments: Arguments, recorded: StartingPoint | None, world: World) -> int:
    from vologan_fast.training import loggers

    settings = arguments.settings
    check(settings)
    with world.together():
        log = loggers.chosen(arguments.log) if world.is_main else ()
    world.part_of(settings.train.batch)
    if world.size > 1 and settings.loss.ssim_statistics == "batch":
        raise ConfigError("--loss.ssim-statistics is batch: expected image where several processes share a batch")
    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise ConfigError(f"--max-steps {arguments.max_steps}: expected at least 1")
    with world.together():
        device = chosen_device(arguments.device)
    device = world.use(device)
    name = time.strftime(f"{arguments.preset or 'run'}-%Y%m%d-%H%M%S")
    run = arguments.run_dir or world.share(Path("runs") / name)
    with world.together():
        if world.is_main and not arguments.resume:
            _check_new(run)

    from vologan_fast.training.run_folder import RunFolder

    run_folder = RunFolder(run)
    with contextlib.closing(run_folder):
        with world.together():
            if recorded and world.is_main:
                run_folder.lock()  # before a look at the checkpoints, which another process may be replacing
        return _train_in(run_folder, arguments, recorded, world, log)


def _train_in(
    run_folder: RunFolder, arguments: Arguments, recorded: StartingPoint | None, world: World, log: Sequence[str]
) -> int:
    """Start or continue the run, train, and return the exit code. `log` names the loggers."""
    from vologan_fast.data import absolute, load_dataset
    from vologan_fast.networks import choose, numerics_of
    from vologan_fast.training.checkpoint import list_checkpoints
    from vologan_fast.training.compilation import compile_mode, keep_compiled_code
    from vologan_fast.training.run_folder import write_config
    from vologan_fast.training.trainer import Trainer

    settings, device, run = arguments.settings, world.device, run_folder.path
    checkpoints = world.share(list_checkpoints(run_folder.checkpoints) if recorded and world.is_main else [])
    with world.together():
        data = absolute(demo_data(settings.data.shape) if arguments.data is None else arguments.data)
        # A checkpoint tells whether another data set has the same images. Without one, the names must be equal.
        if recorded and recorded.data and not checkpoints and data.rstrip("/") != recorded.data.rstrip("/"):
            expected = f"{recorded.data} in {run}/config.json"
            raise ConfigError(f"--data: {data} in this command, {expected}; without checkpoints, expected the same")
        dataset = load_dataset(data, settings.data, settings.train.seed)
    if settings.train.evaluate_every:
        _check_held_out(dataset)
    settings = dataclasses.replace(settings, data=dataset.config)
    world.check_same(data=dataset.fingerprint(), settings=repr(settings))  # before anything is written
    settings = world.share(choose(settings, device))  # other ranks may have other processors
    with world.together():
        kept = keep_compiled_code()
    if arguments.dry_run:
        return _forecast(settings, dataset, run, world, arguments.max_steps, checkpoints, arguments.init_from)
    with world.together():
        trainer = Trainer(settings, dataset, run_folder, world, log)
    if checkpoints:
        trainer.resume(checkpoints)
    else:
        trainer.start(arguments.init_from)
    with world.together():
        if world.is_main:
            write_config(run, data, settings)

    for line in dataset.describe():
        say(line)
    for sentence in dataset.warnings():
        say(f"warning: {sentence}")
    say(f"loader: {trainer.loader.describe()}")
    where = str(device) if world.size == 1 else f"{world.size} processes on {device.type}"
    say(f"run folder: {run.resolve()}  ({where}, {trainer.steps_per_epoch} steps an epoch)")
    numerics = numerics_of(settings, device)
    say(f"networks: {numerics}")
    if numerics.is_emulated_on(device):
        say("warning: --train.precision: this run computes in bfloat16, which is slow on a processor without it")
    if settings.train.cuda_graph and (device.type != "cuda" or world.size > 1):
        say(f"warning: --train.cuda-graph has no effect with {where}; expected a single GPU")
    if compile_mode(settings.train.compile, trainer.device) != "none":
        say(f"the first step compiles the networks, which may take minutes; kept for other runs in {kept}")
    if not checkpoints and arguments.resume:
        say("no checkpoint yet: starting at step 0")
    if checkpoints:
        unused = "" if arguments.init_from is None else "; --init-from is ignored, as the run has weights of its own"
        say(f"resuming after step {trainer.finished_steps}{unused}")
        if trainer.finished_steps >= (arguments.max_steps or trainer.scheduled_steps):
            say("the run has finished: no steps are left")
    finished = trainer.train(arguments.max_steps)
    say(f"checkpoint: {trainer.last_checkpoint}")
    if not finished:
        say(
            f"stopped after step {trainer.finished_steps}; go on with: "
            f"{world.launcher} -m vologan_fast.train --run-dir {shlex.quote(str(run))} --resume{_repeated(arguments)}"
        )
        return stopping.EXIT
    say(f"image grid: {(run / 'samples' / f'step-{trainer.finished_steps:08d}.png').resolve()}")
    if trainer.last_report is not None:
        say(f"report: {trainer.last_report.resolve()}")
    return 0


def _forecast(
    settings: Config,
    dataset: Dataset,
    run: Path,
    world: World,
    max_steps: int | None,
    checkpoints: Sequence[Path],
    init_from: Path | None,
) -> int:
    """Say what the run will take."""
    from vologan_fast.profiling.dry_run import describe, rehearse

    say(f"dry run on {world.device}: some steps are taken, and removed again")
    with contextlib.redirect_stdout(io.StringIO()):
        forecast = rehearse(settings, dataset, run, world, max_steps, checkpoints, init_from)
    if forecast is None:
        return 0 if not world.is_main else stopping.EXIT
    for line in describe(forecast, run):
        say(line)
    return 0


def _check_held_out(dataset: Dataset) -> None:
    for domain in DOMAINS:
        if (count := len(dataset.held_out[domain])) < 2:
            raise ConfigError(
                f"--train.evaluate-every: expected at least 2 held-out images of each domain, found {count} of the "
                f"{domain} one; hold out more with --data.held-out"
            )


def _repeated(arguments: Arguments) -> str:
    """Return the options that a run folder does not record, for a command that goes on as this one."""
    steps = "" if arguments.max_steps is None else f" --max-steps {arguments.max_steps}"
    steps += "" if arguments.log == "tensorboard" else f" --log {shlex.quote(arguments.log)}"
    return steps + ("" if arguments.device == "auto" else f" --device {arguments.device}")


def _check_new(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"--run-dir {run}: exists and is not empty; expected a new folder, or --resume to go on")


if __name__ == "__main__":
    stopping.run(main)
