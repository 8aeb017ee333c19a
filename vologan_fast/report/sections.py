"""The sections of a report: of one run, and of several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vologan_fast.config import differences, size_in_words
from vologan_fast.data import DataError
from vologan_fast.data.pixels import read_color
from vologan_fast.quantities.observation import Observation
from vologan_fast.report import figures
from vologan_fast.report.page import Clouds, Part, Plot, ReportError, Section, Sentences, Slider, Strip, Tables, jpeg
from vologan_fast.report.pictures import examples, hole_maps, judged
from vologan_fast.report.record import RunRecord, Table
from vologan_fast.words import printable

GRIDS = 24
"""Most steps of the slider over the grids. If there are more, they are spread evenly, with the first and the last."""
GRID_BYTES = 2_500_000
"""Most bytes of all grids of a page. Larger ones are shrunk first, then left out."""
_CLOUD_POINTS = 24_000
"""Most points that are drawn beside each other. More clouds have fewer points each."""
_BAD_IMAGES = 20
"""Most bad images that a report names."""
_WIDTHS = (1400, 1000, 700)


def of_run(record: RunRecord, observation: Observation, field_of_view: float) -> list[Section]:
    """Return the sections of a report about one run."""
    sections = [
        summary([(record, observation)]),
        _warnings([(record, observation)]),
        _curves(record),
        grids([record]),
        _histograms(observation),
        _profiles(observation),
        clouds([(record, observation)], field_of_view),
        _holes(observation),
        _discriminators(observation),
        _ranked(observation),
        _components(observation),
        _weights(observation),
    ]
    return [section for section in sections if section is not None]


def of_runs(runs: Sequence[tuple[RunRecord, Observation]], field_of_view: float) -> list[Section]:
    """Return the sections of a comparison of several runs."""
    sections = [
        summary(runs),
        _settings([record for record, _ in runs]),
        _warnings(runs),
        _overlaid([record for record, _ in runs]),
        grids([record for record, _ in runs]),
        _overlaid_histograms(runs),
        clouds(runs, field_of_view),
    ]
    return [section for section in sections if section is not None]


def summary(runs: Sequence[tuple[RunRecord, Observation]]) -> Section:
    """Return the summary: what was trained, on what, how long, and how good it is."""
    columns = [dict(_facts(record, observation)) for record, observation in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    header = ["", *(record.name for record, _ in runs)] if len(runs) > 1 else []
    tables = [Table("", header, [[key, *(column.get(key, "") for column in columns)] for key in keys])]
    for record, _ in runs:
        for table in record.tables:
            title = f"{record.name}: {table.title}" if len(runs) > 1 else table.title
            tables.append(Table(title, table.header, table.rows))
    how = (
        "What was trained, on which data, how long it took, and how good it is: vologan_fast.evaluate adds tables here."
    )
    return Section("summary", "Summary", how, [Tables(tables)])


def _facts(record: RunRecord, observation: Observation) -> Iterable[tuple[str, str]]:
    config, last = record.config, (record.of("train") or [{}])[-1]
    steps = int(last.get("step", observation.step))
    images = steps * config.train.batch * 2
    yield "run folder", str(record.path)
    yield "method", {"cyclegan": "CycleGAN", "cut": "CUT"}[config.train.method]
    yield "networks", f"{config.generator.network} and {config.discriminator.network}"
    yield "data set", record.data
    size = size_in_words(config.data.size).replace(" ", " × ")
    yield "images", f"{config.data.channel_names}, {size} pixels, {config.train.batch} of each domain a step"
    for name, scale in observation.scales.items():
        unit = f"{scale.near:g} m to {scale.far:g} m" if scale.unit else "without a unit, drawn from 2 to 3"
        yield f"depth of {name}", unit
    if record.skipped:
        yield "bad images", f"{len(record.skipped)}, which others replaced"
    yield "steps", f"{steps:,} ({images:,} images)"
    yield (
        "this report shows",
        f"step {observation.step:,}, {observation.counts['S']} + {observation.counts['T']} held-out images",
    )
    if seconds := record.training_seconds:
        yield "training time", f"{duration(seconds)} (with the validations in between)"
        yield (
            "cost",
            f"{seconds / 3600:.2f} hours of the device, {1000 * seconds / max(images, 1):.2f} s per 1,000 images",
        )
    if "images_per_second" in last:
        yield "speed at the end", f"{last['images_per_second']:.1f} images/s"
    if "peak_memory_bytes" in last:
        yield "peak memory", f"{last['peak_memory_bytes'] / 2**30:.2f} GiB"
    yield "checkpoints", ", ".join(f"{step:,}" for step in record.steps) or "none"
    scores = {line["step"]: line["score"] for line in record.of("evaluation") if "score" in line}
    if record.best is not None:
        score = f", score {scores[record.best]:.3f}" if record.best in scores else ""
        yield "best checkpoint", f"step {record.best:,}{score}"
    else:
        yield "best checkpoint", "not known; python -m vologan_fast.evaluate finds it"


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds: "1 h 02 min", "3 min 20 s" or "5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _warnings(runs: Sequence[tuple[RunRecord, Observation]]) -> Section:
    parts: list[Part] = []
    for record, observation in runs:
        beginning = f"{record.name}: " if len(runs) > 1 else ""
        if observation.warnings:
            parts.append(Sentences([beginning + sentence for sentence in observation.warnings], "warning"))
        else:
            parts.append(Sentences([f"{beginning}nothing looks wrong at step {observation.step:,}."]))
        if bad := record.skipped:
            shown = [[str(line.get(name, "")) for name in ("step", "split", "reason")] for line in bad[:_BAD_IMAGES]]
            title = f"{beginning}{len(bad)} bad images, which others replace"
            title += f"; the first {_BAD_IMAGES}" if len(bad) > _BAD_IMAGES else ""
            parts.append(Tables([Table(title, ["since step", "of", "reason"], shown)]))
    how = "Numbers of the held-out images that look wrong, each with what to try; docs/report.md states the limits."
    return Section("warnings", "Warnings", how, parts)


def _curves(record: RunRecord) -> Section | None:
    train, held_out, evaluation = (record.of(split) for split in ("train", "held_out", "evaluation"))
    found = {
        "losses of the generators": figures.curves(train, figures.fields(train, "generator"), "training"),
        "losses of the discriminators": figures.curves(train, figures.fields(train, "discriminator"), "training"),
        "held-out losses": figures.curves(
            held_out, figures.fields(held_out, "generator", "discriminator"), "held-out images"
        ),
        "learning rates": figures.curves(train, figures.fields(train, "learning_rate"), "learning rate"),
        "evaluation": figures.curves(evaluation, _scores(evaluation), "scores of the evaluations, less is better"),
        "speed": figures.curves(train, ["images_per_second"], "images per second"),
    }
    shown = {name: figure for name, figure in found.items() if any(trace["x"]["bdata"] for trace in figure["data"])}
    if not shown:
        return None
    how = "Choose a group of curves, drag a rectangle to zoom, double-click to zoom out; smoothing is a moving average."
    return Section("losses", "Losses and learning rates", how, [Plot(shown, 460, curves=True)])


def _scores(lines: Sequence[Mapping[str, object]]) -> list[str]:
    names = dict.fromkeys(name for line in lines for name in line)
    return [name for name in names if name == "score" or name.endswith("score")] or [
        name for name in names if name not in ("step", "split")
    ]


def _overlaid(records: Sequence[RunRecord]) -> Section | None:
    found = {}
    for split, title in (("held_out", "held-out"), ("evaluation", "evaluation"), ("train", "training")):
        lines = {record.name: record.of(split) for record in records}
        names = dict.fromkeys(name for of_run in lines.values() for line in of_run for name in line)
        for name in names:
            if name not in ("step", "split", "epoch"):
                figure = figures.overlaid(lines, name)
                if figure["data"]:
                    found[f"{title}: {name}"] = figure
    if not found:
        return None
    how = "Choose a number of the log: each run has a curve; smoothing is a moving average."
    return Section("losses", "Curves", how, [Plot(found, 460, curves=True)])


def _settings(records: Sequence[RunRecord]) -> Section:
    first, *others = records
    changes = [differences(first.config, other.config) for other in others]
    names = dict.fromkeys(name for change in changes for name in change)
    rows = []
    for name in names:
        before = next(change[name][0] for change in changes if name in change)
        rows.append([name, str(before), *(str(change[name][1] if name in change else before) for change in changes)])
    if len({record.data for record in records}) > 1:
        rows.insert(0, ["data set", *(record.data for record in records)])
    how = "The settings in which the runs differ; all others are equal."
    part = Tables([Table("", ["setting", *(record.name for record in records)], rows)])
    return Section(
        "settings", "Settings that differ", how, [part if rows else Sentences(["The runs have equal settings."])]
    )


def grids(records: Sequence[RunRecord]) -> Section | None:
    """Return the grids over the steps, those of several runs side by side."""
    steps = sorted({step for record in records for step, _ in record.grids})
    if not steps:
        return None
    count = min(GRIDS, len(steps))
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)})
    for width in _WIDTHS:
        frames = [
            (step, _grids_at(records, step, width // len(records) if len(records) > 2 else width)) for step in chosen
        ]
        total = sum(len(file) for _, pictures in frames for _, file in pictures)
        if total <= GRID_BYTES:
            break
    while total > GRID_BYTES and len(frames) > 1:
        frames = [*frames[:-1:2], frames[-1]] if len(frames) > 2 else frames[-1:]
        total = sum(len(file) for _, pictures in frames for _, file in pictures)
    left_out = f" {len(frames)} of {len(steps)} steps are in this file." if len(frames) < len(steps) else ""
    how = (
        f"Move the slider: input, translation and cycle of held-out images at each step, colour beside depth.{left_out}"
    )
    return Section("grids", "Held-out images over the steps", how, [Slider(frames)])


def _grids_at(records: Sequence[RunRecord], step: int, width: int) -> list[tuple[str, bytes]]:
    """Return caption and file of each run's last grid up to a step, or of its first one."""
    found = []
    for record in records:
        if not record.grids:
            continue
        own, path = ([grid for grid in record.grids if grid[0] <= step] or record.grids[:1])[-1]
        try:
            pixels = read_color(path)
        except DataError as error:
            raise ReportError(str(error)) from error
        found.append((f"{record.name}, step {own:,}", jpeg(pixels, width)))
    return found


def _histograms(observation: Observation) -> Section:
    plots = {
        channel: figures.value_histograms(of_sets, channel, observation.scales)
        for channel, of_sets in observation.histograms.items()
    }
    how = "G(S) should have the distribution of T, and F(T) the distribution of S; background and holes are left out."
    return Section(
        "histograms", "Colour and depth histograms", how, [Plot({name: plot}, 300) for name, plot in plots.items()]
    )


def _overlaid_histograms(runs: Sequence[tuple[RunRecord, Observation]]) -> Section:
    found = {}
    for channel in dict.fromkeys(name for _, observation in runs for name in observation.histograms):
        figure = figures.value_histograms({}, channel)
        for i, (record, observation) in enumerate(runs):
            of_sets = observation.histograms.get(channel, {})
            for name in ("T", "G(S)"):
                if name in of_sets and (name == "G(S)" or i == 0):
                    one = figures.value_histograms({name: of_sets[name]}, channel)["data"][0]
                    one["line"]["color"] = "#333" if name == "T" else figures.LINES[i % len(figures.LINES)]
                    if name == "G(S)":
                        one["name"] = figures.label(f"G(S) of {record.name}")
                    figure["data"].append(one)
        if figure["data"]:
            found[channel] = figure
    how = "G(S) of each run beside T of the first one: the closer, the better; background and holes are left out."
    return Section("histograms", "Histograms of the translations", how, [Plot(found, 380)])


def _profiles(observation: Observation) -> Section | None:
    found = {
        f"{direction.labels[0]} → {direction.target}: {example.name}": figures.profiles(direction, example)
        for direction in observation.directions
        for example in direction.examples
        if any(kind.depth for kind in direction.channels)
    }
    if not found:
        return None
    how = "Depth along one row of an image: rounded steps, noise and gaps show what a translation does to surfaces."
    return Section("profiles", "Depth profiles", how, [Plot(found, 380)])


def clouds(runs: Sequence[tuple[RunRecord, Observation]], field_of_view: float) -> Section | None:
    """Return the point clouds: of one run its directions, of several runs the same image of S through each of them."""
    found: dict[str, list[dict[str, object]]] = {}
    units = set()
    limit = _CLOUD_POINTS // (3 if len(runs) == 1 else len(runs) + 1)
    if len(runs) == 1:
        for direction in runs[0][1].directions:
            for example in direction.examples:
                packed = figures.clouds(direction, example, field_of_view, limit)
                if packed:
                    found[f"{direction.source} → {direction.target}: {example.name}"] = packed
                    units.add(direction.scale.unit)
    else:
        first = runs[0][1].directions[0]
        for i, example in enumerate(first.examples):
            of_run = figures.clouds(first, example, field_of_view, limit)
            packed = [cloud for cloud in of_run if cloud["title"] == "S"]
            for record, observation in runs:
                direction = observation.directions[0]
                same = next((e for e in direction.examples if e.name == example.name), None)
                if same is not None:
                    of_run = figures.clouds(direction, same, field_of_view, limit)
                    packed += [
                        {**cloud, "title": printable(f"G(S) of {record.name}")}
                        for cloud in of_run
                        if cloud["title"] == "G(S)"
                    ]
            if packed:
                found[f"{i + 1}: {example.name}"] = packed
                units.add(first.scale.unit)
    if not found:
        return None
    unit = units.pop() if len(units) == 1 else ""
    metres = "in metres" if unit else "depth has no unit here and is drawn from 2 to 3"
    how = (
        f"Drag to turn all clouds together, scroll to zoom; the pinhole is assumed: a field of view of "
        f"{field_of_view:g}° along the longer side, {metres}."
    )
    return Section("clouds", "Point clouds", how, [Clouds(found, unit)])


def _holes(observation: Observation) -> Section | None:
    if not observation.hole_maps:
        return None
    how = "Bright places have no depth in many images; the holes of G(S) should be like those of T, if T is a sensor."
    return Section("holes", "Hole maps", how, [Strip(list(hole_maps(observation)), columns=4)])


def _discriminators(observation: Observation) -> Section:
    sentences = []
    for verdict in observation.verdicts:
        middle = "no border between real and fake" if verdict.border is None else f"the border is {verdict.border:g}"
        sentences.append(
            f"{verdict.name}: {middle}; it ranks a real image above a translation in {verdict.separation:.0%} of the "
            "pairs (50 %: it cannot tell them apart, 100 %: it always can)."
        )
    pictures = [picture for verdict in observation.verdicts for picture in judged(verdict)]
    how = "Orange places look real to the discriminator, purple ones fake; each output with places has a picture."
    return Section("discriminators", "What the discriminators see", how, [Sentences(sentences), Strip(pictures)])


def _ranked(observation: Observation) -> Section:
    parts: list[Part] = []
    for direction in observation.directions:
        pictures = [*examples(direction, direction.best, "best"), *examples(direction, direction.worst, "worst")]
        parts += [Sentences([f"{direction.source} → {direction.target}, by: {direction.measure}."]), Strip(pictures)]
    how = "The images with the smallest and the largest number, among those that this report looks at."
    return Section("ranked", "Best and worst images", how, parts)


def _components(observation: Observation) -> Section | None:
    if not observation.projections:
        return None
    plots = {name: figures.pairs(projection) for name, projection in observation.projections.items()}
    how = (
        "Each point is an image, along the principal components of S and T (the percentage is the share of their "
        "variance); G(S) should lie where T lies."
    )
    return Section("components", "Principal components", how, [Plot(plots, 620)])


def _weights(observation: Observation) -> Section:
    plots = [
        figures.weight_histograms(observation),
        figures.norm_scales(observation),
        figures.spectral_norms(observation),
    ]
    shown = [Plot({figure["layout"]["title"]["text"]: figure}, 340) for figure in plots if figure["data"]]
    how = (
        "Weights far from the rest, γ near 0 (dead channels) and growing σ are early signs of trouble; rings are "
        "layers with spectral normalisation, which divide by σ."
    )
    return Section("weights", "Weights, γ and σ", how, shown)
