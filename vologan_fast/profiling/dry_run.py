"""What a run will take, found by training a few steps of it: memory, disk and time.

`rehearse` trains as `Trainer` does, in a folder that is removed afterwards. After some steps it validates and saves,
and if the run does, evaluates and writes a report. So it has done once what a run does again and again, and the peak of
its memory is that of a run. The rest is counted:

- time: steps by their mean, and each validation, checkpoint and evaluation;
- disk: the checkpoints that are kept, a grid for each validation, and the lines of the logs.

Validations look at a few batches of held-out images, and their time is multiplied. An image pool counts as full, which
it becomes later. Left out: what the command `evaluate` writes later. Grids of trained networks may take other space
than the first one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from vologan_kernels.dispatch import triton_is_installed

from vologan_fast.checksums import unsigned_line
from vologan_fast.config import DOMAINS, Config, ConfigError
from vologan_fast.data import Dataset
from vologan_fast.data.shards.index import ShardRecords
from vologan_fast.host import free_host_memory, peak_resident_memory
from vologan_fast.training.compilation import compile_mode, keep_compiled_code
from vologan_fast.training.distributed import World
from vologan_fast.training.run_folder import RunFolder
from vologan_fast.training.thinning import stride
from vologan_fast.training.trainer import Trainer, peak_memory
from vologan_fast.words import in_words

STEPS = 40
"""At most so many steps are taken."""
FEWEST = 3
SECONDS = 20.0
"""No further step begins after this time, once there are `FEWEST`."""
_NEVER = 10**9
"""An interval of steps that does not end within the rehearsal."""
SAVE, VALIDATE, EVALUATE, REPORT = "checkpoints", "validations", "evaluations", "reports"


class Rehearsal(Trainer):
    """A trainer that stops after some steps, does everything else once, and takes the time of all."""

    def __init__(self, config: Config, dataset: Dataset, run_folder: RunFolder, world: World) -> None:
        train = config.train
        seldom = dataclasses.replace(
            train,
            log_every=1,
            log_limit=0,
            grid_limit=0,
            save_every=_NEVER,
            validate_every=_NEVER,
            evaluate_every=_NEVER if train.evaluate_every else 0,
            report_every=min(train.report_every, 0),
        )
        super().__init__(dataclasses.replace(config, train=seldom), dataset, run_folder, world)
        self.events_of_report = 0
        """Bytes that a report adds to TensorBoard."""
        few = max(train.grid_images, 2 * world.part_of(train.batch))
        self._few_held_out = {domain: dataset.held_out[domain][:few] for domain in DOMAINS}
        self.steps: list[float] = []
        """Seconds of each step."""
        self.once: dict[str, list[float]] = defaultdict(list)
        """Seconds of each of the other things."""
        self._began = self._asked = self._elsewhere = 0.0

    def resume(self, checkpoints: Sequence[Path]) -> None:
        """Continue from the last checkpoint, which stays as it is. Raises CheckpointError if it is damaged."""
        with self.world.together():
            self._restore(checkpoints[-1])
        with self.world.together():
            if self.world.is_main:
                self.run_folder.lock()
                self.run_folder.begin(self.finished_steps, self.config)

    def _next_batch(self, stop: bool) -> tuple[Tensor, Tensor] | None:
        now = time.perf_counter()
        if self._asked:
            self.steps.append(now - self._asked - self._elsewhere)
        self._asked, self._elsewhere = now, 0.0
        self._began = self._began or now
        enough = len(self.steps) >= STEPS or (len(self.steps) >= FEWEST and now - self._began > SECONDS)
        batch = super()._next_batch(stop or enough)
        if batch is None and not self.world.share(stop):
            self.validate()
            if self.config.train.evaluate_every:
                self.evaluate()
            if self.config.train.report_every >= 0:
                self.report()
        return batch

    def _bytes_of_events(self) -> int:
        if not self.world.is_main:
            return 0
        self.run_folder.sync()
        return bytes_in(self.run_folder.path / "tensorboard")

    def save(self) -> None:
        with self._timed(SAVE):
            super().save()

    def validate(self) -> None:
        whole = self.dataset
        self.dataset = dataclasses.replace(whole, held_out=self._few_held_out)
        try:
            with self._timed(VALIDATE):
                super().validate()
        finally:
            self.dataset = whole

    def evaluate(self) -> None:
        if self._last_save != self.finished_steps:
            self.save()
        with self._timed(EVALUATE):
            super().evaluate()

    def report(self) -> None:
        before = self._bytes_of_events()
        with self._timed(REPORT):
            super().report()
        self.events_of_report = self._bytes_of_events() - before

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.once[what].append(seconds)
        self._elsewhere += seconds

    def seconds_of(self, what: str) -> float:
        """Return the seconds that one of a run's other things takes."""
        seconds = statistics.fmean(self.once[what]) if self.once[what] else 0.0
        if what != VALIDATE:
            return seconds
        of_all, of_few = (
            min(-(-len(images) // self.config.train.batch) for images in held_out.values())
            for held_out in (self.dataset.held_out, self._few_held_out)
        )
        return seconds * of_all / max(of_few, 1)

    def missing_in_pools(self) -> int:
        """Return the bytes that the image pools will add to a checkpoint until they are full."""
        missing = 0
        for pool in self.step.state_dict().values() if self.config.loss.pool else ():
            images = pool.get("images") if isinstance(pool, Mapping) else None
            if images is not None and len(images):
                missing += (self.config.loss.pool - len(images)) * images[0].nbytes
        return missing * self.world.size


@dataclass(frozen=True)
class Events:
    """How often a run does something, from its first step to its last, and from the rehearsed step on."""

    whole: dict[str, int]
    left: dict[str, int]
    multiples: int
    """Checkpoints that are kept beside the latest ones, because their steps are multiples of `train.keep_every`."""
    logged: int
    """Lines of the log about training steps."""
    grids: int
    """Grids of held-out images."""


def events_of(config: Config, steps_per_epoch: int, finished: int, end: int) -> Events:
    """Return how often a run of `end` steps, of which `finished` are over, validates, saves, evaluates and logs."""
    train = config.train

    def due(every: int) -> set[int]:
        return set(range(every, end + 1, every)) | {end}

    evaluations = due(train.evaluate_every) if train.evaluate_every else set()
    validations = due(train.validate_every or steps_per_epoch)
    if config.schedule.decay == "plateau":
        validations |= due(steps_per_epoch)
    saves = due(train.save_every or steps_per_epoch) | evaluations
    lines = {n for n in range(1, end // train.log_every + 1) if n % stride(n, train.log_limit) == 0}
    every = train.validate_every or steps_per_epoch
    grids = {step for step in validations if step // every % stride(step // every, train.grid_limit) == 0} | {end}
    reports = due(train.report_every) if train.report_every > 0 else {end} if train.report_every == 0 else set()
    latest_first = sorted(saves, reverse=True)
    found = {SAVE: saves, VALIDATE: validations, EVALUATE: evaluations, REPORT: reports}
    return Events(
        {what: len(steps) for what, steps in found.items()},
        {what: sum(step > finished for step in steps) for what, steps in found.items()},
        multiples=len([step for step in latest_first[train.keep_checkpoints :] if step % train.keep_every == 0])
        if train.keep_every
        else 0,
        logged=len({n * train.log_every for n in lines} | {1, end}),
        grids=len(grids),
    )


@dataclass(frozen=True)
class Forecast:
    """What a run will take. Seconds and bytes."""

    device: str
    steps: int
    """Steps that the run has left."""
    measured: int
    """Steps that were measured."""
    step: float
    """Seconds of a step, in the median."""
    first_step: float
    total: float
    """Seconds of all that is left."""
    each: dict[str, tuple[int, float]]
    """Validations, checkpoints, evaluations: how many are left, and the seconds of each."""
    memory: int
    """Bytes at the peak: resident in the process, or allocated on the GPU."""
    free_memory: int
    modelled_memory: tuple[float, float, float] | None
    """On a GPU: bytes by the model of `estimate`, likely, least and most. None where it cannot be counted."""
    disk: dict[str, int]
    """Part of the run folder → bytes at the end."""
    checkpoint: int
    """Bytes of one checkpoint. There must be room for one more while it is written."""
    caches: dict[str, int]
    """Kind → bytes in the cache folder."""
    free_disk: int

    @property
    def disk_at_the_end(self) -> int:
        return sum(self.disk.values())


def rehearse(
    config: Config,
    dataset: Dataset,
    run: Path,
    world: World,
    end: int | None,
    checkpoints: Sequence[Path] = (),
    init_from: Path | None = None,
) -> Forecast | None:
    """Train some steps as a run in the folder `run` would, and return what the whole run will take.

    The run ends after `end` steps, by default with its schedule. Nothing is left behind. Rank 0 returns the forecast,
    the others None. So does rank 0 if a signal stopped the rehearsal. Raises what `Trainer` raises.
    """
    near = _existing(run.absolute().parent)
    free_memory = _free_memory(world.device)
    compiled = _compiled_code(config, world.device)
    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        with world.together():
            if world.is_main:
                folder = Path(stack.enter_context(_folder_in(near)))
        folder = world.share(folder)
        assert folder is not None  # rank 0 has made it
        with world.together():
            rehearsal = Rehearsal(config, dataset, RunFolder(folder), world)
        stack.callback(rehearsal.run_folder.close)
        if checkpoints:
            rehearsal.resume(checkpoints)
        else:
            rehearsal.start(init_from)
        finished = rehearsal.finished_steps
        end = rehearsal.scheduled_steps if end is None else end
        whole = rehearsal.train(end)
        if not world.is_main or not (whole or rehearsal.once[VALIDATE]):
            return None
        assert rehearsal.last_checkpoint is not None  # `train` has saved
        events = events_of(config, rehearsal.steps_per_epoch, finished, end)
        checkpoint = used_by(rehearsal.last_checkpoint) + rehearsal.missing_in_pools()
        disk = _disk(config, folder, events, checkpoint, rehearsal.events_of_report)
    steps, seconds = max(end - finished, 0), rehearsal.steps or [0.0]
    measured = seconds[max(1, len(seconds) // 4) :] or seconds  # the first ones warm up
    each = {what: (number, rehearsal.seconds_of(what)) for what, number in events.left.items() if number}
    caches = {
        "kept images": rehearsal.loader.bytes_on_disk,
        "shards": _shards(dataset),
        "compiled code": _compiled_code(config, world.device) - compiled,
    }
    return Forecast(
        device=world.device.type,
        steps=steps,
        measured=len(measured),
        step=statistics.median(measured),
        first_step=seconds[0],
        total=steps * statistics.fmean(measured) + sum(number * of_one for number, of_one in each.values()),
        each=each,
        memory=peak_memory(world.device),
        free_memory=free_memory,
        modelled_memory=_modelled(config, world.device),
        disk=disk,
        checkpoint=checkpoint,
        caches={kind: size for kind, size in caches.items() if size},
        free_disk=shutil.disk_usage(near).free,
    )


def describe(forecast: Forecast, run: Path) -> Iterator[str]:
    """Yield the lines that tell people a forecast."""
    place = "allocated on the GPU" if forecast.device == "cuda" else "resident"
    yield f"memory: {in_words(forecast.memory)} {place} at the peak; {in_words(forecast.free_memory)} are free"
    if forecast.modelled_memory is not None:
        likely, least, most = (in_words(int(size)) for size in forecast.modelled_memory)
        yield f"  by the model of a GPU: {likely} ({least} – {most})"
    kept = ", ".join(f"{part} {in_words(size)}" for part, size in forecast.disk.items())
    yield (
        f"disk: {in_words(forecast.disk_at_the_end)} in {run} at the end ({kept}); a checkpoint of "
        f"{in_words(forecast.checkpoint)} more while it is written; {in_words(forecast.free_disk)} are free"
    )
    for kind, size in forecast.caches.items():
        yield f"  in the cache folder, {kind}: {in_words(size)}"
    yield (
        f"time: {forecast.step:.4g} s a step (median of {forecast.measured}; the first took {forecast.first_step:.4g} "
        f"s), {forecast.steps} steps: {_duration(forecast.total)} in all"
    )
    for what, (number, seconds) in forecast.each.items():
        counted = f"{number} {what}" if number != 1 else f"1 {what.removesuffix('s')}"
        yield f"  {counted} of {seconds:.3g} s {'are' if number != 1 else 'is'} in it"
    if forecast.memory > forecast.free_memory:
        yield "warning: that is more memory than is free; --train.micro-batch and --train.recompute need less"
    if forecast.disk_at_the_end + forecast.checkpoint > forecast.free_disk:
        yield "warning: that is more than is free on the disk; --train.keep-checkpoints changes that"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


@contextlib.contextmanager
def _folder_in(near: Path) -> Iterator[str]:
    """Make a folder for the rehearsal on the disk of the run, and remove it again. Raises ConfigError."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix=".dry-run-", dir=near)
    except OSError as error:
        raise ConfigError(f"--run-dir: {near} cannot be written ({error.strerror or error})") from error
    with temporary as folder:
        yield folder


def _free_memory(device: torch.device) -> int:
    """Return the bytes that this process may have in all, what it has already included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return free_host_memory() + peak_resident_memory()


def _modelled(config: Config, device: torch.device) -> tuple[float, float, float] | None:
    if device.type != "cuda" or not triton_is_installed():
        return None
    from vologan_fast.profiling.estimate import device_memory

    return device_memory(config, torch.cuda.get_device_properties(device).multi_processor_count)


def _compiled_code(config: Config, device: torch.device) -> int:
    if compile_mode(config.train.compile, device) == "none":
        return 0
    return used_by(keep_compiled_code())


def _shards(dataset: Dataset) -> int:
    """Return the bytes of shards from a bucket that the run keeps on this machine."""
    if dataset.shard_cache is None:
        return 0
    parts = [*dataset.train.values(), *dataset.held_out.values()]
    shards = {str(shard): shard.size for part in parts if isinstance(part, ShardRecords) for shard in part.shards}
    return min(sum(shards.values()), dataset.shard_cache.limit)


def _disk(config: Config, folder: Path, events: Events, checkpoint: int, events_of_report: int) -> dict[str, int]:
    """Return what each part of the run folder will have in bytes, from a folder in which each thing was done once."""
    lines: dict[str, list[bytes]] = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True):
        lines[unsigned_line(line)["split"]].append(line)
    number = {"train": events.logged, "held_out": events.whole[VALIDATE], "evaluation": events.whole[EVALUATE]}
    of_one = {split: statistics.fmean(map(len, of_split)) for split, of_split in lines.items()}
    grids = list((folder / "samples").iterdir())
    grid, picture = (statistics.fmean(map(size, grids)) if grids else 0.0 for size in (used_by, _length))
    # TensorBoard has the grids and the numbers of the lines, in records that are about equal.
    numbers = {split: len(unsigned_line(of_split[0])) - 2 for split, of_split in lines.items()}
    events_now = bytes_in(folder / "tensorboard") - events_of_report
    now = sum(numbers[split] * len(of_split) for split, of_split in lines.items())
    a_number = max(events_now - len(grids) * picture, 0) / now if now else 0.0
    later = sum(numbers[split] * number[split] for split in lines)
    kept = min(events.whole[SAVE], config.train.keep_checkpoints + events.multiples)
    if events.whole[EVALUATE] and events.whole[SAVE] > kept:
        kept += 1  # the best, which may be none of the latest
    return {
        "checkpoints": kept * checkpoint,
        "grids": round(events.grids * grid),
        "TensorBoard": round(
            later * a_number + (events.grids * picture if events_now else 0) + events.whole[REPORT] * events_of_report
        ),
        "metrics": round(sum(number[split] * size for split, size in of_one.items())),
        "report": used_by(folder / "report.html"),
    }


def _length(file: Path) -> int:
    return file.stat().st_size


def bytes_in(folder: Path) -> int:
    """Return the length of all files in a folder together. 0 if it does not exist."""
    return sum(map(_length, folder.iterdir())) if folder.exists() else 0


def used_by(path: Path) -> int:
    """Return the bytes that a file, or a folder with all in it, takes on the disk. 0 if it does not exist."""
    if not path.exists():
        return 0
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(512 * file.lstat().st_blocks for file in files)
