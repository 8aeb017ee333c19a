"""Every setting of a training run, with its default. Defaults are defined here and nowhere else.

Field names and values are the format of `config.json` in the run folders, so renaming one breaks old runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

DOMAINS = ("synthetic", "real")
"""The two domains, as the manifest calls them. They are S and T in the paper."""


Size = int | tuple[int, int]
"""The size of images in pixels: the side of squares, or (height, width)."""


ChannelSet = Literal["rgbd", "rgb", "depth", "grey+depth", "grey"]
"""The channels of a domain's images."""


class Channels(NamedTuple):
    """The channels of an image: first colour, then depth."""

    color: int
    """3 for red, green and blue, 1 for grey, 0 for none."""
    depth: bool

    @property
    def number(self) -> int:
        return self.color + self.depth

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the channels, in their order."""
        return {3: ("red", "green", "blue"), 1: ("grey",), 0: ()}[self.color] + ("depth",) * self.depth

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights in the pixel terms: 1 for each channel of colour, and as much for depth as for all of them."""
        return (1.0,) * self.color + (max(float(self.color), 1.0),) * self.depth


CHANNELS: dict[str, Channels] = {
    "rgbd": Channels(3, True),
    "rgb": Channels(3, False),
    "depth": Channels(0, True),
    "grey+depth": Channels(1, True),
    "grey": Channels(1, False),
}


def height_and_width(size: Size) -> tuple[int, int]:
    """Return a size as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def size_in_words(size: Size) -> str:
    """Return a size as the command line takes it: "64", or "512 256" for a height of 512 and a width of 256."""
    return str(size) if isinstance(size, int) else " ".join(map(str, size))


@dataclass(frozen=True)
class DepthSpec:
    """How to read the depth files of one domain.

    A file value d becomes z = d · (metres per unit). Then z becomes (z − near) / (far − near), clamped to [1/1024, 1].
    So even the nearest point differs from "no depth", which is 0.
    """

    unit: Literal["auto", "normalized", "m", "cm", "mm"] = "auto"
    """Unit of the file's values. `normalized`: no physical unit; near and far are file values. `auto`: `normalized` for
    float files, `mm` for integer files."""
    scale: float | None = None
    """Metres per file unit, for units that `unit` does not list (TUM: 0.0002, KITTI: 0.00390625). It is negative if z
    points backwards, as in OpenGL. Overrides `unit`."""
    near: float | None = None
    """Depth that maps to 0 (before the clamp), in metres (`normalized`: in file units). Default: -1 for `normalized`,
    else the first percentile over a sample of the domain."""
    far: float | None = None
    """Depth that maps to 1, in the unit of `near`. Default: 1 for `normalized`, else the 99th percentile."""
    invalid: tuple[float, ...] | None = None
    """File values that mean "not measured". Such a pixel gets depth 0 and keeps its colour. NaN and ±Inf are always
    invalid. So are 0 and less in a metric unit. Default: 0 for integer files, none for float files."""
    background: float | None = None
    """File value that means "background". Such a pixel gets depth 0 and colour 0. Default: -1 for `normalized`, else
    none."""
    channel: str | None = None
    """EXR channel to read, such as `Z`, `ViewLayer.Depth.V` or `PART.Z`. Default: the channel whose name says depth."""
    values: Literal["auto", "float", "integer", "8-bit"] = "auto"
    """Type of the files' values: `float`, or `integer` of more than 8 bits. `8-bit` allows all integers. A file of
    another type is an error. `auto`: the type of a sample of the files."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images, independent in both domains. Held-out images are never augmented."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    shift: float = 0.2
    """Probability of a shift. A shift pads the image with zeros at the bottom and at the right, and then crops it to
    its old size at a random place."""
    shift_height: float = 0.1
    """Padding at the bottom, as a fraction of the height."""
    shift_width: float = 0.4
    """Padding at the right, as a fraction of the width."""
    crop: float = 0.0
    """Images are loaded so much larger, and then cropped to their size at a random place. Zhu et al. crop 256 of 286
    pixels: 0.117. 0: no crop."""
    scale: float = 0.0
    """Largest relative change of size, about the image's centre. The factor is between 1 / (1 + scale) and 1 + scale,
    and its logarithm is uniform."""
    jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation. Depth does not change."""


@dataclass(frozen=True)
class DataConfig:
    """The data set and the loader."""

    size: Size = 512
    """Size of the images in pixels: one number for squares, or height and width. Images of another aspect ratio are
    cropped to the largest such rectangle in their centre. Then all are resized."""
    channels: ChannelSet | tuple[ChannelSet, ChannelSet] = "rgbd"
    """Channels of the images: one name for both domains, or two, for the synthetic and for the real domain. A file that
    they do not need is not read. `grey` is the luma of the colour (Rec. 601, as Pillow's "L")."""
    held_out: float = 0.2
    """Fraction of each domain that is held out from training. The seed chooses the images."""
    synthetic: DepthSpec = DepthSpec()
    real: DepthSpec = DepthSpec()
    augment: AugmentConfig = AugmentConfig()
    backend: Literal["auto", "dali", "torch"] = "auto"
    """Loader of the images. `dali`: NVIDIA DALI. `torch`: threads that run native code. `auto`: DALI on a GPU if it is
    installed, else `torch`."""
    threads: int = 0
    """Decoding threads per domain. 0: the cores of the processor, divided among the domains and the processes of the
    run on this machine."""
    cache: Literal["auto", "none", "host", "device", "disk"] = "none"
    """Where decoded training images are kept: in `host` memory, in GPU memory (`device`), or in a packed file (`disk`).
    `auto`: device, host or none, by the free memory. The default is `none` because this has not run on a GPU yet."""
    cache_depth: Literal["exact", "compact"] = "exact"
    """Storage of kept depth. `exact`: 2 bytes a pixel if all files of a domain hold half floats, or unsigned integers
    of up to 16 bits; else 4 bytes. The batches are the same as with `--data.cache none`. `compact`: always 2 bytes;
    other depth is rounded to 65,534 levels from near to far."""
    max_pixels: int = 1 << 26
    """Most pixels of a file of colour or depth. A larger image is refused before it is decoded, so that a small file
    cannot take all memory."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a bad image does, for example one whose file is broken. `raise`: the run ends with an error that names it.
    `skip`: the next good image of its domain takes its place, and `skipped.jsonl` names it. Then an image is also bad
    if its depth is absurd: see `max_nan`."""
    max_skipped: int = 100
    """Most images that `skip` replaces. One more ends the run."""
    max_nan: float = 0.5
    """With `skip`, an image is bad if this fraction of its depth file, or more, is NaN or infinite. So is one with a
    value of 10²⁰ or more. Values that mean background or "not measured" do not count."""
    patience: float = 600.0
    """Seconds of the longest wait for a file: for a disk or a server that does not answer. Then the run saves, and ends
    with an error that names the file. A file for which it waits long is named after 10 seconds."""
    shard_cache: float = 100.0
    """Gigabytes of shards from S3 that are kept on this machine, for all runs together. If the disk has less space, it
    is 90 % of the free space."""

    @property
    def shape(self) -> tuple[int, int]:
        """`size` as (height, width)."""
        return height_and_width(self.size)

    @property
    def channel_names(self) -> str:
        """The names of the channels as the command line takes them: "rgb", or "rgbd depth" for different domains."""
        return self.channels if isinstance(self.channels, str) else " ".join(dict.fromkeys(self.channels))

    @property
    def channel_sets(self) -> dict[str, Channels]:
        """The channels of each domain."""
        names = (self.channels, self.channels) if isinstance(self.channels, str) else self.channels
        return {domain: CHANNELS[name] for domain, name in zip(DOMAINS, names, strict=True)}


Down = Literal[
    "conv_stride_2", "max_pooling", "average_pooling", "space_to_depth", "bare_space_to_depth", "antialiased"
]
"""Layers that halve an image. `space_to_depth` has a 1×1 block behind it. `bare_space_to_depth`, the published form,
leaves four times the channels. `antialiased`: a block at full size, then a blur that halves, as in CUT."""
Up = Literal["depth_to_space", "bilinear", "bilinear_residual", "transposed_convolution", "antialiased"]
"""Layers that double an image. A 1×1 block stands before `depth_to_space` and behind `bilinear`. `bilinear_residual`
adds two 3×3 blocks to the 1×1 block. `transposed_convolution`: 3×3, as in Zhu et al. `antialiased`: `bilinear` with a
k×k block, which pads with zeros, as in CUT."""


@dataclass(frozen=True)
class BlockConfig:
    """Settings that all convolution blocks of a network share."""

    kernel: int = 3
    first_kernel: int = 3
    """Kernel side in the generator's first level and in the discriminator's first convolution."""
    padding: Literal["zero", "reflection"] = "zero"
    activation: Literal["relu", "leaky_relu", "elu", "prelu", "gelu"] = "leaky_relu"
    negative_slope: float = 0.3
    norm: Literal["instance", "batch", "none"] = "instance"
    """Norm after each convolution. `batch` makes the samples of a batch depend on each other, so it needs
    `train.step plain`. Each process of a run takes the statistics of its own samples."""
    norm_affine: bool = True
    """Whether the norm has learnable scales γ and offsets β."""
    norm_eps: float = 1e-3
    """ε of the norm (Keras' default; torch's is 1e-5)."""
    norm_gamma: Literal["one", "random"] = "one"
    """Initial γ of the instance norm. `random`: drawn like a weight, as the published code did by accident."""
    norm_min_scale: float = 2**-6
    """Smallest |γ| of the instance norm. With such a bound, the norm keeps its output for the backward, which the next
    convolution keeps anyway. 0: any γ is allowed, and the norm keeps its input too."""
    bias: bool = False
    """Whether the convolutions before a norm have a bias. A norm removes it again, except with `norm none`."""
    factorized_kernels: bool = False
    """Replace each k × k convolution by a 1 × k and a k × 1 convolution: VoloGAN's split kernels. This is another
    network. train.split_kernels only computes the same network in another way."""
    input_range: Literal["unit", "signed"] = "unit"
    """Range that the images are mapped to before the first convolution. `unit`: [0, 1], as they are. `signed`: [-1, 1],
    as in Zhu et al."""
    spectral_norm: bool = True
    """Spectral normalisation of every convolution, with one power iteration per training step."""
    initializer: Literal[
        "he_alpha_uniform",
        "he_alpha_normal",
        "he_uniform",
        "he_normal",
        "he_normal_uncorrected",
        "glorot_uniform",
        "glorot_normal",
        "glorot_normal_uncorrected",
        "glorot_normal_small",
        "normal",
        "uniform",
    ] = "he_alpha_uniform"
    """Initialiser of the weights. `he_alpha`: He, with the leaky slope in the gain. `normal`: σ = 0.02. `uniform`:
    ±0.05. The other normal ones are cut at 2 σ. `he_normal` and `glorot_normal` correct σ for the cut, as Keras does.
    The `_uncorrected` ones have 0.88 of the deviation, as older versions of this project. `glorot_normal_small`: 0.02
    times the deviation, not cut, as in CUT."""
    dropout: float = 0.2
    """Probability of dropout. In the generator, it is in the bottleneck and in `dropout_levels`, and drops whole
    channels. In the discriminator `one_shot`, it is in the content and layout branches, and drops single elements. In
    the generator `resnet`, it is inside the residual blocks, and drops single elements. The discriminator `unet` has
    the generator's. The other discriminators have none."""
    attention: Literal["none", "elementwise", "elementwise_untransposed", "matrix"] = "none"
    """Gated self-attention in the generator's decoder and at the end of the discriminator's trunk. `elementwise`: the
    published form. The query is exchanged between height and width, so images must be square. Then it is multiplied
    with the key, element by element, and the softmax runs over the height. `elementwise_untransposed`: the same without
    the exchange. `matrix`: scaled dot-product attention, as in SAGAN."""
    attention_eps: float = 1e-3
    """ε of the layer norms in the attention (Keras' default; torch's is 1e-5)."""


@dataclass(frozen=True)
class GeneratorConfig(BlockConfig):
    """Both generators. Only the generator S to T has `noise_channels` and `hole_head`."""

    network: Literal["unet", "unet_residual", "unet_residual_bottleneck", "resnet", "resnet_vologan", "unet_zhu"] = (
        "unet"
    )
    """`unet`: a U-Net. `unet_residual`: a U-Net of residual bottleneck blocks. `unet_residual_bottleneck`: a U-Net with
    such blocks in its bottleneck only. `resnet`: the ResNet of Zhu et al., which has 2 levels there. `resnet_vologan`:
    `unet_residual_bottleneck` without skips. `unet_zhu`: the U-Net of Zhu et al., with 4×4 kernels."""
    width: int = 64
    """Channels of the first level. They double with each level, up to `max_width`."""
    max_width: int = 512
    levels: int = 5
    """Times that the image is halved."""
    blocks: int = 2
    """Blocks of a level, 1 to 3, and of the bottleneck of `unet`. `resnet` has one convolution a level."""
    residual_blocks: int = 9
    """Residual blocks in the bottleneck. `unet` has none."""
    cardinality: int = 4
    """Parallel paths of a residual bottleneck block. More than 1: each is 1/64 as wide as the block. 1: it is 1/4 as
    wide. `resnet` has other blocks."""
    down: Down = "conv_stride_2"
    up: Up = "depth_to_space"
    join: Literal["concat", "add"] = "concat"
    """How a decoder level combines its input with its skip."""
    dropout_levels: int | None = None
    """Number of decoder levels with dropout, from the lowest on. Default: half of the levels, rounded down."""
    attention_size: int = 32
    """Height of the decoder level that has the attention, behind its dropout. 0: the lowest level, before its
    dropout. `resnet` has the attention behind its residual blocks."""
    output: Literal["hard_sigmoid", "sigmoid", "tanh", "residual"] = "hard_sigmoid"
    """Activation from the last convolution's output y to the image. `hard_sigmoid`: clip(0.2 y + 0.5, 0, 1), as in
    Keras. `residual`: clip(x + y, 0, 1); the network predicts the change of its input x and starts near the identity.
    It is not part of the published method."""
    output_bias: bool = False
    """Whether the last convolution has a bias. The published one has none."""
    keep_background: bool = False
    """Whether background stays background: a pixel that is 0 in all channels stays 0. It is for cut-out figures, such
    as rendered people, and not part of the published method. `vologan_fast.translate` keeps background in any case."""
    noise_channels: int = 0
    """Planes of standard normal noise that the generator S to T gets with each image, for a T that was measured by a
    noisy sensor. 0: it has one result for an image. It is not part of the published method."""
    hole_head: bool = False
    """Whether the generator S to T has a small network beside it, which says where depth is not measured. It is for a T
    with holes, and not part of the published method."""


@dataclass(frozen=True)
class DiscriminatorConfig(BlockConfig):
    """Both discriminators."""

    network: Literal["one_shot", "patch", "patch_vologan", "pixel", "unet"] = "one_shot"
    """`one_shot`: a shared trunk with low-level, content and layout outputs (arXiv 2103.13389). `patch`: the PatchGAN
    of Zhu et al., with 4×4 kernels; its patches have 70 × 70 pixels with 3 levels. `patch_vologan`: VoloGAN's PatchGAN.
    `pixel`: 1×1 convolutions. `unet`: a U-Net that judges the image and each pixel (arXiv 2002.12655)."""
    widths: tuple[int, ...] = (64, 256, 512)
    """Channels of the levels of `one_shot`, at full, half and quarter resolution."""
    down: Down = "average_pooling"
    """Layer that halves the image. `patch` only knows `antialiased`: its convolutions keep the size then, and a blur
    halves. Otherwise they halve it themselves. `pixel` has no such choice."""
    down_widths: tuple[int, ...] = (128, 256, 512)
    """Channels of `one_shot` after the layer that halves each level. Only `conv_stride_2`, `space_to_depth` and
    `antialiased` have them."""
    width: int = 64
    """Channels of the first level of all networks but `one_shot`. They double with each level, up to `max_width`."""
    max_width: int = 512
    """Largest number of channels of all networks but `one_shot`."""
    levels: int = 3
    """Times that `patch`, `patch_vologan` and `unet` halve the image."""
    blocks: int = 1
    """Blocks of a level, 1 to 3, in `one_shot`, `patch_vologan` and `unet`."""
    up: Up = "depth_to_space"
    """Layer of `unet` that doubles the image."""
    join: Literal["concat", "add"] = "concat"
    """How a decoder level of `unet` combines its input with its skip."""
    content_norm: Literal["none", "instance"] = "none"
    """Norm in the content branch, whose planes have one value. `instance` is the published form. With it, the branch
    does not depend on the image, because the instance norm of a single value is always β."""
    branch_dropouts: Literal[1, 2] = 2
    """Number of dropouts in the content branch, and in the layout branch. 2: before each of the last two convolutions.
    1: before the last one."""
    depth_gradient: float = 0.0
    """Factor f of two more channels, the differences d of depth to the right neighbour and to the one below: tanh(f d).
    With them, a discriminator sees noise, smoothing and edge tails early. 0: no such channels. A domain without depth
    has none either. They are not part of the published method."""


@dataclass(frozen=True)
class LossConfig:
    """Loss terms and their weights."""

    routing: Literal["vologan", "cyclegan"] = "vologan"
    """Terms that each generator learns from. `vologan`: only the losses in the generator's own output domain.
    `cyclegan`: the sum of all losses."""
    adversarial: Literal["mse", "bce", "hinge", "hinge_both", "wgan"] = "mse"
    """Adversarial loss. `mse`: least squares (LSGAN). `hinge`: the generator's loss is -z, as in the literature.
    `hinge_both`: it is max(0, 1 - z), the published form. `wgan` needs discriminators with a Lipschitz bound, such as
    spectral norm gives."""
    pixel: Literal["l1", "l2", "l1_then_l2"] = "l1"
    """Distance in the cycle and identity terms. `l1_then_l2`: L1, and from `pixel_switch_at` on L2."""
    pixel_switch_at: float = 0.5
    """Fraction of schedule.epochs at which `l1_then_l2` changes to L2. It changes in the first epoch that starts at
    this fraction or later."""
    reduction: Literal["channels", "image", "signed_image"] = "channels"
    """How the cycle and identity terms become one number. `channels`: the mean of each channel, times its
    `channel_weights`, summed. `image`: the plain mean over all values of all channels, without weights.
    `signed_image`: the same for images in [-1, 1], whose differences are twice as large, as in Zhu et al."""
    cycle: float = 10.0
    """Weight of the cycles S → T → S, and of T → S → T without `cycle_t`."""
    identity: float = 0.5
    """Weight of the identity, which holds a generator to its input where that is in its output domain already. It is
    for images of S, and for those of T without `identity_t`."""
    ssim: float = 1.0
    """Weight of the SSIM of the cycles S → T → S, and of T → S → T without `ssim_t`."""
    cycle_t: float | None = None
    """Weight of the cycles T → S → T. Default: `cycle`."""
    identity_t: float | None = None
    """Weight of the identity of images of T. Default: `identity`."""
    ssim_t: float | None = None
    """Weight of the SSIM of the cycles T → S → T. Default: `ssim`."""
    hole_share: float = 1000.0
    """Weight of the squared difference between the shares of holes in translations and in images of T, for a generator
    with `hole_head`. Without it, a generator learns no holes that are rare."""
    identity_every: int = 1
    """Steps from one identity pass to the next. The weight of a pass is multiplied by this number. More than 1 saves up
    to a third of the generators' work, and is not part of the published method. docs/learning.md has scores."""
    ssim_statistics: Literal["image", "batch"] = "image"
    """Pixels that the means and variances of the global SSIM are taken over. `image`: each image by itself, so the
    batch size has no influence. `batch`: the whole batch."""
    channel_weights: tuple[float, ...] = ()
    """Weights of the channels in the pixel and SSIM terms. Default: 1 for each channel of colour, and as much for depth
    as for all of them, at least 1."""
    penalty: Literal["none", "r1", "wgan-gp"] = "none"
    """Penalty on the discriminators' gradient ∇D with respect to their input, beside any adversarial loss. D is the
    sum of the means of a discriminator's outputs. `r1`: ½ ‖∇D‖² at real images (Mescheder et al.). `wgan-gp`:
    (‖∇D‖ − 1)² at random points between a real image and a translation (Gulrajani et al.)."""
    penalty_weight: float = 10.0
    """Weight of the penalty: γ of `r1`, λ of `wgan-gp`."""
    penalty_every: int = 1
    """Steps from one penalty to the next. The weight of a penalty is multiplied by this number, as in StyleGAN2."""
    pool: int = 0
    """Translations of former steps that are kept for the discriminators. They then judge an old translation instead of
    a new one with probability 1/2 (CycleGAN: 50). 0: only new translations."""
    diffaugment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Random changes of all images that a discriminator judges in training, for small data sets (DiffAugment).
    `color` leaves depth as it is."""
    cutmix: float = 0.0
    """Probability that a discriminator `unet` also learns from a mixture of a real image and a translation (0.5 in the
    published runs)."""
    cutmix_ramp: float | None = None
    """Fraction of schedule.epochs in which the probability rises from 0 to `cutmix`, epoch by epoch. Default: the
    warm-up."""
    cutmix_keeps_background: bool = False
    """Whether pixels at which neither image shows something count as real. 0 in all channels is background."""
    cutmix_consistency: float = 1.0
    """Weight of the squared difference between a mixture's logits and the mixed logits."""


@dataclass(frozen=True)
class ContrastConfig:
    """Contrastive loss of the method `cut`, on patches of the generator's features (arXiv 2007.15651).

    A patch of the translation must be more like the patch of the input at the same place than like other patches of
    the input.
    """

    weight: float = 1.0
    """Weight of the loss between an image of S and its translation."""
    identity: float = 1.0
    """Weight of the loss between an image of T and its translation, which should not change it. 0: no such pass."""
    patches: int = 256
    """Positions per image and level of features. Smaller levels use all of their positions."""
    temperature: float = 0.07
    width: int = 256
    """Length of the vectors that are compared, and width of the layer before them."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser of the two generators or of the two discriminators."""

    kind: Literal["adam", "nadam", "sgd", "swats_adam", "swats_nadam"] = "nadam"
    """Algorithm. `swats_adam` and `swats_nadam` start as Adam or NAdam and change to SGD at `switch_at`."""
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    epsilon: float = 1e-7
    """ε of (N)Adam: Keras' 1e-7 (torch: 1e-8)."""
    amsgrad: bool = False
    """Divide by the largest second moment so far (AMSGrad). Only for `adam` and `swats_adam`."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum. Only for `sgd`; the others ignore it."""
    switch_at: float = 0.5
    """Fraction of schedule.epochs at which `swats_*` changes to SGD. It changes in the first epoch that starts at this
    fraction or later."""
    switch_learning_rate: float = 1e-3
    """Learning rate of `swats_*` after the change to SGD. The schedule multiplies it by its factor."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate by epoch: a linear warm-up, then a decay."""

    epochs: int = 60
    warmup_epochs: int = 10
    decay: Literal[
        "cosine", "linear", "constant_linear", "exponential", "exponential_hundredth", "step", "plateau", "none"
    ] = "cosine"
    """Decay after the warm-up. `exponential`: e^(-2πp), where p is the share of the decay that has passed.
    `exponential_hundredth`: 0.01^p. `constant_linear`: constant, then linear to 0 after the last epoch, as in CycleGAN.
    `step`: a lower rate every few epochs. `plateau`: a lower rate each time that the held-out loss stops falling."""
    constant_epochs: int = 0
    """Epochs after the warm-up in which `constant_linear` is constant."""
    step_epochs: int = 50
    """Epochs from one change of `step` to the next. The first change is this many epochs after the warm-up."""
    step_factor: float = 0.1
    """Factor of the rate at each change of `step`."""
    plateau_loss: Literal[
        "total", "adversarial", "cycle", "identity", "ssim", "contrast", "contrast_identity", "hole_share"
    ] = "total"
    """Loss term that `plateau` watches on the held-out images, at the end of each epoch after the warm-up. It is the
    sum over the generators. The run must have this term, with a weight that is not 0."""
    plateau_patience: int = 5
    """Epochs in sequence that may pass without a better loss. One more, and `plateau` lowers the rate."""
    plateau_threshold: float = 0.01
    """A loss is better if it is below the best one by more than this share of it."""
    plateau_factor: float = 0.2
    """Factor of the rate at each change of `plateau`."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    method: Literal["cyclegan", "cut"] = "cyclegan"
    """What is trained. `cyclegan`: generators for both directions, which undo each other. `cut`: one generator from S
    to T, by contrastive learning (arXiv 2007.15651). It has no cycle, so the pixel terms of `loss` are not used."""
    batch: int = 8
    """Images per domain and step, over all devices together."""
    seed: int = 0
    average: float = 0.0
    """Decay per step of an exponential moving average of the generators' weights. 0: no average. If there is
    an average, the grids and the held-out losses come from it, and it is saved beside the generators."""
    step: Literal["fast", "plain"] = "fast"
    """Implementation of the step. `fast`: the step runs in phases, and keeps a fraction of the activations. `plain`:
    the step computes all losses together, as the paper states them. Both give the same gradients, except for
    rounding."""
    micro_batch: int = 0
    """Images per domain that the fast step processes at a time, on each device. 0: all images of the device's part of
    the batch. The gradients of the parts add up to the gradients of the batch."""
    compile: Literal["auto", "none", "default", "max-autotune"] = "auto"
    """Mode of torch.compile for the networks. `auto`: `default` on a GPU, else `none`. Compiling takes minutes, once
    per machine."""
    cuda_graph: bool = False
    """On a single GPU: replay the step as a CUDA graph. The default is off because this has not run on a GPU yet."""
    recompute: int = 0
    """Number of the generators' outer levels that the backward runs again, so that their activations are not kept."""
    split_kernels: bool = False
    """Compute 7 × 7 convolutions as 7 × 4 plus 7 × 3. cuDNN has Hopper kernels for these sizes. Not measured yet."""
    pad_channels: bool = False
    """Pad the images to 8 channels with zeros, for faster first convolutions. Not measured yet."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "by_device"] = "auto"
    """Data type of the networks' computations. Parameters, losses and optimiser state are always float32. `tf32`:
    float32, with TensorFloat-32 products on a GPU. `by_device`: bfloat16 on a GPU, else float32. `auto`: the same, but
    a new run records its choice, and keeps it on other devices."""
    memory_format: Literal["auto", "contiguous", "channels_last", "by_device"] = "auto"
    """Order of an image's values in memory: channel by channel (`contiguous`), or pixel by pixel (`channels_last`).
    `by_device`: channels_last on a GPU, else contiguous. `auto`: channels_last. A new run records its choice, and keeps
    it on other devices."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """What happens when a step makes weights that are not finite. `stop`: the run ends with an error, and the folder
    `bad_steps` names the images of the step. `rollback`: the run goes back to its last checkpoint, and leaves this step
    out. `skip`: the gradients of each step are looked at before they are used, and bad ones are not used. On a GPU, the
    host then waits in each step."""
    nan_limit: int = 10
    """Most steps that `rollback` or `skip` leaves out. One more ends the run."""
    log_every: int = 10
    """Steps between lines of the log."""
    log_limit: int = 10_000
    """Lines after which each second line is left out. After twice as many, three of four are left out, and so on. 0: no
    limit."""
    validate_every: int = 0
    """Steps between validations (losses and grid of the held-out images). 0: once per epoch."""
    save_every: int = 0
    """Steps between checkpoints. 0: once per epoch."""
    keep_checkpoints: int = 3
    """Number of latest checkpoints to keep. Checkpoints that are linked as the best are kept too."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are kept too. 0: none."""
    evaluate_every: int = 0
    """Steps between evaluations of the held-out images, with the averaged weights if there are any. Each saves a
    checkpoint, and the best one is kept and linked as checkpoints/best. 0: never."""
    grid_images: int = 4
    """Held-out images per domain on a sample grid."""
    grid_limit: int = 500
    """Grids after which each second grid is left out. After twice as many, three of four are left out, and so on. 0: no
    limit."""
    report_every: int = 0
    """Steps between reports: RUN/report.html, and its quantities in TensorBoard. The end of the run writes one, too.
    0: only the end. -1: never."""


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    data: DataConfig = DataConfig()
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()
    contrast: ContrastConfig = ContrastConfig()
    generator_optimizer: OptimizerConfig = OptimizerConfig(nesterov=True)
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(kind="sgd", learning_rate=1e-4)
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
