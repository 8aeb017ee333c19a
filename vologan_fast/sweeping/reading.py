"""Reads the file of a sweep, and checks all of it before anything runs.

Names, types and ranges are checked, and each single value by the rules of `config.rules`, beside the other settings of
`train`. An error names the file and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vologan_fast.config import Config, ConfigError, check, to_dict
from vologan_fast.files import read_regular
from vologan_fast.sweeping.space import EVALUATE, Parameter, Scalar, Settings, Space, setting_of, with_value

OTHER_OPTIONS = ("data", "preset", "config", "init-from", "max-steps", "device")
"""Options of `train` that are no settings. They may stand under `train`, but do not vary."""
_OF_THE_SWEEP = ("run-dir", "resume", "dry-run")
_LARGEST, _MOST = 1 << 20, 10_000
"""Bytes of the largest file of a sweep, and the most values in one."""
StartingPoint = Callable[[str | None, Path | None, str], tuple[Config, str | None]]
"""Returns the settings that `train` starts from for --preset, --config and --device, and the name of the preset."""


def read_space(path: Path, starting_point: StartingPoint) -> Space:
    """Read the file of a sweep. Raises ConfigError, which names the file and the key."""
    content = _mapping(_parsed(path), f"{path}")
    if unknown := set(content) - {"train", "space", "sweep"}:
        raise ConfigError(f"{path}: {_shown(min(unknown, key=str))}: expected no key but train, space, sweep")
    settings = _settings(_mapping(content.get("sweep") or {}, f"{path}: sweep"), path)
    base, options = _common(content.get("train") or {}, f"{path}: train", starting_point)
    varied = _named(content.get("space") or {}, f"{path}: space")
    parameters = tuple(_parameter(base, option, value, f"{path}: space") for option, value in varied)
    if not parameters:
        raise ConfigError(f"{path}: space: expected at least one option that varies, found none")
    if both := {parameter.option for parameter in parameters} & options.keys():
        raise ConfigError(f"{path}: space: {min(both)}: stands under train, too; expected it once")
    return Space(base, options, parameters, settings)


def _common(given: Any, where: str, starting_point: StartingPoint) -> tuple[Config, dict[str, Any]]:
    """Return what all trials have in common: their settings, and the options of `train` that give them."""
    options = dict(_named(given, where))
    for name in ("data", "preset", "config", "init-from", "device"):
        if (value := options.get(name)) is not None and not isinstance(value, str):
            raise ConfigError(f"{where}: {name}: expected a word, found {_shown(value)}")
    if options.get("device", "auto") not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{where}: device: expected auto, cpu or cuda, found {_shown(options['device'])}")
    steps = options.get("max-steps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"{where}: max-steps: expected a whole number of at least 1, found {_shown(steps)}")
    recorded = options.get("config")
    try:
        base, preset = starting_point(
            options.get("preset"), None if recorded is None else Path(recorded), options.get("device", "auto")
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if preset is not None:
        options["preset"] = preset  # a command that may also resume needs it
    for option, value in options.items():
        if option in _OF_THE_SWEEP:
            raise ConfigError(f"{where}: {option}: expected no such option, because the sweep gives it")
        if option not in OTHER_OPTIONS:
            base = _checked_with(base, option, value, where)
    _allowed(base, where)
    return base, options


def _parsed(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 as PyYAML reads it, but 1e-4 is a number, and no key may stand there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} twice", node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        content = yaml.load(read_regular(path, _LARGEST).decode(), Loader)
        if _is_large(content):
            raise ConfigError(f"{path}: expected at most {_MOST} values, found more, with what `*` repeats")
        return content
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where}: expected YAML, found {problem}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date that does not exist, a list as a key, …
        raise ConfigError(f"{path}: expected YAML, found {error}") from error


def _is_large(content: Any) -> bool:
    """Return whether there are too many values. A few lines can mean billions, where a list repeats another one."""
    waiting, count = [content], 0
    while waiting and count <= _MOST:
        value, count = waiting.pop(), count + 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        if len(waiting) > _MOST:
            return True
    return count > _MOST


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected keys with values, found {_shown(value)}")
    return value


def _named(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield options as the command line's help names them, with their values."""
    for key, of_key in _mapping(value, where).items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: {_shown(key)}: expected the name of an option of train")
        yield key.removeprefix("--").replace("_", "-"), of_key


def _settings(given: dict[Any, Any], path: Path) -> Settings:
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        where = f"{path}: sweep: {_shown(key)}"
        if key not in fields:
            raise ConfigError(f"{where}: no such key; expected {', '.join(fields)}")
        name, least = fields[key].name, {"trials": 1}.get(str(key), 0)
        if isinstance(fields[key].default, int):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{where}: expected a whole number of at least {least}, found {_shown(value)}")
        elif key == "direction" and value not in ("minimize", "maximize"):
            raise ConfigError(f"{where}: expected minimize or maximize, found {_shown(value)}")
        elif key == "objective" and not (isinstance(value, str) and (value == EVALUATE or "/" in value)):
            raise ConfigError(f"{where}: expected evaluate, or a metric as SPLIT/NAME, found {_shown(value)}")
        values[name] = value
    settings = Settings(**values)
    if settings.objective == EVALUATE and settings.direction != "minimize":
        raise ConfigError(f"{path}: sweep: direction: expected minimize, because less is better for evaluate")
    return settings


def _parameter(base: Config, option: str, value: Any, where: str) -> Parameter:
    """Return what varies, after each value that the file names has been checked."""
    if option in OTHER_OPTIONS or option in _OF_THE_SWEEP:
        raise ConfigError(f"{where}: {option}: expected a setting, such as generator.width; this option cannot vary")
    _known(base, option, where)
    if isinstance(value, list):
        return _list(base, option, value, where)
    if isinstance(value, dict):
        return _range(base, option, value, where)
    raise ConfigError(
        f"{where}: {option}: expected a list of values, or {{low: …, high: …}}, found {_shown(value)}; one value "
        "for all trials stands under train"
    )


def _list(base: Config, option: str, values: list[Any], where: str) -> Parameter:
    choices: dict[Scalar, Any] = {}
    for value in values:
        _allowed(_checked_with(base, option, value, where), f"{where}: {option}: {_shown(value)}")
        label = " ".join(map(str, value)) if isinstance(value, list) else value
        if label in choices:
            raise ConfigError(f"{where}: {option}: expected each value once, found {_shown(value)} twice")
        choices[label] = value
    if not choices:
        raise ConfigError(f"{where}: {option}: expected at least one value in the list, found none")
    return Parameter(option, choices)


def _range(base: Config, option: str, value: dict[Any, Any], where: str) -> Parameter:
    where_here = f"{where}: {option}"
    if unknown := set(value) - {"low", "high", "log", "step"}:
        raise ConfigError(f"{where_here}: {_shown(min(unknown, key=str))}: expected low, high, log or step")
    for end in ("low", "high"):
        if not _is_number(value.get(end)):
            raise ConfigError(f"{where_here}: {end}: expected a number, found {_shown(value.get(end))}")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where_here}: log: expected true or false, found {_shown(log)}")
    ends = []
    for end in ("low", "high"):
        config = _checked_with(base, option, value[end], where)
        _allowed(config, f"{where_here}: {end}: {value[end]}")
        ends.append(setting_of(to_dict(config), option))
    low, high = ends
    if not low < high:
        raise ConfigError(f"{where_here}: expected low < high, found {low} and {high}")
    if log and low <= 0:
        raise ConfigError(f"{where_here}: low: expected more than 0 with log, found {low}")
    if step is not None and (not _is_number(step) or step <= 0 or (isinstance(low, int) and not isinstance(step, int))):
        raise ConfigError(f"{where_here}: step: expected a positive {type(low).__name__}, found {_shown(step)}")
    if step is not None and log:
        raise ConfigError(f"{where_here}: step: expected no step with log")
    return Parameter(option, None, low, high, step, log)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _known(config: Config, option: str, where: str) -> None:
    """Raise ConfigError for an option that is no setting."""
    known = list(_options(to_dict(config)))
    if option not in known:
        near = difflib.get_close_matches(option, known, 1)
        meant = f"; did you mean {near[0]}?" if near else "; `python -m vologan_fast.train --help` lists them"
        raise ConfigError(f"{where}: {_shown(option)}: train has no such option{meant}")


def _options(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        option = f"{before}{name.replace('_', '-')}"
        if isinstance(value, dict):
            yield from _options(value, f"{option}.")
        else:
            yield option


def _checked_with(config: Config, option: str, value: Any, where: str) -> Config:
    _known(config, option, where)
    try:
        return with_value(config, option, value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {option}: {str(error).partition(': ')[2]}") from error


def _allowed(config: Config, where: str) -> None:
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _shown(value: Any) -> str:
    return ascii(value) if isinstance(value, str) and not value.isprintable() else f"{value!r}"
