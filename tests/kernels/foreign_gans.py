"""Small networks in the styles in which public GAN repositories write theirs. All are written for these tests.

`NETWORKS` maps a name to a function that makes the network and the tensors of one call.
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

WIDTH = 4


def image(channels=3, size=16, batch=2):
    return torch.randn(batch, channels, size, size, dtype=torch.float64)


def get_norm_layer(kind="instance"):
    """Norm layers by name, as partials."""
    if kind == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True)
    return functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)


def init_weights(net):
    """Initialise by the names of classes."""

    def init(module):
        name = module.__class__.__name__
        if hasattr(module, "weight") and name.find("Conv") != -1:
            nn.init.normal_(module.weight.data, 0.0, 0.2)
        elif name.find("InstanceNorm2d") != -1 and module.weight is not None:
            nn.init.normal_(module.weight.data, 1.0, 0.02)

    net.apply(init)
    return net


# ---- generators of residual blocks ----------------------------------------------------------------------------------


class ResnetBlock(nn.Module):
    def __init__(self, dim, norm_layer, use_dropout=False):
        super().__init__()
        block = [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), norm_layer(dim), nn.ReLU(True)]
        if use_dropout:
            block += [nn.Dropout(0.5)]
        block += [nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), norm_layer(dim)]
        self.conv_block = nn.Sequential(*block)

    def forward(self, x):
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """A generator whose forward can also return features."""

    def __init__(self, norm="instance", use_dropout=False):
        super().__init__()
        norm_layer = get_norm_layer(norm)
        model = [nn.ReflectionPad2d(3), nn.Conv2d(3, WIDTH, 7), norm_layer(WIDTH), nn.ReLU(True)]
        model += [nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1), norm_layer(2 * WIDTH), nn.ReLU(True)]
        model += [ResnetBlock(2 * WIDTH, norm_layer, use_dropout) for _ in range(2)]
        model += [nn.ConvTranspose2d(2 * WIDTH, WIDTH, 3, 2, 1, output_padding=1), norm_layer(WIDTH), nn.ReLU(True)]
        model += [nn.ReflectionPad2d(3), nn.Conv2d(WIDTH, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*model)

    def forward(self, input):
        return self.model(input)


class FeatureGenerator(ResnetGenerator):
    """Contrastive translation taps layers of its generator."""

    def forward(self, input, layers=(), encode_only=False):
        if len(layers) > 0:
            feat, feats = input, []
            for index, layer in enumerate(self.model):
                feat = layer(feat)
                if index in layers:
                    feats.append(feat)
                if index == layers[-1] and encode_only:
                    return feats
            return feat, feats
        return self.model(input)


class SamplerHead(nn.Module):
    """A generator with a head that flattens the features of several layers."""

    def __init__(self):
        super().__init__()
        self.generator = FeatureGenerator()
        self.mlp = nn.Linear(2 * WIDTH, 8)

    def forward(self, x):
        feats = self.generator(x, layers=[5, 7], encode_only=True)
        flat = [self.mlp(feat.permute(0, 2, 3, 1).flatten(1, 2)) for feat in feats]
        return [F.normalize(each, dim=-1) for each in flat]


class UnetBlock(nn.Module):
    """The nested U-Net, with in-place activations and a skip connection."""

    def __init__(self, outer, inner, submodule=None, outermost=False, innermost=False):
        super().__init__()
        self.outermost = outermost
        norm = get_norm_layer()
        downconv = nn.Conv2d(3 if outermost else outer, inner, 4, 2, 1)
        upconv = nn.ConvTranspose2d(inner if innermost else inner * 2, 3 if outermost else outer, 4, 2, 1)
        down, up = [nn.LeakyReLU(0.2, True), downconv], [nn.ReLU(True), upconv]
        if outermost:
            model = [downconv, submodule, *up, nn.Tanh()]
        elif innermost:
            model = [*down, *up, norm(outer)]
        else:
            model = [*down, norm(inner), submodule, *up, norm(outer), nn.Dropout(0.0)]
        self.model = nn.Sequential(*model)

    def forward(self, x):
        if self.outermost:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


def unet():
    block = UnetBlock(8, 8, innermost=True)
    block = UnetBlock(4, 8, block)
    return UnetBlock(3, 4, block, outermost=True)


class SkipUnet(nn.Module):
    """A U-Net of lists of modules, with numbered names found by getattr."""

    def __init__(self, depth=2):
        super().__init__()
        self.depth = depth
        self.activation = nn.ReLU()
        for i in range(depth):
            setattr(self, f"down{i}", nn.Conv2d(3 if i == 0 else WIDTH, WIDTH, 3, 2, 1))
            setattr(self, f"norm{i}", nn.InstanceNorm2d(WIDTH, affine=True))
        self.ups = nn.ModuleList(nn.Conv2d(2 * WIDTH if i else WIDTH, WIDTH, 3, 1, 1) for i in range(depth))
        self.last = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, x):
        skips = []
        for i in range(self.depth):
            x = self.activation(getattr(self, f"norm{i}")(getattr(self, f"down{i}")(x)))
            skips.append(x)
        x = skips.pop()
        for up in self.ups:
            x = F.interpolate(F.relu(up(x)), scale_factor=2.0)
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
        return self.last(x)


class DenseBlock(nn.Module):
    """Concatenation instead of sums, over a ModuleDict."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict()
        for i in range(3):
            channels = 3 + i * WIDTH
            self.layers[f"denselayer{i}"] = nn.Sequential(
                nn.InstanceNorm2d(channels), nn.ELU(), nn.Conv2d(channels, WIDTH, 3, 1, 1)
            )

    def forward(self, init_features):
        features = [init_features]
        for _name, layer in self.layers.items():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


# ---- discriminators -------------------------------------------------------------------------------------------------


class NLayerDiscriminator(nn.Module):
    """A PatchGAN whose features may be returned. Its layers are attributes, found by their numbers."""

    def __init__(self, features=True, spectral=False):
        super().__init__()
        self.n_layers, self.features = 2, features
        norm = parametrizations.spectral_norm if spectral else (lambda layer: layer)
        sequence = [[nn.Conv2d(3, WIDTH, 4, 2, 2), nn.LeakyReLU(0.2, True)]]
        for i in range(1, self.n_layers + 1):
            conv = norm(nn.Conv2d(WIDTH * i, WIDTH * (i + 1), 4, 2 if i == 1 else 1, 2))
            sequence += [[conv, nn.InstanceNorm2d(WIDTH * (i + 1)), nn.LeakyReLU(0.2, True)]]
        sequence += [[nn.Conv2d(WIDTH * (self.n_layers + 1), 1, 4, 1, 2)]]
        for n, layers in enumerate(sequence):
            setattr(self, "model" + str(n), nn.Sequential(*layers))

    def forward(self, input):
        result = [input]
        for n in range(self.n_layers + 2):
            model = getattr(self, "model" + str(n))
            result.append(model(result[-1]))
        return result[1:] if self.features else result[-1]


class MultiscaleDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_D = 2
        for i in range(self.num_D):
            setattr(self, f"layer{i}", NLayerDiscriminator())
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)

    def forward(self, input):
        result = []
        for i in range(self.num_D):
            result.append(getattr(self, f"layer{self.num_D - 1 - i}")(input))
            if i != self.num_D - 1:
                input = self.downsample(input)
        return result


class StarDiscriminator(nn.Module):
    """Two heads, one of them flattened by view."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, WIDTH, 4, 2, 1),
            nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=False),
            nn.LeakyReLU(0.01),
        )
        self.conv1 = nn.Conv2d(WIDTH, 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(WIDTH, 5, 8, bias=False)

    def forward(self, x):
        h = self.main(x)
        out_src, out_cls = self.conv1(h), self.conv2(h)
        return out_src, out_cls.view(out_cls.size(0), out_cls.size(1))


class ProjectionDiscriminator(nn.Module):
    """Old-style weight norm and spectral norm, a pooled head, a flag in the forward's arguments."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.spectral_norm(nn.Conv2d(3, WIDTH, 3, 1, 1))
        self.norm = nn.InstanceNorm2d(WIDTH)
        self.lin = nn.Linear(WIDTH, 1)

    def forward(self, x, pooled=True):
        h = F.leaky_relu(self.norm(self.conv(x)), 0.2)
        if not pooled:
            return h
        return self.lin(torch.sum(h, dim=(2, 3)))


# ---- conditional norms ----------------------------------------------------------------------------------------------


class AdaIN(nn.Module):
    """Instance norm with a scale and a shift from a style vector."""

    def __init__(self, style_dim, num_features):
        super().__init__()
        self.norm = nn.InstanceNorm2d(num_features, affine=False)
        self.fc = nn.Linear(style_dim, num_features * 2)

    def forward(self, x, s):
        h = self.fc(s)
        h = h.view(h.size(0), h.size(1), 1, 1)
        gamma, beta = torch.chunk(h, chunks=2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class AdaINResBlk(nn.Module):
    def __init__(self, dim_in, dim_out, style_dim=8, actv=None):
        super().__init__()
        self.actv = actv or nn.LeakyReLU(0.2)
        self.learned_sc = dim_in != dim_out
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1)
        self.norm1, self.norm2 = AdaIN(style_dim, dim_in), AdaIN(style_dim, dim_out)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(dim_in, dim_out, 1, 1, 0, bias=False)

    def _shortcut(self, x):
        if self.learned_sc:
            x = self.conv1x1(x)
        return x

    def _residual(self, x, s):
        x = self.conv1(self.actv(self.norm1(x, s)))
        return self.conv2(self.actv(self.norm2(x, s)))

    def forward(self, x, s):
        return (self._residual(x, s) + self._shortcut(x)) / 2**0.5


class ResBlk(nn.Module):
    """A residual block with an optional norm, a down-sampling, and helper methods."""

    def __init__(self, dim_in=3, dim_out=WIDTH, normalize=True, downsample=True):
        super().__init__()
        self.actv, self.normalize, self.downsample = nn.LeakyReLU(0.2), normalize, downsample
        self.learned_sc = dim_in != dim_out
        self.conv1, self.conv2 = nn.Conv2d(dim_in, dim_in, 3, 1, 1), nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        if self.normalize:
            self.norm1 = nn.InstanceNorm2d(dim_in, affine=True)
            self.norm2 = nn.InstanceNorm2d(dim_in, affine=True)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(dim_in, dim_out, 1, 1, 0, bias=False)

    def _shortcut(self, x):
        if self.learned_sc:
            x = self.conv1x1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        return x

    def _residual(self, x):
        if self.normalize:
            x = self.norm1(x)
        x = self.actv(x)
        x = self.conv1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        if self.normalize:
            x = self.norm2(x)
        x = self.actv(x)
        return self.conv2(x)

    def forward(self, x):
        x = self._shortcut(x) + self._residual(x)
        return x / 2**0.5


class SPADE(nn.Module):
    """A norm with a scale and a shift from a map."""

    def __init__(self, norm_nc=3, label_nc=2):
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 8, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(8, norm_nc, 3, padding=1), nn.Conv2d(8, norm_nc, 3, padding=1)

    def forward(self, x, segmap):
        normalized = self.param_free_norm(x)
        segmap = F.interpolate(segmap, size=x.size()[2:], mode="nearest")
        actv = self.mlp_shared(segmap)
        return normalized * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class SPADEResnetBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_0, self.norm_1 = SPADE(), SPADE()
        self.conv_0 = nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.conv_1 = nn.Conv2d(3, 3, 3, padding=1)

    def actvn(self, x):
        return F.leaky_relu(x, 2e-1)

    def forward(self, x, seg):
        dx = self.conv_0(self.actvn(self.norm_0(x, seg)))
        dx = self.conv_1(self.actvn(self.norm_1(dx, seg)))
        return x + dx


class AdaILN(nn.Module):
    """Instance norm and layer norm, mixed by a parameter. Written with sums, without a norm layer."""

    def __init__(self, num_features=3, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.rho = nn.Parameter(torch.full((1, num_features, 1, 1), 0.9))

    def forward(self, input, gamma, beta):
        in_mean, in_var = input.mean((2, 3), keepdim=True), input.var((2, 3), keepdim=True)
        out_in = (input - in_mean) / torch.sqrt(in_var + self.eps)
        ln_mean, ln_var = input.mean((1, 2, 3), keepdim=True), input.var((1, 2, 3), keepdim=True)
        out_ln = (input - ln_mean) / torch.sqrt(ln_var + self.eps)
        out = self.rho.expand(input.shape[0], -1, -1, -1) * out_in
        out = out + (1 - self.rho.expand(input.shape[0], -1, -1, -1)) * out_ln
        return out * gamma.unsqueeze(2).unsqueeze(3) + beta.unsqueeze(2).unsqueeze(3)


class AttentionGenerator(nn.Module):
    """Class-activation attention, flattened by view, and blocks of adaptive norms."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, WIDTH, 3, bias=False), nn.InstanceNorm2d(WIDTH), nn.ReLU(True)
        )
        self.gap_fc, self.gmp_fc = nn.Linear(WIDTH, 1, bias=False), nn.Linear(WIDTH, 1, bias=False)
        self.conv1x1 = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.relu = nn.ReLU(True)
        self.gamma, self.beta = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = AdaILN(WIDTH)

    def forward(self, input):
        x = self.down(input)
        gap = F.adaptive_avg_pool2d(x, 1)
        gap_logit = self.gap_fc(gap.view(x.shape[0], -1))
        gap = x * next(iter(self.gap_fc.parameters())).unsqueeze(2).unsqueeze(3)
        gmp = F.adaptive_max_pool2d(x, 1)
        gmp_logit = self.gmp_fc(gmp.view(x.shape[0], -1))
        gmp = x * next(iter(self.gmp_fc.parameters())).unsqueeze(2).unsqueeze(3)
        cam_logit = torch.cat([gap_logit, gmp_logit], 1)
        x = self.relu(self.conv1x1(torch.cat([gap, gmp], 1)))
        heatmap = torch.sum(x, dim=1, keepdim=True)
        pooled = F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)
        return self.norm(x, self.gamma(pooled), self.beta(pooled)), cam_logit, heatmap


class SelfAttention(nn.Module):
    """A self-attention block. It flattens what the norm returns by view."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)
        self.query, self.value = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)
        self.gamma = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x):
        b, c, h, w = x.size()
        normed = self.norm(x)
        flat = normed.view(b, c, h * w)
        query = self.query(normed).view(b, -1, h * w)
        attention = torch.softmax(torch.bmm(query.permute(0, 2, 1), query), dim=-1)
        out = torch.bmm(flat, attention.permute(0, 2, 1)).view(b, c, h, w)
        return self.gamma * self.value(out) + x


# ---- building blocks with options -----------------------------------------------------------------------------------


class Conv2dBlock(nn.Module):
    """A block whose norm, activation and padding are chosen by strings."""

    def __init__(
        self, input_dim, output_dim, kernel, stride=1, padding=0, norm="none", activation="relu", pad="reflect"
    ):
        super().__init__()
        self.pad = nn.ReflectionPad2d(padding) if pad == "reflect" else nn.ZeroPad2d(padding)
        self.norm = {"in": lambda: nn.InstanceNorm2d(output_dim), "bn": lambda: nn.BatchNorm2d(output_dim)}.get(
            norm, lambda: None
        )()
        activations = {"relu": nn.ReLU(inplace=True), "lrelu": nn.LeakyReLU(0.2, inplace=True), "prelu": nn.PReLU()}
        self.activation = activations.get(activation)
        self.conv = nn.Conv2d(input_dim, output_dim, kernel, stride)

    def forward(self, x):
        x = self.conv(self.pad(x))
        if self.norm:
            x = self.norm(x)
        if self.activation:
            x = self.activation(x)
        return x


class ContentEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = [Conv2dBlock(3, WIDTH, 7, 1, 3, norm="in", activation="relu")]
        self.model += [Conv2dBlock(WIDTH, 2 * WIDTH, 4, 2, 1, norm="in", activation="lrelu")]
        self.model += [Conv2dBlock(2 * WIDTH, 2 * WIDTH, 3, 1, 1, norm="in", activation="none")]
        self.model = nn.Sequential(*self.model)
        self.output_dim = 2 * WIDTH

    def forward(self, x):
        return self.model(x)


class StyleEncoder(nn.Module):
    """Norms, then global pooling and a view."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(3, WIDTH, 3, 1, 1, norm="in", activation="prelu"), nn.AdaptiveAvgPool2d(1)
        )
        self.fc = nn.Linear(WIDTH, 8)

    def forward(self, x):
        h = self.model(x)
        return self.fc(h.view(h.size(0), -1))


class MunitDecoder(nn.Module):
    """A content and a style encoder, and a decoder of adaptive blocks."""

    def __init__(self):
        super().__init__()
        self.enc_content, self.enc_style = ContentEncoder(), StyleEncoder()
        self.block = AdaINResBlk(2 * WIDTH, WIDTH)

    def forward(self, images):
        return self.block(self.enc_content(images), self.enc_style(images))


class BasicBlock(nn.Module):
    """The encoder of a bicycle GAN: a lambda for the activation's class, a pooled shortcut."""

    def __init__(self, inplanes=3, outplanes=WIDTH, nl_layer=lambda: nn.LeakyReLU(negative_slope=0.2, inplace=False)):
        super().__init__()
        layers = [nn.InstanceNorm2d(inplanes, affine=True), nl_layer(), nn.Conv2d(inplanes, inplanes, 3, 1, 1)]
        layers += [nn.InstanceNorm2d(inplanes), nl_layer(), nn.Conv2d(inplanes, outplanes, 3, 1, 1), nn.AvgPool2d(2)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inplanes, outplanes, 1))

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


class StarGenerator(nn.Module):
    """A label that is repeated over the image, then concatenated."""

    def __init__(self):
        super().__init__()
        layers = [
            nn.Conv2d(3 + 2, WIDTH, 7, 1, 3, bias=False),
            nn.InstanceNorm2d(WIDTH, affine=True),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.Conv2d(WIDTH, WIDTH, 4, 2, 1), nn.InstanceNorm2d(WIDTH, affine=True), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, x, c):
        c = c.view(c.size(0), c.size(1), 1, 1)
        c = c.repeat(1, 1, x.size(2), x.size(3))
        return self.main(torch.cat([x, c], dim=1))


class GlobalLocal(nn.Module):
    """A global generator, slices of whose layers run inside a local one."""

    def __init__(self):
        super().__init__()
        model_global = ResnetGenerator().model
        self.model = nn.Sequential(*[model_global[i] for i in range(len(model_global) - 3)])
        self.model1_1 = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.InstanceNorm2d(WIDTH), nn.ReLU(True))
        self.model1_2 = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1), nn.InstanceNorm2d(WIDTH), nn.ReLU(True)
        )
        self.last = nn.Conv2d(WIDTH, 3, 3, 1, 1)
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)

    def forward(self, input):
        output = self.model(self.downsample(input))
        model_downsample, model_upsample = getattr(self, "model1_" + str(1)), getattr(self, "model1_" + str(2))
        return self.last(model_upsample(model_downsample(input) + output))


class Sliced(nn.Module):
    """Slices of a Sequential, as perceptual losses take them."""

    def __init__(self):
        super().__init__()
        features = patch_discriminator()
        self.slice1, self.slice2 = features[:4], features[4:]

    def forward(self, x):
        first = self.slice1(x)
        return first, self.slice2(first)


def patch_discriminator():
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
        nn.InstanceNorm2d(2 * WIDTH),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(2 * WIDTH, 1, 3, 1, 1),
    )


class FunctionalNorms(nn.Module):
    """Functions instead of layers, with own parameters for the norm."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(3) + 0.5), nn.Parameter(torch.rand(3))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(F.instance_norm(self.conv(x), weight=self.weight, bias=self.bias), inplace=True)
        return torch.tanh(F.instance_norm(x + 0.1, eps=1e-3)) + F.elu(F.instance_norm(x).add(x))


class SharedNorm(nn.Module):
    """One norm that runs twice, and one activation under three names."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.InstanceNorm2d(3, affine=True), nn.SiLU()
        self.act2 = self.act
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)])
        self.tail = nn.Sequential(self.norm, self.act, nn.Conv2d(3, 2, 1))

    def forward(self, x):
        for conv in self.convs:
            x = self.act2(self.norm(conv(x)))
        return self.tail(x)


class LambdaActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.actv = lambda x: F.leaky_relu(x, 0.2)
        self.norm, self.conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.actv(self.norm(x)))


class Checkpointed(nn.Module):
    """Blocks whose activations are recomputed."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ResnetBlock(3, get_norm_layer()) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint.checkpoint(block, x, use_reentrant=False)
        return x


class Casting(nn.Module):
    """Casts around the norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(F.gelu(self.norm(x.float())).to(x.dtype))


class AutocastOff(nn.Module):
    """Autocast is switched off around the norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        with torch.autocast(device_type="cpu", enabled=False):
            return self.conv(F.relu(self.norm(x)))


class Conditional(nn.Module):
    """A forward that decides by the training mode and by optional arguments."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x, skip=None, alpha=1.0):
        y = F.relu(self.norm(self.conv(x)))
        if self.training:
            y = y * alpha
        return y if skip is None else torch.cat([y, skip], 1)


class Wrapped(nn.Module):
    """A network behind `.module`, as DataParallel and EMA wrappers hold it, with its attributes passed on."""

    def __init__(self):
        super().__init__()
        self.module = ContentEncoder()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Tracking(nn.Module):
    """Running statistics, and a norm of its own class beside a plain one."""

    class Own(nn.InstanceNorm2d):
        def forward(self, input):
            return super().forward(input) * 2

    def __init__(self):
        super().__init__()
        self.tracking = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.ReLU())
        self.own, self.plain = Tracking.Own(3), nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())

    def forward(self, x):
        return self.plain(self.own(self.tracking(x)))


class WrongChannels(nn.Module):
    """A norm without parameters that was made for another number of channels. torch only warns."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1), nn.InstanceNorm2d(64), nn.ReLU(), nn.InstanceNorm2d(1)
        )

    def forward(self, x):
        return self.body(x)


class Volumes(nn.Module):
    """Functional norms of other dimensions, and sums that broadcast the norm."""

    def forward(self, x):
        flat = torch.tanh(F.instance_norm(x.flatten(2)))
        volume = F.relu(F.instance_norm(x[:, :, None]))
        mean = F.relu(F.instance_norm(x) + x[None])
        return flat, volume, mean


class Views(nn.Module):
    """The result of a fused norm goes into a view."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, WIDTH, 3, padding=1), nn.InstanceNorm2d(WIDTH), nn.LeakyReLU(0.2)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        return y.view(y.shape[0], -1)


def label():
    return torch.rand(2, 2, dtype=torch.float64)


NETWORKS = {
    "ResnetGenerator": (ResnetGenerator, [image]),
    "with BatchNorm": (lambda: ResnetGenerator("batch"), [image]),
    "initialised": (lambda: init_weights(ResnetGenerator()), [image]),
    "FeatureGenerator": (FeatureGenerator, [image]),
    "SamplerHead": (SamplerHead, [image]),
    "unet": (unet, [image]),
    "SkipUnet": (SkipUnet, [image]),
    "DenseBlock": (DenseBlock, [image]),
    "NLayerDiscriminator": (NLayerDiscriminator, [image]),
    "spectral": (lambda: NLayerDiscriminator(False, True).eval(), [image]),
    "MultiscaleDiscriminator": (MultiscaleDiscriminator, [lambda: image(3, 32)]),
    "StarDiscriminator": (StarDiscriminator, [image]),
    "ProjectionDiscriminator": (lambda: ProjectionDiscriminator().eval(), [image]),
    "AdaIN": (lambda: AdaIN(8, 3), [image, lambda: torch.randn(2, 8, dtype=torch.float64)]),
    "AdaINResBlk": (lambda: AdaINResBlk(3, WIDTH), [image, lambda: torch.randn(2, 8, dtype=torch.float64)]),
    "ResBlk": (ResBlk, [image]),
    "SPADE": (SPADE, [image, lambda: image(2, 8)]),
    "SPADEResnetBlock": (lambda: SPADEResnetBlock().eval(), [image, lambda: image(2, 8)]),
    "AttentionGenerator": (AttentionGenerator, [image]),
    "SelfAttention": (SelfAttention, [image]),
    "ContentEncoder": (ContentEncoder, [image]),
    "StyleEncoder": (StyleEncoder, [image]),
    "MunitDecoder": (MunitDecoder, [image]),
    "BasicBlock": (BasicBlock, [image]),
    "StarGenerator": (StarGenerator, [image, label]),
    "GlobalLocal": (GlobalLocal, [image]),
    "Sliced": (Sliced, [image]),
    "FunctionalNorms": (FunctionalNorms, [image]),
    "SharedNorm": (SharedNorm, [image]),
    "LambdaActivation": (LambdaActivation, [image]),
    "Checkpointed": (Checkpointed, [image]),
    "Casting": (Casting, [image]),
    "AutocastOff": (AutocastOff, [image]),
    "Conditional": (Conditional, [image]),
    "Wrapped": (Wrapped, [image]),
    "Tracking": (Tracking, [image]),
    "WrongChannels": (WrongChannels, [image]),
    "Volumes": (Volumes, [image]),
    "Views": (Views, [image]),
}


def make(name):
    """The network in float64, and the arguments of one call."""
    torch.manual_seed(0)
    build, arguments = NETWORKS[name]
    return build().double(), [argument() for argument in arguments]
