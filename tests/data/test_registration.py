"""Registration of depth to another camera, on scenes whose depth is known in both."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vologan_fast.data.convert.registration import Camera, registered, view_size

on_a_busy_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
angles = st.floats(-0.06, 0.06)  # radians; a Kinect's two cameras are turned by about 0.1 against each other
offsets = st.floats(-0.05, 0.05)  # metres


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Return the rotation by angles around x, then y, then z."""
    cx, cy, cz = np.cos([x, y, z])
    sx, sy, sz = np.sin([x, y, z])
    return (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )


def camera(focal: float, size: tuple[int, int], turn: np.ndarray, translation: np.ndarray) -> Camera:
    height, width = size
    matrix = np.array([[focal, 0, width / 2 - 0.3], [0, 1.01 * focal, height / 2 - 0.7], [0, 0, 1]])
    return Camera(matrix, turn, translation)


def plane_depth(seen: Camera, normal: np.ndarray, distance: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return z in a camera of the world's plane normal · X = distance, at pixel coordinates y and x."""
    rays = np.linalg.solve(seen.intrinsics, np.stack([x, y, np.ones_like(x)]).reshape(3, -1).astype(float))
    n = seen.rotation @ normal
    return ((distance + n @ seen.translation) / (n @ rays)).reshape(x.shape)


@on_a_busy_machine
@given(st.tuples(angles, angles, angles), st.tuples(offsets, offsets, offsets), angles, angles, st.floats(1, 4))
def test_a_plane(
    turn: tuple[float, ...], offset: tuple[float, ...], tilt_x: float, tilt_y: float, distance: float
) -> None:
    """Each value lies between the depths of the plane within half a pixel around it."""
    size, target_size = (60, 70), (40, 50)
    source = camera(55, size, rotation(*turn), np.array(offset))
    target = camera(48, target_size, np.eye(3), np.zeros(3))
    normal = rotation(5 * tilt_x, 5 * tilt_y, 0) @ np.array([0, 0, 1.0])
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    found = registered(plane_depth(source, normal, distance, y, x), source, target, target_size)
    y, x = np.mgrid[0 : target_size[0], 0 : target_size[1]]
    corners = [
        plane_depth(target, normal, distance, y + a, x + b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)
    ]  # inverse depth of a plane is linear in the pixel, so the extremes of a pixel lie in its corners
    measured = found > 0
    slack = 1e-6 * distance  # the result is float32
    assert (found[measured] >= np.min(corners, 0)[measured] - slack).all()
    assert (found[measured] <= np.max(corners, 0)[measured] + slack).all()
    assert measured.any()


@on_a_busy_machine
@given(st.floats(-0.05, 0.05), st.floats(1, 4))
def test_a_wall_that_faces_both_cameras_has_no_gap(baseline: float, distance: float) -> None:
    size = (60, 70)
    source = camera(55, size, np.eye(3), np.array([baseline, 0, 0]))
    color = camera(100, (80, 100), np.eye(3), np.zeros(3))
    view = view_size(source, color, (80, 100))
    assert view == (40, 50)
    found = registered(np.full(size, distance), source, color.resized((80, 100), view), view)
    np.testing.assert_allclose(found[4:-4, 6:-6], distance, rtol=1e-6)


def test_the_nearest_point_hides_the_others_and_leaves_a_shadow() -> None:
    """A near square before a far wall: the wall does not show through it, and what the square hid stays empty."""
    size = (60, 80)
    depth = np.full(size, 4.0)
    depth[20:40, 30:50] = 1.0
    source = camera(50, size, np.eye(3), np.array([0.1, 0, 0]))
    target = camera(50, size, np.eye(3), np.zeros(3))
    found = registered(depth, source, target, size)
    # x = f X / z: the target sees the square 5 pixels further left (50 · 0.1 / 1), and the wall 1.25.
    np.testing.assert_array_equal(found[20:40, 25:45], 1.0)
    assert (found[20:40, 49:79] == 4.0).all() and (found[20:40, 45:49] == 0).all()
    assert set(np.unique(found[:20])) <= {0.0, 4.0}


def test_pixels_without_depth_give_no_points() -> None:
    depth = np.array([[np.nan, np.inf, 0.0], [-1.0, 2.0, 0.0]])
    at = camera(2, (2, 3), np.eye(3), np.zeros(3))
    np.testing.assert_array_equal(registered(depth, at, at, (2, 3)), [[0, 0, 0], [0, 2, 0]])


def test_points_behind_the_target_are_left_out() -> None:
    at = camera(50, (60, 80), np.eye(3), np.zeros(3))
    back = Camera(at.intrinsics, rotation(0, np.pi, 0), np.zeros(3))
    assert not registered(np.full((60, 80), 2.0), at, back, (60, 80)).any()


@on_a_busy_machine
@given(st.integers(1, 5), st.integers(1, 5))
def test_resizing_keeps_the_corners_of_the_view(rows: int, columns: int) -> None:
    before = (60, 80)
    after = (60 * rows // 4, 80 * columns // 4)
    at = camera(50, before, np.eye(3), np.zeros(3))
    small = at.resized(before, after)
    for y, x in ((0, 0), (1, 1), (0.3, 0.9)):
        ray = np.linalg.solve(at.intrinsics, [x * before[1] - 0.5, y * before[0] - 0.5, 1])
        expected = [x * after[1] - 0.5, y * after[0] - 0.5, 1]
        np.testing.assert_allclose(small.intrinsics @ ray, expected, atol=1e-9)
