"""U-Net generator of residual blocks, one of VoloGAN's alternatives."""

from vologan_fast.networks.residual import ResidualBottleneckBlock
from vologan_fast.networks.unet import UNetGenerator


class ResidualUNetGenerator(UNetGenerator):
    """A `UNetGenerator` whose levels consist of residual bottleneck blocks, as its bottleneck does.

    The bottleneck has `residual_blocks` of them.
    """

    block = ResidualBottleneckBlock
    bottleneck_block = ResidualBottleneckBlock
