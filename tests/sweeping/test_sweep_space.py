"""The file of a sweep: what is in it reaches the trials, and whatever is wrong is one error before anything runs."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tyro")  # the commands need it
pytest.importorskip("yaml")
pytest.importorskip("optuna")
pytest.importorskip("plotly")
import tyro

from vologan_fast.config import ConfigError
from vologan_fast.sweep import _starting_point, main
from vologan_fast.sweeping.reading import read_space
from vologan_fast.sweeping.space import Space
from vologan_fast.train import Arguments

ROOT = Path(__file__).parents[2]
GOOD = """
train:
  preset: vologan-64
  max-steps: 100
  train.batch: 2
  --generator.spectral_norm: false
space:
  generator-optimizer.learning-rate: {low: 1e-5, high: 1e-3, log: true}
  generator.width: {low: 16, high: 64, step: 16}
  generator.activation: [relu, leaky_relu]
  discriminator.widths: [[16, 32, 64], [32, 64, 128]]
  generator.norm-affine: [true, false]
sweep: {trials: 3}
"""


def space_of(folder: Path, text: str) -> Space:
    (folder / "space.yaml").write_text(text)
    return read_space(folder / "space.yaml", _starting_point)


def test_a_file_becomes_commands(tmp_path: Path) -> None:
    space = space_of(tmp_path, GOOD)
    chosen: dict[str, Any] = {
        "generator-optimizer.learning-rate": 2e-4,
        "generator.width": 32,
        "generator.activation": "relu",
        "discriminator.widths": "32 64 128",
        "generator.norm-affine": False,
    }
    default = Arguments(preset="vologan-64", settings=space.base)
    parsed = tyro.cli(Arguments, args=space.command_of(chosen), default=default)
    assert (parsed.preset, parsed.max_steps) == ("vologan-64", 100)
    assert parsed.settings == space.config_of(chosen)
    settings = parsed.settings
    assert settings.generator_optimizer.learning_rate == 2e-4 and settings.discriminator.widths == (32, 64, 128)
    assert (settings.generator.width, settings.generator.spectral_norm, settings.train.batch) == (32, False, 2)


def test_the_example_is_right(tmp_path: Path) -> None:
    space = read_space(ROOT / "examples" / "sweep-vologan-64.yaml", _starting_point)
    varied = {parameter.option for parameter in space.parameters}
    assert {"generator-optimizer.learning-rate", "loss.cycle", "generator.width", "generator.activation"} <= varied
    assert any("padding" in option for option in varied) and any("attention" in option for option in varied)
    assert any("optimizer.kind" in option for option in varied)
    assert space.options["preset"] == "vologan-64" and space.base.train.evaluate_every


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ("generator.width:", "generator.widht:", "generator.widht", "no such option; did you mean generator.width?"),
        ("train.batch: 2", "train.batches: 2", "train.batches", "no such option"),
        ("preset: vologan-64", "preset: vologan-65", "--preset vologan-65", "expected one of"),
        ("low: 1e-5, high: 1e-3", "low: 1e-3, high: 1e-5", "learning-rate", "expected low < high"),
        ("low: 1e-5", "low: -1e-5", "learning-rate", "-1e-05"),
        ("low: 1e-5, high: 1e-3, log", "low: 0, high: 1e-3, log", "learning-rate", "low"),
        ("low: 16, high: 64, step: 16", "low: 16.5, high: 64", "generator.width", "found 16.5, expected int"),
        ("low: 16, high: 64, step: 16", "low: 16, high: 64, step: 0.5", "generator.width: step", "positive int"),
        ("low: 16, high: 64, step: 16", "low: 16", "generator.width: high", "expected a number, found None"),
        ("low: 16, high: 64, step: 16", "low: 0, high: 64", "generator.width: low", "0"),
        ("low: 16, high: 64, step: 16", "low: 16, hihg: 64", "hihg", "expected low, high, log or step"),
        ("log: true", "log: maybe", "learning-rate: log", "expected true or false"),
        ("[relu, leaky_relu]", "[relu, swish]", "generator.activation", "found 'swish', expected relu"),
        ("[relu, leaky_relu]", "{low: 1, high: 2}", "generator.activation", "found 1, expected relu"),
        ("[relu, leaky_relu]", "[relu, relu]", "generator.activation", "twice"),
        ("[relu, leaky_relu]", "[]", "generator.activation", "at least one value"),
        ("[relu, leaky_relu]", "relu", "generator.activation", "expected a list"),
        ("[[16, 32, 64], [32, 64, 128]]", "[[16, wide]]", "discriminator.widths", "found 'wide', expected int"),
        ("train.batch: 2", "train.batch: two", "train: train.batch", "found 'two', expected int"),
        ("train.batch: 2", "train.batch: 0", "train.batch", "at least 1"),
        ("train.batch: 2", "generator.width: 32", "generator.width", "stands under train, too"),
        ("max-steps: 100", "max-steps: 1.5", "max-steps", "whole number"),
        ("max-steps: 100", "run-dir: here", "run-dir", "the sweep gives it"),
        ("generator.norm-affine: [true, false]", "max-steps: [1, 2]", "max-steps", "cannot vary"),
        ("trials: 3", "trials: 0", "sweep: 'trials'", "at least 1, found 0"),
        ("trials: 3", "trails: 3", "sweep: 'trails'", "no such key"),
        ("trials: 3", "objective: score", "objective", "SPLIT/NAME"),
        ("trials: 3", "direction: down", "direction", "minimize or maximize"),
        ("sweep:", "swep:", "'swep'", "expected no key but"),
        ("train.batch: 2", "train.batch: 2\n  train.batch: 3", "train.batch", "twice"),
        ("train:\n", "train: [\n", "space.yaml, line", "expected YAML"),
        ("generator.activation:", '"<b>\\x1b[2J":', r"\x1b[2J", "no such option"),
    ],
)
def test_each_mistake_is_one_error_that_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, key: str, said: str
) -> None:
    assert GOOD.count(old) == 1
    file = tmp_path / "space.yaml"
    file.write_text(GOOD.replace(old, new))
    assert main([str(file), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}") and error.count("\n") == 1
    assert key in error and said in error, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"just words", b""])
def test_what_is_no_file_of_a_sweep_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "space.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=str(file)):
        read_space(file, _starting_point)


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vologan_fast.sweeping.study import Record

    Record(space_of(tmp_path, GOOD), tmp_path / "out")
    Record(space_of(tmp_path, GOOD.replace("trials: 3", "trials: 30")), tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a sweep of another space"):
        Record(space_of(tmp_path, GOOD.replace("1e-3", "1e-2")), tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be written"):
        Record(space_of(tmp_path, GOOD), tmp_path / "space.yaml" / "out")


@pytest.mark.parametrize("name", ["sweep.db", "locks", "trials"])
def test_a_link_in_the_folder_of_a_sweep_is_refused(tmp_path: Path, name: str) -> None:
    """SQLite would write into whichever file it leads to."""
    from vologan_fast.sweeping.study import Record

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "ours")
    with pytest.raises(ConfigError, match=rf"{name}: expected a fil|{name}: expected a folder"):
        Record(space_of(tmp_path, GOOD), tmp_path / "out")
    assert not (tmp_path / "ours").exists()


def test_lists_that_repeat_each_other_are_refused(tmp_path: Path) -> None:
    """A few lines mean 10¹² values, which would fill the memory when they are shown."""
    lines = ["a: &a0 [1, 1]"] + [f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(12)]
    with pytest.raises(ConfigError, match=r"space.yaml: expected at most 10000 values, found more"):
        space_of(tmp_path, "\n".join([*lines, "space: {generator.width: *a12}"]))
    with pytest.raises(ConfigError, match=r"space\.yaml: cannot be read"):
        space_of(tmp_path, "#" * (2 << 20))
