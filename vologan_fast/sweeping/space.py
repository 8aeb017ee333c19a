"""A sweep: what all trials have in common, what varies, and how trials are judged. Its file looks so:

    train:                              # options of `vologan_fast.train` for all trials
      preset: vologan-64
      max-steps: 2000
      train.evaluate-every: 200
    space:                              # options that vary
      generator-optimizer.learning-rate: {low: 1e-5, high: 1e-3, log: true}
      generator.activation: [relu, leaky_relu, elu]
    sweep:
      trials: 40

`reading` checks it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vologan_fast.config import Config, check, from_dict, to_dict

EVALUATE = "evaluate"
"""The objective that is the score of the command `evaluate`."""
SCORE = "evaluation/score"
"""The metric of a run that comes nearest to it. Trials are pruned by it."""
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Settings:
    """How the sweep is done: the keys under `sweep`."""

    trials: int = 20
    """Trials that end: finished, pruned, diverged, or without enough memory."""
    objective: str = EVALUATE
    """`evaluate`: the best score of the command `evaluate`. Else a metric of the run as SPLIT/NAME, such as
    held_out/generator_ts/cycle, with its last value."""
    direction: Literal["minimize", "maximize"] = "minimize"
    seed: int = 0
    startup_trials: int = 5
    """Trials that end before one is pruned, and before Optuna chooses by more than chance."""
    warmup_steps: int = 0
    """Steps of each trial before it can be pruned."""

    @property
    def metric(self) -> str:
        """The metric of a run, as SPLIT/NAME, by which trials are pruned."""
        return SCORE if self.objective == EVALUATE else self.objective


@dataclass(frozen=True)
class Parameter:
    """An option that varies."""

    option: str
    choices: Mapping[Scalar, Any] | None = None
    """Label → value, for a list. None for a range. Labels are what Optuna keeps."""
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    def value_of(self, chosen: Scalar) -> Any:
        """Return the value of the setting for what Optuna has chosen."""
        return chosen if self.choices is None else self.choices[chosen]


@dataclass(frozen=True)
class Space:
    """A sweep as its file describes it."""

    base: Config
    """The settings that all trials start from."""
    options: dict[str, Any]
    """Options of `train` for all trials, without dashes before them."""
    parameters: tuple[Parameter, ...]
    settings: Settings

    @property
    def identity(self) -> str:
        """What must stay the same while a sweep goes on, as JSON: everything but the number of trials."""
        settings = dataclasses.asdict(self.settings)
        del settings["trials"]
        parameters = [dataclasses.asdict(parameter) for parameter in self.parameters]
        return json.dumps([self.options, [list(map(str, p.items())) for p in parameters], settings], sort_keys=True)

    def config_of(self, chosen: Mapping[str, Scalar]) -> Config:
        """Return the settings of a trial. Raises ConfigError if they cannot work together."""
        config = self.base
        for parameter in self.parameters:
            config = with_value(config, parameter.option, parameter.value_of(chosen[parameter.option]))
        check(config)
        return config

    def command_of(self, chosen: Mapping[str, Scalar]) -> list[str]:
        """Return the options of `train` for a trial, except its run folder."""
        values = self.options | {p.option: p.value_of(chosen[p.option]) for p in self.parameters}
        return [word for option, value in values.items() for word in as_words(option, value)]


def as_words(option: str, value: Any) -> list[str]:
    """Return an option and its value as words of a command line."""
    if isinstance(value, bool):
        section, dot, name = option.rpartition(".")
        return [f"--{option}" if value else f"--{section}{dot}no-{name}"]
    if isinstance(value, (list, tuple)):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}", str(value)]


def setting_of(values: dict[str, Any], option: str) -> Any:
    """Return the value of an option in the tree of `to_dict`."""
    for part in option.replace("-", "_").split("."):
        values = values[part]
    return values


def with_value(config: Config, option: str, value: Any) -> Config:
    """Return the configuration with another value of a setting. Raises ConfigError for a value of a wrong type."""
    values = to_dict(config)
    *sections, name = option.replace("-", "_").split(".")
    setting_of(values, ".".join(sections))[name] = value
    return from_dict(values)
