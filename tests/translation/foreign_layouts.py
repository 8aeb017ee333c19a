"""Generators with the layers and the names of the PyTorch CycleGAN and of CUT, as plain PyTorch modules.

They are written from the layouts of the files, for images in [-1, 1], and share no code with vologan_fast.
"""

import torch
from torch import nn
from torch.nn import functional as F


def norm_layer(kind, channels):
    return {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": nn.Identity}[kind](channels)


class ResidualBlock(nn.Module):
    def __init__(self, channels, norm, dropout):
        super().__init__()
        layers = []
        for second in (False, True):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=norm == "instance")]
            layers += [norm_layer(norm, channels)]
            if not second:
                layers += [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv_block(x)


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x):
        padded = F.pad(x, (1,) * 4, mode="replicate")
        return F.conv_transpose2d(padded, self.filt, stride=2, groups=x.shape[1])[:, :, 3:-3, 3:-3]


class ResNet(nn.Module):
    def __init__(self, channels_in=3, channels_out=3, width=4, blocks=6, norm="instance", dropout=False, blur=()):
        """`blur` names the directions with blurs: "down", "up"."""
        super().__init__()
        bias = norm == "instance"
        layers = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels_in, width, 7, bias=bias),
            norm_layer(norm, width),
            nn.ReLU(),
        ]
        for w in (width, 2 * width):
            stride = 1 if "down" in blur else 2
            layers += [nn.Conv2d(w, 2 * w, 3, stride, 1, bias=bias), norm_layer(norm, 2 * w), nn.ReLU()]
            layers += [Downsample(2 * w)] if "down" in blur else []
        layers += [ResidualBlock(4 * width, norm, dropout) for _ in range(blocks)]
        for w in (4 * width, 2 * width):
            if "up" in blur:
                layers += [Upsample(w), nn.Conv2d(w, w // 2, 3, padding=1, bias=bias)]
            else:
                layers += [nn.ConvTranspose2d(w, w // 2, 3, 2, 1, output_padding=1, bias=bias)]
            layers += [norm_layer(norm, w // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh())

    def forward(self, x):
        return self.model(x)


class Level(nn.Module):
    """A level of the U-Net around `inside`, or the lowest one."""

    def __init__(self, outer, inner, norm, *, image=None, inside=None, outermost=False, dropout=False):
        super().__init__()
        bias = norm == "instance"
        down = nn.Conv2d(outer if image is None else image, inner, 4, 2, 1, bias=bias)
        up_from = inner if inside is None else 2 * inner
        if outermost:
            layers = [down, inside, nn.ReLU(True), nn.ConvTranspose2d(up_from, outer, 4, 2, 1), nn.Tanh()]
        else:
            up = nn.ConvTranspose2d(up_from, outer, 4, 2, 1, bias=bias)
            between = [norm_layer(norm, inner), inside] if inside is not None else []
            layers = [nn.LeakyReLU(0.2, True), down, *between, nn.ReLU(True), up, norm_layer(norm, outer)]
            layers += [nn.Dropout(0.5)] if dropout else []
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UNet(nn.Module):
    def __init__(self, channels_in=3, channels_out=3, width=2, levels=7, norm="batch", dropout=False):
        super().__init__()
        level = Level(8 * width, 8 * width, norm)
        for _ in range(levels - 5):
            level = Level(8 * width, 8 * width, norm, inside=level, dropout=dropout)
        for w in (4 * width, 2 * width, width):
            level = Level(w, 2 * w, norm, inside=level)
        self.model = Level(channels_out, width, norm, image=channels_in, inside=level, outermost=True)

    def forward(self, x):
        return self.model(x)


def randomized(network, seed=0):
    """Give a network random weights, also in the norms and their running statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel() / 4
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5, generator=generator)
    return network.eval()
