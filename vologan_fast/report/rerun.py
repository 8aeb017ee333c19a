"""A recording for the viewer Rerun (.rrd): images, depth, pinhole and point clouds along the steps of a run.

Each example of a direction has an entity such as `S_to_T/0`. Below it, the input, the translation and the cycle each
have a camera with colour and depth, and a cloud of points. The name of its file is the text `name`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vologan_fast.files import aside_of
from vologan_fast.quantities.clouds import cloud, focal_length
from vologan_fast.quantities.depth import DepthScale, Floats, measured
from vologan_fast.quantities.observation import Direction, Example, Observation
from vologan_fast.report.page import ReportError
from vologan_fast.report.pictures import surface
from vologan_fast.words import printable


def library() -> Any:
    """Return the module rerun. Raises ReportError if it is not installed."""
    try:
        import rerun
    except ImportError:
        raise ReportError(
            "--rerun: the package rerun-sdk is not installed; pip install 'vologan-fast[rerun]'"
        ) from None
    return rerun


def write_recording(path: Path, name: str, observations: Iterable[Observation], field_of_view: float) -> Path:
    """Write the observations of a run, lowest step first, to an .rrd file, complete or not at all, and return its path.

    Raises ReportError without rerun-sdk, and OSError.
    """
    rr = library()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    aside.touch()  # a folder that cannot be written is an OSError here, with its name
    recording = rr.RecordingStream("vologan_fast", recording_id=printable(name))
    try:
        recording.save(aside)
        for observation in observations:
            recording.set_time("step", sequence=observation.step)
            for direction in observation.directions:
                for i, example in enumerate(direction.examples):
                    _log(
                        rr,
                        recording,
                        f"{direction.source}_to_{direction.target}/{i}",
                        direction,
                        example,
                        field_of_view,
                    )
        recording.flush()
        recording.disconnect()
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _log(rr: Any, recording: Any, entity: str, direction: Direction, example: Example, field_of_view: float) -> None:
    recording.log(f"{entity}/name", rr.TextDocument(printable(example.name)))
    labels = ("input", "translation", "cycle")
    for label, image, kind in zip(labels, example.images, direction.channels, strict=False):
        height, width = image.shape[1:]
        place = f"{entity}/{label}"
        colors = surface(image, kind)
        if not kind.depth:
            recording.log(f"{place}/image", rr.Image(colors))
            continue
        # x to the right, y down, z forward: the frame of the clouds.
        recording.log(place, rr.ViewCoordinates.RDF)
        pinhole = rr.Pinhole(
            width=width,
            height=height,
            focal_length=focal_length(height, width, field_of_view),
            principal_point=(width / 2, height / 2),
            camera_xyz=rr.ViewCoordinates.RDF,
        )
        recording.log(f"{place}/camera", pinhole)
        if kind.color:
            recording.log(f"{place}/camera/color", rr.Image(colors))
        recording.log(f"{place}/camera/depth", rr.DepthImage(_distances(image[-1], direction.scale), meter=1.0))
        points = cloud(image[-1], colors, direction.scale, field_of_view)
        recording.log(f"{place}/points", rr.Points3D(points.points, colors=points.colors))


def _distances(depth: Floats, scale: DepthScale) -> Floats:
    """Return the distances of depth (H, W) in [0, 1] as float32, 0 where nothing was measured."""
    return np.where(measured(depth), scale.distance(depth), 0).astype(np.float32)
