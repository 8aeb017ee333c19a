"""The building block of all networks here: padding → convolution → norm → activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vologan_kernels import InstanceNormAct2d, spectral_norm

from vologan_fast.config import BlockConfig, ConfigError
from vologan_fast.networks.initializers import initialize


class Convolution(nn.Conv2d):
    """`nn.Conv2d` with other ways to compute it, which may be faster.

    The parameters are the same, and so is the result, except for rounding.

    - `split_kernel` computes a 7-wide kernel as one of 4 columns plus one of 3. For filters with more than 32 taps,
      cuDNN has no Hopper kernels of the forward and of the weight gradient.
    - `pad_channels` pads the image and the weight with zeros to a multiple of 8 channels. For fewer channels than 8,
      cuDNN has no bfloat16 kernel.

    Both are off by default. Their gain is expected from cuDNN's list of kernels, and has not been measured.

    - `single_pixel` is for 1 × 1 kernels on images of 1 × 1 pixels. It computes a product of matrices. On a CPU, a
      convolution of so few numbers is all preparation, and takes 2 to 3 times as long.
    """

    split_kernel = False
    pad_channels = False
    single_pixel = False

    def forward(self, x: Tensor) -> Tensor:
        if self.single_pixel:
            return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]
        narrow = self.pad_channels and self.in_channels % 8 != 0 and self.groups == 1
        wide = self.split_kernel and self.kernel_size[1] == 7
        if not (narrow or wide):
            return super().forward(x)
        weight = self.weight
        if any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        if narrow:
            more = -self.in_channels % 8
            x, weight = F.pad(x, (0, 0, 0, 0, 0, more)), F.pad(weight, (0, 0, 0, 0, 0, more))
        if not wide:
            return F.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)
        left = F.conv2d(x[..., :-3], weight[..., :4], self.bias, self.stride, 0, 1, self.groups)
        return left + F.conv2d(x[..., 4:], weight[..., 4:], None, self.stride, 0, 1, self.groups)


def convolution(
    channels_in: int,
    channels_out: int,
    kernel: int,
    config: BlockConfig,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool | None = None,
    initializer: str | None = None,
    padded: bool = False,
) -> nn.Module:
    """Return a convolution that keeps the size, or divides it by `stride`. `config` gives padding and initialiser.

    An even kernel makes the image one pixel smaller, because it is padded like the next smaller odd one. `bias` None
    takes `config.bias`. `padded`: if the padding is by reflection, the input is already padded. With
    `config.factorized_kernels`, the result is a 1 × k convolution and a k × 1 convolution in turn.
    """
    sides, strides = [(kernel, kernel)], [(stride, stride)]
    if config.factorized_kernels and kernel > 1:
        sides, strides = [(1, kernel), (kernel, 1)], [(1, stride), (stride, 1)]
    reflects = config.padding == "reflection"
    layers: list[nn.Module] = []
    for side, by in zip(sides, strides, strict=True):
        padding = (0, 0) if padded and reflects else ((side[0] - 1) // 2, (side[1] - 1) // 2)
        layer = Convolution(
            channels_out if layers else channels_in,
            channels_out,
            side,
            by,
            padding=padding,
            padding_mode="reflect" if reflects and any(padding) else "zeros",  # torch copies even for reflection by 0
            groups=groups,
            bias=config.bias if bias is None else bias,
        )
        initialize(layer.weight, initializer or config.initializer, config.negative_slope)
        layers.append(finished(layer, config))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def finished(layer: nn.Conv2d | nn.ConvTranspose2d, config: BlockConfig) -> nn.Module:
    """Set the bias of `layer` to 0 and add the spectral norm if `config` has one. Returns the layer."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if config.spectral_norm:
        spectral_norm(layer)
    return layer


def border(kernel: int, config: BlockConfig) -> int:
    """Return the width of the reflected border that a convolution needs. It is 0 if the padding is by zeros."""
    return (kernel - 1) // 2 if config.padding == "reflection" else 0


def reflected(x: Tensor, width: int) -> Tensor:
    """Return x (N, C, H, W) with a reflected border of so many pixels, in its own type.

    On the CPU, autocast would convert x to float32, and all that is joined to it.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.pad(x, (width,) * 4, mode="reflect")
    return F.pad(x, (width,) * 4, mode="reflect")


class ConvBlock(nn.Module):
    """Convolution, norm and activation: (N, in, H, W) → (N, out, H/stride, W/stride).

    With padding by reflection, the norm can pad its output for the next convolution in the same pass. `next_kernel` is
    the kernel side of that convolution, and the next block gets `padded=True`. Then only the padded tensor is kept for
    the backward. Any other use of the output must crop the padding.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        config: BlockConfig,
        *,
        kernel: int | None = None,
        stride: int = 1,
        groups: int = 1,
        padded: bool = False,
        next_kernel: int = 1,
    ) -> None:
        super().__init__()
        side = config.kernel if kernel is None else kernel
        self.convolution = convolution(
            channels_in, channels_out, side, config, stride=stride, groups=groups, padded=padded
        )
        self.norm = norm_act(channels_out, config, next_kernel)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution(x))
        return y


def norm_act(channels: int, config: BlockConfig, next_kernel: int = 1, *, activation: str | None = None) -> nn.Module:
    """Return the norm and activation after a convolution, with the reflection padding for the next one.

    `activation` None takes `config.activation`. A second argument of the module's forward is a residual, which is added
    before the activation.
    """
    activation = config.activation if activation is None else activation
    if config.norm != "instance":
        return PlainNormAct(channels, config, activation, border(next_kernel, config))
    norm = InstanceNormAct2d(
        channels,
        eps=config.norm_eps,
        affine=config.norm_affine,
        activation=activation,
        negative_slope=config.negative_slope,
        reflection_pad=border(next_kernel, config),
        min_scale=config.norm_min_scale,
    )
    if config.norm_gamma == "random" and norm.weight is not None:
        # The published code applied the convolution's initialiser to the vector γ. The fan-in is then its length.
        initialize(norm.weight.data.view(1, -1), config.initializer, config.negative_slope)
    return norm


class PlainNormAct(nn.Module):
    """Batch norm or no norm, then residual, activation and reflection padding, as plain operations of PyTorch.

    It has the interface of `InstanceNormAct2d`. Unlike there, a padded output is a tensor of its own.
    """

    def __init__(self, channels: int, config: BlockConfig, activation: str, reflection_pad: int) -> None:
        super().__init__()
        batch = config.norm == "batch"
        self.norm = nn.BatchNorm2d(channels, config.norm_eps, affine=config.norm_affine) if batch else nn.Identity()
        self.activation = activation_of(activation, channels, config.negative_slope)
        self.reflection_pad = reflection_pad

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        u = self.norm(x)
        y: Tensor = self.activation(u if residual is None else u + residual)
        return reflected(y, self.reflection_pad) if self.reflection_pad else y


def activation_of(name: str, channels: int, negative_slope: float) -> nn.Module:
    """Return an activation of `BlockConfig.activation`, or the identity, as a module of its own."""
    match name:
        case "identity":
            return nn.Identity()
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(negative_slope)
        case "elu":
            return nn.ELU()
        case "gelu":
            return nn.GELU()
        case "prelu":
            return nn.PReLU(channels, negative_slope)
    raise ValueError(f"unknown activation {name!r}")


def in_range(x: Tensor, config: BlockConfig) -> Tensor:
    """Return images in [0, 1] in the range that the network reads, `config.input_range`."""
    return 2 * x - 1 if config.input_range == "signed" else x


class GatedAttention(nn.Module):
    """x + gate · attention(x) over the positions of x (N, C, H, W), with a learnable gate ≥ 0 that starts at 1.

    Queries q, keys k and values v are 1×1 projections to C/8 channels. The result is projected back to C channels. A
    layer norm over the channels follows each projection. The gate is the softplus of its parameter, so it is never
    negative, with any optimiser. `BlockConfig.attention` is one of

    - `elementwise`, the published block: softmax over the height of qᵀ · k, element by element, then times v. Here qᵀ
      is q with height and width exchanged. So x must be square, else ConfigError is raised.
    - `elementwise_untransposed`: the same with q in place of qᵀ, for x of any height and width.
    - `matrix`: scaled dot-product attention between all positions (SAGAN, arXiv 1805.08318).
    """

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.kind = config.attention
        self.query, self.key, self.value = (_projection(channels, inner, config) for _ in range(3))
        self.out = _projection(inner, channels, config)
        self.gate = nn.Parameter(torch.tensor(1.0).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.kind == "elementwise":
            if x.shape[2] != x.shape[3]:
                raise ConfigError(
                    f"attention elementwise exchanges height and width: expected square images, found features of "
                    f"{x.shape[2]} × {x.shape[3]}; elementwise_untransposed and matrix take any"
                )
            attended = torch.softmax(query.transpose(2, 3) * key, dim=2) * value
        elif self.kind == "elementwise_untransposed":
            attended = torch.softmax(query * key, dim=2) * value
        else:
            positions = [t.flatten(2).transpose(1, 2) for t in (query, key, value)]
            if torch.onnx.is_in_onnx_export():  # which knows attention with a dimension of heads only (torch 2.13)
                positions = [t[:, None] for t in positions]
            attended = F.scaled_dot_product_attention(*positions)
            attended = attended.transpose(-2, -1).reshape(value.shape)
        return x + F.softplus(self.gate) * self.out(attended)


def _projection(channels_in: int, channels_out: int, config: BlockConfig) -> nn.Sequential:
    norm = _ChannelLayerNorm(channels_out, eps=config.attention_eps)
    return nn.Sequential(convolution(channels_in, channels_out, 1, config), norm)


class _ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W), separately at each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
