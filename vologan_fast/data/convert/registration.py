"""Registration: depth as another camera would have measured it.

The depth camera and the colour camera of a Kinect are different cameras beside each other. Each measured point is
moved into the colour camera's coordinates, and falls into a pixel there. If several fall into one pixel, the nearest to
the camera is kept, because it hides the others. A pixel without a point is "not measured": the sensor had a hole there,
or the depth camera could not see the place (a shadow at the edge of a near object).

Cameras are pinhole cameras as in OpenCV: x = K (R X + T), without distortion, with integer coordinates at the centres
of pixels. Formula: R. Hartley and A. Zisserman, Multiple View Geometry in Computer Vision, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world."""

    intrinsics: Floats
    """K, (3, 3), in pixels."""
    rotation: Floats
    """R, (3, 3), from the world to the camera."""
    translation: Floats
    """T, (3,), from the world to the camera, in metres."""

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> Camera:
        """Return the camera for images of size `after` with the same view as images of size `before`, (h, w) each."""
        y, x = (b / a for a, b in zip(before, after, strict=True))
        # Coordinates scale from the corner of the first pixel, which lies at -1/2.
        scale = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        return Camera(scale @ self.intrinsics, self.rotation, self.translation)


def view_size(depth_camera: Camera, color_camera: Camera, color_size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) at which depth fills the view of colour without gaps between its points.

    It is a whole fraction of `color_size`. Two neighbouring points of a surface that faces both cameras then lie at
    most one pixel apart.
    """
    focal = [(camera.intrinsics[0, 0], camera.intrinsics[1, 1]) for camera in (color_camera, depth_camera)]
    fraction = max(1, int(np.ceil(max(c / d for c, d in zip(*focal, strict=True)))))
    return max(1, color_size[0] // fraction), max(1, color_size[1] // fraction)


def registered(
    depth: npt.NDArray[np.floating], camera: Camera, target: Camera, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return depth (h, w) of `camera` as z of the camera `target`, whose images have the (height, width) `size`.

    Depth and result are in metres. Values of `depth` that are not finite or not above 0 are left out. The result is 0
    where nothing was measured.
    """
    v, u = np.nonzero(np.isfinite(depth) & (depth > 0))
    points = np.linalg.solve(camera.intrinsics, np.stack([u, v, np.ones(len(u))])) * depth[v, u]
    turn = target.rotation @ camera.rotation.T
    points = turn @ points + (target.translation - turn @ camera.translation)[:, None]
    points = points[:, points[2] > 0]
    x, y = np.floor((target.intrinsics @ points)[:2] / points[2] + 0.5)
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    nearest = np.full(size, np.inf, np.float32)
    np.minimum.at(nearest, (y[inside].astype(int), x[inside].astype(int)), points[2, inside].astype(np.float32))
    return np.where(np.isfinite(nearest), nearest, np.float32(0))
