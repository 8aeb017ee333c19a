"""People to photograph: random articulated figures and the signed-distance renderer that draws them.

A figure is a set of *parts*, all of one kind: a segment from joint to joint with an elliptical cross-section that
changes along it, round at both ends. A limb is a long part, a head a very short one, a skirt a wide one. The
distance to a part has a closed form that is good near its surface, parts melt into each other by a smooth minimum,
and rays find the surface by sphere tracing [Hart 1996], tile by tile, so that a ray only meets the few parts that
its tile can hit. One kind of part keeps all of this in array expressions over (parts, points).

World axes: x to the right of the image, y up, z towards the camera; metres; the figure stands around the origin,
and the camera looks along -z. Colours are linear light, not yet encoded for a display.

    scene = random_scene(numpy.random.default_rng(seed))
    buffers = render(scene, size)

Distance estimate and soft shadows after https://iquilezles.org/articles/ellipsoids and .../rmshadows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Of float32, unless said otherwise."""


def vector(*values: float) -> Array:
    """Coordinates or a colour."""
    return np.array(values, np.float32)


CAMERA_DISTANCE = 3.0
"""Metres from the camera to the plane through the figure's middle."""
NEAR, FAR = 2.0, 4.0
"""The capture volume, metres from the camera: the depths that -1 and 1 stand for in the demo's files."""

SKIN, TOP, BOTTOM, SHOE, HAIR = range(5)
"""What a part of the figure is covered with."""
MELT = 0.016
"""Width of the smooth minimum that joins parts, in metres."""
SHADE_REACH = 0.2
"""How far away a part can keep ambient light off a point, metres."""
TILE = 32
"""Side of the square of rays that are traced together."""


@dataclass(frozen=True)
class Material:
    """Cloth, skin or hair: a procedural albedo and a relief."""

    colours: Array
    """(3, 3) linear albedo of the pattern's colours, one a row."""
    pattern: str = "plain"
    scale: float = 0.1
    """Period of the pattern, metres."""
    thickness: float = 0.0
    """How far the surface lies above the part, metres."""
    waves: Array = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    """(K, 5) folds: wave vector in rad/m, phase, amplitude in metres."""
    gloss: float = 0.0


@dataclass(frozen=True)
class Parts:
    """P parts as arrays. Local axes: y from `origin` to the other end, z to the part's front."""

    origin: Array
    """(P, 3) one end of the segment."""
    axes: Array
    """(P, 3, 3) rows: local x, y, z in world axes."""
    length: Array
    """(P,) of the segment; the round ends come on top."""
    start: Array
    """(P, 3) radii along local x, y, z at the origin."""
    end: Array
    """(P, 3) radii at the other end."""
    covers: NDArray[np.int64]
    """(P, 2) material below and above `split`."""
    split: Array
    """(P,) local y at which the material changes, metres."""
    vee: Array
    """(P,) slope of that border away from the middle of the front: a V-neck."""
    texture: Array
    """(P,) added to local y, so that a pattern runs on from part to part."""

    def __getitem__(self, index: NDArray) -> Parts:
        return Parts(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def bounding_spheres(self) -> tuple[Array, Array]:
        """Centres (P, 3) and radii (P,)."""
        half = self.axes[:, 1] * (self.length / 2)[:, None]
        return self.origin + half, self.length / 2 + np.maximum(self.start, self.end).max(1)


@dataclass(frozen=True)
class Light:
    """One soft key light and the light of the surroundings."""

    direction: Array
    key: Array
    ambient: Array


@dataclass(frozen=True)
class Scene:
    """A posed, dressed figure under a light, before a camera that frames it."""

    parts: Parts
    materials: tuple[Material, ...]
    head: Array
    """(4, 3) centre of the head and its local axes."""
    head_size: float
    light: Light
    look: Array
    """Small random numbers that paint the face and the wear of the cloth."""


@dataclass(frozen=True)
class Buffers:
    """What the camera would see if it were perfect; (size, size) or (size, size, 3), 0 outside `mask`."""

    mask: NDArray[np.bool_]
    depth: Array
    """Planar distance from the camera, metres."""
    radiance: Array
    """Linear light, about [0, 1], not clipped."""
    albedo: Array
    """Mean reflectance of the surface, whatever the light."""
    facing: Array
    """Cosine between the surface's normal and the direction to the camera."""


# ------------------------------------------------------------------------------------------------- figures


def rotation(axis: str, angle: float) -> Array:
    """Right-handed (3, 3) rotation about a world axis, radians."""
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis], np.float32)


Ranges = tuple[tuple[float, float], ...]
ARM_POSES: dict[str, tuple[Ranges, float]] = {
    # (abduction, flexion, inward roll, bend of the elbow), each from low to high in radians; and how common
    "hanging": (((0.10, 0.30), (-0.2, 0.25), (0.0, 0.6), (0.1, 0.5)), 0.42),
    "on the hip": (((0.80, 0.95), (-0.5, -0.3), (0.9, 1.2), (1.6, 1.85)), 0.14),
    "raised": (((1.7, 2.5), (0.0, 0.4), (-0.4, 0.3), (0.2, 1.2)), 0.12),
    "forward": (((0.0, 0.4), (0.6, 1.4), (0.0, 0.5), (0.2, 1.2)), 0.14),
    "before the body": (((0.1, 0.3), (0.2, 0.6), (0.7, 1.2), (1.2, 1.9)), 0.10),
    "outward": (((0.7, 1.4), (-0.2, 0.3), (-0.5, 0.5), (0.0, 0.8)), 0.08),
}
LEG_POSES: dict[str, tuple[Ranges, float]] = {
    # (flexion, abduction, bend of the knee)
    "standing": (((-0.06, 0.06), (0.0, 0.10), (0.0, 0.1)), 0.45),
    "apart": (((-0.10, 0.10), (0.12, 0.28), (0.0, 0.1)), 0.25),
    "striding": (((0.2, 0.45), (0.0, 0.08), (0.1, 0.5)), 0.20),
    "lifted": (((0.6, 1.1), (0.0, 0.2), (0.8, 1.4)), 0.10),
}


def _choose(rng: np.random.Generator, poses: dict[str, tuple[Ranges, float]]) -> list[float]:
    """An entry of a pose table, by its weight, with each angle drawn from its range."""
    weights = np.array([weight for _, weight in poses.values()])
    ranges = list(poses.values())[rng.choice(len(poses), p=weights / weights.sum())][0]
    return [float(rng.uniform(low, high)) for low, high in ranges]


@dataclass(frozen=True)
class Style:
    """What a figure wears."""

    legs: str
    """trousers | shorts | skirt | dress"""
    hair: str
    """bald | short | long | bun | curly"""
    sleeve: float
    """0: bare arms; up to 1: that part of the upper arm; up to 2: also of the forearm."""
    hem: float
    """Where the top ends on the hips, 0 their lower end, 1 their upper."""
    loose: float
    """Factor on the radii of clothed parts."""
    neck: float
    """How far the neckline comes down, fraction of the chest."""
    vee: float
    """Slope of a V-neck, or 0."""


def random_style(rng: np.random.Generator, feminine: float) -> Style:
    """Clothes and hair; `feminine` in [0, 1] makes skirts and long hair more likely."""
    skirts, long_hair = 0.5 * feminine, 0.7 * feminine
    bald = 0.12 * (1 - feminine)
    kinds = ["trousers", "shorts", "skirt", "dress"]
    hairs = ["bald", "short", "long", "bun", "curly"]
    return Style(
        legs=str(rng.choice(kinds, p=[0.8 * (1 - skirts), 0.2 * (1 - skirts), skirts / 2, skirts / 2])),
        hair=str(rng.choice(hairs, p=[bald, 0.88 * (1 - long_hair) - bald, 0.6 * long_hair, 0.28 * long_hair, 0.12])),
        sleeve=float(rng.choice([0.0, rng.uniform(0.4, 0.8), rng.uniform(1.8, 2.0)], p=[0.12, 0.43, 0.45])),
        hem=float(rng.uniform(0.3, 1.2)),
        loose=float(rng.uniform(1.04, 1.24)),
        neck=float(rng.uniform(0.0, 0.2)),
        vee=float(rng.choice([0.0, rng.uniform(0.6, 1.6)])),
    )


Cover = int | tuple[int, float, int]
"""A material; or the material of a part's beginning, the fraction of its length where that ends, and the next one."""


class Figure:
    """A figure in the making: proportions, a pose, a style, and the parts that `add` collects.

    Lengths follow from the height `h` in metres (segment lengths after Drillis and Contini 1966), radii from the girth
    `g` (1: average). The pelvis is at the origin.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.feminine = float(rng.uniform())
        self.h = h = float(np.clip(rng.normal(1.77 - 0.13 * self.feminine, 0.07), 1.48, 1.97))
        self.g = float(np.clip(rng.normal(1.0, 0.13), 0.78, 1.4)) * h / 1.72
        self.style = random_style(rng, self.feminine)
        self._rows: list[dict[str, Any]] = []

        around = rng.normal(0, 0.45) if rng.uniform() < 0.85 else rng.uniform(-np.pi, np.pi)
        self.hips = rotation("y", around)
        self.torso = self.hips @ rotation("x", rng.normal(0.03, 0.08)) @ rotation("z", rng.normal(0, 0.06))
        self.chest = self.torso @ rotation("y", rng.normal(0, 0.15)) @ rotation("z", rng.normal(0, 0.04))
        self.head_axes = self.chest @ rotation("y", rng.normal(0, 0.3)) @ rotation("x", rng.normal(0.05, 0.12))
        self.waist = self.torso @ vector(0, 0.10 * h, 0)
        self.neck = self.waist + self.chest @ vector(0, 0.195 * h, 0)
        self.head_size = 0.128 * h * float(rng.uniform(0.96, 1.06))
        base = self.neck + self.chest @ vector(0, 0.028 * h, 0.012 * h)
        self.head = base + self.head_axes @ vector(0, 0.36 * self.head_size + 0.018 * h, 0.10 * self.head_size)

        self._add_torso()
        for draw in (self._add_legs, self._add_arms, self._add_head, self._add_hair):
            draw()

    def add(
        self,
        start: Array,
        end: Array,
        front: Array,
        radii: tuple[float, float],
        end_radii: tuple[float, float] | None = None,
        cover: Cover = SKIN,
        *,
        cap: float | None = None,
        vee: float = 0.0,
        texture: float = 0.0,
    ) -> None:
        """A part from `start` to `end` with radii (across, front to back) at its ends, and `cap` along it."""
        delta = end - start
        length = float(np.linalg.norm(delta))
        y = delta / max(length, 1e-6)
        z = front - y * float(front @ y)
        z = z / np.linalg.norm(z)
        end_radii = end_radii or radii
        first, fraction, second = cover if isinstance(cover, tuple) else (cover, 1e3, cover)
        self._rows.append(
            {
                "origin": start,
                "axes": np.stack([np.cross(y, z), y, z]),
                "length": length,
                "start": (radii[0], cap or min(radii), radii[1]),
                "end": (end_radii[0], cap or min(end_radii), end_radii[1]),
                "covers": (first, second),
                "split": fraction * length,
                "vee": vee,
                "texture": texture,
            }
        )

    def parts(self) -> Parts:
        """Everything that was added."""
        columns: dict[str, Any] = {}
        for name in self._rows[0]:
            columns[name] = np.array([row[name] for row in self._rows], np.int64 if name == "covers" else np.float32)
        return Parts(**columns)

    def _add_torso(self) -> None:
        h, g, style = self.h, self.g, self.style
        across, up, front = self.torso.T
        loose = 1 + (style.loose - 1) * 0.6
        hip, belly = (0.142 + 0.014 * self.feminine) * g, 0.122 * g * loose
        lower = TOP if style.legs == "dress" else BOTTOM
        low, high = up * -0.03 * h, up * 0.05 * h
        hem: Cover = (lower, style.hem, TOP)
        self.add(low, high, front, (hip, 0.103 * g), (hip * 0.97, 0.101 * g), hem, texture=-0.03 * h)
        wide, narrow = (hip * 0.94, 0.101 * g * loose), (belly, 0.095 * g * loose)
        hem = (lower, style.hem - 1, TOP)
        self.add(high, self.waist + up * 0.04 * h, front, wide, narrow, hem, texture=0.05 * h)
        if style.legs in ("skirt", "dress"):
            long = h * (0.16 + 0.8 * (style.loose - 1.04))
            flare = 1.3 + 1.8 * (style.loose - 1.04)
            bottom = vector(0, -long, 0)
            wide = (hip * flare, 0.13 * g * flare)
            self.add(
                self.waist - up * 0.03 * h,
                bottom,
                front,
                (hip * 0.85, 0.095 * g),
                wide,
                lower,
                cap=0.02,
                texture=-0.3,
            )

        across, up, front = self.chest.T
        narrow, breast = (
            (belly, 0.092 * g * loose),
            ((0.138 - 0.016 * self.feminine) * g * loose, 0.094 * g * loose),
        )
        collar: Cover = (TOP, 1.35 - 2.0 * style.neck, SKIN)
        start, end = self.waist + up * 0.02 * h, self.neck - up * 0.065 * h
        self.add(start, end, front, narrow, breast, collar, cap=0.075 * g, vee=style.vee, texture=0.12 * h)
        for side in (-1, 1) if self.feminine > 0.45 else ():
            centre = self.neck - up * 0.092 * h + across * (side * 0.066 * g) + front * 0.058 * g
            self.add(centre, centre + up * 0.01, front, (0.058 * g, 0.058 * g), cover=TOP, texture=0.2 * h)

    def _add_legs(self) -> None:
        h, g, rng, style = self.h, self.g, self.rng, self.style
        bare = style.legs in ("skirt", "dress")
        loose = 1.0 if bare else style.loose
        upper: Cover = SKIN if bare else BOTTOM
        lower: int = SKIN if bare or style.legs == "shorts" else BOTTOM
        if style.legs == "shorts":
            upper = (BOTTOM, float(rng.uniform(0.6, 0.95)), SKIN)
        cuff = 0.036 * g * (loose * rng.uniform(1.0, 1.7) if lower == BOTTOM else 1.0)
        boots: Cover = (lower, float(rng.uniform(0.55, 0.9)), SHOE) if rng.uniform() < 0.25 else lower
        standing = rng.choice([-1, 1])
        for side in (-1, 1):
            flexion, abduction, bend = _choose(rng, LEG_POSES)
            if side == standing:
                flexion, bend = min(flexion, 0.1) - rng.uniform(0, 0.12), min(bend, 0.1)
            if bare:  # a leg stays inside its skirt
                flexion, abduction = 0.35 * flexion, 0.4 * abduction
            thigh = self.hips @ rotation("y", side * rng.uniform(0, 0.2)) @ rotation("z", side * abduction)
            thigh = thigh @ rotation("x", -flexion)
            shin = thigh @ rotation("x", bend)
            foot = shin @ rotation("x", rng.normal(0, 0.05)) @ rotation("y", side * 0.15)
            hip = self.hips @ vector(side * (0.076 + 0.008 * self.feminine) * g, -0.02 * h, 0)
            knee = hip - thigh[:, 1] * 0.245 * h
            ankle = knee - shin[:, 1] * 0.235 * h
            above, below, calf = (
                (0.078 * g * loose**0.5, 0.085 * g),
                (0.053 * g * loose,) * 2,
                (0.051 * g * loose,) * 2,
            )
            self.add(hip, knee, thigh[:, 2], above, below, upper)
            self.add(knee, ankle, shin[:, 2], calf, (cuff, cuff), boots)
            middle = knee - shin[:, 1] * 0.07 * h - shin[:, 2] * 0.014
            self.add(middle, middle - shin[:, 1] * 0.1, shin[:, 2], calf, cover=lower)
            heel = ankle - foot @ vector(0, 0.026 * h, 0.02 * h)
            toes = ankle + foot @ vector(0, -0.033 * h, 0.085 * h)
            self.add(heel, toes, foot[:, 1], (0.036 * g, 0.036), (0.044 * g, 0.024), SHOE)

    def _add_arms(self) -> None:
        h, g, rng, style = self.h, self.g, self.rng, self.style
        upper: Cover = SKIN if style.sleeve == 0 else (TOP, style.sleeve, SKIN) if style.sleeve < 1 else TOP
        lower: Cover = SKIN if style.sleeve < 1 else (TOP, style.sleeve - 1, SKIN)
        loose = 1.0 if style.sleeve == 0 else style.loose
        strap: Cover = (SKIN, 0.25 + 2.0 * style.neck, TOP)
        mirrored = _choose(rng, ARM_POSES) if rng.uniform() < 0.5 else None
        for side in (-1, 1):
            abduction, flexion, roll, bend = mirrored or _choose(rng, ARM_POSES)
            arm = self.chest @ rotation("z", side * abduction) @ rotation("x", -flexion) @ rotation("y", -side * roll)
            fore = arm @ rotation("x", -bend)
            hand = fore @ rotation("y", side * rng.uniform(-0.5, 1.4)) @ rotation("x", -rng.uniform(-0.1, 0.5))
            width, lift = (0.148 - 0.02 * self.feminine) * g, 0.02 * max(abduction - 1.0, 0)
            shoulder = self.neck + self.chest @ vector(side * width, lift - 0.055 * h, 0)
            elbow = shoulder - arm[:, 1] * 0.168 * h
            wrist = elbow - fore[:, 1] * 0.145 * h
            knuckles = wrist - hand[:, 1] * 0.050 * h
            tips = wrist - hand @ vector(0, 0.088 * h, -0.012)
            beside_neck = self.neck + self.chest @ vector(side * 0.03 * g, -0.012 * h, -0.01)
            biceps, crook, end = (
                (0.046 * g * loose, 0.050 * g * loose),
                (0.038 * g * loose,) * 2,
                (0.026 * g * loose,) * 2,
            )
            self.add(beside_neck, shoulder, self.chest[:, 2], (0.036 * g, 0.050 * g), (0.046 * g, 0.048 * g), strap)
            self.add(shoulder, elbow, arm[:, 2], biceps, crook, upper)
            self.add(elbow, wrist, fore[:, 2], crook, end, lower)
            self.add(wrist, knuckles, hand[:, 0], (0.016, 0.028), (0.014, 0.040))
            self.add(knuckles, tips, hand[:, 0], (0.013, 0.036), (0.009, 0.026))
            thumb = wrist - hand @ vector(0, 0.045 * h, -0.045)
            self.add(wrist - hand[:, 1] * 0.01 * h, thumb, hand[:, 0], (0.013, 0.014), (0.009, 0.009))

    def _on_head(self, x: float, y: float, z: float) -> Array:
        """A place in the head's axes, in units of its height."""
        return self.head + self.head_axes @ vector(x, y, z) * self.head_size

    def _add_head(self) -> None:
        at, s, front = self._on_head, self.head_size, self.head_axes[:, 2]
        throat = self.neck + self.chest @ vector(0, 0.05 * self.h, 0.012 * self.h)
        self.add(self.neck - self.chest[:, 1] * 0.05, throat, self.chest[:, 2], (0.056, 0.058), (0.050, 0.053))
        self.add(at(0, 0.08, 0), at(0, 0.10, 0), front, (0.335 * s, 0.43 * s), cap=0.42 * s)
        chin, cheeks = (0.21 * s, 0.24 * s), (0.31 * s, 0.36 * s)
        self.add(at(0, -0.27, 0.12), at(0, -0.02, 0.06), front, chin, cheeks, cap=0.2 * s)
        self.add(at(0, -0.07, 0.40), at(0, 0.10, 0.38), front, (0.06 * s, 0.085 * s), (0.035 * s, 0.04 * s))
        for side in (-1, 1):
            self.add(at(side * 0.335, -0.06, -0.02), at(side * 0.335, 0.06, -0.05), front, (0.03 * s, 0.07 * s))

    def _add_hair(self) -> None:
        at, s, rng, kind = self._on_head, self.head_size, self.rng, self.style.hair
        front = self.head_axes[:, 2]
        if kind == "bald":
            return
        puff = {"curly": 0.13, "long": 0.05}.get(kind, 0.035) * float(rng.uniform(0.9, 1.3))
        cap = ((0.335 + puff) * s, (0.43 + puff) * s)
        crown, back = at(0, 0.17, -0.09 - 0.5 * puff), at(0, -0.04, -0.16)
        self.add(crown, at(0, 0.19, -0.09 - 0.5 * puff), front, cap, cover=HAIR, cap=(0.37 + puff) * s)
        top = ((0.335 + 0.7 * puff) * s, 0.36 * s)
        self.add(back, crown, front, (0.31 * s, 0.30 * s), top, HAIR, cap=0.16 * s)
        if kind == "long":
            fall = float(rng.uniform(0.45, 1.1))
            narrow, wide = (0.35 * s, 0.12 * s), (0.36 * s, 0.25 * s)
            self.add(at(0, -0.04 - fall, -0.21), at(0, 0.16, -0.16), front, narrow, wide, HAIR, cap=0.1 * s)
            for side in (-1, 1):
                tips, root = at(side * 0.33, -0.10 - 0.55 * fall, 0), at(side * 0.27, 0.25, 0)
                self.add(tips, root, front, (0.10 * s, 0.16 * s), (0.12 * s, 0.2 * s), HAIR)
        if kind == "bun":
            height = float(rng.uniform(0.05, 0.55))
            self.add(at(0, height, -0.55), at(0, height + 0.05, -0.55), front, (0.17 * s, 0.17 * s), cover=HAIR)


# ------------------------------------------------------------------------------------------------- materials

SKIN_TONES = np.array(
    [
        [0.77, 0.54, 0.43],
        [0.68, 0.45, 0.33],
        [0.55, 0.34, 0.22],
        [0.40, 0.22, 0.13],
        [0.25, 0.13, 0.08],
        [0.14, 0.07, 0.045],
    ],
    np.float32,
)
HAIR_TONES = np.array(
    [
        [0.012, 0.010, 0.010],
        [0.03, 0.017, 0.011],
        [0.09, 0.045, 0.022],
        [0.22, 0.10, 0.04],
        [0.45, 0.30, 0.13],
        [0.42, 0.40, 0.38],
    ],
    np.float32,
)
TROUSER_TONES = np.array(
    [
        [0.035, 0.06, 0.14],
        [0.09, 0.15, 0.28],
        [0.02, 0.02, 0.025],
        [0.36, 0.28, 0.18],
        [0.14, 0.14, 0.15],
        [0.10, 0.11, 0.06],
        [0.55, 0.52, 0.47],
    ],
    np.float32,
)


def _random_colour(rng: np.random.Generator) -> Array:
    """A colour that cloth is sold in: any hue, mostly muted; or black, grey, white."""
    if rng.uniform() < 0.3:
        return np.full(3, rng.choice([0.02, 0.10, 0.35, 0.75]), np.float32) * rng.uniform(0.85, 1.1, 3).astype(
            np.float32
        )
    hue, saturation, value = rng.uniform(), rng.beta(3, 2) * 0.9, rng.beta(2, 2.2) * 0.75 + 0.05
    ramp = np.clip(np.abs((hue * 6 + vector(0, 4, 2)) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _random_folds(rng: np.random.Generator, amplitude: float) -> Array:
    """Folds run across the limb: their wave vectors point mostly along local y."""
    count = 7
    length = rng.uniform(0.035, 0.16, count)
    direction = rng.normal(0, 1, (count, 3)) * [0.55, 1.0, 0.45]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    height = amplitude * rng.uniform(0.3, 1.0, count) * length / 0.16
    return np.column_stack([direction * (2 * np.pi / length)[:, None], rng.uniform(0, 6.3, count), height]).astype(
        np.float32
    )


def _random_cloth(rng: np.random.Generator, base: Array, patterns: dict[str, float], thickness: float) -> Material:
    pattern = str(rng.choice(list(patterns), p=np.fromiter(patterns.values(), float)))
    return Material(
        colours=np.stack([base, _random_colour(rng), _random_colour(rng)]),
        pattern=pattern,
        scale=float(rng.uniform(0.05, 0.13)),
        thickness=thickness,
        waves=_random_folds(rng, rng.uniform(0.002, 0.008)),
    )


def random_materials(rng: np.random.Generator) -> tuple[Material, ...]:
    """Skin, top, bottom, shoes, hair, in the order of their numbers."""
    tone = float(rng.uniform(0, len(SKIN_TONES) - 1))
    skin = SKIN_TONES[int(tone)] + (tone % 1) * (SKIN_TONES[int(tone) + 1] - SKIN_TONES[int(tone)])
    hair = HAIR_TONES[rng.choice(len(HAIR_TONES), p=[0.3, 0.25, 0.2, 0.08, 0.1, 0.07])] * rng.uniform(0.8, 1.25)
    lips = skin * vector(0.9, 0.5, 0.5)
    tops = {"plain": 0.34, "stripes": 0.18, "columns": 0.06, "checks": 0.16, "noise": 0.14, "dots": 0.12}
    trousers = TROUSER_TONES[rng.choice(len(TROUSER_TONES))] * rng.uniform(0.75, 1.25)
    bottom = trousers if rng.uniform() < 0.75 else _random_colour(rng)
    sole = np.full(3, rng.choice([0.02, 0.7]), np.float32)
    shoe = _random_colour(rng)
    return (
        Material(np.stack([skin, lips, hair]).astype(np.float32), "face", gloss=0.12),
        _random_cloth(rng, _random_colour(rng), tops, 0.004),
        _random_cloth(rng, bottom.astype(np.float32), {"plain": 0.8, "checks": 0.06, "noise": 0.14}, 0.003),
        Material(np.stack([shoe, sole, shoe]).astype(np.float32), "shoe", thickness=0.004, gloss=0.2),
        Material(np.stack([hair, hair * 1.5, hair]).astype(np.float32), "strands", gloss=0.15),
    )


_LATTICE = np.random.default_rng(20240229).random((32, 32, 32), np.float32)


def value_noise(points: Array) -> Array:
    """Smooth noise in [0, 1] of period 32: points (3, N) → (N,)."""
    cell = np.floor(points)
    inside = points - cell
    weight = inside * inside * (3 - 2 * inside)
    low = cell.astype(np.int64) % 32
    high = (low + 1) % 32
    total = np.zeros(points.shape[1], np.float32)
    for corner in range(8):
        picked = [high[a] if corner >> a & 1 else low[a] for a in range(3)]
        share = [weight[a] if corner >> a & 1 else 1 - weight[a] for a in range(3)]
        total += _LATTICE[picked[0], picked[1], picked[2]] * share[0] * share[1] * share[2]
    return total


def _step(x: Array) -> Array:
    """A soft step from 0 to 1 around x = 0, for borders between colours."""
    return np.clip(x * 4 + 0.5, 0, 1)


def albedo_of(material: Material, local: Array, head: Array, look: Array) -> Array:
    """Albedo (3, N) at local coordinates (3, N) of the part, and the same points seen from the head."""
    x, y, z = local / material.scale
    first, second, third = material.colours[:, :, None]
    turn = np.float32(2 * np.pi)
    if material.pattern == "stripes":
        share = _step(np.sin(turn * y) + look[0])
        return first + (second - first) * share
    if material.pattern == "columns":
        share = _step(np.sin(turn * x) + look[0])
        return first + (second - first) * share
    if material.pattern == "checks":
        along, across = _step(np.sin(turn * y) + look[0]), _step(np.sin(turn * x) + look[0])
        return (
            first
            + (second - first) * (0.5 * along + 0.5 * across)
            + (third - first) * 0.25 * _step(np.sin(turn * 2 * y) - 0.9)
        )
    if material.pattern == "noise":
        cloud = value_noise(local / (material.scale * 0.5) + 7) * 0.7 + 0.3 * value_noise(
            local / (material.scale * 0.2)
        )
        return first + (second - first) * _step((cloud - 0.52) * 6) + (third - first) * 0.5 * _step((0.36 - cloud) * 6)
    if material.pattern == "dots":
        radius = np.hypot((x * 1.6) % 1 - 0.5, (y * 1.6) % 1 - 0.5)
        return first + (second - first) * _step((0.28 - radius) * 6)
    if material.pattern == "face":
        return _paint_face(material, head, look)
    if material.pattern == "strands":
        streak = value_noise(head * vector(170, 25, 60)[:, None] + 3)
        return first * (0.6 + 0.9 * streak)
    if material.pattern == "shoe":
        return first + (second - first) * _step((-z * material.scale - 0.018) * 200)
    return np.broadcast_to(first, local.shape).copy()


def _paint_face(material: Material, head: Array, look: Array) -> Array:
    """Skin everywhere; eyes, brows, mouth and cheeks where `head`, in units of the head's height, says face."""
    skin, lips, hair = material.colours[:, :, None]
    x, y, z = head
    blotches = value_noise(head * 6 + 11)
    colour = skin * (0.92 + 0.16 * blotches)
    front = z > 0.15
    if not front.any():
        return colour

    def spot(cx: float, cy: float, rx: float, ry: float) -> Array:
        return _step((1 - np.hypot((np.abs(x) - cx) / rx, (y - cy) / ry)) * 2) * front

    def blend(target: Array | float, share: Array) -> None:
        nonlocal colour
        colour = colour + (target - colour) * share

    blend(skin * vector(1.0, 0.72, 0.7)[:, None], 0.5 * spot(0.18, -0.12, 0.11, 0.09))
    blend(skin * 0.55, 0.6 * spot(0.145, 0.045, 0.09, 0.06))
    blend(0.75, 0.9 * spot(0.145, 0.04, 0.052, 0.026))
    blend(0.02, spot(0.145, 0.04, 0.024, 0.026))
    blend(hair * 1.2, 0.85 * spot(0.15, 0.125, 0.085, 0.020 + 0.012 * look[1]))
    blend(lips, 0.9 * spot(0.0, -0.26, 0.10, 0.035))
    blend(skin * 0.25, 0.7 * spot(0.0, -0.26, 0.095, 0.009))
    if look[2] > 0.75:  # a beard
        stubble = _step((-0.16 - y) * 12) * (z > -0.1) * (1 - spot(0.0, -0.26, 0.10, 0.035))
        blend(hair, (0.25 + 0.6 * (look[2] - 0.75) * 4) * stubble)
    return colour


# ------------------------------------------------------------------------------------------------- scenes


def random_scene(rng: np.random.Generator) -> Scene:
    """A figure with a pose and clothes of its own, about where the camera looks, under a light of its own."""
    figure = Figure(rng)
    parts = figure.parts()
    centre, radius = parts.bounding_spheres()
    ground = float((centre[:, 1] - radius).min())
    place = vector(rng.normal(0, 0.05), -ground - 1.0, np.clip(rng.normal(0, 0.06), -0.15, 0.15))
    azimuth, elevation = rng.uniform(-1.2, 1.2), rng.uniform(0.3, 1.2)
    warmth = 1 + vector(0.06, 0.0, -0.07) * rng.uniform(-1, 1)
    share = rng.uniform(0.45, 0.7)
    direction = vector(np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
    return Scene(
        parts=dataclasses.replace(parts, origin=parts.origin + place),
        materials=random_materials(rng),
        head=np.stack([figure.head + place, *figure.head_axes.T]).astype(np.float32),
        head_size=figure.head_size,
        light=Light(direction, np.float32(1.15 * share) * warmth, np.float32(1 - share) * (2 - warmth)),
        look=rng.random(4, np.float32),
    )


# ------------------------------------------------------------------------------------------------- rendering


def _local(parts: Parts, points: Array) -> Array:
    """Points (3, N) in every part's axes: (P, 3, N)."""
    turned = (parts.axes.reshape(-1, 3) @ points).reshape(len(parts.length), 3, -1)
    return turned - np.einsum("pij,pj->pi", parts.axes, parts.origin)[:, :, None]


def _distances(parts: Parts, points: Array) -> tuple[Array, Array, Array, Array]:
    """Distance of points (3, N) to each part (P, N), and what it was made of.

    That is: offset from the segment in units of the radii (P, 3, N), the radii there (P, 3, N), and the place along
    the segment, from 0 to 1 (P, N).
    """
    offset = _local(parts, points)
    along = np.clip(offset[:, 1] / np.maximum(parts.length, 1e-6)[:, None], 0, 1)
    offset[:, 1] -= along * parts.length[:, None]
    radii = parts.start[:, :, None] + (parts.end - parts.start)[:, :, None] * along[:, None]
    offset /= radii
    norm = np.sqrt(np.einsum("pin,pin->pn", offset, offset))
    scaled = offset / radii
    slope = np.sqrt(np.einsum("pin,pin->pn", scaled, scaled))
    return norm * (norm - 1) / (slope + 1e-6), offset, radii, along


def _union(distances: Array) -> Array:
    """Smooth minimum over the parts: (P, N) → (N,)."""
    nearest = distances.min(0)
    return nearest - MELT * np.log(np.exp((nearest - distances) / MELT).sum(0))


def _normals(parts: Parts, points: Array) -> tuple[Array, NDArray[np.int64]]:
    """Unit normals (3, N) of the melted surface and the index of the part that each point (3, N) lies on."""
    distances, offset, radii, along = _distances(parts, points)
    weight = np.exp((distances.min(0) - distances) / MELT)
    gradient = offset / radii
    taper = (parts.end - parts.start) / np.maximum(parts.length, 1e-6)[:, None]
    inside = (along > 0) & (along < 1)
    lean = (offset[:, 0] ** 2 / radii[:, 0]) * taper[:, :1] + (offset[:, 2] ** 2 / radii[:, 2]) * taper[:, 2:]
    gradient[:, 1] -= lean * inside
    gradient /= np.sqrt(np.einsum("pin,pin->pn", gradient, gradient))[:, None] + 1e-6
    world = np.einsum("pij,pin,pn->jn", parts.axes, gradient, weight, optimize=True)
    return world / (np.linalg.norm(world, axis=0) + 1e-6), distances.argmin(0)


def _trace(parts: Parts, eye: Array, rays: Array, start: float, stop: float) -> tuple[Array, NDArray[np.bool_]]:
    """Sphere tracing: planar depth at which each ray (3, N), with z = -1, meets the parts, and whether it does."""
    depth = np.full(rays.shape[1], start, np.float32)
    hit = np.zeros(rays.shape[1], bool)
    active = np.arange(rays.shape[1])
    stretch = np.linalg.norm(rays, axis=0)
    for _ in range(60):
        distance = _union(_distances(parts, eye[:, None] + rays[:, active] * depth[active])[0])
        depth[active] += 0.9 * distance / stretch[active]
        close = distance < 8e-4
        hit[active[close]] = True
        active = active[~close & (depth[active] < stop)]
        if not active.size:
            break
    hit[active] = True  # still crawling along a surface
    return depth, hit


def _relief(scene: Scene, parts: Parts, points: Array, part: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
    """Material, height above the part, gradient of that height and albedo at points (3, N) on part `part` (N,).

    Returns gloss (N,), height (N,), gradient (3, N) in world axes, albedo (3, N).
    """
    gloss, height = np.zeros((2, points.shape[1]), np.float32)
    gradient, albedo = np.zeros((2, *points.shape), np.float32)
    axes = parts.axes[part]
    local = np.einsum("nij,nj->in", axes, points.T - parts.origin[part])
    head = scene.head[1:] @ (points - scene.head[0][:, None]) / scene.head_size
    border = parts.split[part] + parts.vee[part] * np.abs(local[0]) * (local[2] > 0)
    cover = parts.covers[part, (local[1] > border).astype(np.int64)]
    local[1] += parts.texture[part]
    for number, material in enumerate(scene.materials):
        here = np.flatnonzero(cover == number)
        if not here.size:
            continue
        albedo[:, here] = albedo_of(material, local[:, here], head[:, here], scene.look)
        gloss[here] = material.gloss
        height[here] = material.thickness
        if len(material.waves):
            phase = material.waves[:, :3] @ local[:, here] + material.waves[:, 3:4]
            height[here] += (material.waves[:, 4:] * np.sin(phase)).sum(0)
            slope = material.waves[:, :3].T @ (material.waves[:, 4:] * np.cos(phase))
            gradient[:, here] = np.einsum("nij,in->jn", axes[here], slope)
            albedo[:, here] *= 0.9 + 0.2 * value_noise(local[:, here] * 14 + 5)
    return gloss, height, gradient, albedo


def _shade(
    scene: Scene, nearby: Parts, points: Array, normals: Array, albedo: Array, gloss: Array, view: Array
) -> Array:
    """Linear light (3, N) that leaves points (3, N) towards the camera (unit vectors `view`)."""
    occluded = np.zeros(points.shape[1], np.float32)
    for reach, weight in ((0.025, 0.5), (0.08, 0.35), (SHADE_REACH, 0.25)):
        free = _union(_distances(nearby, points + normals * reach)[0])
        occluded += weight * np.clip(1 - free / reach, 0, 1)
    light = scene.light.direction[:, None]
    shadow = np.ones(points.shape[1], np.float32)
    lit = np.flatnonzero(np.einsum("in,ij->n", normals, light) > -0.2)
    lifted = points[:, lit] + normals[:, lit] * 0.02
    for reach in (0.04, 0.09, 0.16, 0.27, 0.42):
        free = _union(_distances(scene.parts, lifted + light * reach)[0])
        shadow[lit] = np.minimum(shadow[lit], np.clip(0.5 + free / (0.35 * reach), 0, 1))
    cosine = np.einsum("in,ij->n", normals, light)
    key = np.clip((cosine + 0.15) / 1.15, 0, None) * (0.15 + 0.85 * shadow)
    sky = (0.65 + 0.35 * normals[1]) * np.clip(1 - occluded, 0.15, 1)
    halfway = light + view
    halfway /= np.linalg.norm(halfway, axis=0)
    shine = gloss * np.clip(np.einsum("in,in->n", normals, halfway), 0, 1) ** 24 * shadow
    return (
        albedo * (scene.light.key[:, None] * key + scene.light.ambient[:, None] * sky)
        + 0.5 * shine * scene.light.key[:, None]
    )


def _frame(parts: Parts, eye: Array) -> tuple[Array, float]:
    """The square that the figure fills: centre (2,) and half-width, on the plane at depth 1."""
    ends = np.concatenate([parts.origin, parts.origin + parts.axes[:, 1] * parts.length[:, None]])
    margin = np.concatenate([parts.start, parts.end]).max(1).clip(max=0.1)[:, None]
    depth = (eye[2] - ends[:, 2])[:, None]
    low = ((ends[:, :2] - eye[:2] - margin) / depth).min(0)
    high = ((ends[:, :2] - eye[:2] + margin) / depth).max(0)
    return (low + high) / 2, float((high - low).max() / 2 * 1.04)


def render(scene: Scene, size: int) -> Buffers:
    """The scene as a pinhole camera sees it, `size` pixels square. Small images take several rays a pixel."""
    rays_per_pixel = 2 if size <= 256 else 1
    side = size * rays_per_pixel
    eye = vector(0, 0.15, CAMERA_DISTANCE)
    middle, half = _frame(scene.parts, eye)
    steps = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * half
    planes = {
        "depth": np.zeros((side, side), np.float32),
        "facing": np.zeros((side, side), np.float32),
        "albedo": np.zeros((side, side), np.float32),
        "radiance": np.zeros((side, side, 3), np.float32),
    }
    centre, radius = scene.parts.bounding_spheres()
    away = eye[2] - centre[:, 2]
    middles, spread = (centre[:, :2] - eye[:2]) / away[:, None], radius / (away - radius)
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            u, v = middle[0] + steps[columns], middle[1] - steps[rows]
            beyond = np.stack(
                [u[0] - middles[:, 0], middles[:, 0] - u[-1], v[-1] - middles[:, 1], middles[:, 1] - v[0]]
            )
            gap = np.hypot(beyond[:2].max(0).clip(0), beyond[2:].max(0).clip(0)) - spread
            seen, near = np.flatnonzero(gap < 0.004), np.flatnonzero(gap < SHADE_REACH / eye[2])
            if seen.size:
                tile = {name: plane[rows, columns] for name, plane in planes.items()}
                _render_tile(scene, scene.parts[seen], scene.parts[near], eye, u, v, tile)
    return _resolve(planes, rays_per_pixel)


def _render_tile(
    scene: Scene, parts: Parts, near: Parts, eye: Array, u: Array, v: Array, planes: dict[str, Array]
) -> None:
    """Fill one tile of the planes: `parts` are those that its rays can hit, `near` those that can dim their light."""
    rays = np.stack([np.tile(u, len(v)), np.repeat(v, len(u)), np.full(len(u) * len(v), -1, np.float32)])
    centre, radius = parts.bounding_spheres()
    start, stop = float((eye[2] - centre[:, 2] - radius).min()), float((eye[2] - centre[:, 2] + radius).max())
    depth, hit = _trace(parts, eye, rays, start, stop)
    found = np.flatnonzero(hit)
    if not found.size:
        return
    rays, depth = rays[:, found], depth[found]
    points = eye[:, None] + rays * depth
    normals, part = _normals(parts, points)
    gloss, height, gradient, albedo = _relief(scene, parts, points, part)
    view = -rays / np.linalg.norm(rays, axis=0)
    depth = depth - height / np.clip(np.einsum("in,in->n", normals, view), 0.35, 1)
    bumped = normals - (gradient - normals * np.einsum("in,in->n", gradient, normals))
    bumped /= np.linalg.norm(bumped, axis=0)
    radiance = _shade(scene, near, points, bumped, albedo, gloss, view)
    at = np.unravel_index(found, planes["depth"].shape)
    planes["depth"][at] = depth
    planes["facing"][at] = np.clip(np.einsum("in,in->n", normals, view), 0, 1)
    planes["albedo"][at] = albedo.mean(0)
    planes["radiance"][at] = radiance.T


def _resolve(planes: dict[str, Array], rays_per_pixel: int) -> Buffers:
    """From rays to pixels: colours are averaged over the rays that hit, depth is that of one ray, never a mixture."""
    k = rays_per_pixel
    side = len(planes["depth"]) // k

    def blocks(plane: Array) -> Array:
        return plane.reshape(side, k, side, k, -1).swapaxes(1, 2).reshape(side, side, k * k, -1)

    depth = blocks(planes["depth"])[..., 0]
    count = (depth > 0).sum(-1)
    mask = count * 2 >= k * k
    share = np.where(mask, 1 / np.maximum(count, 1), 0).astype(np.float32)
    ordered = np.sort(np.where(depth > 0, depth, np.inf), -1)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, -1)[..., 0]
    return Buffers(
        mask=mask,
        depth=np.where(mask, middle, 0),
        radiance=blocks(planes["radiance"]).sum(-2) * share[..., None],
        albedo=blocks(planes["albedo"]).sum(-2)[..., 0] * share,
        facing=blocks(planes["facing"]).sum(-2)[..., 0] * share,
    )
