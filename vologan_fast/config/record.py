"""A configuration as JSON, and what the records of older versions mean."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from typing import Any, Literal

from vologan_fast.config.rules import ConfigError
from vologan_fast.config.settings import Config, OptimizerConfig


def to_dict(config: Config) -> dict[str, Any]:
    """Return the tree as nested dicts of JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """Return the configuration that `to_dict` converted to `values`.

    Raises ConfigError for an unknown field, or for a value of a wrong type.
    """
    return _build(Config, values, "")


_FORMER: tuple[tuple[str, Any, dict[str, dict[str, str]]], ...] = (
    ("generator.attention_size", 0, {}),
    ("generator.dropout_levels", 2, {}),
    ("generator.output_bias", True, {}),
    ("discriminator.branch_dropouts", 1, {}),
    *(
        (
            f"{network}.attention_eps",
            1e-5,
            {
                "attention": {"elementwise": "elementwise_untransposed"},
                "initializer": {
                    "he_normal": "he_normal_uncorrected",
                    "glorot_normal": "glorot_normal_uncorrected",
                },
            },
        )
        for network in ("generator", "discriminator")
    ),
    ("generator_optimizer.nesterov", False, {}),
    ("schedule.constant_epochs", 0, {"decay": {"exponential": "exponential_hundredth"}}),
    ("train.memory_format", "by_device", {"precision": {"auto": "by_device"}}),
)
"""Former meanings of a configuration. A row is about records that lack its field, because an older version wrote them.

It holds the field, the value that says what that version did, and new names for values of the same section."""
_FORMER_SWITCH_LEARNING_RATE = 1e-4
"""Former default of `switch_learning_rate`. Records hold it, but a command may have left it open."""


def from_record(values: dict[str, Any]) -> Config:
    """Return the configuration that this version or an older one recorded as `values`. It keeps its meaning.

    Raises ConfigError as `from_dict` does.
    """
    values = copy.deepcopy(values)
    for path, former, renamed in _FORMER:
        section, field = path.split(".")
        settings = values.get(section) if isinstance(values, dict) else None
        if isinstance(settings, dict) and field not in settings:
            settings[field] = former
            for name, new_names in renamed.items():
                if isinstance(settings.get(name), str):
                    settings[name] = new_names.get(settings[name], settings[name])
    return from_dict(values)


def former(config: Config) -> Config:
    """Return what the settings of a command meant to the versions that did not have the published forms yet.

    A preset, and values that have another name today, mean other settings there.
    """
    default = OptimizerConfig().switch_learning_rate
    values = to_dict(config)
    for path, *_ in _FORMER:
        section, field = path.split(".")
        del values[section][field]
    for section in ("generator_optimizer", "discriminator_optimizer"):
        if values[section]["switch_learning_rate"] == default:
            values[section]["switch_learning_rate"] = _FORMER_SWITCH_LEARNING_RATE
    return from_record(values)


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ, by dotted name: (value before, value after). NaN counts as equal to NaN."""
    old, new = _flatten(to_dict(before)), _flatten(to_dict(after))
    return {name: (old[name], new[name]) for name in old if repr(old[name]) != repr(new[name])}


def _build(kind: type, values: Any, path: str) -> Any:
    """Build a dataclass from a dict, field by field. Lists become tuples where the annotations require them."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path or 'configuration'}: expected an object, found {_shown(values)}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{path}{unknown[0]}: no such setting; known here: {', '.join(hints)}")
    return kind(**{name: _convert(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"{path}.")
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for alternative in alternatives:
        origin = typing.get_origin(alternative)
        if alternative is type(None) and value is None:
            return None
        if origin is Literal and value in typing.get_args(alternative):
            return value
        if origin is tuple and isinstance(value, (list, tuple)):
            item, *more = typing.get_args(alternative)
            if ... in more or len(value) == 1 + len(more):
                return tuple(_convert(item, element, path) for element in value)
        if alternative is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:  # an integer of hundreds of digits
                continue
        if isinstance(alternative, type) and type(value) is alternative:
            return value
    expected = ", ".join(map(str, typing.get_args(hint))) if typing.get_origin(hint) is Literal else hint
    raise ConfigError(f"{path}: found {_shown(value)}, expected {getattr(expected, '__name__', expected)}")


def _shown(value: Any) -> str:
    """Return a value as text that fits into a sentence."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
