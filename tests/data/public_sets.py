"""Tiny look-alikes of BEDLAM, HuMMan and HAMMER, in the layouts that their authors describe.

They hold 48 × 36 pixels where the data sets hold 1280 × 720 or more. Each writer returns what it has written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from recordings import encoded, jpeg

HEIGHT, WIDTH = 36, 48
SKY = np.float32(1.2e8)
"""Centimetres. Unreal's depth where there is nothing, in a file of 32-bit floats."""
WORLD_DEPTH = "FinalImageMovieRenderQueue_WorldDepth"


def body(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a mask: an upright ellipse in the middle, moved a little by the seed."""
    y, x = np.mgrid[0:height, 0:width]
    return ((x - width / 2 - seed) / (width / 6)) ** 2 + ((y - height / 2) / (height / 2.5)) ** 2 < 1


def centimetres(seed: int, dtype: Any = np.float32) -> np.ndarray:
    """Return rendered depth: a person at 3 m before a wall from 5 to 7 m, and sky above."""
    rng = np.random.default_rng(seed)
    depth = np.linspace(500, 700, WIDTH, dtype=np.float32) + rng.uniform(0, 9, (HEIGHT, WIDTH)).astype(np.float32)
    depth[:6] = SKY if dtype == np.float32 else np.inf
    depth[body(seed)] = 300 + rng.uniform(0, 9, int(body(seed).sum()))
    return depth.astype(dtype)


def write_exr(path: Path, channels: dict[str, np.ndarray], compression: str = "ZIP", **attributes: str) -> None:
    import OpenEXR

    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    OpenEXR.File({**header, **attributes}, channels).write(str(path))


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def bedlam_set(root: Path, sequences: int = 2, frames: int = 2) -> dict[str, np.ndarray]:
    """Write a scene set of BEDLAM: PNG colour, 32-bit depth, and masks of two people, one of whom is out of sight.

    Returns the depth by frame.
    """
    written = {}
    for s in range(sequences):
        for f in range(0, 5 * frames, 5):
            sequence, frame = f"seq_{s:06}", f"seq_{s:06}_{f:04}"
            seed = 10 * s + f
            depth = written[frame] = centimetres(seed % 7)
            write_exr(root / "depth" / sequence / f"{frame}_depth.exr", {"Depth": depth})
            write_png(root / "png" / sequence / f"{frame}.png", np.asarray(_picture(seed)))
            person = body(seed % 7)
            lower = np.arange(HEIGHT)[:, None] > HEIGHT // 2
            masks = root / "masks" / sequence
            write_mask(masks / f"{frame}_env.png", ~person)
            write_mask(masks / f"{frame}_00_body.png", person & ~lower)
            write_mask(masks / f"{frame}_00_clothing.png", person & lower)
    return written


def bedlam2_set(
    root: Path, sequences: int = 2, frames: int = 2, color: bool = True, manifest: str | None = None
) -> dict[str, np.ndarray]:
    """Write a scene set of BEDLAM 2: multilayer EXR with half depth, linear colour and a Cryptomatte; PNG if `color`.

    `manifest` replaces the Cryptomatte's. Returns the depth by frame.
    """
    written = {}
    numbers = {"default": 0x1234ABCD, "BEDLAM/masks/be_actor_00_it_body": 0x3F9A1C22, "be_actor_00_it_hair": 0xC1A00001}
    if manifest is None:
        manifest = json.dumps({name: f"{number:08x}" for name, number in numbers.items()})
    for s in range(sequences):
        for f in range(0, 5 * frames, 5):
            sequence, frame = f"seq_{s:06}", f"seq_{s:06}_{f:04}"
            seed = (10 * s + f) % 7
            depth = written[frame] = centimetres(seed, np.float16)
            ids = np.full(depth.shape, numbers["default"], np.uint32)
            ids[body(seed)] = numbers["BEDLAM/masks/be_actor_00_it_body"]
            ids[: HEIGHT // 2][body(seed)[: HEIGHT // 2]] = numbers["be_actor_00_it_hair"]
            linear = np.linspace(0, 1, WIDTH, dtype=np.float16) * np.ones((HEIGHT, 1), np.float16)
            flat = np.ones_like(depth)
            channels = dict.fromkeys("RGB", linear) | {"A": flat}
            channels |= {f"{WORLD_DEPTH}.{c}": depth if c == "R" else 0 * flat for c in "RGBA"}
            channels |= {f"ActorHitProxyMask00.{c}": flat.astype(np.float32) for c in "GBA"}
            channels["ActorHitProxyMask00.R"] = ids.view(np.float32)
            attributes = {"cryptomatte/3fd1687/manifest": manifest, "cryptomatte/3fd1687/name": "ActorHitProxyMask"}
            write_exr(root / "exr_depth" / sequence / f"{frame}.exr", channels, "PIZ", **attributes)
            if color:
                write_png(root / "png" / sequence / f"{frame}.png", np.asarray(_picture(10 * s + f)))
    return written


def _picture(seed: int) -> Image.Image:
    import io

    return Image.open(io.BytesIO(jpeg(seed, HEIGHT, WIDTH)))


# HuMMan. The world has the coordinates of the colour camera of kinect_000: x right, y down, z forward, in metres.

KINECT_COLOR, KINECT_DEPTH, IPHONE_COLOR, IPHONE_DEPTH = (108, 192), (58, 64), (144, 192), (48, 64)
"""(height, width): a tenth of a Kinect's, and of an iPhone's a tenth and a quarter."""


def kinect_cameras(baseline: float = 0.032) -> dict[str, dict[str, list[Any]]]:
    """Return the two cameras of a Kinect, at a tenth of their resolution: side by side, the depth camera looks down."""
    angle = np.deg2rad(1.3)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return {
        "kinect_color_000": {
            "K": [[91.8, 0, 95.5], [0, 91.7, 53.5], [0, 0, 1]],
            "R": np.eye(3).tolist(),
            "T": [0, 0, 0],
        },
        "kinect_depth_000": {
            "K": [[50.4, 0, 31.8], [0, 50.4, 29.1], [0, 0, 1]],
            "R": turn.tolist(),
            "T": [baseline, 0.002, -0.004],
        },
    }


def humman_sequence(folder: Path, frames: int = 2, first: int = 0, step: int = 6, masks: bool = True) -> None:
    """Write a sequence with a Kinect and an iPhone, both before a person at 2 m and a wall at 3 m.

    The colour's numbers begin at `first`, and the depth's at 0.
    """
    cameras = kinect_cameras()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.json").write_text(json.dumps(cameras))
    for i in range(frames):
        for kind, device, (height, width), size in (
            ("kinect", "kinect_000", KINECT_COLOR, KINECT_DEPTH),
            ("iphone", "iphone", IPHONE_COLOR, IPHONE_DEPTH),
        ):
            color = folder / f"{kind}_color" / device / f"{first + i * step:06}.png"
            depth = folder / f"{kind}_depth" / device / f"{i * step:06}.png"
            mask = folder / f"{kind}_mask" / device / f"{first + i * step:06}.png"
            write_png(color, np.asarray(_resized(i, height, width)))
            write_png(depth, sensor(i, *size))
            if masks:
                write_mask(mask, body(i, height, width))


def sensor(seed: int, height: int, width: int) -> np.ndarray:
    """Return depth in millimetres, uint16: a person at 2 m before a wall at 3 m, with noise and holes."""
    rng = np.random.default_rng(seed)
    depth = np.where(body(seed, height, width), 2000, 3000) + rng.integers(-5, 6, (height, width))
    depth[rng.random((height, width)) < 0.05] = 0
    return depth.astype(np.uint16)


def _resized(seed: int, height: int, width: int) -> Image.Image:
    return _picture(seed).resize((width, height))


# HAMMER


def hammer_sequence(folder: Path, frames: int = 2, missing: str = "") -> dict[str, list[np.ndarray]]:
    """Write a sequence: colour, rendered truth and three sensors. Returns the depth of each folder, by frame.

    `missing` names a folder that is not written.
    """
    written: dict[str, list[np.ndarray]] = {}
    for kind, seed in {"_gt": 0, "depth_tof": 100, "depth_d435": 200, "depth_l515": 300}.items():
        for i in range(frames):
            depth = sensor(seed + i, HEIGHT, WIDTH)
            if kind == "_gt":
                depth = np.where(body(i), 2000, 3000).astype(np.uint16)
            if kind != missing:
                write_png(folder / "polarization" / kind / f"{i:06}.png", depth)
            written.setdefault(kind, []).append(depth)
    for i in range(frames):
        path = folder / "polarization" / "rgb" / f"{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.asarray(_picture(i)), "PNG"))
    return written
