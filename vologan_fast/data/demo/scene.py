"""Random scenes for the demo data, and the signed-distance renderer that draws them.

    scene = random_scene(numpy.random.default_rng(seed))
    buffers = render(scene, size)

The distance to a part of a figure has a closed form, which is accurate near the part's surface. A smooth minimum joins
the parts. Rays find the surface by sphere tracing [Hart 1996], tile by tile. So a ray is tested only against the few
parts that its tile can hit. The figure stands around the origin, and the camera looks along -z. Colours are linear
light, which is not yet encoded for a display.

The distance estimate and the soft shadows follow https://iquilezles.org/articles/ellipsoids and .../rmshadows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vologan_fast.data.demo.figure import Array, Figure, Parts, vector
from vologan_fast.data.demo.material import Material, albedo_of, random_materials, value_noise

CAMERA_DISTANCE = 3.0
"""Distance from the camera to the plane through the figure's middle, metres."""
NEAR, FAR = 2.0, 4.0
"""The capture volume, metres from the camera. In the demo's files these depths become -1 and 1."""

MELT = 0.016
"""Width of the smooth minimum that joins parts, in metres."""
SHADE_REACH = 0.2
"""Largest distance at which a part can block ambient light from a point, metres."""
TILE = 32
"""Side of the square of rays that are traced together, in rays."""


@dataclass(frozen=True)
class Light:
    """A soft key light and the ambient light of the surroundings."""

    direction: Array
    key: Array
    ambient: Array


@dataclass(frozen=True)
class Scene:
    """A figure with a pose and clothes, under a light."""

    parts: Parts
    materials: tuple[Material, ...]
    head: Array
    """(4, 3): centre of the head, then its local axes."""
    head_size: float
    light: Light
    look: Array
    """(2,): the width of stripes and the thickness of eyebrows, each in [0, 1]."""
    beard: float
    """Density of the beard, 0 to 1."""


@dataclass(frozen=True)
class Buffers:
    """The image of a perfect camera. Shapes are (size, size) or (size, size, 3), and values are 0 outside `mask`."""

    mask: NDArray[np.bool_]
    depth: Array
    """Planar distance from the camera, metres."""
    radiance: Array
    """Linear light, about in [0, 1], not clipped."""
    albedo: Array
    """Reflectance of the surface, averaged over the colours."""
    facing: Array
    """Cosine of the angle between the surface's normal and the direction to the camera."""


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a random figure near the middle of the camera's view, under a random light."""
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
        look=rng.random(2, np.float32),
        beard=float(rng.choice([0.0, rng.uniform(0.2, 0.9)])) if figure.feminine < 0.5 else 0.0,
    )


def _local(parts: Parts, points: Array) -> Array:
    """Convert points (3, N) to the axes of every part: (P, 3, N)."""
    turned = (parts.axes.reshape(-1, 3) @ points).reshape(len(parts.length), 3, -1)
    return turned - np.einsum("pij,pj->pi", parts.axes, parts.origin)[:, :, None]


def _distances(parts: Parts, points: Array) -> tuple[Array, Array, Array, Array]:
    """Return the distances (P, N) from points (3, N) to each part, and the intermediate results.

    These are the offset from the segment in units of the radii (P, 3, N), the radii there (P, 3, N), and the place
    along the segment, from 0 to 1 (P, N).
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
    """Return the smooth minimum of distances (P, N) over the parts: (N,)."""
    nearest = distances.min(0)
    return nearest - MELT * np.log(np.exp((nearest - distances) / MELT).sum(0))


def _normals(parts: Parts, points: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return unit normals (3, N) of the joined surface, and the index (N,) of the part that each point lies on."""
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
    """Trace rays (3, N) with z = -1 by sphere tracing, from planar depth `start` to `stop`.

    Returns the planar depth (N,) at which each ray meets the parts, and a mask (N,) of the rays that meet them.
    """
    depth = np.full(rays.shape[1], start, np.float32)
    hit = np.zeros(rays.shape[1], bool)
    active = np.arange(rays.shape[1])
    stretch = np.linalg.norm(rays, axis=0)
    for step in range(40):
        distance = _union(_distances(parts, eye[:, None] + rays[:, active] * depth[active])[0])
        depth[active] += 0.9 * distance / stretch[active]
        close = distance < 6e-4 * 1.05**step  # the few rays that graze a surface may stop earlier
        hit[active[close]] = True
        active = active[~close & (depth[active] < stop)]
        if not active.size:
            break
    hit[active] = True
    return depth, hit


def _relief(scene: Scene, parts: Parts, points: Array, part: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
    """Return the surface's properties at points (3, N), each on the part with index `part` (N,).

    They are the gloss (N,), the height above the part (N,) in metres, the gradient of this height (3, N) in world axes,
    and the albedo (3, N).
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
        albedo[:, here] = albedo_of(material, local[:, here], head[:, here], scene.look, scene.beard)
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
    """Return the linear light (3, N) from points (3, N) towards the camera (unit vectors `view`)."""
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
    """Return the square that the figure fills on the plane at depth 1: its centre (2,) and half its width."""
    ends = np.concatenate([parts.origin, parts.origin + parts.axes[:, 1] * parts.length[:, None]])
    margin = np.concatenate([parts.start, parts.end]).max(1).clip(max=0.1)[:, None]
    depth = (eye[2] - ends[:, 2])[:, None]
    low = ((ends[:, :2] - eye[:2] - margin) / depth).min(0)
    high = ((ends[:, :2] - eye[:2] + margin) / depth).max(0)
    return (low + high) / 2, float((high - low).max() / 2 * 1.04)


def render(scene: Scene, size: int) -> Buffers:
    """Render the scene with a pinhole camera to `size` × `size` pixels.

    Images of up to 256 × 256 take 2 × 2 rays per pixel, larger ones one ray.
    """
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
    """Fill one tile of the planes.

    The tile's rays can hit only `parts`. `near` are the parts that can block ambient light there.
    """
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
    """Combine the rays of each pixel.

    Colours are averaged over the rays that hit the figure. Depth comes from one ray and is never a mixture.
    """
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
