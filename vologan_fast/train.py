"""The command `python -m vologan_fast.train`: train on RGB-D images of two domains, in a folder or a bucket.

    python -m vologan_fast.train --data DIR --preset vologan-512 --run-dir runs/first
    python -m vologan_fast.train --run-dir runs/first --resume
    torchrun --nproc-per-node=8 -m vologan_fast.train --data DIR --run-dir runs/eight

Without --data it trains on the demo data, which are rendered on first use. The options `--section.option` change the
settings of the preset.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vologan_fast.commands import chosen_device, demo_data, first_parser, starting_point
from vologan_fast.config import Config, ConfigError, check, differences
from vologan_fast.training.distributed import PeerError, PeerLost, World

MAY_CHANGE_ON_RESUME = (
    "data.backend",
    "data.cache",
    "data.shard_cache",
    "data.threads",
    "train.log_every",
    "train.validate_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.grid_images",
    "train.step",
    "train.micro_batch",
    "train.recompute",
    "train.compile",
    "train.cuda_graph",
    "train.split_kernels",
    "train.pad_channels",
)
"""Settings that may change when a run is resumed. They change neither the losses nor the weights of the later steps.
Only data.backend and the last seven, from train.step on, change their rounding."""

_EXIT_INTERRUPTED = 130


@dataclass
class Arguments:
    """Train two generators to translate RGB-D images between two domains that are not paired."""

    data: str | None = None
    """Data set: a folder with shards.json, training_paths.json, or synthetic/ and real/; or s3://BUCKET/PREFIX with
    shards. Default: the demo data."""
    preset: str | None = None
    """Starting point of all settings: demo, vologan-64 or vologan-512. Default: vologan-512 on a GPU, else demo."""
    config: Path | None = None
    """config.json of a run folder. The run starts from its settings and data set instead of a preset."""
    run_dir: Path | None = None
    """Folder for all files that the run writes. Default: runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint."""
    init_from: Path | None = None
    """Checkpoint folder with the first weights of a new run."""
    max_steps: int | None = None
    """Stop after this many steps in total. The schedule stays the same. Default: the end of the schedule."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on. `auto`: the GPU if there is one, else the CPU."""
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

    with contextlib.nullcontext() if world.is_main else contextlib.redirect_stdout(None):
        try:
            with world.together():
                arguments = _parse(argv)
            return _train(arguments, world)
        except (ConfigError, DataError, CheckpointError, TrainingError, PeerError, PeerLost) as error:
            return _say(error) if world.is_main else 1


def _say(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 1


def _parse(argv: list[str]) -> Arguments:
    parser = first_parser()
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    first, _ = parser.parse_known_args(argv)
    if first.resume and first.run_dir is None:
        raise ConfigError("--resume: expected --run-dir with the run to go on with, found none")
    if first.resume and (first.preset or first.config):
        raise ConfigError("--resume: a run keeps its settings; give neither --preset nor --config")
    recorded = first.run_dir / "config.json" if first.resume else first.config
    start = starting_point(first.preset, recorded, first.device)
    default = Arguments(data=start.data, preset=start.preset, settings=start.settings)
    return tyro.cli(Arguments, args=argv, default=default, prog="python -m vologan_fast.train")


def _train(arguments: Arguments, world: World) -> int:
    settings = arguments.settings
    check(settings)
    world.part_of(settings.train.batch)
    if world.size > 1 and settings.loss.ssim_statistics == "batch":
        raise ConfigError("--loss.ssim-statistics is batch: expected image where several processes share a batch")
    if arguments.resume and arguments.init_from is not None:
        raise ConfigError("--init-from: expected none with --resume, which goes on from the run's own weights")
    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise ConfigError(f"--max-steps {arguments.max_steps}: expected at least 1")
    with world.together():
        device = chosen_device(arguments.device)
    device = world.use(device)
    name = time.strftime(f"{arguments.preset or 'run'}-%Y%m%d-%H%M%S")
    run = arguments.run_dir or world.share(Path("runs") / name)
    with world.together():
        if world.is_main:
            _check_run(run, arguments)

    from vologan_fast.data import absolute, load_dataset
    from vologan_fast.training.checkpoint import list_checkpoints
    from vologan_fast.training.compilation import compile_mode, keep_compiled_code
    from vologan_fast.training.run_folder import write_config
    from vologan_fast.training.trainer import Trainer

    with world.together():
        data = absolute(demo_data(settings.data.size) if arguments.data is None else arguments.data)
        dataset = load_dataset(data, settings.data, settings.train.seed)
    settings = dataclasses.replace(settings, data=dataset.config)
    checkpoints = list_checkpoints(run / "checkpoints") if arguments.resume else []
    last = world.share(checkpoints[-1] if checkpoints else None)
    with world.together():
        kept = keep_compiled_code()
        trainer = Trainer(settings, dataset, run, world, last, arguments.init_from)
    if arguments.init_from is not None:
        trainer.save()  # a run that is killed before its first regular checkpoint then resumes from these weights
    with world.together():
        if world.is_main:
            write_config(run, data, settings)

    for line in dataset.describe():
        print(line)
    print(f"loader: {trainer.loader.describe()}")
    where = str(device) if world.size == 1 else f"{world.size} processes on {device.type}"
    print(f"run folder: {run.resolve()}  ({where}, {trainer.steps_per_epoch} steps an epoch)")
    if compile_mode(settings.train.compile, trainer.device) != "none":
        print(f"the first step compiles the networks, which may take minutes; kept for other runs in {kept}")
    if arguments.resume:
        print(f"resuming after step {trainer.finished_steps}" if last else "no checkpoint yet: starting at step 0")
    finished = trainer.train(arguments.max_steps)
    print(f"checkpoint: {trainer.last_checkpoint}")
    if not finished:
        print(
            f"stopped after step {trainer.finished_steps}; go on with: "
            f"{world.launcher} -m vologan_fast.train --run-dir {shlex.quote(str(run))} --resume{_repeated(arguments)}"
        )
        return _EXIT_INTERRUPTED
    print(f"image grid: {(run / 'samples' / f'step-{trainer.finished_steps:08d}.png').resolve()}")
    return 0


def _repeated(arguments: Arguments) -> str:
    """Return the options that a run folder does not record, for a command that goes on as this one."""
    steps = "" if arguments.max_steps is None else f" --max-steps {arguments.max_steps}"
    return steps + ("" if arguments.device == "auto" else f" --device {arguments.device}")


def _check_run(run: Path, arguments: Arguments) -> None:
    if arguments.resume:
        _check_changes(run, arguments.settings)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"--run-dir {run}: exists and is not empty; expected a new folder, or --resume to go on")


def _check_changes(run: Path, settings: Config) -> None:
    from vologan_fast.training.run_folder import read_config

    _, before = read_config(run / "config.json")
    changes = differences(before, settings)
    for name in sorted(set(changes) - set(MAY_CHANGE_ON_RESUME)):
        old, new = changes[name]
        raise ConfigError(
            f"--{name.replace('_', '-')}: {new} in this command, {old} in {run / 'config.json'}; "
            f"a resumed run may only change {', '.join(MAY_CHANGE_ON_RESUME)}"
        )


if __name__ == "__main__":
    sys.exit(main())
