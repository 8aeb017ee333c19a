"""Published networks as plain PyTorch modules, written from the papers. They share no code with vologan_fast.

The parameters come in the order of our networks, so that `copy_weights` can pair them.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


def copy_weights(source, target):
    """Copy the parameters of one network into another. Both must have the same shapes in the same order."""
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        assert ours.shape == theirs.shape
        theirs.data.copy_(ours.data)


class ResidualBlock(nn.Module):
    """The block of Zhu et al."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x):
        return x + self.layers(x)


def zhu_resnet(channels_in, channels_out, width, blocks):
    """c7s1-64, d128, d256, residual blocks, u128, u64, c7s1-3 and tanh, for images in [-1, 1]."""
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
    for w in (width, 2 * width):
        layers += [nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * w), nn.ReLU()]
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for w in (2 * width, width):
        layers += [
            nn.ConvTranspose2d(2 * w, w, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(w),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh())


class BlurDown(nn.Module):
    """The anti-aliased down-sampling of Zhang: [1, 2, 1] / 4 in both directions, every second pixel."""

    def forward(self, x):
        side = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
        weight = torch.outer(side, side).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1])


class BlurUp(nn.Module):
    """Zeros between the pixels, then [1, 3, 3, 1] / 4 in both directions. The border is repeated."""

    def forward(self, x):
        n, c, h, w = x.shape
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        spread = padded.new_zeros(n, c, 2 * h + 4, 2 * w + 4)
        spread[:, :, ::2, ::2] = padded
        side = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 4
        weight = torch.outer(side, side).expand(c, 1, 4, 4)
        return F.conv2d(spread, weight, groups=c)[:, :, :-1, :-1]


def cut_resnet(channels_in, channels_out, width, blocks):
    """The generator of CUT: `zhu_resnet` with 3×3 convolutions that keep the size, and blurs that change it."""
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
    for w in (width, 2 * width):
        layers += [nn.Conv2d(w, 2 * w, 3, padding=1), nn.InstanceNorm2d(2 * w), nn.ReLU(), BlurDown()]
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for w in (2 * width, width):
        layers += [BlurUp(), nn.Conv2d(2 * w, w, 3, padding=1), nn.InstanceNorm2d(w), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh())


class ZhuUNet(nn.Module):
    """The U-Net of Zhu et al., for images in [-1, 1]. A skip passes the ReLU of the decoder."""

    def __init__(self, channels_in, channels_out, width, levels):
        super().__init__()
        widths = [channels_in, *(width * min(2**level, 8) for level in range(levels))]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        outs = [*reversed(widths[1:-1]), channels_out]
        ins = [widths[-1], *(2 * w for w in outs[:-1])]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in zip(ins, outs, strict=True))

    def forward(self, x):
        results = []
        for level, convolve in enumerate(self.down):
            x = convolve(x if level == 0 else F.leaky_relu(x, 0.2))
            if 0 < level < len(self.down) - 1:
                x = F.instance_norm(x)
            results.append(x)
        for convolve, skip in zip(self.up, [*reversed(results[:-1]), None], strict=True):
            x = convolve(F.relu(x))
            if skip is not None:
                x = torch.cat([skip, F.instance_norm(x)], dim=1)
        return torch.tanh(x)


def zhu_patch(channels, width):
    """C64-C128-C256-C512 and the logits. The first three halve the image."""
    layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for w, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
        layers += [nn.Conv2d(w, 2 * w, 4, stride, padding=1), nn.InstanceNorm2d(2 * w), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


def cut_patch(channels, width):
    """`zhu_patch` with convolutions of stride 1, and blurs that halve the image."""
    layers = [nn.Conv2d(channels, width, 4, padding=1), nn.LeakyReLU(0.2), BlurDown()]
    for w in (width, 2 * width):
        layers += [nn.Conv2d(w, 2 * w, 4, padding=1), nn.InstanceNorm2d(2 * w), nn.LeakyReLU(0.2), BlurDown()]
    layers += [nn.Conv2d(4 * width, 8 * width, 4, padding=1), nn.InstanceNorm2d(8 * width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


def isola_pixel(channels, width):
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 1),
        nn.InstanceNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 1),
    )


def block(channels, width, kernel=3):
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.InstanceNorm2d(width, eps=1e-3, affine=True),
        nn.LeakyReLU(0.3),
    )


class UNetDiscriminator(nn.Module):
    """Two levels. A sum over the bottleneck's positions and a linear layer judge the image, the decoder each pixel."""

    def __init__(self, channels, width):
        super().__init__()
        self.encoder = nn.ModuleList([block(channels, width), block(width, 2 * width)])
        self.bottleneck = block(2 * width, 2 * width)
        self.up = nn.ModuleList([block(2 * width, 8 * width, 1), block(2 * width, 4 * width, 1)])
        self.decoder = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
        self.whole = nn.Conv2d(2 * width, 1, 1)
        self.pixels = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        outer = self.encoder[0](x)
        inner = self.encoder[1](F.avg_pool2d(outer, 2))
        features = self.bottleneck(F.avg_pool2d(inner, 2))
        whole = F.linear(features.sum((2, 3)), self.whole.weight.flatten(1), self.whole.bias)
        x = self.decoder[0](torch.cat((F.pixel_shuffle(self.up[0](features), 2), inner), 1))
        x = self.decoder[1](torch.cat((F.pixel_shuffle(self.up[1](x), 2), outer), 1))
        return whole[:, :, None, None], self.pixels(x)


class PatchOfLevels(nn.Module):
    """VoloGAN's PatchGAN with two levels of average pooling, and one block a level."""

    def __init__(self, channels, width):
        super().__init__()
        self.levels = nn.ModuleList([block(channels, width), block(width, 2 * width)])
        self.wide = block(2 * width, 4 * width)
        self.to_logits = nn.Conv2d(4 * width, 1, 5, padding=2, bias=False)

    def forward(self, x):
        for level in self.levels:
            x = F.avg_pool2d(level(x), 2)
        return self.to_logits(self.wide(x))


def residual_bottleneck(x, paths, affine):
    """x + norm(Σ paths): each path is three weights, 1×1, k×k and 1×1, the first two with norm and leaky ReLU."""
    total = 0
    for reduce, convolve, expand in paths:
        y = F.leaky_relu(F.instance_norm(F.conv2d(x, reduce), eps=1e-3), 0.3)
        y = F.leaky_relu(F.instance_norm(F.conv2d(y, convolve, padding=convolve.shape[2] // 2), eps=1e-3), 0.3)
        total = total + F.conv2d(y, expand)
    gamma, beta = affine
    return x + F.instance_norm(total, weight=gamma, bias=beta, eps=1e-3)
