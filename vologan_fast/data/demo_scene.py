"""People to photograph: random articulated figures and the signed-distance renderer that draws them.

A figure is a set of *parts*, all of one kind: a segment from joint to joint with an elliptical cross-section that
changes along it, round at both ends. A limb is a long part, a head a very short one, a skirt a wide one. The distance
to a part has a closed form that is good near its surface, parts melt into each other by a smooth minimum, and rays
find the surface by sphere tracing [Hart 1996], tile by tile, so that a ray only ever sees the few parts that its tile
can hit. One kind of part keeps all of this in array expressions over (parts, points).

World axes: x to the right of the image, y up, z towards the camera; metres; the figure stands around the origin, and
the camera looks along -z. Colours are linear light, not yet encoded for a display.

    scene = random_scene(numpy.random.default_rng(seed))
    buffers = render(scene, size)

Source of the distance estimate and of the shading tricks: https://iquilezles.org/articles/ellipsoids and
https://iquilezles.org/articles/rmshadows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CAMERA_DISTANCE = 3.0
"""Metres from the camera to the plane through the figure's middle."""
NEAR, FAR = 2.0, 4.0
"""The capture volume, metres from the camera: the depths that -1 and 1 stand for in the demo's files."""

SKIN, TOP, BOTTOM, SHOE, HAIR = range(5)
"""What a part of the figure is covered with."""
MELT = 0.012
"""Width of the smooth minimum that joins parts, in metres."""
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


# ---------------------------------------------------------------------------------------------------- figures


def rotation(axis: str, angle: float) -> Array:
    """Right-handed (3, 3) rotation about a world axis, radians."""
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.asarray(rows[axis], np.float32)


class _Figure:
    """Collects parts; `add` turns two joints and a front into a part's frame."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(
        self,
        start: Array,
        end: Array,
        front: Array,
        radii: tuple[float, float],
        end_radii: tuple[float, float] | None = None,
        cover: int | tuple[int, float, int] = SKIN,
        *,
        cap: float | None = None,
        vee: float = 0.0,
        texture: float = 0.0,
    ) -> None:
        """A part from `start` to `end` with half-widths `radii` = (across, front-to-back) and rounding `cap` along it.

        `cover`: a material, or (material of the first part, fraction of the length where it ends, material after it).
        """
        delta = np.asarray(end, np.float32) - start
        length = float(np.linalg.norm(delta))
        y = delta / max(length, 1e-6)
        z = front - y * float(front @ y)
        z = z / np.linalg.norm(z)
        end_radii = end_radii or radii
        first, fraction, second = cover if isinstance(cover, tuple) else (cover, 1e3, cover)
        self.rows.append(
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
        stacked = {name: np.asarray([row[name] for row in self.rows], np.float32) for name in self.rows[0]}
        return Parts(**{**stacked, "covers": stacked["covers"].astype(np.int64)})


ARM_POSES = {
    # abduction, flexion, inward roll, bend of the elbow: (low, high) in radians, and how common
    "hanging": (((0.10, 0.30), (-0.2, 0.25), (0.0, 0.6), (0.1, 0.5)), 0.42),
    "on hip": (((0.65, 0.85), (-0.5, -0.3), (0.9, 1.3), (1.5, 1.8)), 0.14),
    "raised": (((1.7, 2.5), (0.0, 0.4), (-0.4, 0.3), (0.2, 1.2)), 0.12),
    "forward": (((0.0, 0.4), (0.6, 1.4), (0.0, 0.5), (0.2, 1.2)), 0.14),
    "before the body": (((0.1, 0.3), (0.2, 0.6), (0.7, 1.2), (1.2, 1.9)), 0.10),
    "outward": (((0.7, 1.4), (-0.2, 0.3), (-0.5, 0.5), (0.0, 0.8)), 0.08),
}
LEG_POSES = {
    # flexion, abduction, bend of the knee
    "standing": (((-0.06, 0.06), (0.0, 0.10), (0.0, 0.1)), 0.45),
    "apart": (((-0.10, 0.10), (0.12, 0.28), (0.0, 0.1)), 0.25),
    "striding": (((0.2, 0.45), (0.0, 0.08), (0.1, 0.5)), 0.20),
    "lifted": (((0.6, 1.1), (0.0, 0.2), (0.8, 1.4)), 0.10),
}


def _choose(rng: np.random.Generator, table: dict) -> tuple:
    """An entry of a pose table, by its weight, with each angle drawn from its range."""
    ranges, weights = zip(*table.values(), strict=True)
    chosen = ranges[rng.choice(len(ranges), p=np.asarray(weights) / sum(weights))]
    return tuple(rng.uniform(low, high) for low, high in chosen)


@dataclass(frozen=True)
class _Style:
    """What a figure wears."""

    sleeve: float
    """0 bare arms, 0..1 covers that part of the upper arm, 1..2 also of the forearm."""
    legs: str
    """trousers | shorts | skirt | dress"""
    hem: float
    """Where the top ends on the pelvis, 0 its lower end, 1 its upper."""
    loose: float
    """Factor on the radii of clothed parts."""
    hair: str
    """bald | short | long | bun | curly"""
    neck: float
    """How far the neckline comes down, fraction of the chest."""
    vee: float


def _random_style(rng: np.random.Generator, feminine: float) -> _Style:
    skirts = feminine * 0.5
    legs = rng.choice(
        ["trousers", "shorts", "skirt", "dress"],
        p=[0.8 * (1 - skirts), 0.2 * (1 - skirts), skirts / 2, skirts / 2],
    )
    long_hair = 0.7 * feminine
    hair = rng.choice(
        ["bald", "short", "long", "bun", "curly"],
        p=[
            0.12 * (1 - feminine),
            0.88 - 0.88 * long_hair - 0.12 * (1 - feminine),
            0.6 * long_hair,
            0.28 * long_hair,
            0.12,
        ],
    )
    return _Style(
        sleeve=float(rng.choice([0.0, rng.uniform(0.4, 0.8), rng.uniform(1.8, 2.0)], p=[0.12, 0.43, 0.45])),
        legs=str(legs),
        hem=float(rng.uniform(-0.2, 0.7)),
        loose=float(rng.uniform(1.04, 1.24)),
        hair=str(hair),
        neck=float(rng.uniform(0.0, 0.22)),
        vee=float(rng.choice([0.0, rng.uniform(0.6, 1.6)])),
    )


def random_figure(rng: np.random.Generator) -> tuple[Parts, Array, float]:
    """A posed and dressed figure: its parts, its head's centre and axes (4, 3), and the head's height in metres."""
    feminine = float(rng.uniform())
    height = float(np.clip(rng.normal(1.77 - 0.13 * feminine, 0.07), 1.48, 1.97))
    girth = float(np.clip(rng.normal(1.0, 0.13), 0.78, 1.4)) * height / 1.72
    style = _random_style(rng, feminine)
    figure = _Figure()

    around = rng.normal(0, 0.45) if rng.uniform() < 0.85 else rng.uniform(-np.pi, np.pi)
    hips = rotation("y", around)
    torso = hips @ rotation("x", rng.normal(0.03, 0.08)) @ rotation("z", rng.normal(0, 0.06))
    chest_axes = torso @ rotation("y", rng.normal(0, 0.15)) @ rotation("z", rng.normal(0, 0.04))
    head_axes = chest_axes @ rotation("y", rng.normal(0, 0.3)) @ rotation("x", rng.normal(0.05, 0.12))

    pelvis = np.zeros(3, np.float32)
    waist = pelvis + torso @ np.float32([0, 0.10 * height, 0])
    neck = waist + chest_axes @ np.float32([0, 0.195 * height, 0])
    _add_legs(rng, figure, style, hips, pelvis, height, girth, feminine)
    _add_torso(figure, style, torso, chest_axes, pelvis, waist, neck, height, girth, feminine)
    _add_arms(rng, figure, style, chest_axes, neck, height, girth, feminine)
    head, size = _add_head(rng, figure, style, chest_axes, head_axes, neck, height)
    return figure.parts(), np.concatenate([head[None], head_axes.T]), size


def _add_torso(
    figure: _Figure,
    style: _Style,
    torso: Array,
    chest_axes: Array,
    pelvis: Array,
    waist: Array,
    neck: Array,
    height: float,
    girth: float,
    feminine: float,
) -> None:
    front, up = torso[:, 2], torso[:, 1]
    loose = 1 + (style.loose - 1) * 0.6
    hip, belly, breast = (
        (0.137 + 0.014 * feminine) * girth,
        0.122 * girth * loose,
        (0.150 - 0.018 * feminine) * girth * loose,
    )
    lower = TOP if style.legs == "dress" else BOTTOM
    figure.add(
        pelvis - up * 0.03 * height, pelvis + up * 0.05 * height, front, (hip, 0.100 * girth), (hip * 0.96, 0.098 * girth),
        (lower, style.hem, TOP), texture=-0.03 * height,
    )  # fmt: skip
    figure.add(
        pelvis + up * 0.05 * height, waist + up * 0.04 * height, front, (hip * 0.93, 0.100 * girth * loose), (belly, 0.095 * girth * loose),
        (lower, style.hem - 1.3, TOP) if style.hem > 1 else TOP, texture=0.05 * height,
    )  # fmt: skip
    front, up, across = chest_axes[:, 2], chest_axes[:, 1], chest_axes[:, 0]
    figure.add(
        waist + up * 0.02 * height, neck - up * 0.055 * height, front, (belly, 0.092 * girth * loose), (breast, 0.098 * girth * loose),
        (TOP, 1.5 - 2.2 * style.neck, SKIN), cap=0.075 * girth, vee=style.vee, texture=0.12 * height,
    )  # fmt: skip
    if feminine > 0.45:
        for side in (-1, 1):
            centre = neck - up * 0.088 * height + across * side * 0.068 * girth + front * 0.062 * girth
            figure.add(
                centre, centre + up * 0.01, front, (0.058 * girth, 0.058 * girth),
                cover=(TOP, 30 * (0.25 - style.neck), SKIN), vee=style.vee, texture=0.2 * height,
            )  # fmt: skip
    if style.legs in ("skirt", "dress"):
        long = 0.16 + 0.16 * (style.loose - 1.04) / 0.2
        flare = 1.25 + 2.0 * (style.loose - 1.04)
        down = np.float32([0, -1, 0])
        figure.add(
            waist - up * 0.03 * height, pelvis + down * long * height, torso[:, 2], (hip * 0.85, 0.095 * girth), (hip * flare, 0.13 * girth * flare),
            lower, cap=0.02, texture=-0.3,
        )  # fmt: skip


def _add_legs(
    rng: np.random.Generator,
    figure: _Figure,
    style: _Style,
    hips: Array,
    pelvis: Array,
    height: float,
    girth: float,
    feminine: float,
) -> None:
    bare = style.legs in ("skirt", "dress")
    loose = 1.0 if bare else style.loose
    flare = 1.0 if bare else rng.uniform(1.0, 1.7)
    upper: tuple[int, float, int] | int = SKIN if bare else BOTTOM
    lower: tuple[int, float, int] | int = upper
    if style.legs == "shorts":
        upper, lower = (BOTTOM, rng.uniform(0.6, 0.95), SKIN), SKIN
    if rng.uniform() < 0.25:
        lower = (SKIN if isinstance(upper, tuple) or bare else BOTTOM, rng.uniform(0.55, 0.9), SHOE)
    lifted = rng.uniform() < 0.5
    for side in (-1, 1):
        flexion, abduction, bend = _choose(rng, LEG_POSES)
        if lifted == (side > 0):  # at least one leg stands
            flexion, bend = min(flexion, 0.1) - rng.uniform(0, 0.12), min(bend, 0.1)
        across = rotation("z", side * abduction)
        thigh_axes = hips @ rotation("y", side * rng.uniform(0, 0.2)) @ across @ rotation("x", -flexion)
        shin_axes = thigh_axes @ rotation("x", bend)
        hip = pelvis + hips @ np.float32([side * (0.080 + 0.008 * feminine) * girth, -0.015 * height, 0])
        knee = hip - thigh_axes[:, 1] * 0.245 * height
        ankle = knee - shin_axes[:, 1] * 0.235 * height
        figure.add(
            hip, knee, thigh_axes[:, 2], (0.084 * girth * loose**0.5, 0.088 * girth * loose**0.5), (0.054 * girth * loose, 0.056 * girth * loose), upper,
        )  # fmt: skip
        calf = knee + 0.32 * (ankle - knee) - shin_axes[:, 2] * 0.012
        cuff = 0.036 * girth * (loose * flare if lower == BOTTOM else 1.0)
        figure.add(
            knee, ankle, shin_axes[:, 2], (0.052 * girth * loose, 0.052 * girth * loose), (cuff, cuff), lower
        )
        figure.add(
            calf - shin_axes[:, 1] * -0.05, calf - shin_axes[:, 1] * 0.06, shin_axes[:, 2], (0.05 * girth * loose, 0.052 * girth * loose), cover=lower if not isinstance(lower, tuple) else lower[0],
        )  # fmt: skip
        foot_axes = shin_axes @ rotation("x", rng.normal(0, 0.05)) @ rotation("y", side * 0.15)
        heel = ankle - foot_axes[:, 1] * 0.026 * height - foot_axes[:, 2] * 0.02 * height
        toes = ankle - foot_axes[:, 1] * 0.033 * height + foot_axes[:, 2] * 0.085 * height
        figure.add(heel, toes, foot_axes[:, 1], (0.036 * girth, 0.036), (0.044 * girth, 0.024), SHOE)


def _add_arms(
    rng: np.random.Generator,
    figure: _Figure,
    style: _Style,
    chest: Array,
    neck: Array,
    height: float,
    girth: float,
    feminine: float,
) -> None:
    upper = SKIN if style.sleeve == 0 else (TOP, min(style.sleeve, 9.0) if style.sleeve < 1 else 9.0, SKIN)
    lower = SKIN if style.sleeve < 1 else (TOP, style.sleeve - 1, SKIN)
    loose = 1.0 if style.sleeve == 0 else style.loose
    both = _choose(rng, ARM_POSES)
    mirrored = rng.uniform() < 0.5
    for side in (-1, 1):
        abduction, flexion, roll, bend = both if mirrored else _choose(rng, ARM_POSES)
        arm = chest @ rotation("z", side * abduction) @ rotation("x", -flexion) @ rotation("y", -side * roll)
        fore = arm @ rotation("x", -bend)
        hand_axes = (
            fore @ rotation("y", side * rng.uniform(-0.5, 1.4)) @ rotation("x", -rng.uniform(-0.1, 0.5))
        )
        shoulder = neck + chest @ np.float32(
            [side * (0.150 - 0.02 * feminine) * girth, -0.052 * height + 0.02 * max(abduction - 1.0, 0), 0]
        )
        elbow = shoulder - arm[:, 1] * 0.168 * height
        wrist = elbow - fore[:, 1] * 0.145 * height
        knuckles = wrist - hand_axes[:, 1] * 0.050 * height
        tips = wrist - hand_axes[:, 1] * 0.088 * height + hand_axes[:, 2] * 0.012
        inner = neck + chest @ np.float32([side * 0.05 * girth, -0.03 * height, 0])
        figure.add(
            inner, shoulder, chest[:, 2], (0.040 * girth, 0.056 * girth), (0.048 * girth, 0.05 * girth), TOP if style.neck < 0.15 or style.sleeve else SKIN,
        )  # fmt: skip
        figure.add(
            shoulder,
            elbow,
            arm[:, 2],
            (0.048 * girth * loose, 0.052 * girth * loose),
            (0.038 * girth * loose, 0.040 * girth * loose),
            upper,
        )
        figure.add(
            elbow,
            wrist,
            fore[:, 2],
            (0.040 * girth * loose, 0.040 * girth * loose),
            (0.027 * girth * loose, 0.024 * girth * loose),
            lower,
        )
        figure.add(wrist, knuckles, hand_axes[:, 0], (0.016, 0.028), (0.014, 0.040), SKIN)
        figure.add(knuckles, tips, hand_axes[:, 0], (0.013, 0.036), (0.009, 0.026), SKIN)
        thumb = wrist - hand_axes[:, 1] * 0.045 * height + hand_axes[:, 2] * 0.045
        figure.add(
            wrist - hand_axes[:, 1] * 0.01 * height,
            thumb,
            hand_axes[:, 0],
            (0.013, 0.014),
            (0.009, 0.009),
            SKIN,
        )


def _add_head(
    rng: np.random.Generator,
    figure: _Figure,
    style: _Style,
    chest: Array,
    axes: Array,
    neck: Array,
    height: float,
) -> tuple[Array, float]:
    size = 0.128 * height * rng.uniform(0.96, 1.06)
    across, up, front = axes.T
    base = neck + chest[:, 1] * 0.028 * height + chest[:, 2] * 0.012 * height
    centre = base + up * (0.36 * size + 0.045 * height) + front * 0.10 * size
    wide, deep = 0.335 * size * rng.uniform(0.95, 1.05), 0.43 * size
    figure.add(
        neck - chest[:, 1] * 0.05,
        base + up * 0.03 * height,
        chest[:, 2],
        (0.056, 0.058),
        (0.050, 0.053),
        SKIN,
    )
    figure.add(
        centre + up * 0.08 * size, centre + up * 0.10 * size, front, (wide, deep), cover=SKIN, cap=0.42 * size
    )
    chin = centre - up * 0.27 * size + front * 0.12 * size
    figure.add(
        chin,
        centre - up * 0.02 * size + front * 0.06 * size,
        front,
        (wide * 0.62, 0.24 * size),
        (wide * 0.92, 0.36 * size),
        SKIN,
        cap=0.2 * size,
    )
    nose = centre - up * 0.07 * size + front * 0.40 * size
    figure.add(
        nose,
        nose + up * 0.17 * size - front * 0.02 * size,
        front,
        (0.060 * size, 0.085 * size),
        (0.035 * size, 0.04 * size),
        SKIN,
    )
    for side in (-1, 1):
        ear = centre - up * 0.06 * size + across * side * wide * 1.0 - front * 0.02 * size
        figure.add(
            ear, ear + up * 0.12 * size - front * 0.03 * size, front, (0.03 * size, 0.07 * size), cover=SKIN
        )
    _add_hair(rng, figure, style.hair, centre, axes, size, wide, deep)
    return centre.astype(np.float32), float(size)


def _add_hair(
    rng: np.random.Generator,
    figure: _Figure,
    kind: str,
    centre: Array,
    axes: Array,
    size: float,
    wide: float,
    deep: float,
) -> None:
    across, up, front = axes.T
    if kind == "bald":
        return
    puff = {"curly": 0.13, "long": 0.05}.get(kind, 0.035) * size * rng.uniform(0.9, 1.3)
    crown = centre + up * (0.17 * size) - front * (0.09 * size + 0.5 * puff)
    figure.add(
        crown, crown + up * 0.02 * size, front, (wide + puff, deep + puff), cover=HAIR, cap=0.37 * size + puff
    )
    back = centre - up * 0.04 * size - front * 0.16 * size
    figure.add(
        back,
        crown,
        front,
        (wide * 0.92, 0.30 * size),
        (wide + 0.7 * puff, 0.36 * size),
        HAIR,
        cap=0.16 * size,
    )
    if kind == "long":
        fall = rng.uniform(0.45, 1.1) * size
        down = (back - up * fall - front * 0.05 * size).astype(np.float32)
        figure.add(
            down,
            back + up * 0.2 * size,
            front,
            (wide * 1.05, 0.12 * size),
            (wide * 1.08, 0.25 * size),
            HAIR,
            cap=0.1 * size,
        )
        for side in (-1, 1):
            top = centre + up * 0.25 * size + across * side * wide * 0.8
            figure.add(
                top - up * (0.35 * size + 0.55 * fall) + across * side * 0.06 * size,
                top,
                front,
                (0.10 * size, 0.16 * size),
                (0.12 * size, 0.2 * size),
                HAIR,
            )
    if kind == "bun":
        bun = centre + up * rng.uniform(0.05, 0.55) * size - front * 0.55 * size
        figure.add(bun, bun + up * 0.01, front, (0.17 * size, 0.17 * size), cover=HAIR)


# ---------------------------------------------------------------------------------------------------- materials

SKIN_TONES = np.float32(
    [[0.77, 0.54, 0.43], [0.68, 0.45, 0.33], [0.55, 0.34, 0.22], [0.40, 0.22, 0.13], [0.25, 0.13, 0.08], [0.14, 0.07, 0.045]]
)  # fmt: skip
HAIR_TONES = np.float32(
    [[0.012, 0.010, 0.010], [0.03, 0.017, 0.011], [0.09, 0.045, 0.022], [0.22, 0.10, 0.04], [0.45, 0.30, 0.13], [0.42, 0.40, 0.38]]
)  # fmt: skip
TROUSER_TONES = np.float32(
    [[0.035, 0.06, 0.14], [0.09, 0.15, 0.28], [0.018, 0.018, 0.022], [0.36, 0.28, 0.18], [0.14, 0.14, 0.15], [0.10, 0.11, 0.06], [0.62, 0.59, 0.54]]
)  # fmt: skip


def _random_colour(rng: np.random.Generator) -> Array:
    """A colour that cloth is sold in: any hue, mostly muted; or black, grey, white."""
    if rng.uniform() < 0.3:
        return np.full(3, rng.choice([0.02, 0.10, 0.35, 0.75]), np.float32) * rng.uniform(
            0.85, 1.1, 3
        ).astype(np.float32)
    hue, saturation, value = rng.uniform(), rng.beta(3, 2) * 0.9, rng.beta(2, 2.2) * 0.75 + 0.05
    ramp = np.clip(np.abs((hue * 6 + np.float32([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - ramp))).astype(np.float32)


def _random_folds(rng: np.random.Generator, amplitude: float) -> Array:
    """Folds run across the limb: their wave vectors point mostly along local y."""
    count = 7
    length = rng.uniform(0.035, 0.16, count)
    direction = rng.normal(0, 1, (count, 3)) * [0.55, 1.0, 0.45]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    height = amplitude * rng.uniform(0.3, 1.0, count) * length / 0.16
    return np.column_stack(
        [direction * (2 * np.pi / length)[:, None], rng.uniform(0, 6.3, count), height]
    ).astype(np.float32)


def _random_cloth(
    rng: np.random.Generator, base: Array, patterns: dict[str, float], thickness: float
) -> Material:
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
    hair = HAIR_TONES[rng.choice(len(HAIR_TONES), p=[0.3, 0.25, 0.2, 0.08, 0.1, 0.07])] * rng.uniform(
        0.8, 1.25
    )
    lips = skin * np.float32([0.9, 0.5, 0.5])
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
        return (
            first
            + (second - first) * _step((cloud - 0.52) * 6)
            + (third - first) * 0.5 * _step((0.36 - cloud) * 6)
        )
    if material.pattern == "dots":
        radius = np.hypot((x * 1.6) % 1 - 0.5, (y * 1.6) % 1 - 0.5)
        return first + (second - first) * _step((0.28 - radius) * 6)
    if material.pattern == "face":
        return _paint_face(material, head, look)
    if material.pattern == "strands":
        streak = value_noise(head * np.float32([[170], [25], [60]]) + 3)
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

    blend(skin * np.float32([1.0, 0.72, 0.7])[:, None], 0.5 * spot(0.18, -0.12, 0.11, 0.09))
    blend(skin * 0.55, 0.6 * spot(0.145, 0.045, 0.09, 0.06))
    blend(np.float32(0.75), 0.9 * spot(0.145, 0.04, 0.052, 0.026))
    blend(np.float32(0.02), spot(0.145, 0.04, 0.024, 0.026))
    blend(hair * 1.2, 0.85 * spot(0.15, 0.125, 0.085, 0.020 + 0.012 * look[1]))
    blend(lips, 0.9 * spot(0.0, -0.26, 0.10, 0.035))
    blend(skin * 0.25, 0.7 * spot(0.0, -0.26, 0.095, 0.009))
    if (
        look[2] > 0.75
    ):  # a beard, only where the face is masculine enough to have been given short hair or none
        stubble = _step((-0.16 - y) * 12) * (z > -0.1) * (1 - spot(0.0, -0.26, 0.10, 0.035))
        blend(hair, (0.25 + 0.6 * (look[2] - 0.75) * 4) * stubble)
    return colour


# ---------------------------------------------------------------------------------------------------- scenes


def random_scene(rng: np.random.Generator) -> Scene:
    """A figure in clothes and a pose of its own, standing about where the camera looks, under a light of its own."""
    parts, head, size = random_figure(rng)
    centre, radius = parts.bounding_spheres()
    feet = float((centre[:, 1] - radius).min())
    place = np.float32([rng.normal(0, 0.05), -feet - 1.0, np.clip(rng.normal(0, 0.06), -0.15, 0.15)])
    parts = dataclasses.replace(parts, origin=parts.origin + place)
    head[0] += place

    azimuth, elevation = rng.uniform(-1.2, 1.2), rng.uniform(0.3, 1.2)
    direction = [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    warmth = np.float32([1.0, 1.0, 1.0]) + np.float32([0.06, 0.0, -0.07]) * rng.uniform(-1, 1)
    share = rng.uniform(0.45, 0.7)
    light = Light(
        direction=np.float32(direction),
        key=1.15 * share * warmth,
        ambient=1.0 * (1 - share) * (2 - warmth),
    )
    return Scene(parts, random_materials(rng), head, size, light, rng.uniform(0, 1, 4).astype(np.float32))


# ---------------------------------------------------------------------------------------------------- rendering


def _local(parts: Parts, points: Array) -> Array:
    """Points (3, N) in every part's axes: (P, 3, N)."""
    turned = (parts.axes.reshape(-1, 3) @ points).reshape(len(parts.length), 3, -1)
    return turned - np.einsum("pij,pj->pi", parts.axes, parts.origin)[:, :, None]


def _distances(parts: Parts, points: Array) -> tuple[Array, Array, Array, Array]:
    """Distance of points (3, N) to each part (P, N), and on the way there: offset from the segment in units of the radii
    (P, 3, N), the radii there (P, 3, N), and the place along the segment, 0 to 1 (P, N)."""
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


def _trace(
    parts: Parts, eye: Array, rays: Array, start: float, stop: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Sphere tracing: planar depth at which each ray (3, N), with z = -1, meets the parts, and whether it does."""
    depth = np.full(rays.shape[1], start, np.float32)
    hit = np.zeros(rays.shape[1], bool)
    active = np.arange(rays.shape[1])
    stretch = np.linalg.norm(rays, axis=0)
    for _ in range(40):
        distance = _union(_distances(parts, eye[:, None] + rays[:, active] * depth[active])[0])
        depth[active] += 0.9 * distance / stretch[active]
        close = distance < 6e-4
        hit[active[close]] = True
        active = active[~close & (depth[active] < stop)]
        if not active.size:
            break
    return depth, hit


def _relief(
    scene: Scene, parts: Parts, points: Array, part: NDArray[np.int64]
) -> tuple[Array, Array, Array, Array]:
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
    for reach, weight in ((0.025, 0.5), (0.08, 0.35), (0.2, 0.25)):
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
    """Where the camera looks so that the figure fills the square: centre (2,) and half-width, on the plane at depth 1."""
    centre, _ = parts.bounding_spheres()
    ends = np.concatenate([parts.origin, parts.origin + parts.axes[:, 1] * parts.length[:, None]])
    margin = np.concatenate([parts.start, parts.end]).max(1).clip(max=0.1)[:, None]
    depth = (eye[2] - ends[:, 2])[:, None]
    low = ((ends[:, :2] - eye[:2] - margin) / depth).min(0)
    high = ((ends[:, :2] - eye[:2] + margin) / depth).max(0)
    return (low + high) / 2, float((high - low).max() / 2 * 1.04)


def render(scene: Scene, size: int) -> Buffers:
    """The scene as a pinhole camera sees it, `size` pixels square. Small images take several rays a pixel."""
    rays_per_pixel = 3 if size <= 96 else 1
    side = size * rays_per_pixel
    eye = np.float32([0, 0.15, CAMERA_DISTANCE])
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
    seen = (centre[:, :2] - eye[:2]) / away[:, None]
    spread = radius / (away - radius)
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            rows, columns = slice(top, min(top + TILE, side)), slice(left, min(left + TILE, side))
            u, v = middle[0] + steps[columns], middle[1] - steps[rows]
            box = np.float32([[u[0], v[-1]], [u[-1], v[0]]])
            gap = np.maximum(np.maximum(box[0] - seen, seen - box[1]), 0)
            inside = np.flatnonzero(np.hypot(gap[:, 0], gap[:, 1]) < spread + 0.004)
            if inside.size:
                _render_tile(
                    scene, scene.parts[inside], eye, u, v, {k: p[rows, columns] for k, p in planes.items()}
                )
    return _resolve(planes, rays_per_pixel)


def _render_tile(
    scene: Scene, parts: Parts, eye: Array, u: Array, v: Array, planes: dict[str, Array]
) -> None:
    """Fill one tile of the planes from the parts that it can see."""
    rays = (
        np.stack([*np.meshgrid(u, v), -np.ones((len(v), len(u)), np.float32)])
        .reshape(3, -1)
        .astype(np.float32)
    )
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
    radiance = _shade(scene, parts, points, bumped, albedo, gloss, view)
    shape = planes["depth"].shape
    at = np.unravel_index(found, shape)
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
    hits = depth > 0
    count = hits.sum(-1)
    mask = count * 2 > k * k
    share = np.where(mask, 1 / np.maximum(count, 1), 0).astype(np.float32)
    middle = depth[..., k * k // 2]
    nearest = np.where(hits, depth, np.inf).min(-1)
    return Buffers(
        mask=mask,
        depth=np.where(mask, np.where(middle > 0, middle, nearest), 0).astype(np.float32),
        radiance=blocks(planes["radiance"]).sum(-2) * share[..., None],
        albedo=blocks(planes["albedo"]).sum(-2)[..., 0] * share,
        facing=blocks(planes["facing"]).sum(-2)[..., 0] * share,
    )
