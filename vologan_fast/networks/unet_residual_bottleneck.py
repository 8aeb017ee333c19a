"""U-Net generator with a residual bottleneck, one of VoloGAN's alternatives."""

from vologan_fast.networks.residual import ResidualBottleneckBlock
from vologan_fast.networks.unet import UNetGenerator


class ResidualBottleneckUNetGenerator(UNetGenerator):
    """A `UNetGenerator` whose bottleneck consists of `residual_blocks` residual bottleneck blocks."""

    bottleneck_block = ResidualBottleneckBlock
