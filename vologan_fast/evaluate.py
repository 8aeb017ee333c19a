"""The command `python -m vologan_fast.evaluate`: how good are the translations of a run, and which checkpoint is best?

python -m vologan_fast.evaluate runs/first
python -m vologan_fast.evaluate runs/first --data DIR --checkpoints last --direction t2s
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as TerminalTable
from rich.text import Text

from vologan_fast import stopping
from vologan_fast.config import ConfigError, DataConfig
from vologan_fast.files import refuse_link
from vologan_fast.words import printable, say, say_error, say_lines

if TYPE_CHECKING:
    from torch import Tensor

    from vologan_fast.data import Dataset
    from vologan_fast.evaluation.inputs import Images
    from vologan_fast.evaluation.judge import Family, Interval, Judge, Row, Translate
    from vologan_fast.evaluation.noise_model import NoiseModel
    from vologan_fast.evaluation.sensor import Unit
    from vologan_fast.evaluation.tables import Table
    from vologan_fast.evaluation.views import Kind, View
    from vologan_fast.translation.translator import Direction, Translator

_BATCH = 8
_INVERSE: dict[str, Direction] = {"s2t": "t2s", "t2s": "s2t"}
FEW = 30
"""Fewer images than this give intervals that hold less than 95 % of the results."""


@dataclass
class Arguments:
    """Judge the translations of a run against real images, with intervals, and find the best checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    data: str | None = None
    """A data set, all of whose images are used. Default: the held-out images of the run's data set. The link
    RUN/checkpoints/best stays as it is with another data set."""
    direction: Literal["s2t", "t2s"] = "s2t"
    """`s2t`: S is the synthetic domain, and T the real one. `t2s`: the other way round."""
    checkpoints: tuple[str, ...] = ("all",)
    """`all`, `last`, `best`, or steps. With `all`, RUN/checkpoints/best becomes a link to the best one."""
    weights: Literal["average", "trained"] = "average"
    """`average`: the averaged weights, if the run has them. `trained`: the weights of the last step."""
    features: Path | None = None
    """Weights of torch-fidelity's Inception network. With this file, there are KID and FID too."""
    paired: Path | None = None
    """A file with scenes that have a truth, such as the demo's paired-test/paired_paths.json."""
    images: int = 256
    """At most this many images of each domain, evenly spread. They are kept in memory."""
    bootstrap: int = 200
    """Resamples for the intervals. 0: no intervals."""
    scene_pattern: str | None = None
    """Regular expression for names of shots. Its first group is the scene. Default: NAME_shotN or NAME-shotN."""
    seed: int = 0
    """Seed of the patches and the resamples."""
    out: Path | None = None
    """Folder to write. Default: RUN/evaluation, or RUN/evaluation-t2s. With another data set, its name follows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from vologan_fast.data import DataError
    from vologan_fast.training.checkpoint import CheckpointError

    arguments = tyro.cli(Arguments, args=argv, prog="python -m vologan_fast.evaluate")
    try:
        return _evaluate(arguments)
    except (ConfigError, DataError, CheckpointError) as error:
        say_error(f"error: {error}")
        return 1


def _evaluate(arguments: Arguments) -> int:
    import torch

    from vologan_fast.commands import chosen_device
    from vologan_fast.data import DataError, absolute, load_dataset
    from vologan_fast.data.skipping import described
    from vologan_fast.evaluation import repeats
    from vologan_fast.evaluation.inputs import load_inputs, load_paired, load_repeats
    from vologan_fast.evaluation.judge import as_written, mean_errors
    from vologan_fast.evaluation.noise_model import NoiseModel
    from vologan_fast.evaluation.sequences import SCENE_PATTERN, describe
    from vologan_fast.evaluation.views import View
    from vologan_fast.training.checkpoint import CheckpointError, link_best, nan_last, step_of
    from vologan_fast.training.run_folder import read_config
    from vologan_fast.translation.job import file_digest
    from vologan_fast.translation.translator import load

    _check(arguments)
    data, config = read_config(arguments.run / "config.json")
    folders = _chosen_checkpoints(arguments)
    device = chosen_device(arguments.device)
    averages = arguments.weights == "average"
    if arguments.direction == "t2s" and config.train.method == "cut":
        raise ConfigError("--direction is t2s: expected s2t, because a run with --train.method cut has one generator")
    source, target = ("synthetic", "real") if arguments.direction == "s2t" else ("real", "synthetic")
    dataset = load_dataset(data, config.data, config.train.seed)
    others_data = None if arguments.data is None or absolute(arguments.data) == str(dataset.root) else arguments.data
    own = arguments.run / _folder_name(arguments.direction, others_data)
    out = _made(arguments.out or own, may_be_link=arguments.out is not None)
    _check_run(arguments.run, folders, dataset)
    inputs = load_inputs(dataset, others_data, config.train.seed, arguments.images)
    paired = load_paired(arguments.paired, dataset, source, target) if arguments.paired else None
    repeats_real = arguments.paired is not None and target == "real" and dataset.config.channel_sets[target].depth
    shots = load_repeats(arguments.paired, dataset) if arguments.paired and repeats_real else None
    skipped = inputs.skipped()
    for line in described(skipped):
        say_error(line)
    unit, source_unit = (_unit(dataset.config, domain) for domain in (target, source))
    synthetic, real = inputs.judged[source], inputs.judged[target]
    view = View.of(dataset.config, source, inputs.fitted[target].pixels)
    made, read = view.target.channels, view.source.channels
    features: list[Family] = []
    if arguments.features is not None:
        from vologan_fast.evaluation.features import Features

        features = [Features(arguments.features, device, made)]

    if made.depth and read.depth and source_unit != unit:
        ranges = [f"{u.near:g} to {u.near + u.span:g} m" for u in (source_unit, unit)]
        say(f"{source} depth is {ranges[0]}, {target} depth {ranges[1]}: all depth is shown in the range of {target}")
    for domain in (source, target):
        if len(inputs.judged[domain].names) < FEW:
            say(f"{domain}: with less than {FEW} images, the intervals are too narrow")
        for line in describe(inputs.judged[domain].names, arguments.scene_pattern or SCENE_PATTERN):
            say(f"{domain}: {line}")
    fitted = view.fitted(inputs.fitted[source], inputs.fitted[target])
    fits = _baselines(*fitted, arguments.seed)
    baselines = {name: view.baseline(fit) for name, fit in fits.items()}
    with _progress(1 + len(baselines) + len(folders)) as advance:
        judge = view.judge(
            synthetic.pixels,
            real.pixels,
            unit=unit,
            synthetic_names=synthetic.names,
            real_names=real.names,
            scene_pattern=arguments.scene_pattern or SCENE_PATTERN,
            resamples=arguments.bootstrap,
            seed=arguments.seed,
            more=features,
        )
        advance()

        def errors(what: str, kind: Kind, images: Tensor, truth: Tensor, unit: Unit) -> dict[str, Interval]:
            found = mean_errors(images, kind.as_rgbd(truth), unit, arguments.bootstrap, arguments.seed, kind.channels)
            return {f"{what} {part}": error for part, error in found.items()}

        def add_paired(row: Row, translated: Tensor | None) -> None:
            if paired is not None and translated is not None:
                written = as_written(translated, view.source.figure(paired[0]))
                row.errors.update(errors("paired", view.target, written, paired[1], unit))

        repeated: dict[str, dict[str, Tensor]] = {}

        def add_repeated(name: str, draw: Callable[[int], Tensor]) -> None:
            """Measure as many draws of the paired scenes as there are shots. `draw` takes the number of a draw."""
            if shots is not None and paired is not None:
                figure = view.source.figure(paired[0])
                drawn = torch.stack([as_written(draw(k), figure) for k in range(len(shots))])
                repeated[name] = repeats.measure(drawn, judge.bins)

        if shots is not None:
            repeated["T"] = repeats.measure(torch.stack([view.real(shot) for shot in shots]), judge.bins)
        others = [judge.untranslated]
        scenes = None if paired is None else view.untranslated(paired[0])
        add_paired(judge.untranslated, scenes)
        for name, baseline in baselines.items():
            others.append(judge.row(name, baseline(judge.synthetic)))
            add_paired(others[-1], None if scenes is None else baseline(scenes))
            if isinstance(sensor := fits[name], NoiseModel) and scenes is not None:
                add_repeated(name, partial(_drawn_by_sensor, view, sensor, scenes))
            advance()
        steps: dict[int, Row] = {}
        weights: dict[int, dict[str, str]] = {}
        for folder in folders:
            model = load(folder, arguments.direction, device=device, averages=averages)
            weights[step_of(folder)] = {"file": str(model.weights), "sha256": file_digest(model.weights)}
            there = _in_batches(model)
            translated, cycled = there(synthetic.pixels), None
            identity = there(real.pixels) if made == read else None
            of_scenes = None if paired is None else there(paired[0])
            finite = _finite(model, translated, identity, of_scenes)
            if finite and config.train.method == "cyclegan":
                inverse = load(folder, _INVERSE[arguments.direction], device=device, averages=averages)
                cycled = _in_batches(inverse)(translated)
                finite = _finite(inverse, cycled)
            if finite:
                shown = view.translated(translated, synthetic.pixels)
                row = steps[step_of(folder)] = judge.row(f"G(S) {step_of(folder)}", shown)
                if paired is not None and of_scenes is not None:
                    add_paired(row, view.translated(of_scenes, paired[0]))
                if paired is not None:
                    add_repeated(row.name, partial(_drawn_by, view, model, paired[0]))
                if cycled is not None:
                    figure = view.source.figure(synthetic.pixels)
                    found = view.source.as_rgbd(cycled, figure)
                    row.errors.update(errors("cycle", view.source, found, synthetic.pixels, source_unit))
                if identity is not None:
                    found = view.target.as_rgbd(identity, view.target.figure(real.pixels))
                    row.errors.update(errors("identity", view.target, found, real.pixels, unit))
            advance()

    if not steps:
        raise CheckpointError(f"{arguments.run}: expected a checkpoint with finite translations, found none")
    best = min(steps, key=lambda step: nan_last(steps[step].score.value))
    if math.isnan(steps[best].score.value):
        raise DataError(
            f"{inputs.record['data']}: no measure tells the {source} images from the {target} ones, so there are no "
            "scores; expected images of two different domains"
        )
    record = {
        "run": str(arguments.run.absolute()),
        "direction": arguments.direction,
        **inputs.record,
        "bad_images": [dataclasses.asdict(bad) for bad in skipped],
        "settings": {name: _plain(value) for name, value in vars(arguments).items()},
        "weights": weights,
    }
    _report(out, judge, others, steps, best, record, repeated)
    if others_data is not None:
        say(f"best checkpoint on {others_data}: step {best}")
    elif arguments.checkpoints == ("all",):
        chosen = next(folder for folder in folders if step_of(folder) == best)
        say(f"best checkpoint: step {best}, linked as {link_best(chosen, arguments.direction)}")
    else:
        say(f"best of these checkpoints: step {best}")
    say(f"results: {out}")
    return 0


def _check(arguments: Arguments) -> None:
    from vologan_fast.training.checkpoint import list_checkpoints

    if arguments.data == "":
        raise ConfigError("--data is empty; expected a data set, or no --data")
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run}: no such folder; expected a run folder")
    if not list_checkpoints(arguments.run / "checkpoints"):
        raise ConfigError(f"{arguments.run}: expected a run folder with a checkpoint, found none in it")
    if arguments.images < 2:
        raise ConfigError(f"--images {arguments.images}: expected at least 2")
    if arguments.bootstrap < 0:
        raise ConfigError(f"--bootstrap {arguments.bootstrap}: expected 0 or more")
    if (pattern := arguments.scene_pattern) is not None:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ConfigError(f"--scene-pattern {pattern}: expected a regular expression; {error}") from None
        if not groups:
            raise ConfigError(f"--scene-pattern {pattern}: expected a group, which is the name of the scene")


def _folder_name(direction: str, data: str | None) -> str:
    """Return the name of the folder for the results on the run's own data set, or on another one."""
    name = "evaluation" if direction == "s2t" else "evaluation-t2s"
    if data is None:
        return name
    of_data = re.sub(r"[^\w.-]+", "-", data.rstrip("/").rsplit("/", 1)[-1])
    return f"{name}-{of_data}"


def _made(out: Path, may_be_link: bool) -> Path:
    """Make the folder now, so that hours of work do not end with an error. A link in a run folder may lead anywhere."""
    try:
        if not may_be_link:
            refuse_link(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return out


def _check_run(run: Path, checkpoints: Sequence[Path], dataset: Dataset) -> None:
    """Raise CheckpointError if a checkpoint is damaged, before hours of work.

    Raise DataError if the run was trained on other images, because its held-out images are then not known.
    """
    from vologan_fast.data import DataError
    from vologan_fast.training.checkpoint import DamagedError, check_whole, load_state, newest_whole

    try:
        for checkpoint in checkpoints:
            check_whole(checkpoint, state=False)
        fingerprint = load_state(checkpoints[-1])["data"]
    except DamagedError as error:
        raise DamagedError(f"{error}; {newest_whole(checkpoints[-1].parent)}") from error
    if not dataset.has_fingerprint(fingerprint):
        raise DataError(
            f"{run / 'config.json'}: its data set now has other images than the run was trained on (names or number "
            "of files differ); expected the same, because the held-out images follow from it"
        )


def _chosen_checkpoints(arguments: Arguments) -> list[Path]:
    """Return the folders of the checkpoints to judge, lowest step first."""
    from vologan_fast.training.checkpoint import find_best, list_checkpoints, step_of

    folder = arguments.run / "checkpoints"
    found = {step_of(path): path for path in list_checkpoints(folder)}
    chosen: set[int] = set()
    for word in arguments.checkpoints:
        best = find_best(folder, arguments.direction) if word == "best" else None
        if word == "all":
            chosen |= found.keys()
        elif word == "last":
            chosen.add(max(found))
        elif best is not None:
            chosen.add(step_of(best))
        elif word.isdecimal() and int(word) in found:
            chosen.add(int(word))
        else:
            steps = ", ".join(map(str, found))
            raise ConfigError(f"--checkpoints {word}: not found; expected all, last, best (after all), or of {steps}")
    return [found[step] for step in sorted(chosen)]


def _baselines(synthetic: Images, real: Images, seed: int) -> dict[str, Translate]:
    """Return other ways from S to T, for images as RGB-D. They are fitted on training images.

    There is a model of the sensor only if T has depth.
    """
    from vologan_fast.evaluation.distances import best_affine
    from vologan_fast.evaluation.noise_model import fit_noise_model

    baselines: dict[str, Translate] = {"affine(S)": best_affine(synthetic.pixels, real.pixels, seed=seed)}
    if real.pixels[:, 3].any():
        baselines["noise(S)"] = fit_noise_model(synthetic.pixels, real.pixels, seed=seed)
    return baselines


def _drawn_by(view: View, model: Translator, images: Tensor, draw: int) -> Tensor:
    """Return a draw of a generator, as the measures look at it."""
    return view.translated(_in_batches(model, seed=draw)(images), images)


def _drawn_by_sensor(view: View, sensor: NoiseModel, images: Tensor, draw: int) -> Tensor:
    return view.baseline(partial(sensor, seed=draw))(images)


def _finite(model: Translator, *translations: Tensor | None) -> bool:
    """Return whether translations are finite, and print that the checkpoint is left out if they are not."""
    finite = all(images is None or bool(images.isfinite().all()) for images in translations)
    if not finite:
        say(f"left out: {model.weights}: expected finite translations, found NaN or infinite values")
    return finite


def _in_batches(model: Translator, seed: int = 0) -> Translate:
    """Return the translation of any number of images. For a generator with noise, the seed chooses their draws."""
    import torch

    from vologan_fast.translation.translator import draw_key

    device = next(model.parameters()).device

    def translate(images: Tensor) -> Tensor:
        keys = [draw_key(str(seed), str(i)) for i in range(len(images))]
        found = []
        for first in range(0, len(images), _BATCH):
            part = images[first : first + _BATCH].to(device)
            noise = None
            if model.noise_channels:
                noise = model.noise_of(keys[first : first + _BATCH], part.shape[2], part.shape[3])
            with torch.inference_mode():
                found.append(model(part, noise).float().cpu())
        return torch.cat(found).clone()

    return translate


def _unit(config: DataConfig, domain: str) -> Unit:
    from vologan_fast.data.pixels import is_normalized
    from vologan_fast.evaluation.sensor import Unit

    spec = getattr(config, domain)
    if not config.channel_sets[domain].depth:
        return Unit()
    assert spec.near is not None and spec.far is not None  # a data set's spec is resolved
    return Unit() if is_normalized(spec) else Unit("m", spec.near, spec.far - spec.near)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _report(
    out: Path,
    judge: Judge,
    others: Sequence[Row],
    steps: dict[int, Row],
    best: int,
    record: dict[str, Any],
    repeated: dict[str, dict[str, Tensor]],
) -> None:
    """Write the files of the evaluation, and print its tables."""
    from vologan_fast.checksums import signed
    from vologan_fast.evaluation import tables
    from vologan_fast.files import write_whole

    shown = [judge.real, *others, *(steps[step] for step in sorted({min(steps), best, max(steps)}))]
    found = [
        tables.measures_table(shown, judge.unit, others),
        *([tables.numbers_table(shown, judge.unit)] if judge.channels.depth else []),
        *([tables.errors_table(shown, judge.unit)] if any(row.errors for row in shown) else []),
        *([tables.checkpoints_table(steps, best)] if len(steps) > 1 else []),
        *([tables.repeats_table(_shown_only(repeated, shown), judge.bins, judge.unit)] if repeated else []),
    ]
    if judge.channels.depth:
        record["unit"] = dataclasses.asdict(judge.unit)
        record["bins"] = {"depth": judge.bins.depth.tolist(), "slope": judge.bins.slope.tolist()}
    record |= {
        "channels": list(judge.channels.names),
        "best": {
            "step": best,
            "score": steps[best].score.value,
            "minus_first": tables.as_list(steps[best].difference(steps[min(steps)], "score")),
        },
        "rows": {row.name: tables.as_json(row, others) for row in (judge.real, *others)},
        "checkpoints": {step: tables.as_json(row, others) for step, row in steps.items()},
    }
    if repeated:
        record["repeated_shots"] = {name: tables.repeats_as_json(found, judge.unit) for name, found in repeated.items()}
    record["tables"] = [dataclasses.asdict(table) for table in found]  # for the report
    try:
        write_whole(out / "evaluation.json", signed(record, indent=1))
        legend = tables.legend(others)
        images = " and ".join(f"{number} of {domain}" for domain, number in record["images"].items())
        what = f"`{record['run']}`, {record['direction']}, on {record['part']} of `{record['data']}`: {images}."
        if bad := len(record["bad_images"]):
            what += f" {bad} of the images that were read are bad. Others replaced them."
        text = "\n".join(["# Evaluation", "", what, "", legend, "", *(table.markdown() for table in found)])
        write_whole(out / "evaluation.md", text.encode())
        if judge.channels.depth:
            tables.plot_curves(out / "curves.png", [judge.real, *others, steps[best]], judge.bins, judge.unit)
        if len(steps) > 1:
            tables.plot_checkpoints(out / "checkpoints.png", steps, best, others[1:])
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in found:
        console.print(_for_terminal(table))
    say_lines(tables.legend(others))


def _shown_only(repeated: dict[str, dict[str, Tensor]], shown: Sequence[Row]) -> dict[str, dict[str, Tensor]]:
    return {row.name: repeated[row.name] for row in shown if row.name in repeated}


def _for_terminal(table: Table) -> TerminalTable:
    shown = TerminalTable(title=Text(printable(table.title)), title_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(Text(printable(column)), justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar if there is a terminal. Yields the function that moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("judging", total=total)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    stopping.run(main)
