"""Translations of every set of channels are judged by the measures that exist for them: tensors, and the command."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from sensor_images import sensor_images
from torch import Tensor

from vologan_fast import evaluate, train
from vologan_fast.config import CHANNELS, ConfigError, DataConfig, DepthSpec
from vologan_fast.data.demo import make_demo
from vologan_fast.data.pixels import grey
from vologan_fast.evaluation import distances, judge
from vologan_fast.evaluation.distances import quantile_affine
from vologan_fast.evaluation.features import Features
from vologan_fast.evaluation.inputs import Images
from vologan_fast.evaluation.judge import Translate
from vologan_fast.evaluation.noise_model import NoiseModel
from vologan_fast.evaluation.sensor import STATISTICS
from vologan_fast.evaluation.views import View

PAIRS = list(itertools.product(CHANNELS, CHANNELS))
FEW = [
    ("rgb", "rgb"),
    ("depth", "depth"),
    ("grey", "grey+depth"),
    ("rgbd", "depth"),
    ("rgb", "depth"),
    ("depth", "rgb"),
]
OTHERS = list(zip(CHANNELS, [*CHANNELS][2:] + [*CHANNELS][:2], strict=True))
"""Pairs with each set as source and as target."""
SENSOR = {statistic.name for statistic in STATISTICS}


def of_channels(images: Tensor, name: str) -> Tensor:
    """Return RGB-D images with other channels, as the loaders give them."""
    channels = CHANNELS[name]
    levels = (images[:, :3] * 255).round().byte()
    luma = torch.stack([torch.from_numpy(grey(image.permute(1, 2, 0).numpy())) for image in levels])[:, None] / 255
    color = {3: images[:, :3], 1: luma, 0: images[:, :0]}[channels.color]
    return torch.cat([color, images[:, 3:]] if channels.depth else [color], 1)


def config(source: str, target: str, background: float | None = -1.0) -> DataConfig:
    spec = DepthSpec("normalized", None, -1.0, 1.0, (), background, None, "float")
    return DataConfig(size=32, channels=(source, target), synthetic=spec, real=spec)


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(distances.sliced_wasserstein, patches=2048)
    for module in (distances, judge):
        monkeypatch.setattr(module, "sliced_wasserstein", few)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_measures_are_those_of_the_channels(source: str, target: str) -> None:
    s, t = sensor_images(8, 32, 1, noise=0, holes=0), sensor_images(9, 32, 2)
    of_s, of_t = of_channels(s, source), of_channels(t, target)
    reads, makes = CHANNELS[source], CHANNELS[target]
    view = View.of(config(source, target), "synthetic", of_t)
    judged = view.judge(of_s, of_t, resamples=0)
    patches = {"colour"} if makes.color else set()
    patches |= {"depth", "depth gradient"} if makes.depth else set()
    better = judged.row("G(S)", view.translated(of_channels(sensor_images(8, 32, 1), target), of_s))  # S with faults
    assert patches <= set(better.values) <= patches | (SENSOR if makes.depth else set()) | {"components"}
    assert set(better.scores) == {"score", "patches"} | ({"sensor"} if makes.depth else set())
    assert judged.untranslated.score.value == pytest.approx(1)
    assert better.score.value < (1 if makes.depth else 1.05)  # these faults are of depth alone
    assert all(math.isfinite(score.value) for score in better.scores.values())
    if source == target:
        assert torch.equal(view.translated(of_s, of_s), view.untranslated(of_s))
    if source == target == "rgbd":
        assert torch.equal(judged.synthetic, s) and torch.equal(view.real(t), t)
    # Grey is that of the loaders, and what S lacks is T's mean.
    if source == "rgb" and target == "grey":
        assert (judged.synthetic[:, :1] - of_channels(s, "grey")).abs().max() < 0.51 / 255 + 1e-6
    if makes.depth and not reads.depth:
        assert judged.synthetic[:, 3].unique().tolist() == pytest.approx([of_t[:, -1][of_t[:, -1] > 0].mean().item()])


def test_holes_of_depth_alone_are_seen_where_no_value_means_background() -> None:
    images = of_channels(sensor_images(8, 32, 2), "depth")
    images[:] = torch.where(images == 0, 0, images.clamp_min(0.1))
    with_background, without = (View.of(config("depth", "depth", value), "synthetic", images) for value in (-1.0, None))
    holes = (images == 0).double().mean().item()
    found = without.judge(images, images, resamples=0).real.values["holes by depth"].number.value
    assert found == pytest.approx(holes, rel=1e-6)
    assert with_background.judge(images, images, resamples=0).real.values["holes by depth"].number.value == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=8, size=32, paired_test=2)


TINY = ["--preset", "demo", "--device", "cpu", "--data.size", "32", "--train.batch", "2", "--generator.width", "4"]
TINY += ["--generator.max-width", "8", "--generator.levels", "2", "--discriminator.widths", "4", "4", "8"]
TINY += ["--discriminator.down-widths", "4", "4", "8", "--data.held-out", "0.5", "--max-steps", "1"]
TINY += ["--train.evaluate-every", "1", "--loss.identity", "0", "--train.report-every", "-1"]


@pytest.mark.parametrize(
    ("source", "target", "direction"),
    [
        *((*pair, "s2t") for pair in FEW),
        *(pytest.param(*pair, way, marks=pytest.mark.slow) for pair in OTHERS for way in ("s2t", "t2s")),
    ],
)
def test_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, direction: str
) -> None:
    def quick(synthetic: Images, real: Images, seed: int) -> dict[str, Translate]:
        return {"affine(S)": quantile_affine(synthetic.pixels, real.pixels), "noise(S)": NoiseModel()}

    monkeypatch.setattr(evaluate, "_baselines", quick)
    torch.set_num_threads(1)
    run = tmp_path / "run"
    names = [source] if source == target else [source, target]
    output = [] if source == target else ["--generator.output", "hard_sigmoid"]
    options = [*TINY, *output, "--run-dir", str(run), "--data", str(data), "--data.channels", *names]
    assert train.main(options) == 0
    makes = CHANNELS[target if direction == "s2t" else source]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (judged,) = [line for line in lines if line["split"] == "evaluation"]
    assert ("sensor" in judged) == CHANNELS[target].depth
    paired = data / "paired-test/paired_paths.json"
    options = [str(run), "--bootstrap", "2", "--paired", str(paired), "--direction", direction]
    assert evaluate.main(options) == 0
    out = run / ("evaluation" if direction == "s2t" else "evaluation-t2s")
    record = json.loads((out / "evaluation.json").read_text())
    assert record["channels"] == list(makes.names)
    parts = {"colour"} if makes.color else set()
    parts |= {"depth"} if makes.depth else set()
    cycled = CHANNELS[source if direction == "s2t" else target]
    expected = {f"paired {part}" for part in parts}
    expected |= {"cycle colour"} if cycled.color else set()
    expected |= {"cycle depth"} if cycled.depth else set()
    expected |= {f"identity {part}" for part in parts} if source == target else set()
    assert set(record["checkpoints"]["1"]["errors"]) == expected
    assert ("bins" in record) == (out / "curves.png").exists() == makes.depth
    text = (out / "evaluation.md").read_text()
    assert ("| sensor |" in text) == makes.depth == ("depth gradient" in text) and ("colour" in text) >= bool(
        makes.color
    )


@pytest.mark.parametrize(("source", "target"), [("rgb", "depth"), ("rgb", "rgbd"), ("depth", "grey")])
def test_the_affine_map_of_what_s_lacks_is_the_mean_of_t(source: str, target: str) -> None:
    s, t = of_channels(sensor_images(4, 32, 1), source), of_channels(sensor_images(4, 32, 2), target)
    view = View.of(config(source, target), "synthetic", t)
    before, after = view.untranslated(s), view.real(t)
    mapped = quantile_affine(before, after)(before)
    changed = slice(3, 4) if CHANNELS[target].depth else slice(0, 3)
    assert (mapped - before)[:, changed].abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("rgb", "rgb"), ("depth", "depth"), ("grey+depth", "grey+depth")])
def test_baselines_are_fitted(source: str, target: str) -> None:
    s, t = (of_channels(sensor_images(40, 48, seed), source) for seed in (1, 2))
    t = t * 0.5 + 0.1 * (t > 0)
    view = View.of(config(source, target), "synthetic", t)
    judged = view.judge(s, t, resamples=0)
    shown = view.fitted(Images(s, []), Images(t, []))
    found = evaluate._baselines(*shown, 0)
    assert list(found) == ["affine(S)", "noise(S)"][: 1 + CHANNELS[target].depth]
    for name, fit in found.items():
        assert judged.row(name, view.baseline(fit)(judged.synthetic)).score.value < 0.8


def test_kid_and_fid_need_three_colours(tmp_path: Path) -> None:
    for name in ("depth", "grey", "grey+depth"):
        with pytest.raises(ConfigError, match=r"--features .*: expected translations with red, green and blue, found "):
            Features(tmp_path / "weights.pth", torch.device("cpu"), CHANNELS[name])
