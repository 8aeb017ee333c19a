"""Combinations of options: rows that hold each pair of values of the main choices, and each value of each other option.

A row is a dict of settings by their dotted names. `check` decides whether it is a configuration at all.
"""

import dataclasses
import itertools
from typing import Literal, get_args, get_origin, get_type_hints

from test_step import CONFIG

from vologan_fast.config import CHANNELS, Config, ConfigError, LossConfig, check, to_dict
from vologan_fast.networks import DISCRIMINATORS, GENERATORS

MAIN = {
    "generator.network": sorted(GENERATORS),
    "discriminator.network": sorted(DISCRIMINATORS),
    "loss.adversarial": get_args(get_type_hints(LossConfig)["adversarial"]),
    "data.channels": (*CHANNELS, ("rgbd", "depth")),
    "train.method": ("cyclegan", "cut"),
}
"""The main choices."""
SMALL = {
    "data.size": 16,
    "generator.residual_blocks": 1,
    "generator.cardinality": 2,
    "generator.dropout": 0.3,
    "generator.attention_size": 16,
    "discriminator.width": 4,
    "discriminator.max_width": 8,
    "discriminator.down_widths": (4, 4, 8),
    "discriminator.levels": 2,
    "discriminator.dropout": 0.3,
    "contrast.patches": 20,
    "contrast.width": 8,
    "loss.identity": 0.0,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0,
    "train.batch": 2,
    "train.precision": "float32",
}
"""Settings of all rows. The steps are in epochs 0 and 1, so each schedule has an effect."""
BLOCKS = {
    "kernel": (5,),
    "first_kernel": (7,),
    "negative_slope": (0.2,),
    "norm_eps": (1e-5,),
    "norm_min_scale": (0.0,),
    "dropout": (0.0,),
    "attention_eps": (1e-5,),
    "width": (6,),
    "max_width": (4,),
    "levels": (1,),
    "blocks": (1, 3),
}
OPTIMIZER = {
    "learning_rate": (1e-4,),
    "beta1": (0.9,),
    "beta2": (0.9,),
    "epsilon": (1e-8,),
    "momentum": (0.5,),
    "switch_at": (0.0, 1.0),
    "switch_learning_rate": (1e-4,),
}
NUMBERS = {
    **{f"{network}.{name}": values for network in ("generator", "discriminator") for name, values in BLOCKS.items()},
    **{f"{kind}_optimizer.{name}": v for kind in ("generator", "discriminator") for name, v in OPTIMIZER.items()},
    "data.size": ((16, 32),),
    "generator.residual_blocks": (2,),
    "generator.cardinality": (1,),
    "generator.dropout_levels": (0, 2),
    "generator.attention_size": (0, 8),
    "generator.noise_channels": (2,),
    "discriminator.blocks": (2, 3),
    "discriminator.depth_gradient": (16.0,),
    "discriminator.widths": ((4, 8),),
    "discriminator.down_widths": ((8, 4, 4),),
    "loss.pixel_switch_at": (0.0,),
    "loss.cycle": (1.0,),
    "loss.identity": (0.5,),
    "loss.ssim": (0.0,),
    "loss.cycle_t": (3.0,),
    "loss.identity_t": (0.1,),
    "loss.ssim_t": (0.2,),
    "loss.identity_every": (2,),
    "loss.channel_weights": ((2.0, 1.0, 1.0),),
    "loss.penalty_weight": (1.0,),
    "loss.penalty_every": (2,),
    "loss.pool": (3,),
    "loss.diffaugment": (("color", "translation", "cutout"), ("cutout",)),
    "loss.cutmix": (1.0,),
    "loss.cutmix_ramp": (0.5,),
    "loss.cutmix_consistency": (0.0,),
    "loss.hole_share": (2.0,),
    "contrast.weight": (0.5,),
    "contrast.identity": (0.0,),
    "contrast.patches": (5,),
    "contrast.temperature": (0.5,),
    "contrast.width": (4,),
    "schedule.epochs": (3,),
    "schedule.warmup_epochs": (1,),
    "schedule.constant_epochs": (1,),
    "schedule.step_epochs": (1,),
    "schedule.step_factor": (0.5,),
    "train.batch": (3,),
    "train.seed": (7,),
    "train.average": (0.9,),
    "train.micro_batch": (1,),
    "train.recompute": (2,),
}
"""Values of options that have no list of values of their own, beside those of `SMALL` and the defaults."""
ELSEWHERE = {
    "train.compile": "training/test_fast_step.py",  # takes minutes on a CPU
    "train.cuda_graph": "training/test_fast_step.py",  # has no effect on a CPU
    "train.evaluate_every": "evaluation/test_evaluate.py",  # takes seconds
}
"""Options that another test has."""
_DEPTH = {
    "unit": "normalized",
    "scale": 1.0,
    "near": -0.9,
    "far": 0.9,
    "invalid": -0.75,
    "background": -1.0,
    "channel": "Z",
    "values": "float",
}
OF_A_RUN = {
    "data.held_out": 0.4,
    **{f"data.{domain}.{name}": value for domain in ("synthetic", "real") for name, value in _DEPTH.items()},
    "data.augment.flip": 0.3,
    "data.augment.shift": 0.9,
    "data.augment.shift_height": 0.3,
    "data.augment.shift_width": 0.3,
    "data.augment.crop": 0.2,
    "data.augment.scale": 0.2,
    "data.augment.jitter": 0.2,
    "data.backend": "torch",
    "data.threads": 1,
    "data.cache": "host",
    "data.cache_depth": "compact",
    "data.patience": 100.0,
    "data.shard_cache": 1.0,
    "data.max_pixels": 1 << 20,
    "data.on_error": "skip",
    "data.max_skipped": 5,
    "data.max_nan": 0.9,
    "schedule.decay": "plateau",
    "schedule.plateau_loss": "cycle",
    "schedule.plateau_patience": 0,
    "schedule.plateau_threshold": 0.9,
    "schedule.plateau_factor": 0.5,
    "train.log_every": 1,
    "train.log_limit": 1,
    "train.validate_every": 1,
    "train.save_every": 1,
    "train.keep_checkpoints": 1,
    "train.keep_every": 2,
    "train.on_nan": "rollback",
    "train.nan_limit": 1,
    "train.grid_images": 1,
    "train.grid_limit": 1,
    "train.report_every": 2,
}
"""Options of the loader and of the loop around the steps: a run has them all."""
_SWATS = {"kind": "swats_adam"}
NEEDED = {
    "contrast": {"train.method": "cut"},
    **{f"loss.{name}": {"train.method": "cyclegan"} for name in ("routing", "reduction", "ssim_statistics")},
    **{f"loss.{name}": {"train.method": "cyclegan"} for name in ("cycle", "identity", "ssim", "cycle_t", "ssim_t")},
    "loss.pixel": {"train.method": "cyclegan"},
    "loss.pixel_switch_at": {"train.method": "cyclegan", "loss.pixel": "l1_then_l2"},
    "loss.identity_t": {"train.method": "cyclegan"},
    "loss.identity_every": {"train.method": "cyclegan", "loss.identity": 0.5},
    "loss.channel_weights": {"train.method": "cyclegan", "data.channels": "rgb"},
    "loss.hole_share": {"generator.hole_head": True},
    "loss.penalty_weight": {"loss.penalty": "r1"},
    "loss.penalty_every": {"loss.penalty": "wgan-gp"},
    "loss.cutmix": {"discriminator.network": "unet", "loss.cutmix_ramp": 0.0},
    **{
        f"loss.cutmix_{name}": {"discriminator.network": "unet", "loss.cutmix": 1.0}
        for name in ("ramp", "keeps_background", "consistency")
    },
    "generator.residual_blocks": {"generator.network": "resnet"},
    "generator.cardinality": {"generator.network": "unet_residual"},
    "generator.attention_size": {"generator.attention": "matrix", "generator.network": "unet"},
    "discriminator.widths": {"discriminator.network": "one_shot", "discriminator.down_widths": (4, 8)},
    "discriminator.down_widths": {"discriminator.network": "one_shot", "discriminator.down": "conv_stride_2"},
    **{f"discriminator.{name}": {"discriminator.network": "one_shot"} for name in ("content_norm", "branch_dropouts")},
    **{f"discriminator.{name}": {"discriminator.network": "unet"} for name in ("up", "join")},
    **{
        f"discriminator.{name}": {"discriminator.network": "patch_vologan"} for name in ("width", "max_width", "levels")
    },
    **{
        f"{kind}_optimizer.{name}": {f"{kind}_optimizer.{other}": value for other, value in needed.items()}
        for kind in ("generator", "discriminator")
        for name, needed in {
            "beta1": {"kind": "nadam"},
            "beta2": {"kind": "adam"},
            "epsilon": {"kind": "adam"},
            "amsgrad": {"kind": "adam"},
            "momentum": {"kind": "sgd"},
            "nesterov": {"kind": "sgd"},
            "switch_at": _SWATS,
            "switch_learning_rate": _SWATS,
        }.items()
    },
    "schedule.constant_epochs": {"schedule.decay": "constant_linear"},
    "schedule.step_epochs": {"schedule.decay": "step"},
    "schedule.step_factor": {"schedule.decay": "step", "schedule.step_epochs": 1},
}
"""Settings without which an option, or a section, has no effect."""
NEEDED_BY_VALUE = {
    **{(f"{network}.norm", "batch"): {"train.step": "plain"} for network in ("generator", "discriminator")},
    **{(f"{n}.norm", "none"): {f"{n}.bias": True} for n in ("generator", "discriminator")},
    ("generator.output", "residual"): {"generator.output_bias": True},
    ("discriminator.down", "antialiased"): {"discriminator.network": "patch"},
}


def flat(config, prefix=""):
    """The settings of a dict of dicts by their dotted names."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def config_of(row):
    sections = {}
    for path, value in (SMALL | row).items():
        section, name = path.split(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: dataclasses.replace(getattr(CONFIG, name), **values) for name, values in sections.items()}
    return dataclasses.replace(CONFIG, **changed)


def is_valid(row):
    try:
        check(config_of(row))
    except ConfigError:
        return False
    return True


def pairs(row):
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def product():
    """All combinations of the main choices that are configurations."""
    rows = (dict(zip(MAIN, values, strict=True)) for values in itertools.product(*MAIN.values()))
    return [row for row in rows if row["train.method"] != "cut" or isinstance(row["data.channels"], str)]


def pairwise():
    """Rows that hold each pair of main choices that goes together. Greedy: a row holds as many new ones as it can."""
    rows = [(row, pairs(row)) for row in product()]
    missing, chosen = set().union(*(of_row for _, of_row in rows)), []
    while missing:
        row, of_row = max(rows, key=lambda item: len(item[1] & missing))
        chosen.append(row)
        missing -= of_row
    return chosen


def options():
    """Each option that a step reads, but for the main ones, by its dotted name → values that not all rows have."""
    defaults, hints = flat(to_dict(config_of({}))), _hints(Config)
    found = {}
    for path, default in defaults.items():
        if path in (MAIN | ELSEWHERE | OF_A_RUN) and path != "schedule.decay":
            continue
        values = NUMBERS.get(path)
        if values is None and hints[path] is bool:
            values = (not default,)
        if values is None and get_origin(hints[path]) is Literal:
            values = tuple(value for value in get_args(hints[path]) if value != default)
        assert values, f"{path} is in no combination: give it a value in NUMBERS"
        found[path] = values
    return found


def _hints(kind, prefix=""):
    found = {}
    for name, hint in get_type_hints(kind).items():
        found |= (
            _hints(hint, f"{prefix}{name}.") if hasattr(hint, "__dataclass_fields__") else {f"{prefix}{name}": hint}
        )
    return found


def with_options(rows):
    """Give each value of each option to one of the rows, with what it needs. Raises AssertionError if it fits none."""
    rows, start = [dict(row) for row in rows], 0
    for path, values in options().items():
        for value in values:
            needed = NEEDED.get(path, NEEDED.get(path.split(".")[0], {})) | NEEDED_BY_VALUE.get((path, value), {})
            settings = needed | {path: value}
            row = next((row for row in rows[start:] + rows[:start] if path not in row and _fits(row, settings)), None)
            assert row is not None, f"{path} {value} fits no combination"
            row |= settings
            start = (start + 1) % len(rows)
    return rows


def _fits(row, settings):
    agrees = all(row.get(name, value) == value for name, value in settings.items())
    return agrees and is_valid(row | settings)
