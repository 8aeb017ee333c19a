"""Operations that image-to-image GANs spend their time in, ready to drop into any PyTorch model.

Each module holds one operation: its mathematics, its plain PyTorch definition, and the `nn.Module` around it. `fuse`
puts the norm into a model that was written without it. Nothing here imports anything but torch.
"""

from vologan_kernels.activations import ACTIVATIONS
from vologan_kernels.adversarial_loss import adversarial_loss, adversarial_losses
from vologan_kernels.instance_norm import InstanceNormAct2d, instance_norm_act
from vologan_kernels.nadam import NAdam
from vologan_kernels.pixel_loss import cycle_loss, global_ssim, pixel_losses, weighted_l1, weighted_l2
from vologan_kernels.spectral_norm import power_iteration, spectral_norm, spectral_norm_step
from vologan_kernels.surgery import FusionReport, fuse
from vologan_kernels.windowed_ssim import windowed_ssim

__all__ = [
    "ACTIVATIONS",
    "FusionReport",
    "InstanceNormAct2d",
    "NAdam",
    "adversarial_loss",
    "adversarial_losses",
    "cycle_loss",
    "fuse",
    "global_ssim",
    "instance_norm_act",
    "pixel_losses",
    "power_iteration",
    "spectral_norm",
    "spectral_norm_step",
    "weighted_l1",
    "weighted_l2",
    "windowed_ssim",
]
