"""The configuration of a training run.

A `Config` is a tree of frozen dataclasses (`settings.py`). `PRESETS` holds the named configurations (`presets.py`). The
command line (`python -m vologan_fast.train --help`) offers every field as `--section.option`. `check` refuses numbers
that cannot work (`rules.py`). A run folder records the whole tree as `config.json`; `to_dict` and `from_dict` convert
between the tree and this JSON, and `from_record` reads what older versions wrote (`record.py`). `without_effect` names
settings that do nothing beside others (`unused.py`).
"""

from vologan_fast.config.presets import PRESETS
from vologan_fast.config.record import differences, former, from_dict, from_record, to_dict
from vologan_fast.config.rules import ConfigError, check
from vologan_fast.config.settings import (
    CHANNELS,
    DOMAINS,
    AugmentConfig,
    BlockConfig,
    Channels,
    ChannelSet,
    Config,
    ContrastConfig,
    DataConfig,
    DepthSpec,
    DiscriminatorConfig,
    Down,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    Size,
    TrainConfig,
    Up,
    height_and_width,
    size_in_words,
)
from vologan_fast.config.unused import unused, without_effect

__all__ = [
    "CHANNELS",
    "DOMAINS",
    "PRESETS",
    "AugmentConfig",
    "BlockConfig",
    "ChannelSet",
    "Channels",
    "Config",
    "ConfigError",
    "ContrastConfig",
    "DataConfig",
    "DepthSpec",
    "DiscriminatorConfig",
    "Down",
    "GeneratorConfig",
    "LossConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Size",
    "TrainConfig",
    "Up",
    "check",
    "differences",
    "former",
    "from_dict",
    "from_record",
    "height_and_width",
    "size_in_words",
    "to_dict",
    "unused",
    "without_effect",
]
