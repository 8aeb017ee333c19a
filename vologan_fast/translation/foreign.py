"""Generators that were trained by the PyTorch CycleGAN or by CUT, on our networks.

Their weights are a state_dict in a file such as `latest_net_G_A.pth`. Only the names of the weights differ from ours.
So this module recognises the form of the generator by the names, and gives each weight our name for it.

**ResNet** (`resnet_6blocks`, `resnet_9blocks`): the layers are numbered through, as `model.N`.

    model.1                 7×7 convolution, then norm
    model.4, 7              3×3 convolutions that halve the size. With blurs: 4 and 8; the blurs 7 and 11 have filters
    model.10.conv_block …   residual blocks: convolutions 1 and 5, or 1 and 6 if there is a dropout between them
    model.19, 22            transposed convolutions. With blurs: filters, and convolutions behind them
    model.26                7×7 convolution

**U-Net** (`unet_128`, `unet_256`): each level holds the next one. Its layers are numbered from 0 on.

    model.model.0, 3        convolutions of the outermost level: down and up
    model.model.1.model.1   of the next level: down, with a norm at 2, the next level at 3, up at 5, with a norm at 6
    ….1, 3, 4               of the lowest level: down, up, and a norm
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vologan_fast.config import DOMAINS, PRESETS, ChannelSet, Config, ConfigError, DataConfig, GeneratorConfig
from vologan_fast.networks import build_generator, layout_by_device
from vologan_fast.networks.generator import Generator
from vologan_fast.training.checkpoint import CheckpointError
from vologan_fast.translation.translator import Direction, Translator, check_direction

_COLOUR: dict[int, ChannelSet] = {1: "grey", 3: "rgb"}
"""Meaning of the channels of an image, by their number, if nobody says it."""
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_LEVELS = 10
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Entries that old versions of PyTorch wrote for instance norms, which never used them."""
_BLURS = {3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0)}
"""Side of a blur's filter → its row. The filter of 3 × 3 has the sum 1, that of 4 × 4 the sum 4."""


class ForeignTranslator(Translator):
    """A `Translator` with the weights of another project. Its `config` has the form of the generator.

    The other settings of `config` are those of the preset `cyclegan-256`, because the file does not hold them.
    """

    def __init__(self, generator: Generator, config: Config, direction: Direction, weights: Path) -> None:
        super().__init__(generator, config, direction, weights)
        self.config = config


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The form of a generator, and the names of its layers."""

    generator: GeneratorConfig
    channels: tuple[int, int]
    """Of the images that come in and out."""
    layers: dict[str, str]
    """Our name of a layer with weights → the name in the file."""
    norms: tuple[str, ...]
    """Names of all norms in the file."""
    blurs: tuple[tuple[str, int, int], ...] = ()
    """Name, channels and side of the filter of each blur in the file."""


def load_foreign(
    path: str | os.PathLike[str],
    direction: Direction | None = None,
    *,
    data: DataConfig | None = None,
    device: str | torch.device | None = None,
) -> ForeignTranslator:
    """Return a generator of the PyTorch CycleGAN or of CUT, in eval mode on `device`.

    `path` is the file of a state_dict: `latest_net_G_A.pth`, or the same as .safetensors. It may hold a ResNet with any
    number of residual blocks, also with the blurs of CUT, or a U-Net. The norms may be instance norms, batch norms or
    none. The padding is by reflection. A dropout does nothing here. Nothing but tensors is read from a file.

    The result takes images in [0, 1], as the translators of `load` do. `data` says what their channels mean, and at
    which size the network was trained. By default, images of 1 and 3 channels are grey and colour, of 256 × 256 pixels.
    Others need `data` with its depth settings. `direction` is "s2t" by default, and "t2s" for a name that ends in
    "_net_G_B". `device` defaults to the GPU if there is one.

    Raises CheckpointError for a file that cannot be read, or that holds something else than such a generator. Raises
    ConfigError for an unknown direction, and for channels that do not fit `data`.
    """
    file = Path(path)
    check_direction(direction)
    direction = direction or ("t2s" if file.stem.endswith("_net_G_B") else "s2t")
    state = _read(file)
    layout = _unet(state, file) if "model.model.0.weight" in state else _resnet(state, file)
    config = _config(layout, data, direction, file)
    with torch.device("meta"):  # compare the shapes before memory is used
        expected = build_generator(layout.generator, *layout.channels).state_dict()
    found = _renamed(state, layout, expected, file)
    generator = build_generator(layout.generator, *layout.channels)
    generator.load_state_dict(found)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    translator = ForeignTranslator(generator, config, direction, file)
    return translator.to(device=chosen, memory_format=layout_by_device(chosen))  # type: ignore[call-overload]


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names, without the prefix of `DataParallel`. Raises CheckpointError."""
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise CheckpointError(f"{file}: {found}; expected a generator's weights, such as latest_net_G_A.pth")
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            with warnings.catch_warnings(action="ignore"):  # about old formats
                state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    except Exception as error:  # torch.load raises nearly anything for a damaged file
        raise CheckpointError(
            f"{file}: expected a file of torch.save with tensors alone, found something else, which is not loaded "
            f"because it may run code ({type(error).__name__}); torch.save(model.state_dict(), …) makes such a file"
        ) from error
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{file}: expected a state_dict, found {_in_words(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            hint = "; save this entry alone" if isinstance(value, Mapping) else ""
            found = f"{_shown(name)} with {_in_words(value)}{hint}"
            raise CheckpointError(f"{file}: expected a state_dict of names and tensors, found {found}")
        _check_tensor(file, name, value)
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _check_tensor(file: Path, name: str, value: Tensor) -> None:
    """Raise CheckpointError unless a tensor has numbers of its own, in memory, that are finite."""
    kind = None
    if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
        kind = f"a {value.dtype} tensor in the layout {value.layout} on {value.device.type}"
    elif value.dtype not in _TYPES and not name.endswith("num_batches_tracked"):
        kind = f"a {value.dtype} tensor"
    elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
        kind = f"{value.numel()} numbers in {value.untyped_storage().nbytes()} bytes"
    elif not torch.isfinite(value.float()).all():
        kind = "NaN or infinite values"
    if kind is not None:
        raise CheckpointError(f"{file}: {_shown(name)}: expected finite weights of 16 to 64 bits, found {kind}")


def _shown(name: Any) -> str:
    """Return the beginning of a name from a file, in characters that can be printed."""
    return name[:60] if isinstance(name, str) and name.isprintable() else ascii(name)[:60]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {len(value)} entries"
    return f"a {type(value).__name__}"


def _resnet(state: Mapping[str, Tensor], file: Path) -> _Layout:
    """Return the layout of a ResNet. Raises CheckpointError if the names are not those of one."""
    blocks = sorted({int(match[1]) for name in state if (match := re.match(r"model\.(\d{1,4})\.conv_block\.", name))})
    if not blocks or blocks != list(range(blocks[0], blocks[-1] + 1)) or "model.1.weight" not in state:
        _refuse(file, state)
    first, last = blocks[0], blocks[-1]
    filters = [int(match[1]) for name in state if (match := re.fullmatch(r"model\.(\d{1,4})\.filt", name))]
    blurs_down, blurs_up = any(n < first for n in filters), any(n > last for n in filters)
    levels, rest = divmod(first - 4, 4 if blurs_down else 3)
    if rest or not 1 <= levels <= _MOST_LEVELS:
        _refuse(file, state)
    if f"model.{first}.conv_block.0.weight" in state:
        raise CheckpointError(f"{file}: expected residual blocks with padding by reflection, found padding by zeros")
    dropout = f"model.{first}.conv_block.6.weight" in state and state[f"model.{first}.conv_block.6.weight"].dim() == 4
    norm = _norm(state, "model.1", "model.2")
    image, width = _shape(state, "model.1.weight", file)[1::-1]

    inner = ".norm" if norm == "batch" else ""  # a batch norm is inside another module here
    layers, norms, blurs = {"stem.convolution": "model.1", f"stem.norm{inner}": "model.2"}, [2], []
    for level in range(levels):
        number = 4 + level * (4 if blurs_down else 3)
        layers |= {f"down.{level}.convolution": f"model.{number}", f"down.{level}.norm{inner}": f"model.{number + 1}"}
        norms.append(number + 1)
        if blurs_down:
            blurs.append((f"model.{number + 3}", width * 2 ** (level + 1), 3))
    of_blocks = []
    for block, number in enumerate(blocks):
        inside, second = f"model.{number}.conv_block", 6 if dropout else 5
        layers |= {
            f"blocks.{block}.block.convolution": f"{inside}.1",
            f"blocks.{block}.block.norm{inner}": f"{inside}.2",
            f"blocks.{block}.convolution": f"{inside}.{second}",
            f"blocks.{block}.norm{inner}": f"{inside}.{second + 1}",
        }
        of_blocks += [f"{inside}.2", f"{inside}.{second + 1}"]
    number = last + 1
    for level in range(levels):
        if blurs_up:
            blurs.append((f"model.{number}", width * 2 ** (levels - level), 4))
            number += 1
        layers |= {f"up.{level}.convolution": f"model.{number}", f"up.{level}.norm{inner}": f"model.{number + 1}"}
        norms.append(number + 1)
        number += 3
    to_image = f"model.{number + 1}"
    layers["to_image"] = to_image
    generator = dataclasses.replace(
        PRESETS["cyclegan-256"].generator,
        width=width,
        max_width=width * 2**levels,
        levels=levels,
        residual_blocks=len(blocks),
        down="antialiased" if blurs_down else "conv_stride_2",
        up="antialiased" if blurs_up else "transposed_convolution",
        dropout=0.5 if dropout else 0.0,
        norm=norm,
        norm_affine=norm == "batch",
        bias=norm == "instance",
    )
    channels = image, _shape(state, f"{to_image}.weight", file)[0]
    return _Layout(generator, channels, layers, (*(f"model.{n}" for n in norms), *of_blocks), tuple(blurs))


def _unet(state: Mapping[str, Tensor], file: Path) -> _Layout:
    """Return the layout of a U-Net. Raises CheckpointError if the names are not those of one."""
    insides = ["model.model", "model.model.1.model"]
    while len(insides) <= _MOST_LEVELS and f"{insides[-1]}.3.model.1.weight" in state:
        insides.append(f"{insides[-1]}.3.model")
    levels = len(insides)
    lowest = insides[-1]
    if levels > _MOST_LEVELS:
        _refuse(file, state)
    norm = _norm(state, "model.model.0", f"{lowest}.4")
    width, image = _shape(state, "model.model.0.weight", file)[:2]

    layers, norms = {"down.0": "model.model.0", f"up.{levels - 1}": "model.model.3"}, []
    for level, inside in enumerate(insides[1:], 1):
        is_lowest = inside == lowest
        up, its_norm = (f"{inside}.3", f"{inside}.4") if is_lowest else (f"{inside}.5", f"{inside}.6")
        # Our decoder counts from the lowest level on.
        layers |= {f"down.{level}": f"{inside}.1", f"up.{levels - 1 - level}": up}
        layers[f"up_norm.{levels - 1 - level}.norm.norm"] = its_norm
        norms.append(its_norm)
        if not is_lowest:
            layers[f"down_norm.{level}.norm"] = f"{inside}.2"
            norms.append(f"{inside}.2")
    generator = dataclasses.replace(
        PRESETS["cyclegan-256"].generator,
        network="unet_zhu",
        width=width,
        max_width=8 * width,
        levels=levels,
        padding="zero",
        activation="leaky_relu",
        negative_slope=0.2,
        norm=norm,
        norm_affine=norm == "batch",
        bias=norm == "instance",
    )
    out = _shape(state, "model.model.3.weight", file)[1]  # a transposed convolution: (in, out, 4, 4)
    return _Layout(generator, (image, out), layers, tuple(norms))


def _norm(state: Mapping[str, Tensor], convolution: str, norm: str) -> Any:
    """Return the kind of the norms. Convolutions have a bias with instance norms only."""
    if f"{norm}.weight" in state:
        return "batch"
    return "instance" if f"{convolution}.bias" in state else "none"


def _shape(state: Mapping[str, Tensor], name: str, file: Path) -> torch.Size:
    """Return the shape of a convolution's weight. Raises CheckpointError if there is none."""
    if name not in state:
        raise CheckpointError(f"{file}: expected {name}, found no such weight")
    shape = state[name].shape
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"{file}: {name}: expected the weight of a convolution, found the shape {tuple(shape)}")
    return shape


def _renamed(
    state: Mapping[str, Tensor], layout: _Layout, expected: Mapping[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """Return the weights under our names, in float32. Raises CheckpointError for one that is missing or left over."""
    found, used = {}, set()
    for ours, like in expected.items():
        layer, _, entry = ours.rpartition(".")
        name = f"{layout.layers[layer]}.{entry}"
        if entry == "num_batches_tracked":  # a file of an old version lacks it
            found[ours] = torch.zeros((), dtype=torch.int64)
        elif name not in state:
            raise CheckpointError(f"{file}: expected {name}, found no such weight")
        elif state[name].shape != like.shape:
            shapes = f"the shape {tuple(like.shape)}, found {tuple(state[name].shape)}"
            raise CheckpointError(f"{file}: {name}: expected {shapes}")
        else:
            found[ours] = state[name].detach().float()
        used.add(name)
    for name, channels, side in layout.blurs:
        row = torch.tensor(_BLURS[side])
        blur = torch.outer(row, row) / (row.sum() ** 2 / (1 if side == 3 else 4))
        filters = state.get(f"{name}.filt")
        if filters is None or not torch.equal(filters.float(), blur.expand(channels, 1, side, side)):
            row_text = " ".join(f"{value:.0f}" for value in _BLURS[side])
            raise CheckpointError(f"{file}: {name}.filt: expected the filter {row_text} in {channels} channels")
        used.add(f"{name}.filt")
    used |= {f"{norm}.{entry}" for norm in layout.norms for entry in _STATISTICS}
    if more := sorted(set(state) - used):
        raise CheckpointError(f"{file}: {_shown(more[0])}: found, but a generator of this form has no such weight")
    return found


def _config(layout: _Layout, data: DataConfig | None, direction: Direction, file: Path) -> Config:
    """Return a configuration for a generator, whose `data` says what its images mean. Raises ConfigError."""
    domains = DOMAINS if direction == "s2t" else DOMAINS[::-1]
    size = max(256, 2**layout.generator.levels)
    if data is None:
        names = {domain: _COLOUR.get(number) for domain, number in zip(domains, layout.channels, strict=True)}
        synthetic, real = (names[domain] for domain in DOMAINS)
        if synthetic is None or real is None:
            numbers = " to ".join(map(str, layout.channels))
            raise ConfigError(
                f"{file}: translates {numbers} channels: expected load_foreign(…, data=DataConfig(…)) in a program, "
                "which says what they mean"
            )
        both = synthetic if synthetic == real else (synthetic, real)
        data = dataclasses.replace(PRESETS["cyclegan-256"].data, size=size, channels=both)
    for domain, number in zip(domains, layout.channels, strict=True):
        channels, depth = data.channel_sets[domain], getattr(data, domain)
        if channels.number != number:
            raise ConfigError(
                f"{file}: has {number} channels for {domain} images: expected data.channels to say what they are, "
                f"found {data.channel_names}"
            )
        if channels.depth and (None in (depth.near, depth.far, depth.invalid) or depth.unit == "auto"):
            raise ConfigError(
                f"{file}: translates depth: expected data.{domain} with unit, near, far and invalid, as in the "
                "config.json of a run"
            )
    preset = PRESETS["cyclegan-256"]
    step = "plain" if layout.generator.norm == "batch" else preset.train.step
    train = dataclasses.replace(preset.train, step=step)
    return dataclasses.replace(preset, data=data, generator=layout.generator, train=train)


def _refuse(file: Path, state: Mapping[str, Tensor]) -> NoReturn:
    some = ", ".join(_shown(name) for name in sorted(state)[:2])
    raise CheckpointError(
        f"{file}: expected the names of a generator of the PyTorch CycleGAN (model.1.weight, …, or "
        f"model.model.0.weight, …), found {len(state)} others, such as {some}"
    )
