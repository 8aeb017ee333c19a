"""The command `python -m vologan_fast.profile`: measure the cost of a training step and its floor on this machine.

    python -m vologan_fast.profile --data DIR --preset vologan-512
    python -m vologan_fast.profile --config runs/first/config.json --train.micro-batch 1 --json cost.json

It runs some steps as `vologan_fast.train` does, prints a table and writes a Chrome trace (chrome://tracing,
ui.perfetto.dev). Without --data it uses the demo data, which are rendered on first use. The docstring of
`vologan_fast.profiling` defines the numbers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vologan_fast.commands import chosen_device, demo_data, first_parser, starting_point
from vologan_fast.config import Config, ConfigError, check, height_and_width, to_dict

if TYPE_CHECKING:
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
    settings: Annotated[Config, tyro.conf.arg(name="")] = Config()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from vologan_fast.data import DataError

    try:
        _profile(_parse(sys.argv[1:] if argv is None else argv))
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _parse(argv: list[str]) -> Arguments:
    first, _ = first_parser().parse_known_args(argv)
    start = starting_point(first.preset, first.config, first.device)
    default = Arguments(data=start.data, preset=start.preset, settings=start.settings)
    return tyro.cli(Arguments, args=argv, default=default, prog="python -m vologan_fast.profile")


def _profile(arguments: Arguments) -> None:
    settings = arguments.settings
    check(settings)
    for option, number in (("--steps", arguments.steps), ("--warm-up", arguments.warm_up)):
        if number < 1:
            raise ConfigError(f"{option} {number}: expected at least 1")
    device = chosen_device(arguments.device)
    name = arguments.preset or "run"
    if arguments.json is not None:
        _check_new("--json", arguments.json)
    trace = arguments.trace or _new_trace(name, arguments.config)
    _check_new("--trace", trace)
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
    print(f"{name}: {table(profile)}")
    print(f"\ntrace, for ui.perfetto.dev or chrome://tracing: {trace.absolute()}")
    if arguments.json is not None:
        record = {"data": data, "settings": to_dict(settings), **dataclasses.asdict(profile)}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


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
    if path.exists():
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
        f"{profile.step}, {profile.batch} images a domain of {height} × {width}, {machine.dtype}",
        f"{machine.name}: copies {machine.copy / 1e9:.0f} GB/s, multiplies {machine.multiply / 1e12:.3g} TFLOP/s",
        f"a step takes {1e3 * profile.seconds:.1f} ms, {2 * profile.batch / profile.seconds:.1f} images/s; "
        f"under the profiler {1e3 * profile.profiled_seconds:.1f} ms, waiting for data {1e3 * profile.wait:.2f} ms",
        "",
        _row("part", *columns),
    ]
    for name, part in [*profile.parts.items(), ("total", total)]:
        lines.append(
            _row(
                name,
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


def _short(number: float) -> str:
    return "–" if number == 0 else f"{number:.2f}" if number < 1000 else f"{number:.0f}"


def _row(name: str, *cells: str) -> str:
    return f"{name:21}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


if __name__ == "__main__":
    sys.exit(main())
