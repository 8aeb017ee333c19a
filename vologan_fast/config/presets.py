"""The named configurations."""

from __future__ import annotations

from typing import Any

from vologan_fast.config.settings import (
    AugmentConfig,
    Config,
    ContrastConfig,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

_ZHU_BLOCKS: dict[str, Any] = {
    "bias": True,
    "dropout": 0.0,
    "initializer": "normal",
    "input_range": "signed",
    "norm_affine": False,
    "norm_eps": 1e-5,
    "spectral_norm": False,
}
"""Settings of the blocks of both networks of Zhu et al."""
_ZHU_GENERATOR: dict[str, Any] = {
    "network": "resnet",
    "max_width": 256,
    "levels": 2,
    "first_kernel": 7,
    "padding": "reflection",
    "activation": "relu",
    "output": "tanh",
    "output_bias": True,
    **_ZHU_BLOCKS,
}
_ZHU_DISCRIMINATOR: dict[str, Any] = {"network": "patch", "negative_slope": 0.2, **_ZHU_BLOCKS}
_CUT_BLOCKS: dict[str, Any] = {"down": "antialiased", "initializer": "glorot_normal_small"}
"""Settings of both networks of CUT that are not those of Zhu et al."""
_ZHU_ADAM = OptimizerConfig(kind="adam", epsilon=1e-8)

PRESETS: dict[str, Config] = {
    # The networks of the paper's figures. In the paper, the batch is 8 over all devices, and a device processes 1
    # image.
    "vologan-512": Config(
        generator=GeneratorConfig(first_kernel=7, padding="reflection", attention="elementwise"),
        discriminator=DiscriminatorConfig(
            first_kernel=7, padding="reflection", attention="elementwise", down="conv_stride_2"
        ),
    ),
    # The authors' later sweeps.
    "vologan-64": Config(
        data=DataConfig(size=64),
        generator_optimizer=OptimizerConfig(learning_rate=3e-4, nesterov=True),
        schedule=ScheduleConfig(epochs=160),
    ),
    # CycleGAN of Zhu et al. (arXiv 1703.10593), as their PyTorch code trains it. Any channels are possible.
    "cyclegan-256": Config(
        data=DataConfig(size=256, channels="rgb", augment=AugmentConfig(shift=0.0, crop=30 / 256)),
        generator=GeneratorConfig(up="transposed_convolution", **_ZHU_GENERATOR),
        discriminator=DiscriminatorConfig(**_ZHU_DISCRIMINATOR),
        loss=LossConfig(routing="cyclegan", reduction="signed_image", identity=5.0, ssim=0.0, pool=50),
        generator_optimizer=_ZHU_ADAM,
        discriminator_optimizer=_ZHU_ADAM,
        schedule=ScheduleConfig(epochs=200, warmup_epochs=0, decay="constant_linear", constant_epochs=100),
        train=TrainConfig(batch=1),
    ),
    # CUT of Park et al. (arXiv 2007.15651), as their code trains it: one generator, from S to T. The loss has the mean
    # of both contrastive terms, so each has the weight 1/2.
    "cut-256": Config(
        data=DataConfig(size=256, channels="rgb", augment=AugmentConfig(shift=0.0, crop=30 / 256)),
        generator=GeneratorConfig(up="antialiased", **(_ZHU_GENERATOR | _CUT_BLOCKS)),
        discriminator=DiscriminatorConfig(**(_ZHU_DISCRIMINATOR | _CUT_BLOCKS)),
        contrast=ContrastConfig(weight=0.5, identity=0.5),
        generator_optimizer=_ZHU_ADAM,
        discriminator_optimizer=_ZHU_ADAM,
        schedule=ScheduleConfig(epochs=400, warmup_epochs=0, decay="constant_linear", constant_epochs=200),
        train=TrainConfig(method="cut", batch=1),
    ),
    # This preset learns to translate the demo data in 1,280 steps. bench/learn.py measures it. docs/learning.md has
    # scores.
    "demo": Config(
        data=DataConfig(size=64),
        generator=GeneratorConfig(
            width=16,
            max_width=64,
            levels=3,
            up="bilinear",
            output="residual",
            spectral_norm=False,
            dropout=0.0,
            output_bias=True,
        ),
        discriminator=DiscriminatorConfig(
            widths=(16, 32, 64), spectral_norm=False, branch_dropouts=1, depth_gradient=8.0
        ),
        loss=LossConfig(adversarial="hinge", cycle=1.0, identity=0.1, ssim=0.1),
        generator_optimizer=OptimizerConfig(kind="adam", learning_rate=1e-3),
        discriminator_optimizer=OptimizerConfig(kind="adam", learning_rate=5e-4),
        schedule=ScheduleConfig(epochs=10, warmup_epochs=0, decay="constant_linear", constant_epochs=5),
        train=TrainConfig(batch=2, average=0.999, log_every=50, validate_every=500, save_every=500),
    ),
}
"""Named configurations. `demo` is small enough to learn in minutes on two processor cores."""
