"""Options that have no effect beside others: the list in config/unused.py against what steps compute."""

import dataclasses
import hashlib

import matrix
import pytest
import torch

from vologan_fast import config as settings
from vologan_fast.config import ConfigError, check, unused, without_effect
from vologan_fast.training.build import build_training
from vologan_fast.training.optimizers import start_epoch

_CUT = {"train.method": "cut"}
_RUN = {"loss.identity": 0.5}
BASES = [
    *(({"generator.network": name}, "generator.") for name in matrix.MAIN["generator.network"] if name != "unet_zhu"),
    ({"generator.network": "unet_zhu", "generator.dropout_levels": 1}, "generator."),
    *(({"discriminator.network": network}, "discriminator.") for network in matrix.MAIN["discriminator.network"]),
    *(({"generator_optimizer.kind": kind}, "generator_optimizer.") for kind in ("adam", "nadam", "sgd")),
    *(({"schedule.decay": decay}, "schedule.") for decay in ("cosine", "constant_linear", "step")),
    ({}, "loss."),
    ({}, "contrast."),
    (_CUT, "loss."),
    (_CUT, "contrast."),
    ({"loss.pixel": "l1_then_l2", "loss.penalty": "r1", "loss.ssim": 0.0}, "loss."),
    ({"generator.norm": "batch", "train.step": "plain"}, "generator.norm_"),
    ({"generator.norm": "none", "generator.bias": True}, "generator.norm_"),
    ({"generator.attention": "matrix", "generator.attention_size": 8}, "generator.attention"),
]
"""Settings, and the beginning of the names of the options that are tried beside them."""
QUICK = (13, 14, 15, 18)
"""The bases of the default tests."""
LEFT_OUT = {
    "generator.keep_background": "the images of this test have no background",
    "discriminator.down_widths": "a rule wants as many as widths",
    "generator.dropout": "unet_zhu has it in levels that these small networks do not have",
    "discriminator.dropout": "the discriminator unet has dropout in its lowest levels alone",
    "schedule.epochs": "two steps see no difference of some decays",
    "schedule.warmup_epochs": "the same",
    "schedule.constant_epochs": "the same",
    "schedule.step_factor": "the same",
    "loss.pool": "it gives no old translation before it is full",
}


def digest(row):
    """A checksum of the losses and the weights of two steps in two epochs. None for what is refused."""
    try:
        config = matrix.config_of(row)
        check(config)
    except ConfigError:
        return None
    torch.manual_seed(0)
    networks, optimizers, step = build_training(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, channels.number, *config.data.shape) for channels in config.data.channel_sets.values()]
    images = [torch.rand(shape, generator=generator) for shape in shapes]
    kinds = {"generator": config.generator_optimizer, "discriminator": config.discriminator_optimizer}
    found = hashlib.sha256()
    for number in range(2):
        for name, optimizer in optimizers.items():
            start_epoch(optimizer, kinds[name], config.schedule, number)
        terms = step(*images, number, number / config.schedule.epochs).terms()
        found.update(repr({name: float(value) for name, value in terms.items()}).encode())
    for parameter in networks.state_dict().values():
        found.update(parameter.detach().float().numpy().tobytes())
    return found.hexdigest()


def _cases():
    for number, (base, prefix) in enumerate(BASES):
        name = f"{prefix} {' '.join(map(str, base.values()))}"
        yield pytest.param(base, prefix, id=name, marks=[] if number in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("base", "prefix"), list(_cases()))
def test_an_option_has_an_effect_unless_it_is_listed(base, prefix):
    base = _RUN | base
    config = matrix.config_of(base)
    held, plain = matrix.flat(dataclasses.asdict(config)), digest(base)
    assert plain is not None
    listed = {name for name, _ in unused(config)}
    without = set()
    tried = set()
    for path, values in matrix.options().items():
        if path in base or path in LEFT_OUT or not path.startswith(prefix):
            continue
        found = [digest(base | {path: value}) for value in values if value != held[path]]
        found = [value for value in found if value is not None]
        if found:
            tried.add(path)
            if all(value == plain for value in found):
                without.add(path)
    assert tried and sorted(without) == sorted(listed & tried)


def test_what_was_given_is_named():
    start = settings.PRESETS["demo"]
    assert without_effect(start, start) == []
    given = dataclasses.replace(
        start,
        contrast=dataclasses.replace(start.contrast, weight=3.0),
        data=dataclasses.replace(start.data, max_nan=0.25, threads=3),
    )
    assert without_effect(start, given) == [
        "--contrast.weight has no effect with --train.method cyclegan",
        "--data.max-nan has no effect with --data.on-error raise",
    ]


def test_all_names_are_settings():
    for preset in settings.PRESETS.values():
        for change in ({}, {"method": "cut"}):
            config = dataclasses.replace(preset, train=dataclasses.replace(preset.train, **change))
            for data in (config.data, dataclasses.replace(config.data, channels="rgb")):
                names = [name for name, _ in unused(dataclasses.replace(config, data=data))]
                assert set(names) <= set(matrix.flat(dataclasses.asdict(config)))
