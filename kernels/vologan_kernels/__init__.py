"""Fast forms of the operations in which image-to-image GANs spend their time, for any PyTorch model.

Each operation has a folder, whose docstring states its mathematics. In it, `reference.py` is the definition in plain
PyTorch, and `kernels.py` has the Triton kernels. `operation.py` is the operation with its gradients, and `module.py`
the `nn.Module` around it; NAdam has `optimizer.py` instead. `fuse` puts the instance norm into a model that was written
without it.

The other files are shared. From the bottom up: `layouts.py`, `precision.py`, `graph_memory.py` and `triton_setup.py`;
`launch.py`, `device.py`, `dispatch.py` and `pointer_table.py`; `activations.py`; and for Triton `planned_triton.py`,
`tiles_triton.py` and `activations_triton.py`.

The package needs torch alone. Triton is imported only when a kernel runs.
"""

from vologan_kernels.activations import ACTIVATIONS
from vologan_kernels.adversarial_loss import adversarial_loss, adversarial_losses
from vologan_kernels.fuse import FusionReport, fuse, unfuse
from vologan_kernels.instance_norm import InstanceNormAct2d, instance_norm_act
from vologan_kernels.nadam import NAdam
from vologan_kernels.pixel_loss import cycle_loss, global_ssim, pixel_losses, weighted_l1, weighted_l2
from vologan_kernels.spectral_norm import power_iteration, spectral_norm, spectral_norm_step
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
    "unfuse",
    "weighted_l1",
    "weighted_l2",
    "windowed_ssim",
]
