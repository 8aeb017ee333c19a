"""One look at the networks of a run: what they make of held-out images, as plain arrays.

`observe` runs the generators and the discriminators in batches, and keeps sums of what it sees. It keeps whole images
only of the few that a report shows, which it makes again at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vologan_fast.config import DOMAINS, Channels, Config
from vologan_fast.evaluation.inputs import Images
from vologan_fast.evaluation.views import Kind
from vologan_fast.networks import Networks
from vologan_fast.networks.depth_gradient import with_depth_gradient
from vologan_fast.quantities import warnings
from vologan_fast.quantities.depth import DepthScale, Floats, clamped, holes, profile_row
from vologan_fast.quantities.histograms import Histogram, histogram
from vologan_fast.quantities.judgements import Judgement, border, judgements, separation, sure_and_right
from vologan_fast.quantities.principal import Projection, pooled, project
from vologan_fast.quantities.warnings import Certainty
from vologan_fast.quantities.weights import Weights, weights_of

LOOKED_AT = 32
"""Held-out images of each domain that a report looks at, evenly spread."""
EXAMPLES = 3
"""Images of each direction that are shown, and as many of the best and of the worst."""
BINS = 64
_BATCH = 4
_KEYS = 2**40
"""First key of the noise. No step of training has it."""


@dataclass(frozen=True)
class Example:
    """An image, its translation, and the translation back if the method has one."""

    name: str
    images: tuple[Floats, ...]
    """Each (C, H, W) in [0, 1], float32."""
    error: float
    """What `Direction.measure` says about it."""
    row: int
    """The row of the depth profiles. 0 without depth."""


@dataclass(frozen=True)
class Direction:
    """The translations from one domain to the other."""

    source: str
    """"S" or "T"."""
    target: str
    labels: tuple[str, ...]
    """What the images of an example are, such as "S", "G(S)", "F(G(S))"."""
    channels: tuple[Channels, ...]
    """The channels of each of them."""
    scale: DepthScale
    """What the depth of all of them means: the input's unit, in which `translate` writes a translation."""
    measure: str
    """What ranks the images."""
    examples: tuple[Example, ...]
    best: tuple[Example, ...]
    worst: tuple[Example, ...]


@dataclass(frozen=True)
class Verdict:
    """What a discriminator says about images of its domain and about translations."""

    name: str
    """"D_T" or "D_S"."""
    border: float | None
    """The output between real and fake. None for `wgan`."""
    scores: Mapping[str, tuple[float, ...]]
    """For each set, the score of each image."""
    separation: float
    """The probability that a real image has a larger score than a translation."""
    examples: Mapping[str, tuple[tuple[Floats, Judgement], ...]]
    """For each set, some images (C, H, W) with what is said about them."""
    channels: Channels


@dataclass(frozen=True)
class Observation:
    """What a report shows of the networks after one step. "S", "T", "G(S)" and "F(T)" are the names of the sets."""

    step: int
    channels: Mapping[str, Channels]
    """The channels of each set."""
    scales: Mapping[str, DepthScale]
    """The depth of S and of T."""
    counts: Mapping[str, int]
    """How many images of S and of T were looked at."""
    histograms: Mapping[str, Mapping[str, Histogram]]
    """By channel ("red", …, "depth") and set: the values on the figure; of depth, the measured ones."""
    hole_maps: Mapping[str, Floats]
    """For each set with depth (H, W): the share of the images that have a hole there."""
    hole_shares: Mapping[str, float]
    """For each set with depth: the share of the figure without depth."""
    directions: tuple[Direction, ...]
    verdicts: tuple[Verdict, ...]
    projections: Mapping[str, Projection]
    """By "image and depth", "image" and "depth", as far as both domains have them."""
    weights: Mapping[str, Weights]
    """By the network's name."""
    warnings: tuple[str, ...]


@torch.no_grad()
def observe(networks: Networks, config: Config, images: Mapping[str, Images], step: int) -> Observation:
    """Return what the networks make of held-out `images` of the domains "synthetic" and "real", after `step`.

    Nothing changes in the networks but that they are in eval mode. No random number is drawn.
    """
    networks.eval()
    look = _Look(networks, config, images)
    directions = look.directions()
    verdicts = look.verdicts()
    sets = look.sets
    return Observation(
        step=step,
        channels={name: s.channels for name, s in sets.items()},
        scales={name: look.scale(name) for name in "ST" if sets[name].channels.depth},
        counts={name: len(look.images[name].pixels) for name in "ST"},
        histograms=look.histograms(),
        hole_maps={name: s.holes / max(s.count, 1) for name, s in sets.items() if s.channels.depth},
        hole_shares={name: s.hole_share for name, s in sets.items() if s.channels.depth},
        directions=directions,
        verdicts=verdicts,
        projections=look.projections(),
        weights={name: weights_of(network) for name, network in networks.named_children()},
        warnings=tuple(look.warnings()),
    )


@torch.no_grad()
def failures(networks: Networks, config: Config, images: Mapping[str, Images]) -> list[str]:
    """Return sentences about generators that have collapsed and discriminators that are saturated.

    They are among the warnings of `observe`, which looks at more.
    """
    networks.eval()
    look = _Look(networks, config, images)
    look.directions()
    look.verdicts()
    return look.failures()


@dataclass
class _Set:
    """Sums over the images of one set."""

    channels: Channels
    holes: Floats
    count: int = 0
    figure: int = 0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    small: list[Tensor] = field(default_factory=list)
    at_ends: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    measured: int = 0

    @property
    def hole_share(self) -> float:
        return float(self.holes.sum()) / max(self.figure, 1)

    def add(self, images: Tensor, figure: Tensor) -> None:
        """Add images (N, C, H, W) with their figure (N, 1, H, W) bool."""
        values, here = images.float().cpu().numpy(), figure.cpu().numpy()
        for i, name in enumerate(self.channels.names):
            seen = here[:, 0] if name != "depth" else here[:, 0] & ~holes(values[:, i], here[:, 0])
            found = histogram(values[:, i][seen], 0.0, 1.0, BINS)
            self.histograms[name] = self.histograms[name] + found if name in self.histograms else found
        if self.channels.depth:
            depth = values[:, -1]
            gone = holes(depth, here[:, 0])
            self.holes = self.holes + gone.sum(0)
            measured = int((here[:, 0] & ~gone).sum())
            self.at_ends = self.at_ends + np.array(clamped(depth * here[:, 0])) * measured
            self.measured += measured
        self.count += len(images)
        self.figure += int(here.sum())
        self.small.append(pooled(images))


class _Look:
    """The passes of one look, and what they add up to."""

    def __init__(self, networks: Networks, config: Config, images: Mapping[str, Images]) -> None:
        self.networks, self.config = networks, config
        self.images = dict(zip("ST", (images[domain] for domain in DOMAINS), strict=True))
        self.kinds = dict(zip("ST", (Kind.of(config.data, domain) for domain in DOMAINS), strict=True))
        self.device = next(networks.parameters()).device
        self.generators = dict(zip(("G", "F"), networks.translators, strict=False))
        height, width = self.images["S"].pixels.shape[2:]
        names = {"S": "S", "T": "T", "G(S)": "T", **({"F(T)": "S"} if "F" in self.generators else {})}
        self.sets = {name: _Set(self.kinds[kind].channels, np.zeros((height, width))) for name, kind in names.items()}
        self.spilt = {name: np.zeros(2, np.int64) for name in ("G(S)", "F(T)")}
        self.judged: dict[str, dict[str, list[float]]] = {}
        self.certain: dict[str, Certainty] = {}

    def scale(self, name: str) -> DepthScale:
        """Return the scale of the depth of S or T."""
        return DepthScale.of(getattr(self.config.data, DOMAINS["ST".index(name)]))

    def directions(self) -> tuple[Direction, ...]:
        pairs = [("S", "T", "G", "F"), ("T", "S", "F", "G")]
        return tuple(self._direction(*pair) for pair in pairs if pair[2] in self.generators)

    def _direction(self, source: str, target: str, there: str, back: str) -> Direction:
        pixels, names = self.images[source].pixels, self.images[source].names
        has_cycle = back in self.generators
        errors: list[float] = []
        for first in range(0, len(pixels), _BATCH):
            x, made = self._translated(source, range(first, min(first + _BATCH, len(pixels))), there, back)
            figure = self.kinds[source].figure(x) > 0
            self.sets[source].add(x, figure)
            self._add_translations(f"{there}({source})", made[0], figure)
            if has_cycle:
                errors += (made[1] - x).abs().mean((1, 2, 3)).tolist()
            else:
                errors += [-judgement.score for judgement in judgements(self._outputs(target, made[0]))]
        if not has_cycle:  # no generator looks at T
            real = self.images[target].pixels
            for first in range(0, len(real), _BATCH):
                t = real[first : first + _BATCH]
                self.sets[target].add(t, self.kinds[target].figure(t) > 0)
        order = np.argsort(errors, kind="stable").tolist()
        spread = [i * len(pixels) // min(EXAMPLES, len(pixels)) for i in range(min(EXAMPLES, len(pixels)))]
        half = min(EXAMPLES, -(-len(order) // 2))
        chosen = {"examples": spread, "best": order[:half], "worst": order[half:][::-1][:EXAMPLES]}
        examples = {
            key: tuple(self._example(source, there, back, i, names[i], errors[i]) for i in indices)
            for key, indices in chosen.items()
        }
        labels = (source, f"{there}({source})", f"{back}({there}({source}))")[: 3 if has_cycle else 2]
        kinds = (source, target, source)
        return Direction(
            source,
            target,
            labels,
            tuple(self.kinds[kind].channels for kind in kinds[: len(labels)]),
            self.scale(source if self.kinds[source].channels.depth else target),
            "mean absolute difference between input and cycle" if has_cycle else "minus the score that D_T gives",
            **examples,
        )

    def _example(self, source: str, there: str, back: str, index: int, name: str, error: float) -> Example:
        x, made = self._translated(source, range(index, index + 1), there, back)
        figure = self.kinds[source].figure(x)  # `translate` leaves the rest as it is
        images = tuple(image[0].float().cpu().numpy() for image in (x, *(image * figure for image in made)))
        depth = next(
            (
                i[-1]
                for i, kind in zip(images, "STS" if source == "S" else "TST", strict=False)
                if self.kinds[kind].channels.depth
            ),
            None,
        )
        return Example(name, images, error, 0 if depth is None else profile_row(depth))

    def _translated(self, source: str, indices: range, there: str, back: str) -> tuple[Tensor, list[Tensor]]:
        """Return images of a domain on the device, and their translations there and back."""
        x = self.images[source].pixels[indices.start : indices.stop].to(self.device)
        made = [self._generate(there, x, indices)]
        if back in self.generators:
            made.append(self._generate(back, made[0], indices))
        return x, made

    def _generate(self, name: str, x: Tensor, indices: range) -> Tensor:
        keys = torch.arange(indices.start, indices.stop, device=self.device) + _KEYS
        made: Tensor = self.generators[name](x, keys)
        return made.float()

    def _add_translations(self, name: str, made: Tensor, figure: Tensor) -> None:
        """Add translations. Outside the figure of their input, they count as `translate` writes them: background."""
        self.spilt[name] += warnings.painted(~figure, made)
        self.sets[name].add(made * figure, figure)

    def _outputs(self, domain: str, x: Tensor) -> Sequence[Tensor]:
        """Return the outputs of a domain's discriminator for images (N, C, H, W)."""
        discriminator = self._discriminators()[domain]
        factor, channels = self.config.discriminator.depth_gradient, self.kinds[domain].channels
        if factor and channels.depth:
            x = with_depth_gradient(x, factor)
        outputs: Sequence[Tensor] = discriminator(x)
        return outputs

    def _discriminators(self) -> dict[str, nn.Module]:
        names = {"T": "discriminator_t", "S": "discriminator_s"}
        found = dict(self.networks.named_children())
        return {domain: found[name] for domain, name in names.items() if name in found}

    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(self._verdict(domain) for domain in self._discriminators())

    def _verdict(self, domain: str) -> Verdict:
        source, there = ("S", "G") if domain == "T" else ("T", "F")
        fake_name = f"{there}({source})"
        adversarial = self.config.loss.adversarial
        scores: dict[str, list[float]] = {domain: [], fake_name: []}
        sure: dict[str, list[tuple[float, int]]] = {domain: [], fake_name: []}
        examples: dict[str, list[tuple[Floats, Judgement]]] = {domain: [], fake_name: []}
        for name, of in ((domain, domain), (fake_name, source)):
            pixels = self.images[of].pixels
            for first in range(0, len(pixels), _BATCH):
                indices = range(first, min(first + _BATCH, len(pixels)))
                x = pixels[indices.start : indices.stop].to(self.device)
                x = x if name == domain else self._generate(there, x, indices)
                outputs = self._outputs(domain, x)
                found = judgements(outputs)
                scores[name] += [judgement.score for judgement in found]
                sure[name].append((sure_and_right(outputs, name == domain, adversarial), len(x)))
                for image, judgement in zip(x, found, strict=True):
                    if len(examples[name]) < EXAMPLES:
                        examples[name].append((image.float().cpu().numpy(), judgement))
        certain = {name: sum(s * n for s, n in shares) / sum(n for _, n in shares) for name, shares in sure.items()}
        self.certain[f"D_{domain}"] = Certainty(certain[domain], certain[fake_name])
        return Verdict(
            f"D_{domain}",
            border(adversarial),
            {name: tuple(values) for name, values in scores.items()},
            separation(scores[domain], scores[fake_name]),
            {name: tuple(found) for name, found in examples.items()},
            self.kinds[domain].channels,
        )

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        channels = dict.fromkeys(name for s in self.sets.values() for name in s.channels.names)
        return {
            channel: {name: s.histograms[channel] for name, s in self.sets.items() if channel in s.histograms}
            for channel in channels
        }

    def projections(self) -> dict[str, Projection]:
        """Return the projections of the parts that both domains have in equal channels."""
        s, t = (self.kinds[name].channels for name in "ST")
        parts: dict[str, slice] = {}
        if s == t and s.color and s.depth:
            parts["image and depth"] = slice(None)
        if s.color == t.color and s.color:
            parts["image"] = slice(0, s.color)
        if s.depth and t.depth:
            parts["depth"] = slice(-1, None)
        small = {name: torch.cat(found.small) for name, found in self.sets.items()}
        made = {part: project({name: x[:, channels] for name, x in small.items()}) for part, channels in parts.items()}
        return {part: projection for part, projection in made.items() if projection is not None}

    def failures(self) -> list[str]:
        spreads = {name: warnings.spread(torch.cat(found.small)) for name, found in self.sets.items()}
        pairs = [pair for pair in (("G(S)", "S", "T"), ("F(T)", "T", "S")) if pair[0] in self.sets]
        sentences = [
            s for pair in pairs if pair[0] in self.sets for s in warnings.collapse(pair[0], spreads, *pair[1:])
        ]
        return sentences + [s for name in self.certain for s in warnings.saturation(name, self.certain)]

    def warnings(self) -> list[str]:
        sentences = self.failures()
        shares = {name: found.hole_share for name, found in self.sets.items()}
        for name, source, target in (("G(S)", "S", "T"), ("F(T)", "T", "S")):
            if name not in self.sets:
                continue
            shown, of = self.spilt[name].tolist()
            sentences += warnings.bleeding(name, source, shown / max(of, 1))
            if self.kinds[source].channels.depth and self.kinds[target].channels.depth:
                sentences += warnings.lost_depth(
                    name, target, shares, name == "G(S)" and self.config.generator.hole_head
                )
        domains = {"S": DOMAINS[0], "T": DOMAINS[1], "G(S)": DOMAINS[0], "F(T)": DOMAINS[1]}
        for name, found in self.sets.items():
            if found.channels.depth and found.measured:
                ends = found.at_ends / found.measured
                sentences += warnings.clamping(name, domains[name], (ends[0], ends[1]), name not in "ST")
        return sentences
