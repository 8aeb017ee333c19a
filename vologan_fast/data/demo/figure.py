"""Bodies for the demo data: random proportions, a random pose and random clothes.

A figure is a set of *parts*, all of the same kind. A part is a segment from joint to joint with round ends. Its
cross-section is an ellipse that changes along the segment. A limb is a long part, a head is a very short one, and a
skirt is a wide one. Because all parts are of one kind, the renderer can work on arrays over (parts, points).

World axes: x to the right of the image, y up, z towards the camera. Lengths are in metres.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""A float32 array, unless another type is given."""

SKIN, TOP, BOTTOM, SHOE, HAIR = range(5)
"""The numbers of the materials that cover the parts of a figure."""


def vector(*values: float) -> Array:
    """Return coordinates or a colour as an array."""
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Parts:
    """P parts as arrays. Local axes: y from `origin` to the other end, z to the part's front."""

    origin: Array
    """(P, 3): one end of the segment."""
    axes: Array
    """(P, 3, 3): local x, y, z in world axes, one per row."""
    length: Array
    """(P,): length of the segment in metres, without the round ends."""
    start: Array
    """(P, 3): radii along local x, y, z at the origin."""
    end: Array
    """(P, 3): radii at the other end."""
    covers: NDArray[np.int64]
    """(P, 2): material below and above `split`."""
    split: Array
    """(P,): local y at which the material changes, metres."""
    vee: Array
    """(P,): slope of this border with the distance from the middle of the front, for a V-neck."""
    texture: Array
    """(P,): offset added to local y in metres, so that a pattern continues from part to part."""

    def __getitem__(self, index: NDArray) -> Parts:
        return Parts(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def bounding_spheres(self) -> tuple[Array, Array]:
        """Return the centres (P, 3) and radii (P,) of spheres around the parts."""
        half = self.axes[:, 1] * (self.length / 2)[:, None]
        return self.origin + half, self.length / 2 + np.maximum(self.start, self.end).max(1)


def rotation(axis: str, angle: float) -> Array:
    """Return the right-handed rotation (3, 3) by `angle` radians about a world axis."""
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis], np.float32)


Ranges = tuple[tuple[float, float], ...]
ARM_POSES: dict[str, tuple[Ranges, float]] = {
    # (abduction, flexion, inward roll, bend of the elbow), each from low to high in radians, and the pose's weight
    "hanging": (((0.10, 0.30), (-0.2, 0.25), (0.0, 0.6), (0.1, 0.5)), 0.42),
    "on the hip": (((0.80, 0.95), (-0.5, -0.3), (0.9, 1.2), (1.6, 1.85)), 0.14),
    "raised": (((1.7, 2.5), (0.0, 0.4), (-0.4, 0.3), (0.2, 1.2)), 0.12),
    "forward": (((0.0, 0.4), (0.6, 1.4), (0.0, 0.5), (0.2, 1.2)), 0.14),
    "before the body": (((0.1, 0.3), (0.2, 0.6), (0.7, 1.2), (1.2, 1.9)), 0.10),
    "outward": (((0.7, 1.4), (-0.2, 0.3), (-0.5, 0.5), (0.0, 0.8)), 0.08),
}
LEG_POSES: dict[str, tuple[Ranges, float]] = {
    # (flexion, abduction, bend of the knee), each from low to high in radians, and the pose's weight
    "standing": (((-0.06, 0.06), (0.0, 0.10), (0.0, 0.1)), 0.45),
    "apart": (((-0.10, 0.10), (0.12, 0.28), (0.0, 0.1)), 0.25),
    "striding": (((0.2, 0.45), (0.0, 0.08), (0.1, 0.5)), 0.20),
    "lifted": (((0.6, 1.1), (0.0, 0.2), (0.8, 1.4)), 0.10),
}


def _choose(rng: np.random.Generator, poses: dict[str, tuple[Ranges, float]]) -> list[float]:
    """Draw a pose from a table by its weight, and each of its angles from its range."""
    weights = np.array([weight for _, weight in poses.values()])
    ranges = list(poses.values())[rng.choice(len(poses), p=weights / weights.sum())][0]
    return [float(rng.uniform(low, high)) for low, high in ranges]


@dataclass(frozen=True)
class Style:
    """The clothes and the hair of a figure."""

    legs: str
    """trousers, shorts, skirt or dress."""
    hair: str
    """bald, short, long, bun or curly."""
    sleeve: float
    """The length of the sleeves. 0: bare arms. 1: to the elbow. 2: to the wrist."""
    hem: float
    """The lower end of the top on the hips. 0: their lower end. 1: their upper end."""
    loose: float
    """A factor for the radii of clothed parts."""
    neck: float
    """The depth of the neckline. Larger values leave more of the chest bare."""
    vee: float
    """The slope of a V-neck, or 0."""


def random_style(rng: np.random.Generator, feminine: float) -> Style:
    """Draw clothes and hair. `feminine` in [0, 1] makes skirts and long hair more likely."""
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
"""The material of a part, or (first material, fraction of the length where it ends, second material)."""


class Figure:
    """A random figure: proportions, a pose, a style, and the parts that `add` collects.

    Lengths follow from the height `h` in metres (segment lengths after Drillis and Contini 1966). Radii follow from the
    girth `g` (about 1 on average). The pelvis is at the origin.
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
        """Add a part from `start` to `end`, whose front faces `front`.

        `radii` and `end_radii` are the radii (across, front to back) at its two ends. `cap` is the radius along the
        part at both ends. `vee` and `texture` are as in `Parts`.
        """
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
        """Return all parts that were added."""
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
        """Convert a point in the head's axes, in units of `head_size`, to world coordinates."""
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
