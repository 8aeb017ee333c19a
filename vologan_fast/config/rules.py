"""What the numbers of a configuration must be."""

from __future__ import annotations

from typing import Any

from vologan_fast.config.settings import (
    Config,
    ContrastConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    Size,
)

_MOST_LEVELS = 32
"""No image can be halved so often."""
Rule = tuple[str, Any, bool, str]
"""An option, its value, whether that can work, and the values expected."""


class ConfigError(ValueError):
    """A setting has an invalid value. The message names the setting, the value found and the values expected."""


def check(config: Config) -> None:
    """Raise ConfigError if a number cannot work. The message names the option, the value found and those expected."""
    if config.generator.levels < 1:
        raise ConfigError(f"--generator.levels is {config.generator.levels}: expected at least 1")
    for network, levels in (("generator", config.generator.levels), ("discriminator", config.discriminator.levels)):
        if levels > _MOST_LEVELS:  # before powers of it are computed
            raise ConfigError(f"--{network}.levels is {levels}: expected at most {_MOST_LEVELS}")
    levels = config.generator.levels
    if config.discriminator.network == "unet":
        levels = max(levels, config.discriminator.levels)
    multiple = 2**levels
    # The lowest level of `unet_zhu` has no norm, so it may have a single pixel.
    least = 1 if config.generator.network == "unet_zhu" and config.discriminator.network != "unet" else 2
    batch, micro_batch = config.train.batch, config.train.micro_batch
    rules = [
        (
            "data.size",
            config.data.size,
            all(side % multiple == 0 and side >= least * multiple for side in config.data.shape),
            _expected_size(config.data.size, levels, least),
        ),
        ("data.held-out", config.data.held_out, 0 < config.data.held_out < 1, "a fraction between 0 and 1"),
        ("train.batch", batch, batch >= 1, "at least 1"),
        ("train.seed", config.train.seed, 0 <= config.train.seed < 2**63, "0 to 2⁶³ - 1"),
        ("train.grid-images", config.train.grid_images, config.train.grid_images >= 1, "at least 1"),
        *_contrast_rules(config.contrast),
        *_loss_rules(config.loss),
        (
            "train.micro-batch",
            micro_batch,
            micro_batch >= 0,
            "0 for all, or a number of images",
        ),
        (
            "train.micro-batch",
            micro_batch,
            micro_batch == 0 or config.loss.ssim_statistics == "image" or config.train.method == "cut",
            "0 with --loss.ssim-statistics batch, whose moments run over the whole batch",
        ),
        (
            "train.micro-batch",
            micro_batch,
            micro_batch == 0 or config.train.step == "fast",
            "0 with --train.step plain",
        ),
        (
            "train.recompute",
            config.train.recompute,
            0 <= config.train.recompute <= config.generator.levels,
            f"a number of generator.levels ({config.generator.levels})",
        ),
        (
            "train.recompute",
            config.train.recompute,
            config.train.recompute == 0 or config.generator.network not in ("resnet", "unet_zhu"),
            f"0 with --generator.network {config.generator.network}, which keeps no levels that could run again",
        ),
        ("train.average", config.train.average, 0 <= config.train.average < 1, "0, or a decay below 1 such as 0.999"),
        (
            "train.evaluate-every",
            config.train.evaluate_every,
            config.train.evaluate_every >= 0,
            "0 for never, or steps",
        ),
        ("train.report-every", config.train.report_every, config.train.report_every >= -1, "-1 or more"),
        ("train.keep-every", config.train.keep_every, config.train.keep_every >= 0, "0 for none, or steps"),
        ("train.nan-limit", config.train.nan_limit, config.train.nan_limit >= 0, "at least 0"),
        (
            "train.on-nan",
            config.train.on_nan,
            config.train.on_nan != "skip" or not config.train.cuda_graph,
            "stop or rollback with --train.cuda-graph, because a graph cannot look at its gradients",
        ),
        (
            "train.on-nan",
            config.train.on_nan,
            config.train.on_nan != "skip" or "batch" not in (config.generator.norm, config.discriminator.norm),
            "stop or rollback with batch norms, which keep the statistics of a bad step",
        ),
        ("train.log-every", config.train.log_every, config.train.log_every >= 1, "at least 1"),
        ("train.log-limit", config.train.log_limit, config.train.log_limit >= 0, "0 for no limit, or lines"),
        ("train.grid-limit", config.train.grid_limit, config.train.grid_limit >= 0, "0 for no limit, or grids"),
        (
            "train.keep-checkpoints",
            config.train.keep_checkpoints,
            config.train.keep_checkpoints >= 1,
            "at least 1",
        ),
        *_channel_rules(config),
        (
            "discriminator.down-widths",
            config.discriminator.down_widths,
            len(config.discriminator.down_widths) == len(config.discriminator.widths),
            f"as many numbers as discriminator.widths ({len(config.discriminator.widths)})",
        ),
        *_network_rules(config),
        *_schedule_rules(config.schedule),
        (
            "schedule.plateau-loss",
            config.schedule.plateau_loss,
            config.schedule.decay != "plateau" or config.schedule.plateau_loss in generator_terms(config),
            f"a loss term of this run whose weight is not 0: {', '.join(generator_terms(config))}",
        ),
        *_optimizer_rules("generator-optimizer", config.generator_optimizer),
        *_optimizer_rules("discriminator-optimizer", config.discriminator_optimizer),
    ]
    for name, found, holds, expected in rules:
        if not holds:
            raise ConfigError(f"--{name} is {_in_words(found)}: expected {expected}")


def _in_words(value: Any) -> str:
    """Return a value as the command line takes it."""
    return " ".join(map(str, value)) or "empty" if isinstance(value, tuple) else str(value)


def generator_terms(config: Config) -> list[str]:
    """Return the names of the generators' loss terms whose weights are not 0, and `total`, which is their sum."""
    losses, contrast = config.loss, config.contrast
    synthetic, real = config.data.channel_sets.values()

    def of_both(weight: float, weight_t: float | None) -> bool:
        return weight != 0 or bool(weight_t)

    if config.train.method == "cut":
        weighted = {"contrast": contrast.weight > 0, "contrast_identity": contrast.identity > 0}
    else:
        weighted = {
            "cycle": of_both(losses.cycle, losses.cycle_t),
            "identity": synthetic == real and of_both(losses.identity, losses.identity_t),
            "ssim": of_both(losses.ssim, losses.ssim_t),
        }
    weighted["hole_share"] = config.generator.hole_head and losses.hole_share > 0
    return ["total", "adversarial", *(name for name, has_weight in weighted.items() if has_weight)]


def _channel_rules(config: Config) -> list[Rule]:
    synthetic, real = config.data.channel_sets.values()
    differ, weights, output = synthetic != real, config.loss.channel_weights, config.generator.output
    names, cut = config.data.channel_names, config.train.method == "cut"
    return [
        (
            "train.method",
            config.train.method,
            not differ or not cut,
            f"cyclegan for domains with different channels ({names}), as CUT compares features of both",
        ),
        (
            "loss.channel-weights",
            weights,
            cut or not weights or (not differ and len(weights) == synthetic.number),
            f"no numbers, because the domains have different channels ({names})"
            if differ
            else f"{synthetic.number} numbers, one for each channel of {names}, or none for the default",
        ),
        (
            "loss.identity",
            config.loss.identity,
            cut or not differ or (config.loss.identity == 0 and not config.loss.identity_t),
            f"0 for domains with different channels ({names}), whose images are no inputs of the other generator",
        ),
        (
            "generator.output",
            output,
            not differ or output != "residual",
            f"another output for domains with different channels ({names}), whose images cannot be added",
        ),
        (
            "generator.hole-head",
            config.generator.hole_head,
            real.depth or not config.generator.hole_head,
            f"--generator.no-hole-head for a real domain without depth ({names})",
        ),
    ]


def _contrast_rules(config: ContrastConfig) -> list[Rule]:
    return [
        *(
            (f"contrast.{name}", getattr(config, name), getattr(config, name) >= 0, "at least 0")
            for name in ("weight", "identity")
        ),
        ("contrast.patches", config.patches, config.patches >= 2, "at least 2"),
        ("contrast.width", config.width, config.width >= 1, "at least 1"),
        ("contrast.temperature", config.temperature, config.temperature > 0, "more than 0"),
    ]


def _loss_rules(config: LossConfig) -> list[Rule]:
    at, names, ramp = config.pixel_switch_at, config.diffaugment, config.cutmix_ramp
    return [
        ("loss.identity-every", config.identity_every, config.identity_every >= 1, "at least 1"),
        ("loss.hole-share", config.hole_share, config.hole_share >= 0, "at least 0"),
        ("loss.pixel-switch-at", at, 0 <= at <= 1, "a fraction from 0 to 1"),
        ("loss.penalty-weight", config.penalty_weight, config.penalty_weight >= 0, "at least 0"),
        ("loss.penalty-every", config.penalty_every, config.penalty_every >= 1, "at least 1"),
        ("loss.pool", config.pool, config.pool >= 0, "0 for none, or a number of images"),
        ("loss.diffaugment", names, len(set(names)) == len(names), "each name at most once"),
        ("loss.cutmix", config.cutmix, 0 <= config.cutmix <= 1, "a probability from 0 to 1"),
        ("loss.cutmix", config.cutmix, not (config.cutmix and names), "0 with --loss.diffaugment, which moves pixels"),
        ("loss.cutmix-ramp", ramp, ramp is None or 0 <= ramp <= 1, "a fraction from 0 to 1"),
        ("loss.cutmix-consistency", config.cutmix_consistency, config.cutmix_consistency >= 0, "at least 0"),
    ]


def _schedule_rules(config: ScheduleConfig) -> list[Rule]:
    longest = max(config.epochs - config.warmup_epochs, 0)
    constant_fits = config.decay != "constant_linear" or config.constant_epochs <= longest
    return [
        ("schedule.epochs", config.epochs, config.epochs >= 1, "at least 1"),
        ("schedule.constant-epochs", config.constant_epochs, config.constant_epochs >= 0, "at least 0"),
        (
            "schedule.constant-epochs",
            config.constant_epochs,
            constant_fits,
            f"at most {longest}, the epochs after the warm-up",
        ),
        ("schedule.step-epochs", config.step_epochs, config.step_epochs >= 1, "at least 1"),
        *(
            (
                f"schedule.{name.replace('_', '-')}",
                getattr(config, name),
                0 < getattr(config, name) <= 1,
                "0 to 1, not 0",
            )
            for name in ("step_factor", "plateau_factor")
        ),
        ("schedule.plateau-patience", config.plateau_patience, config.plateau_patience >= 0, "at least 0"),
        (
            "schedule.plateau-threshold",
            config.plateau_threshold,
            0 <= config.plateau_threshold < 1,
            "at least 0 and less than 1",
        ),
    ]


def _expected_size(size: Size, levels: int, least: int) -> str:
    """Return the sizes that fit networks of so many levels, in words, with the nearest to `size`.

    The lowest level must have `least` pixels a side.
    """
    multiple = 2**levels

    def nearest(side: int, up: bool) -> int:
        return max(side // multiple + up, least) * multiple

    sides = (size,) if isinstance(size, int) else size
    near = {" ".join(str(nearest(side, up and side % multiple > 0)) for side in sides) for up in (False, True)}
    subject = "a multiple" if len(sides) == 1 else "multiples"
    listed = " or ".join(sorted(near, key=lambda text: [int(side) for side in text.split()]))
    return (
        f"{subject} of {multiple}{', and larger' if least > 1 else ''}, because the networks halve the image {levels} "
        f"times; the nearest: {listed}"
    )


def _optimizer_rules(section: str, config: OptimizerConfig) -> list[Rule]:
    adam = config.kind in ("adam", "swats_adam")
    accelerated = config.nesterov and config.kind == "sgd"
    return [
        (
            f"{section}.amsgrad",
            config.amsgrad,
            adam or not config.amsgrad,
            f"--{section}.no-amsgrad with kind {config.kind}",
        ),
        (f"{section}.momentum", config.momentum, config.momentum > 0 or not accelerated, "more than 0 with nesterov"),
        (f"{section}.switch-at", config.switch_at, 0 <= config.switch_at <= 1, "a fraction from 0 to 1"),
        (f"{section}.epsilon", config.epsilon, config.epsilon > 0, "more than 0"),
        *(
            (f"{section}.{name.replace('_', '-')}", getattr(config, name), getattr(config, name) >= 0, "at least 0")
            for name in ("learning_rate", "switch_learning_rate")
        ),
        *(
            (f"{section}.{name}", getattr(config, name), 0 <= getattr(config, name) < 1, "at least 0 and less than 1")
            for name in ("beta1", "beta2", "momentum")
        ),
    ]


_FIXED_KERNELS = ("unet_zhu", "patch", "pixel")
"""Networks that do not use the kernels of the settings."""


def _network_rules(config: Config) -> list[Rule]:
    generator, discriminator, size = config.generator, config.discriminator, min(config.data.shape)
    one_shot = discriminator.network == "one_shot"
    without_levels = discriminator.network in ("one_shot", "pixel")
    halvings = len(discriminator.widths) if one_shot else discriminator.levels
    if discriminator.network == "pixel":
        halvings = 0
    lowest = {"generator": size >> generator.levels, "discriminator": size >> halvings}
    least = 3 if discriminator.network == "patch" else 1  # its last two convolutions take a pixel each
    most = max((size // least).bit_length() - 1, 0)  # halvings that leave so many pixels
    rules: list[Rule] = [
        (
            "discriminator.widths",
            discriminator.widths,
            min(discriminator.widths, default=0) >= 1 and (not one_shot or lowest["discriminator"] >= 1),
            f"at most {most} numbers, all from 1 on, for images with a side of {size} pixels",
        ),
        (
            "discriminator.down-widths",
            discriminator.down_widths,
            min(discriminator.down_widths, default=0) >= 1,
            "numbers from 1 on",
        ),
        (
            "discriminator.levels",
            discriminator.levels,
            discriminator.levels >= 1 and (one_shot or lowest["discriminator"] >= least),
            "at least 1"
            if without_levels
            else f"at least 1, and at most {most} for images with a side of {size} pixels",
        ),
        (
            "discriminator.attention",
            discriminator.attention,
            discriminator.attention == "none" or discriminator.network != "pixel",
            "none with --discriminator.network pixel",
        ),
        (
            "loss.cutmix",
            config.loss.cutmix,
            config.loss.cutmix == 0 or discriminator.network == "unet",
            f"0, or --discriminator.network unet, as {discriminator.network} has no logits of pixels and of the whole",
        ),
        (
            "generator.attention",
            generator.attention,
            generator.attention == "none" or generator.network != "unet_zhu",
            "none with --generator.network unet_zhu",
        ),
        ("generator.residual-blocks", generator.residual_blocks, generator.residual_blocks >= 1, "at least 1"),
        ("generator.noise-channels", generator.noise_channels, generator.noise_channels >= 0, "at least 0"),
        ("discriminator.depth-gradient", discriminator.depth_gradient, discriminator.depth_gradient >= 0, "at least 0"),
        ("generator.cardinality", generator.cardinality, generator.cardinality >= 1, "at least 1"),
        (
            "train.recompute",
            config.train.recompute,
            config.train.recompute == 0 or generator.norm != "batch",
            "0 with --generator.norm batch, whose running statistics would count a batch twice",
        ),
    ]
    heights = [config.data.shape[0] >> level for level in range(generator.levels)]
    attends = generator.attention != "none" and generator.attention_size != 0 and generator.network != "resnet"
    rules += [
        (
            "generator.attention-size",
            generator.attention_size,
            not attends or generator.attention_size in heights,
            f"the height of a level of the decoder ({', '.join(map(str, heights))}), or 0 for the lowest level",
        ),
        (
            "generator.dropout-levels",
            generator.dropout_levels,
            generator.dropout_levels is None or generator.dropout_levels >= 0,
            "at least 0",
        ),
    ]
    for name, blocks in (("generator", generator), ("discriminator", discriminator)):
        rules += [
            (f"{name}.width", blocks.width, blocks.width >= 1, "at least 1"),
            (f"{name}.max-width", blocks.max_width, blocks.max_width >= 1, "at least 1"),
            (f"{name}.blocks", blocks.blocks, 1 <= blocks.blocks <= 3, "1, 2 or 3"),
            (
                f"{name}.attention",
                blocks.attention,
                blocks.attention != "elementwise" or len(set(config.data.shape)) == 1,
                "none, elementwise_untransposed or matrix with images that are not square",
            ),
        ]
        kernels = (("kernel", blocks.kernel, lowest[name]), ("first-kernel", blocks.first_kernel, size))
        for option, kernel, pixels in () if blocks.network in _FIXED_KERNELS else kernels:
            reflected = blocks.padding == "zero" or kernel // 2 < pixels
            rules.append((f"{name}.{option}", kernel, kernel >= 1 and kernel % 2 == 1, "an odd number"))
            rules.append((f"{name}.{option}", kernel, reflected, f"less than {2 * pixels} with padding by reflection"))
        rules += [
            (f"{name}.dropout", blocks.dropout, 0 <= blocks.dropout < 1, "at least 0 and less than 1"),
            (f"{name}.norm-min-scale", blocks.norm_min_scale, blocks.norm_min_scale >= 0, "at least 0"),
            (f"{name}.norm-eps", blocks.norm_eps, blocks.norm_eps > 0, "more than 0"),
            (
                "train.step",
                config.train.step,
                config.train.step == "plain" or blocks.norm != "batch",
                f"plain with --{name}.norm batch; the fast step needs samples that do not affect each other",
            ),
            (f"{name}.attention-eps", blocks.attention_eps, blocks.attention_eps > 0, "more than 0"),
        ]
    return rules
