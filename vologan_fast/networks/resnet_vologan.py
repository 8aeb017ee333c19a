"""VoloGAN's ResNet generator: levels as in its U-Net, but without skips, around residual blocks."""

from vologan_fast.networks.residual import ResidualBottleneckBlock
from vologan_fast.networks.unet import UNetGenerator


class LevelResNetGenerator(UNetGenerator):
    """A `UNetGenerator` without skips. Its bottleneck consists of `residual_blocks` residual bottleneck blocks."""

    bottleneck_block = ResidualBottleneckBlock
    skips = False
