"""The instance norm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vologan_kernels.activations import ACTIVATIONS
from vologan_kernels.instance_norm.operation import check_options, instance_norm_act, refuse
from vologan_kernels.instance_norm.reference import bounded_scale, slope_of
from vologan_kernels.precision import to_accumulator


class InstanceNormAct2d(nn.InstanceNorm2d):
    """An `nn.InstanceNorm2d` together with what follows it: a residual, an activation, a reflection padding.

    The arguments up to `bias`, the parameters, the running statistics and eval mode are as in `nn.InstanceNorm2d`. A
    state dict of `nn.InstanceNorm2d` can be loaded. The other arguments are as in `instance_norm_act`. `prelu` adds a
    parameter `slope` (C,), which starts at `negative_slope`. Input is (N, C, H, W) or (C, H, W).
    """

    slope: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        negative_slope: float = 0.01,
        reflection_pad: int = 0,
        min_scale: float = 0.0,
        save: str = "auto",
        impl: str = "auto",
    ) -> None:
        check_options(
            num_features, momentum, affine, bias, eps, activation, negative_slope, reflection_pad, min_scale, save
        )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:  # torch takes this argument from 2.13 on
            self.register_parameter("bias", None)
        self.activation = activation
        self.negative_slope = negative_slope
        self.reflection_pad = reflection_pad
        self.min_scale = min_scale
        self.save = save
        self.impl = impl
        slopes = torch.full((num_features,), negative_slope, device=device, dtype=dtype)
        self.slope = nn.Parameter(slopes) if activation == "prelu" else None

    def reset_parameters(self) -> None:
        """Set parameters and running statistics to their first values."""
        super().reset_parameters()
        slope = self._parameters.get("slope")  # torch calls this method before there are slopes
        if slope is not None:
            nn.init.constant_(slope, self.negative_slope)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if isinstance(x, fx.Proxy):  # fx.symbolic_trace records calls, and x has no shape
            if self.track_running_stats and self.training:
                refuse("fx.symbolic_trace cannot record a norm that tracks statistics in training mode")
        else:
            if x.dim() == 3:
                return self.forward(x[None], None if residual is None else residual[None])[0]
            if x.dim() != 4 or x.shape[1] != self.num_features:
                sizes = f"(N, {self.num_features}, H, W) or ({self.num_features}, H, W)"
                refuse(f"x must be {sizes}, found {tuple(x.shape)}")
        if self.track_running_stats:
            if not self.training:
                return self._by_running_statistics(x, residual)
            self._track(x)
        return instance_norm_act(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope if self.slope is None else self.slope,
            residual=residual,
            reflection_pad=self.reflection_pad,
            min_scale=self.min_scale,
            save=self.save,
            impl=self.impl,
        )

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        """Move the running statistics towards the statistics of x, as torch does.

        The statistics of x are means over its samples. The variance is the unbiased one. Without samples they stay.
        """
        if x.numel() == 0:
            return
        if x.shape[2] * x.shape[3] == 1:
            found = tuple(x.shape)
            refuse(f"a norm that tracks statistics needs planes of more than one value in training, found {found}")
        variance, mean = torch.var_mean(to_accumulator(x), (2, 3))
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now.mean(0).to(running.dtype), self.momentum or 0.0)

    def _by_running_statistics(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The norm in eval mode with `track_running_stats`. It is an affine map, which PyTorch computes."""
        gamma = None if self.weight is None else bounded_scale(self.weight, self.min_scale, self.weight.dtype)
        u = F.batch_norm(x, self.running_mean, self.running_var, gamma, self.bias, False, 0.0, self.eps)
        if residual is not None:
            u = u + residual
        slope = slope_of(self.slope, self.negative_slope, u.dtype)
        y = ACTIVATIONS[self.activation].function(u, slope)
        return F.pad(y, (self.reflection_pad,) * 4, mode="reflect") if self.reflection_pad else y

    def extra_repr(self) -> str:
        options = {
            "activation": (self.activation, "identity"),
            "negative_slope": (self.negative_slope, 0.01),
            "reflection_pad": (self.reflection_pad, 0),
            "min_scale": (self.min_scale, 0.0),
            "save": (self.save, "auto"),
            "impl": (self.impl, "auto"),
        }
        changed = [f"{name}={value}" for name, (value, default) in options.items() if value != default]
        return ", ".join([super().extra_repr(), *changed])
