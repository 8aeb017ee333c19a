"""The model card: what a generator does, what it was trained on, and how good it is. For people and for Hugging Face.

Its front matter is YAML. The values are written as JSON, which YAML contains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vologan_fast.config import CHANNELS, DOMAINS, Channels, Config, ConfigError, size_in_words
from vologan_fast.data import DataError, load_dataset
from vologan_fast.report.record import read_evaluation, read_lines
from vologan_fast.training.checkpoint import CheckpointError, load_state, step_of
from vologan_fast.translation.foreign import ForeignTranslator
from vologan_fast.translation.job import file_digest
from vologan_fast.translation.translator import Translator
from vologan_fast.words import printable

CARD = "README.md"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_NO_LICENSE = "No licence was chosen. Ask the authors before you use this model."


def model_card(
    model: Translator, data: str, config: Config, license: str | None = None, programs: Sequence[str] = ()
) -> str:
    """Return the card of a run's generator. `data` and `config` are those of its config.json.

    `license` is as in `write_model_folder`, and `programs` are the names of exported files beside the card.

    Raises ConfigError for a licence that is no identifier.
    """
    _check_license(license)
    origin, measured, metrics = _metrics(model, data)
    height, width = config.data.shape
    name = f"{height if height == width else f'{height}x{width}'}-{model.direction}"
    sections = [
        _front_matter(license, name, measured, metrics),
        f"# vologan_fast {name}, trained on {data_name(data)}",
        f"This generator makes {_kind(model)}. It was trained on images of "
        f"{height} × {width} pixels, by vologan_fast, which follows "
        "[VoloGAN](https://arxiv.org/abs/2207.09204).",
        "## Licence",
        license or _NO_LICENSE,
        "## Channels",
        _channels(model),
        "## Use",
        _use(model, programs),
        "## Training data",
        _data(model, data, config),
        "## Metrics",
        origin,
        _table(["metric", "value", "95 % interval", "untranslated"], [_cells(metric) for metric in metrics]),
        "## Configuration",
        "`config.json` holds all settings. These describe the generator:",
        _table(["setting", "value"], _settings(model, config)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def foreign_card(model: ForeignTranslator, license: str | None = None, programs: Sequence[str] = ()) -> str:
    """Return the card of a generator of another project. The arguments are those of `model_card`.

    It states only what the file holds. Raises ConfigError for a licence that is no identifier.
    """
    _check_license(license)
    settings = {f"generator.{key}": str(value) for key, value in dataclasses.asdict(model.config.generator).items()}
    file = model.weights.name
    sections = [
        _front_matter(license, file, "unknown", []),
        f"# {file}, converted for vologan_fast",
        "This generator was trained by the PyTorch CycleGAN, by CUT or by a project with the same file format. Its "
        f"weights are those of `{file}` (SHA-256 `{file_digest(model.weights)}`) under other names. That file does not "
        "say on which images or how it was trained.",
        "## Licence",
        license or _NO_LICENSE,
        "## Channels",
        _channels(model),
        "## Use",
        _use(model, programs),
        "## Configuration",
        "These settings of `config.json` come from the file. Its other settings are defaults, and say nothing about "
        "the training.",
        _table(["setting", "value"], [[key, value] for key, value in settings.items()]),
    ]
    return "\n\n".join(sections) + "\n"


def _check_license(license: str | None) -> None:
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(
            f"--license {license!r}: expected an identifier as Hugging Face lists them, such as mit or cc-by-4.0"
        )


def data_name(data: str) -> str:
    """Return the last part of a data set's place, which may be a folder of any system, or a URL.

    The user, the password and the query of a URL are left out, because they may be secrets. The name of a web server
    is left out, too. Characters that cannot be shown become "�", such as bytes of a file name that are not UTF-8.
    """
    scheme, is_url, rest = data.partition("://")
    if is_url:
        host, path = re.match(r"([^/\\?#]*)([^?#;]*)", rest).groups()  # type: ignore[union-attr]  # matches any text
        bucket = host.rpartition("@")[2] if scheme.lower() not in ("http", "https") else ""
        data = f"{bucket}/{path}"
    name = re.split(r"[/\\]", data.rstrip("/\\"))[-1]
    return "".join(c if c.isprintable() and c != "`" else "�" for c in name) or "data"


_USE = """```python
import vologan_fast

model = vologan_fast.load("DIR")  # the folder of this file
{results} = vologan_fast.translate_image(model, {arguments})  # {shapes}
```

`python -m vologan_fast.translate DIR --data FOLDER --out translated` translates files. Images may have any height and
width. `python -m vologan_fast.hub pull NAME/MODEL DIR` gets the folder from Hugging Face.{programs}"""


def _front_matter(license: str | None, name: str, data: str, metrics: Sequence[Metric]) -> str:
    fields: dict[str, Any] = {"license": license or "other"}
    if license is None:
        fields["license_name"] = "unspecified"
    fields |= {
        "library_name": "vologan-fast",
        "pipeline_tag": "image-to-image",
        "tags": ["image-to-image", "rgb-d", "depth", "gan", "vologan"],
    }
    if metrics:
        result = {
            "task": {"type": "image-to-image"},
            "dataset": {"name": data, "type": re.sub(r"[^\w.-]+", "-", data)},
            "metrics": [
                {"type": m.name.rpartition(": ")[2], "name": m.name, "value": m.value}
                for m in metrics
                if not m.name.startswith(_PAIRED)  # of other images
            ],
        }
        fields["model-index"] = [{"name": f"vologan_fast {name}", "results": [result]}]
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


_KINDS = {
    CHANNELS["rgbd"]: "RGB-D images",
    CHANNELS["rgb"]: "RGB images",
    CHANNELS["depth"]: "depth images",
    CHANNELS["grey+depth"]: "images of grey and depth",
    CHANNELS["grey"]: "grey images",
}


def _kind(model: Translator) -> str:
    """Return what the generator makes: "synthetic RGB-D images look like real ones"."""
    before, after = (_KINDS[channels] for channels in (model.source_channels, model.target_channels))
    if before == after:
        return f"{model.domain} {before} look like {model.target_domain} ones"
    return f"{model.target_domain} {after} of {model.domain} {before}"


def _channels(model: Translator) -> str:
    """Describe the tensors: shapes, channels, and the range of depth."""
    reads, makes = model.source_channels, model.target_channels
    if reads == makes:
        tensors = [f"Inputs and outputs are {_tensor(reads)}."]
    else:
        tensors = [f"Inputs are {_tensor(reads)}.", f"Outputs are {_tensor(makes)}."]
    spec = model.source or model.output_depth
    if spec is None:
        return " ".join(tensors)
    return " ".join(
        [
            *tensors,
            "Depth 0 is missing or background. Depth from 1/1024 to 1 lies between near and far: "
            f"near = {spec.near}, far = {spec.far}, "
            f"{'in the units of the files' if spec.unit == 'normalized' else 'in metres'}.",
            *(["Background has colour 0, too."] if reads.color and reads.depth else []),
        ]
    )


def _tensor(channels: Channels) -> str:
    return f"(N, {channels.number}, H, W), float32, in [0, 1]: {', '.join(channels.names)}"


def _use(model: Translator, programs: Sequence[str]) -> str:
    """Return the lines that use the model, with the images that it reads and makes."""
    reads, makes = model.source_channels, model.target_channels
    shapes = ["(H, W, 3) uint8" if makes.color == 3 else "(H, W) uint8"] * (makes.color > 0)
    return _USE.format(
        results=f"{'color' if makes.color else '_'}, {'depth' if makes.depth else '_'}",
        arguments=", ".join(["color" if reads.color else "None", *(["depth"] if reads.depth else [])]),
        shapes="; ".join([*shapes, *(["(h, w) in file units"] if makes.depth else [])]),
        programs=_programs(programs),
    )


def _programs(names: Sequence[str]) -> str:
    if not names:
        return ""
    return (
        f" {', '.join(f'`{name}`' for name in names)}: programs that run without vologan_fast, by onnxruntime or torch."
    )


def _data(model: Translator, data: str, config: Config) -> str:
    """Say which images the weights have seen. Numbers are given only if the data set is here, and is the same one."""
    try:
        fingerprint = load_state(model.weights.resolve().parent)["data"]
    except CheckpointError:
        return f"`{data_name(data)}`. The checkpoint has no fingerprint of it."
    lines = [f"`{data_name(data)}`. The SHA-256 of the list of training images is `{fingerprint}`.", ""]
    dataset = None
    if "://" not in data:
        with contextlib.suppress(DataError, ConfigError, OSError):
            dataset = load_dataset(data, config.data, config.train.seed)
    if dataset is None or not dataset.has_fingerprint(fingerprint):
        return "\n".join(
            [*lines, "The images were not counted, because this data set was not at hand when the card was written."]
        )
    for domain in DOMAINS:
        lines.append(
            f"- {domain}: {len(dataset.train[domain])} training images, {len(dataset.held_out[domain])} held out"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Metric:
    """A number that says how good the generator is, with its 95 % interval and the number of untranslated images."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    untranslated: float = math.nan


_PAIRED = "error: paired"
"""The beginning of the names of errors that `vologan_fast.evaluate --paired` measures, on images of their own."""


def _metrics(model: Translator, data: str) -> tuple[str, str, list[Metric]]:
    """Return a sentence that says where the metrics are from, the name of the data set they are of, and the metrics.

    They are those of these weights in the run's `evaluation/evaluation.json`, or `evaluation-t2s` for that direction.
    Without them, they are the losses of held-out images of `data`, the run's data set, from the last line of
    `metrics.jsonl` up to the checkpoint's step.
    """
    run = model.config_file.parent
    folder = run / ("evaluation" if model.direction == "s2t" else "evaluation-t2s")
    if found := _evaluated(folder, file_digest(model.weights)):
        return found
    origin, losses = _held_out(run / "metrics.jsonl", _step(model), "st" if model.direction == "s2t" else "ts")
    return origin, data_name(data), losses


def _evaluated(folder: Path, weights_sha256: str) -> tuple[str, str, list[Metric]] | None:
    """Return what `vologan_fast.evaluate` wrote about these weights, as `_metrics` does. None if it wrote nothing."""
    unlike = (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError, OverflowError)
    with contextlib.suppress(OSError, *unlike):
        record = read_evaluation(folder)
        step = next(step for step, weights in record["weights"].items() if weights["sha256"] == weights_sha256)
        before = _intervals(record["rows"]["S"])
        metrics = [
            Metric(name, value, low, high, before.get(name, [math.nan])[0])
            for name, (value, low, high) in _intervals(record["checkpoints"][step]).items()
        ]
        if metrics:
            data = data_name(record["data"])
            images = _images(record["images"], record["part"] == "held-out images", data)
            origin = f"Measured by `python -m vologan_fast.evaluate` on {images}. Less is better."
            if any(metric.name.startswith(_PAIRED) for metric in metrics):
                origin += " Paired errors are of other images, which have a known truth."
            return origin, data, metrics
    return None


def _images(counts: dict[str, int], held_out: bool, data: str) -> str:
    """Say which images were judged. `counts` are the numbers of images by domain."""
    numbers = " and ".join(f"{int(counts[domain])} {domain}" for domain in DOMAINS)
    return f"{numbers} held-out images of `{data}`" if held_out else f"{numbers} images, from all images of `{data}`"


def _intervals(row: dict[str, Any]) -> dict[str, list[float]]:
    """Return the numbers of a row of an evaluation as [value, low, high]. An end that was not measured is NaN."""
    found = {name if name == "score" else f"score: {name}": interval for name, interval in row["score"].items()}
    found |= {f"distance: {name}": measure["distance"] for name, measure in row["measures"].items()}
    found |= {f"error: {name}": interval for name, interval in row["errors"].items()}
    return {
        name: [value, *(end if _is_number(end) else math.nan for end in ends)]
        for name, (value, *ends) in found.items()
        if _is_number(value)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _held_out(file: Path, step: int | None, part: str) -> tuple[str, list[Metric]]:
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        for record in read_lines(file):
            if record["split"] == "held_out" and (step is None or record["step"] <= step):
                found = record
    prefix = f"generator_{part}/"
    losses = [
        Metric(f"loss: {name.removeprefix(prefix)}", value)
        for name, value in found.items()
        if name.startswith(prefix) and _is_number(value)
    ]
    if not losses:
        return "No metrics were recorded.", []
    return f"Losses on held-out images after step {found['step']}. They do not say how good the results look.", losses


def _step(model: Translator) -> int | None:
    """Return the step of the weights. None if their folder does not say it."""
    try:
        return step_of(model.weights.resolve().parent)
    except CheckpointError:
        return None


def _settings(model: Translator, config: Config) -> list[list[str]]:
    step = _step(model)
    rows = {
        "training steps": "unknown" if step is None else step,
        "SHA-256 of the run's file": file_digest(model.weights),
        "image size": size_in_words(config.data.size),
        "batch": config.train.batch,
        "seed": config.train.seed,
        "method": config.train.method,
        "loss.routing": config.loss.routing,
        "loss.adversarial": config.loss.adversarial,
        **{f"generator.{key}": value for key, value in dataclasses.asdict(config.generator).items()},
    }
    return [[key, str(value)] for key, value in rows.items()]


def _cells(metric: Metric) -> list[str]:
    interval = f"{metric.low:.4g} … {metric.high:.4g}" if math.isfinite(metric.low) else ""
    untranslated = f"{metric.untranslated:.4g}" if math.isfinite(metric.untranslated) else ""
    return [metric.name, f"{metric.value:.4g}", interval, untranslated]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = [[_cell(text) for text in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *cells))


def _cell(text: str) -> str:
    """Return a text as a cell of a table. Names in a stranger's records could hold HTML, or end the table."""
    return html.escape(printable(text), quote=False).replace("|", "&#124;")
