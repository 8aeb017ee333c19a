"""Where a run's numbers and pictures go beside metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

Each is used through its public client, where it is installed. Nothing leaves this machine unless the user says so:
WANDB_MODE is `offline` if the user has not set it, and Trackio writes into its local folder, TRACKIO_DIR.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vologan_fast.config import Config, ConfigError, to_dict
from vologan_fast.quantities.histograms import Histogram
from vologan_fast.report.pictures import Pixels
from vologan_fast.words import printable, say_error

PROJECT = "vologan_fast"
"""Name of the project in Weights & Biases and in Trackio."""


class Logger(Protocol):
    """A place for numbers and pictures. Every call says the step."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by their names."""

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        """Log a picture (H, W, 3)."""

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        """Log a histogram."""

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        """Log lines of text, which are shown as they are."""

    def flush(self) -> None:
        """Write what is left."""

    def close(self) -> None:
        """Write what is left, and close."""


class TensorBoard:
    """TensorBoard events in a folder. Former events from `first_step` on are dropped.

    Raises UnicodeEncodeError if the folder's name is not UTF-8, which TensorBoard needs.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        str(folder).encode()
        _date_back(folder)
        _leave_errors_to_the_writer()
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        edges = histogram.edges
        self._writer.add_histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(histogram.counts.sum()),
            sum=histogram.total,
            sum_squares=histogram.squares,
            bucket_limits=edges[1:].tolist(),
            bucket_counts=histogram.counts.tolist(),
            global_step=step,
        )

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        # TensorBoard reads Markdown. Lines that are indented by four blanks are shown as they are.
        self._writer.add_text(name, "".join(f"    {printable(line)}\n" for line in lines), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@functools.cache
def _leave_errors_to_the_writer() -> None:
    """Let Python not print the errors of TensorBoard's thread, which the next call of the writer raises again."""
    print_error = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            print_error(arguments)

    threading.excepthook = hook


def _date_back(folder: Path) -> None:
    """Rename the event files of a clock that was ahead of this one, so that they come before the next file.

    TensorBoard reads the files of a folder in the order of their names, which hold the second of their beginning. A
    file says from which step on it replaces the files before it.
    """
    times = {path: int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*.*")}
    now = int(time.time())
    later = sorted(path for path, began in times.items() if began >= now)
    if not later:
        return
    while now - 1 <= max((began for began in times.values() if began < now), default=0):  # for less than two seconds
        time.sleep(0.1)
        now = int(time.time())
    for number, path in enumerate(later):
        rest = path.name.removeprefix("events.out.tfevents.")
        path.rename(path.with_name(f"events.out.tfevents.{now - 1:010d}.{number:04d}.{rest}"))


class WeightsAndBiases:
    """A run of Weights & Biases. Its files lie in the run folder."""

    def __init__(self, run: Path, config: Config) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=printable(run.resolve().name),
            dir=str(run),
            config=to_dict(config),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, silent=True),
        )
        # Losses may arrive some steps late, and the client's own steps must not go back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        self._run.log({"step": step, name: self._wandb.Image(pixels)})

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        found = self._wandb.Histogram(np_histogram=(histogram.counts, histogram.edges))
        self._run.log({"step": step, name: found})

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        table = self._wandb.Table(columns=["line"], data=[[printable(line)] for line in lines])
        self._run.log({"step": step, name: table})

    def flush(self) -> None:
        """The client writes by itself."""

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, in its local folder."""

    def __init__(self, run: Path, config: Config) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=PROJECT,
            name=printable(run.resolve().name),
            config=to_dict(config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        self._run.log({name: self._trackio.Image(pixels)}, step=step)

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        found = self._trackio.Histogram(np_histogram=(histogram.counts, histogram.edges))
        self._run.log({name: found}, step=step)

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        self._run.log({name: self._trackio.Markdown("".join(f"    {printable(line)}\n" for line in lines))}, step=step)

    def flush(self) -> None:
        """The client writes by itself."""

    def close(self) -> None:
        self._run.finish()


NAMES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""The loggers by name, with the package that each needs."""
DEFAULT = ("tensorboard",)


def chosen(text: str) -> tuple[str, ...]:
    """Return the names of loggers in a text such as "tensorboard,wandb". "none" stands for none.

    Raises ConfigError for an unknown name, and if a package is not installed. Only TensorBoard, the default, may be
    missing: the run then says so and goes on.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in NAMES:
            raise ConfigError(
                f"--log {printable(text)}: found {printable(name)!r}, expected names of {', '.join(NAMES)} with commas "
                "between them, or none"
            )
        if name not in DEFAULT and importlib.util.find_spec(NAMES[name]) is None:
            raise ConfigError(
                f"--log {name}: the package {NAMES[name]} is not installed; pip install 'vologan-fast[{name}]'"
            )
    return names


class Loggers:
    """All loggers of a run. One that fails is closed, with a sentence, and the run goes on without it."""

    def __init__(self, names: Sequence[str], run: Path, config: Config, first_step: int) -> None:
        makers: dict[str, Callable[[], Logger]] = {
            "tensorboard": lambda: TensorBoard(run / "tensorboard", first_step),
            "wandb": lambda: WeightsAndBiases(run, config),
            "trackio": lambda: Trackio(run, config),
        }
        self._loggers: dict[str, Logger] = {}
        for name in names:
            try:
                self._loggers[name] = makers[name]()
            except Exception as error:  # dependencies raise various errors where their versions do not fit each other
                if name != "tensorboard":
                    self._give_up(name, error)
                elif isinstance(error, OSError):  # the run folder cannot be written
                    raise
                elif isinstance(error, UnicodeEncodeError):
                    say_error("TensorBoard needs folders whose names are UTF-8: no curves are written for it")
                else:
                    _say_that_tensorboard_is_missing(error)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda logger: logger.scalars(values, step))

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        self._each(lambda logger: logger.picture(name, pixels, step))

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        self._each(lambda logger: logger.histogram(name, histogram, step))

    def text(self, name: str, lines: Sequence[str], step: int) -> None:
        self._each(lambda logger: logger.text(name, lines, step))

    def flush(self) -> None:
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:
                if name == "tensorboard" and isinstance(error, OSError):
                    del self._loggers[name]  # its thread has ended
                    raise  # the run folder cannot be written: a full disk ends the run with a checkpoint
                self._give_up(name, error)

    def _give_up(self, name: str, error: BaseException | None) -> None:
        self._loggers.pop(name, None)
        say_error(f"--log {name}: {_in_a_line(error)}; the run goes on without it")


def _say_that_tensorboard_is_missing(error: BaseException) -> None:
    say_error(
        f"TensorBoard cannot be imported ({_in_a_line(error)}): no curves are written for it; "
        "metrics.jsonl has the numbers"
    )


def _in_a_line(error: BaseException | None) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
