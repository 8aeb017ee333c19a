"""The command `python -m vologan_fast.profile`: measure the cost of a training step and its floor on this machine.

    python -m vologan_fast.profile --data DIR --preset vologan-512
    python -m vologan_fast.profile --config runs/first/config.json --train.micro-batch 1 --json cost.json
    python -m vologan_fast.profile --estimate H200 --preset vologan-512

It runs some steps as `vologan_fast.train` does, prints a table and writes a Chrome trace (chrome://tracing,
ui.perfetto.dev). Without --data it uses the demo data, which are rendered on first use. The docstring of
`vologan_fast.profiling` defines the numbers.

With --estimate, nothing runs. The command models what a run costs on a GPU that need not be there, beside eager PyTorch
and torch.compile. The docstring of `vologan_fast.profiling.estimate` defines that model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vologan_fast import stopping
from vologan_fast.commands import chosen_device, demo_data, first_parser, starting_point
from vologan_fast.config import Config, ConfigError, check, height_and_width, to_dict, without_effect
from vologan_fast.files import write_whole
from vologan_fast.words import say, say_error, say_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from vologan_fast.profiling.estimate import Cost, Estimate, Side
    from vologan_fast.profiling.gpus import Gpu
    from vologan_fast.profiling.summary import Profile


_WIDTHS = (10, 7, 9, 9, 9, 8, 9, 8, 9)
"""Widths of the table's columns after the first."""


@dataclass
class Arguments:
    """Measure the time, arithmetic, bytes and memory of a training step, and compare them with this machine's floor."""

    data: str | None = None
    """Data set, as for training. Default: the demo data."""
    preset: str | None = None
    """Starting point of all settings: demo, cyclegan-256, cut-256, vologan-64 or vologan-512. Default: vologan-512 on a
    GPU, else demo."""
    config: Path | None = None
    """config.json of a run folder. The profile starts from its settings and data set instead of a preset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to run on. `auto`: the GPU if there is one, else the CPU."""
    steps: int = 3
    """Steps to measure: this many without the profiler, then as many with it."""
    warm_up: int = 4
    """Steps before the measured ones. The first compiles the networks, the fourth captures a CUDA graph."""
    trace: Path | None = None
    """Chrome trace to write. Default: profile-PRESET-DATE-TIME.json in the run folder of --config, else in runs/."""
    json: Path | None = None
    """File for the numbers of the table, as JSON."""
    estimate: str | None = None
    """GPU to model the cost of a run on: A100, H100, H200, B200, RTX-4090 or RTX-5090. Nothing is run or measured."""
    images: int = 2048
    """With --estimate: images of the longer domain, held-out images included. VoloGAN's paper has 2048."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from vologan_fast.data import DataError

    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        if arguments.estimate is None:
            _profile(arguments)
        else:
            _estimate(arguments, arguments.estimate)
    except (ConfigError, DataError, OSError) as error:
        say_error(f"error: {error}")
        return 1
    return 0


def _parse(argv: list[str]) -> Arguments:
    parser = first_parser()
    parser.add_argument("--estimate")
    first, _ = parser.parse_known_args(argv)
    if first.estimate and not first.config:
        first.preset = first.preset or "vologan-512"
    start = starting_point(first.preset, first.config, first.device)
    default = Arguments(data=start.data, preset=start.preset, settings=start.settings)
    arguments = tyro.cli(Arguments, args=argv, default=default, prog="python -m vologan_fast.profile")
    for sentence in without_effect(start.settings, arguments.settings):
        say_error(f"warning: {sentence}")
    return arguments


def _profile(arguments: Arguments) -> None:
    settings = arguments.settings
    check(settings)
    for option, number in (("--steps", arguments.steps), ("--warm-up", arguments.warm_up)):
        if number < 1:
            raise ConfigError(f"{option} {number}: expected at least 1")
    if arguments.images != Arguments.images:
        raise ConfigError("--images: expected no such option without --estimate, which alone asks for a whole run")
    device = chosen_device(arguments.device)
    name = arguments.preset or "run"
    if arguments.json is not None:
        _check_new("--json", arguments.json)
    trace = arguments.trace or _new_trace(name, arguments.config)
    _check_new("--trace", trace)
    try:
        str(trace.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--trace {trace}: expected a path in UTF-8, because torch writes the trace") from error
    if arguments.json is not None and arguments.json.absolute() == trace.absolute():
        raise ConfigError(f"--json {arguments.json}: expected another file than the one of --trace")

    from vologan_fast.data import absolute, load_dataset
    from vologan_fast.profiling.summary import measure

    data = absolute(demo_data(settings.data.shape) if arguments.data is None else arguments.data)
    dataset = load_dataset(data, settings.data, settings.train.seed)
    settings = dataclasses.replace(settings, data=dataset.config)
    profile = measure(
        settings, dataset, device, steps=arguments.steps, warm_up=arguments.warm_up, trace=trace.absolute()
    )
    if arguments.json is not None:
        record = {"data": data, "settings": to_dict(settings), **dataclasses.asdict(profile)}
        _write(arguments.json, record)
    say_lines(f"{name}: {table(profile)}\n")
    say(f"trace, for ui.perfetto.dev or chrome://tracing: {trace.absolute()}")


def _estimate(arguments: Arguments, name: str) -> None:
    from vologan_fast.profiling.gpus import GPUS

    settings = arguments.settings
    check(settings)
    gpu = next((gpu for gpu in GPUS.values() if _letters(gpu.name) == _letters(name)), None)
    if gpu is None:
        known = ", ".join(gpu.replace(" ", "-") for gpu in GPUS)
        raise ConfigError(f"--estimate {name}: expected one of {known}")
    if arguments.images < 2:
        raise ConfigError(f"--images {arguments.images}: expected at least 2")
    default = Arguments(json=arguments.json, estimate=name, images=arguments.images)
    for option in ("trace", "steps", "warm_up", "device"):
        if getattr(arguments, option) != getattr(default, option):
            option = option.replace("_", "-")
            raise ConfigError(f"--{option}: expected no such option with --estimate, which runs nothing")
    if arguments.json is not None:
        _check_new("--json", arguments.json)
    try:
        from triton import knobs
    except ImportError as error:
        raise ConfigError(
            "--estimate: Triton is not installed; expected it, because it compiles the kernels"
        ) from error
    if knobs.runtime.interpret:
        raise ConfigError("--estimate: TRITON_INTERPRET is set; expected it unset, because the kernels are compiled")

    from vologan_fast.profiling.estimate import estimate, steps_of_run

    found, steps = estimate(settings, gpu), steps_of_run(settings, arguments.images)
    say_lines(f"{arguments.preset or 'run'}: {estimate_table(found, settings, gpu, arguments.images, steps)}")
    if arguments.json is not None:
        sides: dict[str, Any] = {
            side: {
                case: {**dataclasses.asdict(cost), "seconds": cost.seconds, "hours": cost.seconds * steps / 3600}
                for case, cost in (("likely", of.likely), ("fast", of.fast), ("slow", of.slow))
            }
            for side, of in found.items()
        }
        record = {"gpu": gpu.name, "images": arguments.images, "steps": steps, "settings": to_dict(settings), **sides}
        _write(arguments.json, record)


def _write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=2).encode() + b"\n")


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _new_trace(name: str, config: Path | None) -> Path:
    """Return the default path of the trace: beside the configuration, or in runs/, which is made if it is missing."""
    folder = config.resolve().parent if config is not None and config.is_file() else Path("runs")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--trace: {folder} cannot be made ({error.strerror}); expected a file to write to"
        ) from error
    return folder / time.strftime(f"profile-{name}-%Y%m%d-%H%M%S.json")


def _check_new(option: str, path: Path) -> None:
    if os.path.lexists(path):  # also a link that leads nowhere yet
        raise ConfigError(f"{option} {path}: exists; expected a new file, since nothing is overwritten")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: expected a file in a folder that exists, {folder} does not")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {path}: expected a file in a folder that can be written, {folder} cannot")


def table(profile: Profile) -> str:
    """Return the profile as a text table, at most 100 columns wide."""
    machine, total, on_gpu = profile.machine, profile.total, "idle" in profile.parts
    height, width = height_and_width(profile.size)
    columns = ("ms a step", "share", "in G", "in D", "GFLOP", "MB", "floor", "% of it", "launches" if on_gpu else "ops")
    lines = [
        f"{profile.step}, {profile.batch} images a domain of {height} × {width}, {machine.dtype}, "
        f"{profile.memory_format}",
        f"{machine.name}: copies {machine.copy / 1e9:.0f} GB/s, multiplies {machine.multiply / 1e12:.3g} TFLOP/s",
        f"a step takes {1e3 * profile.seconds:.1f} ms, {2 * profile.batch / profile.seconds:.1f} images/s; "
        f"under the profiler {1e3 * profile.profiled_seconds:.1f} ms, waiting for data {1e3 * profile.wait:.2f} ms",
        "",
        _row("part", *columns),
    ]
    for name, part in [*profile.parts.items(), ("total", total)]:
        lines.append(
            _row(
                _in_table(name, profile),
                f"{1e3 * part.seconds:.2f}",
                f"{part.seconds / total.seconds:.1%}",
                _short(1e3 * part.generators),
                _short(1e3 * part.discriminators),
                _short(part.flop / 1e9),
                _short(part.bytes / 1e6),
                _short(1e3 * part.floor),
                f"{part.floor / part.seconds:.1%}" if part.floor and part.seconds else "–",
                f"{part.launches:.0f}" if part.launches else "–",
            )
        )
    lines += ["", f"{'allocated at the peak' if on_gpu else 'kept for the backward, at the peak':36}{'MiB':>10}"]
    lines += [f"{phase:36}{size / 2**20:10.1f}" for phase, size in profile.memory.items()]
    whole = "all of training" if on_gpu else "all of the process, resident"
    return "\n".join([*lines, f"{whole:36}{profile.peak_memory / 2**20:10.1f}"])


_COLUMNS = {"ours": "ours", "compile": "torch.compile", "eager": "eager"}
"""Names of the sides of an estimate."""


def estimate_table(found: dict[Side, Estimate], settings: Config, gpu: Gpu, images: int, steps: int) -> str:
    """Return an estimate as a text table, at most 100 columns wide."""
    height, width = height_and_width(settings.data.size)
    train, epochs = settings.train, settings.schedule.epochs
    precision = "bfloat16" if train.precision in ("auto", "by_device") else train.precision

    def line(name: str, *cells: str) -> str:
        return f"{name:26}" + "".join(f"{cell:>24}" for cell in cells)

    def ranges(of: Callable[[Cost], float], digits: int) -> list[str]:
        numbers = ([of(cost) for cost in side.range] for side in found.values())
        return [f"{likely:.{digits}f} ({least:.{digits}f} – {most:.{digits}f})" for likely, least, most in numbers]

    lines = [
        f"a run on one {gpu.name}, modelled and not measured",
        f"batches of {train.batch} images a domain of {height} × {width}, {precision}; {epochs} epochs of "
        f"{steps // epochs} steps, for {images} images",
        "",
        line("ms a step, likely", *(_COLUMNS[side] for side in found)),
    ]
    for part in next(iter(found.values())).likely.parts:
        name = "norms and paddings" if part == "norm" else f"{part}s" if part == "convolution" else part
        lines.append(line(name, *(f"{1e3 * side.likely.parts[part]:.1f}" for side in found.values())))
    lines += [
        line("sum, on the GPU", *ranges(lambda cost: 1e3 * cost.gpu, 0)),
        line("launching, on the host", *ranges(lambda cost: 1e3 * cost.host, 0)),
        line("a step: the longer one", *ranges(lambda cost: 1e3 * cost.seconds, 0)),
        line("launches", *(str(side.likely.launches) for side in found.values())),
        "",
        line(f"memory, GB of {gpu.memory / 1e9:.0f}", *ranges(lambda cost: cost.memory / 1e9, 1)),
        line("hours of a run", *ranges(lambda cost: cost.seconds * steps / 3600, 2)),
        "",
        "GPU-hours are the same as hours, because the run has one GPU. Each range, from fast to slow, is assumed:",
        *(f"- {sentence}" for sentence in _assumptions(gpu)),
        "Left out: loading data, validation, checkpoints, compiling.",
        "For torch.compile, the memory of eager stands as an upper bound.",
    ]
    over = [_COLUMNS[side] for side, of in found.items() if of.likely.memory > gpu.memory]
    if over:
        lines.append(f"Too large for the memory of one {gpu.name}: {', '.join(over)}.")
    return "\n".join(lines)


def _assumptions(gpu: Gpu) -> list[str]:
    from vologan_fast.profiling.estimate import FAST, LIKELY, SLOW
    from vologan_fast.profiling.launch_model import START

    def both(name: str, scale: float = 1, digits: int = 0) -> str:
        fast, likely, slow = (f"{scale * getattr(case, name):.{digits}f}" for case in (FAST, LIKELY, SLOW))
        return f"{likely} ({fast} – {slow})"

    return [
        f"convolutions reach {both('convolution', 100)} % of the peak FLOP/s;",
        f"other kernels reach {both('streaming', 100)} % of a copy's rate;",
        f"our norms take {both('norms', 1, 1)} times their model;",
        f"{both('gap', 1e6 * (gpu.gap + START), 1)} µs pass between two kernels;",
        f"the host takes {both('host', 1e6)} µs to launch an operation;",
        f"in compiled code, it takes {both('host_compiled', 1e6)} µs;",
        f"the peak of memory is {both('memory', 1, 2)} times what is counted.",
    ]


def _in_table(part: str, profile: Profile) -> str:
    """Return the name of a part, and for the norms how many of their operations run in native code."""
    if part != "norms" or profile.native_norms == 0:
        return part
    return "norms (native)" if profile.native_norms == 1 else f"norms ({profile.native_norms:.0%} native)"


def _short(number: float) -> str:
    return "–" if number == 0 else f"{number:.2f}" if number < 1000 else f"{number:.0f}"


def _row(name: str, *cells: str) -> str:
    return f"{name:21}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


if __name__ == "__main__":
    stopping.run(main)
