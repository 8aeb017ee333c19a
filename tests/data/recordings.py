"""Tiny recordings in the formats of other data sets, written byte by byte from their specifications."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import picture
from PIL import Image

SCENE = 3
"""The number of frames of a recording."""


def jpeg(seed: int, height: int, width: int) -> bytes:
    return encoded(picture(seed, height, width), "JPEG")


def encoded(image: np.ndarray, format_: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format_)
    return stream.getvalue()


def millimetres(seed: int, height: int, width: int) -> np.ndarray:
    """Return uint16 depth between 500 and 4000, with a hole of zeros."""
    depth = np.random.default_rng(seed).integers(500, 4000, (height, width)).astype(np.uint16)
    depth[:2, :3] = 0
    return depth


def metres(seed: int, height: int, width: int) -> np.ndarray:
    """Return float32 depth between 0.5 and 4 with fractions of millimetres, and with a hole of zeros."""
    depth = np.random.default_rng(seed).uniform(0.5, 4, (height, width)).astype(np.float32)
    depth[:2, :3] = 0
    return depth


def sens(
    frames: list[tuple[bytes, bytes]],
    color_size: tuple[int, int],
    depth_size: tuple[int, int],
    *,
    color: int = 2,
    depth: int = 1,
    shift: float = 1000,
    version: int = 4,
    count: int | None = None,
) -> bytes:
    """Return a .sens file from stored colour and depth. Sizes are (height, width)."""
    matrix = np.eye(4, dtype="<f4").tobytes()
    name = b"StructureSensor"
    header = struct.pack("<IQ", version, len(name)) + name + 4 * matrix
    header += struct.pack("<ii", color, depth) + struct.pack("<4I", *color_size[::-1], *depth_size[::-1])
    header += struct.pack("<fQ", shift, len(frames) if count is None else count)
    body = b"".join(matrix + struct.pack("<4Q", i, i, len(c), len(d)) + c + d for i, (c, d) in enumerate(frames))
    return header + body + struct.pack("<Q", 0)  # no frames of the inertial sensor


def scannet_file(path: Path, **changes: Any) -> list[tuple[bytes, np.ndarray]]:
    """Write a recording of 48 × 36 colour and 24 × 18 depth. Returns both."""
    images = [(jpeg(i, 36, 48), millimetres(i, 18, 24)) for i in range(SCENE)]
    stored = [(color, zlib.compress(depth.tobytes())) for color, depth in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sens(stored, (36, 48), (18, 24), **changes))
    return images


def record3d_file(
    path: Path, metadata: dict[str, Any] | None = None, **members: bytes
) -> list[tuple[bytes, np.ndarray]]:
    """Write a recording of 36 × 48 colour and 18 × 24 depth, upright as phones write it. Returns both."""
    import imagecodecs

    images = [(jpeg(i, 48, 36), metres(i, 24, 18)) for i in range(SCENE)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata", json.dumps({"w": 36, "h": 48, "dw": 18, "dh": 24, "fps": 30, **(metadata or {})}))
        for i, (color, depth) in enumerate(images):
            archive.writestr(f"rgbd/{i}.jpg", color)
            archive.writestr(f"rgbd/{i}.depth", members.get(f"depth{i}", imagecodecs.lzfse_encode(depth.tobytes())))
            archive.writestr(f"rgbd/{i}.conf", b"unused")
    return images


def tum_folder(folder: Path, apart: float = 0.01) -> list[tuple[bytes, np.ndarray]]:
    """Write a sequence with colour at whole seconds and depth `apart` seconds later, in 5000 units per metre.

    One more depth image has no colour. Returns colour and depth.
    """
    images = [(encoded(picture(i, 36, 48), "PNG"), millimetres(i, 36, 48) * 5) for i in range(SCENE)]
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    rgb, depth = ["# color images", "# timestamp filename"], ["# depth maps", "0.500000 depth/early.png"]
    for i, (color, values) in enumerate(images):
        (folder / "rgb" / f"{i}.000000.png").write_bytes(color)
        (folder / "depth" / f"{i + apart:.6f}.png").write_bytes(encoded(values, "PNG"))
        rgb.append(f"{i}.000000 rgb/{i}.000000.png")
        depth.append(f"{i + apart:.6f} depth/{i + apart:.6f}.png")
    (folder / "rgb.txt").write_text("\n".join(rgb) + "\n")
    (folder / "depth.txt").write_text("\n".join(depth) + "\n")
    return images


def arkitscenes_folder(folder: Path) -> list[tuple[bytes, np.ndarray]]:
    """Write a recording with equal times for colour and depth, and one more colour image without depth."""
    images = [(encoded(picture(i, 24, 32), "PNG"), millimetres(i, 24, 32)) for i in range(SCENE)]
    for name in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (folder / name).mkdir(parents=True)
    for i, (color, depth) in enumerate(images):
        (folder / "lowres_wide" / f"4106_{100 + i}.377.png").write_bytes(color)
        (folder / "lowres_depth" / f"4106_{100 + i}.377.png").write_bytes(encoded(depth, "PNG"))
    (folder / "lowres_wide" / "4106_200.000.png").write_bytes(images[0][0])
    return images


def hypersim_folder(scene: Path, color: bool = True) -> list[tuple[np.ndarray | bytes, np.ndarray]]:
    """Write a scene with one camera. Colour is linear in HDF5 if `color` is true, else JPEG previews.

    Returns the written colour, and z in metres. Each depth image is a plane at constant z. Its distance from the
    camera's centre is larger towards the edges.
    """
    import h5py

    height, width = 48, 64
    folder = {
        part: scene / "images" / f"scene_cam_00_{part}" for part in ("geometry_hdf5", "final_hdf5", "final_preview")
    }
    images: list[tuple[np.ndarray | bytes, np.ndarray]] = []
    for part in folder.values():
        part.mkdir(parents=True)
    for i in range(SCENE):
        z = np.full((height, width), 2.0 + i, np.float32)
        z[:3, :4] = np.nan
        distance = np.empty_like(z)
        for y in range(height):
            for x in range(width):  # tan 30° at the edge of the image, half a pixel beyond the centre of the last pixel
                across = (x + 0.5 - width / 2) / (width / 2) * np.tan(np.pi / 6)
                up = (y + 0.5 - height / 2) / (width / 2) * np.tan(np.pi / 6)
                distance[y, x] = z[y, x] * np.sqrt(1 + across**2 + up**2)
        with h5py.File(folder["geometry_hdf5"] / f"frame.{i:04}.depth_meters.hdf5", "w") as file:
            file["dataset"] = distance.astype(np.float16)
        linear = np.full((height, width, 3), 0.5, np.float16)
        linear[: height // 2] = 3.0
        if color:
            with h5py.File(folder["final_hdf5"] / f"frame.{i:04}.color.hdf5", "w") as file:
                file["dataset"] = linear
        preview = jpeg(i, height, width)
        (folder["final_preview"] / f"frame.{i:04}.tonemap.jpg").write_bytes(preview)
        images.append((linear if color else preview, z))
    return images
