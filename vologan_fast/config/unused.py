"""Settings that have no effect beside others, so that nobody compares runs that are the same.

A preset may hold such settings, and they do no harm. Somebody who sets one expects something of it. So the commands say
it of those that they are given (`without_effect`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from vologan_fast.config.record import differences
from vologan_fast.config.settings import DOMAINS, BlockConfig, Config, DiscriminatorConfig, OptimizerConfig

_Unused = Iterator[tuple[str, str]]
_CYCLE = (
    "routing",
    "pixel",
    "pixel_switch_at",
    "reduction",
    "cycle",
    "identity",
    "ssim",
    "cycle_t",
    "identity_t",
    "ssim_t",
    "identity_every",
    "ssim_statistics",
    "channel_weights",
)
"""Settings of `loss` that the method `cyclegan` alone has."""


def without_effect(start: Config, settings: Config) -> list[str]:
    """Return a sentence for each setting that differs from those at the start, and has no effect in this run."""
    found = dict(unused(settings))
    return [
        f"{in_options(name)} has no effect {found[name]}"
        for name in sorted(differences(start, settings))
        if name in found
    ]


def in_options(name: str) -> str:
    """Return the option of a setting: --loss.cycle-t for loss.cycle_t."""
    return f"--{name.replace('_', '-')}"


def unused(config: Config) -> _Unused:
    """Yield the settings that have no effect, with their dotted names, and beside which others: "with …"."""
    yield from _of_data(config)
    yield from _of_losses(config)
    for section, blocks in (("generator", config.generator), ("discriminator", config.discriminator)):
        yield from _of_blocks(section, blocks)
    yield from _of_generator(config)
    yield from _of_discriminator(config.discriminator)
    for section in ("generator_optimizer", "discriminator_optimizer"):
        yield from _of_optimizer(section, getattr(config, section))
    yield from _of_schedule(config)


def _named(section: str, names: Iterable[str], why: str) -> _Unused:
    for name in names:
        yield f"{section}.{name}", why


def _of_data(config: Config) -> _Unused:
    data = config.data
    for domain in DOMAINS:
        spec, channels = getattr(data, domain), data.channel_sets[domain]
        if not channels.depth:
            names = [field.name for field in dataclasses.fields(spec)]
            yield from _named(f"data.{domain}", names, f"with --data.channels {data.channel_names}")
        elif spec.scale is not None:
            yield f"data.{domain}.unit", f"with --data.{domain}.scale"
    if data.augment.shift == 0:
        yield from _named("data.augment", ("shift_height", "shift_width"), "with --data.augment.shift 0")
    if not any(channels.color for channels in data.channel_sets.values()):
        yield "data.augment.jitter", f"with --data.channels {data.channel_names}"
    if data.cache == "none":
        yield "data.cache_depth", "with --data.cache none"
    if data.on_error == "raise":
        yield from _named("data", ("max_skipped", "max_nan"), "with --data.on-error raise")
    if config.train.on_nan == "stop":
        yield "train.nan_limit", "with --train.on-nan stop"


def _of_losses(config: Config) -> _Unused:
    loss, cut = config.loss, config.train.method == "cut"
    if cut:
        yield from _named("loss", _CYCLE, "with --train.method cut")
    else:
        of_contrast = [field.name for field in dataclasses.fields(config.contrast)]
        yield from _named("contrast", of_contrast, "with --train.method cyclegan")
        if loss.pixel != "l1_then_l2":
            yield "loss.pixel_switch_at", f"with --loss.pixel {loss.pixel}"
        if not loss.identity and not loss.identity_t:
            yield "loss.identity_every", "with --loss.identity 0"
        if not loss.ssim and not loss.ssim_t:
            yield "loss.ssim_statistics", "with --loss.ssim 0"
            if loss.reduction != "channels":
                yield "loss.channel_weights", f"with --loss.reduction {loss.reduction} and --loss.ssim 0"
    if not config.generator.hole_head:
        yield "loss.hole_share", "without --generator.hole-head"
    if loss.penalty == "none":
        yield from _named("loss", ("penalty_weight", "penalty_every"), "with --loss.penalty none")
    if not loss.cutmix:
        of_cutmix = ("cutmix_ramp", "cutmix_keeps_background", "cutmix_consistency")
        yield from _named("loss", of_cutmix, "with --loss.cutmix 0")


def _of_blocks(section: str, blocks: BlockConfig) -> _Unused:
    """Yield what no network of these settings has."""
    if blocks.attention == "none":
        names = ("attention_eps", *(["attention_size"] if section == "generator" else []))
        yield from _named(section, names, f"with --{section}.attention none")
    names = {
        "instance": (),
        "batch": ("norm_gamma", "norm_min_scale"),
        "none": ("norm_gamma", "norm_min_scale", "norm_eps", "norm_affine"),
    }[blocks.norm]
    yield from _named(section, names, f"with --{section}.norm {blocks.norm}")
    if not blocks.norm_affine and blocks.norm == "instance":
        yield f"{section}.norm_gamma", f"with --{section}.no-norm-affine"


def _of_generator(config: Config) -> _Unused:
    """Yield what the chosen generator does not have."""
    generator = config.generator
    network = generator.network
    names = {
        "unet": ("residual_blocks", "cardinality"),
        "unet_residual": (),
        "unet_residual_bottleneck": (),
        "resnet": ("cardinality", "join", "dropout_levels", "attention_size", "blocks"),
        "resnet_vologan": ("join",),
        "unet_zhu": (
            *("kernel", "first_kernel", "blocks", "residual_blocks", "cardinality", "down", "up", "join"),
            "norm_min_scale",
        ),
    }[network]
    yield from _named("generator", names, f"with --generator.network {network}")


def _of_discriminator(discriminator: DiscriminatorConfig) -> _Unused:
    """Yield what the chosen discriminator does not have.

    `down_widths` of `one_shot` always counts as used, because it must be as long as `widths`.
    """
    network = discriminator.network
    of_one_shot = ("widths", "down_widths", "content_norm", "branch_dropouts")
    names: tuple[str, ...] = {
        "one_shot": ("width", "max_width", "levels", "up", "join"),
        "patch": (*of_one_shot, "kernel", "first_kernel", "blocks", "up", "join", "dropout"),
        "patch_vologan": (*of_one_shot, "up", "join", "dropout"),
        "pixel": (
            *(*of_one_shot, "kernel", "first_kernel", "factorized_kernels", "blocks", "up", "join", "dropout"),
            *("levels", "down", "padding", "max_width"),
        ),
        "unet": of_one_shot,
    }[network]
    yield from _named("discriminator", names, f"with --discriminator.network {network}")


def _of_optimizer(section: str, optimizer: OptimizerConfig) -> _Unused:
    kind, why = optimizer.kind, f"with {in_options(section)}.kind {optimizer.kind}"
    if kind == "sgd":
        yield from _named(section, ("beta1", "beta2", "epsilon"), why)
    else:
        yield f"{section}.nesterov", why
    if not kind.startswith("swats"):
        yield from _named(section, ("switch_at", "switch_learning_rate"), why)
    if kind in ("adam", "nadam"):
        yield f"{section}.momentum", why


def _of_schedule(config: Config) -> _Unused:
    decay = config.schedule.decay
    owners = {"constant_epochs": "constant_linear", "step_epochs": "step", "step_factor": "step"}
    owners |= {f"plateau_{name}": "plateau" for name in ("loss", "patience", "threshold", "factor")}
    for name, owner in owners.items():
        if decay != owner:
            yield f"schedule.{name}", f"with --schedule.decay {decay}"
