"""Which channel of an EXR is the depth: the names that programs write, in every order, type and compression.

Each file of a table holds its depth in one channel, and other values in all others. `DEPTH` marks the right channel.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from depth_images import assert_same_bits, depth_image
from depth_writers import Exr
from hypothesis import given, settings
from hypothesis import strategies as st

from vologan_fast import depth

pytestmark = pytest.mark.usefixtures("exr_decoder")

RGBA = ("R", "G", "B", "A")


def layer(name: str, channels: tuple[str, ...] | str) -> list[str]:
    return [f"{name}.{channel}" for channel in channels]


# What each program writes: (the channels, the one that is depth).
PROGRAMS: dict[str, tuple[list[str], str]] = {
    "OpenEXR": ([*RGBA, "Z"], "Z"),
    "OpenEXR, flat copy of a deep image": ([*RGBA, "Z", "ZBack"], "Z"),
    "OpenEXR, two views": ([*RGBA, "Z", *layer("right", RGBA), "right.Z"], "Z"),
    "Blender, OpenEXR with Z": ([*RGBA, "Z"], "Z"),
    "Blender, multilayer": (
        [
            *layer("ViewLayer.Combined", RGBA),
            "ViewLayer.Depth.Z",
            "ViewLayer.Mist.Z",
            *layer("ViewLayer.Normal", "XYZ"),
            *layer("ViewLayer.Position", "XYZ"),
            *layer("ViewLayer.Vector", "XYZW"),
            *layer("ViewLayer.UV", "UVA"),
            "ViewLayer.IndexOB.X",
            *layer("ViewLayer.CryptoObject00", ("r", "g", "b", "a")),
            *layer("Composite.Combined", RGBA),
        ],
        "ViewLayer.Depth.Z",
    ),
    "Blender, multilayer with denoising data": (
        [
            *layer("ViewLayer.Combined", RGBA),
            "ViewLayer.Denoising Depth.Z",
            "ViewLayer.Denoising Depth Variance.Z",
            "ViewLayer.Depth.Z",
            *layer("ViewLayer.Denoising Normal", "XYZ"),
            *layer("ViewLayer.Denoising Albedo", "RGB"),
            "ViewLayer.Debug Sample Count.X",
        ],
        "ViewLayer.Depth.Z",
    ),
    "Blender, only denoising depth": (
        [*layer("interior.Combined", RGBA), "interior.Denoising Depth.Z", "interior.Denoising Depth Variance.Z"],
        "interior.Denoising Depth.Z",
    ),
    "Blender, newer": ([*layer("ViewLayer.Combined", RGBA), "ViewLayer.Depth.V"], "ViewLayer.Depth.V"),
    "Blender, File Output": ([*layer("Color", RGBA), "Depth.V", *layer("Normal", "XYZ")], "Depth.V"),
    "Blender, File Output of colours": ([*layer("Image", RGBA), *layer("Depth", RGBA)], "Depth.R"),
    "Blender, File Output of a vector": ([*layer("Image", RGBA), *layer("Depth", "XYZ")], "Depth.Z"),
    "Blender, Image.Z": ([*layer("Image", RGBA), "Image.Z"], "Image.Z"),
    "Unreal, Movie Render Queue": (
        [*RGBA, *layer("FinalImageMovieRenderQueue_WorldDepth", RGBA)],
        "FinalImageMovieRenderQueue_WorldDepth.R",
    ),
    "Unreal, with object ids": (
        [
            *RGBA,
            *layer("ActorHitProxyMask00", RGBA),
            *layer("FinalImageMovieRenderQueue_MotionVectors", RGBA),
            *layer("FinalImageMovieRenderQueue_WorldDepth", RGBA),
            *layer("FinalImageWorldNormal", RGBA),
        ],
        "FinalImageMovieRenderQueue_WorldDepth.R",
    ),
    "Unreal, SceneDepth": ([*RGBA, *layer("SceneDepthWorldUnits", RGBA)], "SceneDepthWorldUnits.R"),
    "Nuke": ([*RGBA, "depth.Z"], "depth.Z"),
    "Nuke, with motion": ([*RGBA, "depth.Z", "forward.u", "forward.v", *layer("motion", "xy")], "depth.Z"),
    "Arnold": ([*RGBA, "Z", *layer("N", "XYZ"), *layer("P", "XYZ")], "Z"),
    "Arnold, with variance": ([*RGBA, "Z", *layer("N", "XYZ"), *layer("variance", RGBA)], "Z"),
    "V-Ray": ([*RGBA, "zDepth.red", *layer("normals", "XYZ"), *layer("velocity", "XYZ")], "zDepth.red"),
    "V-Ray, all three": ([*RGBA, *layer("VRayZDepth", ("red", "green", "blue"))], "VRayZDepth.red"),
    "V-Ray, raw and clamped": ([*RGBA, "Z", *layer("zDepth", ("red", "green", "blue"))], "Z"),
    "3ds Max": ([*RGBA, "Z_Depth.R", *layer("Velocity", "XYZ")], "Z_Depth.R"),
    "Corona": ([*RGBA, *layer("CGeometry_ZDepth", RGBA), *layer("CMasking_ID", RGBA)], "CGeometry_ZDepth.R"),
    "Redshift": ([*RGBA, "Z", *layer("P", "XYZ"), *layer("N", "XYZ"), *layer("Cryptomatte00", RGBA)], "Z"),
    "Redshift, named": ([*RGBA, "Depth.Z", *layer("MotionVectors", "RGB")], "Depth.Z"),
    "Octane": ([*layer("Beauty", RGBA), *layer("Z-depth", "RGB"), *layer("Normal", "RGB")], "Z-depth.R"),
    "Houdini, Mantra": ([*RGBA, "Pz", *layer("P", "xyz"), *layer("N", "xyz")], "Pz"),
    "Houdini, Karma": ([*RGBA, "depth", *layer("N", "xyz"), "primid"], "depth"),
    "Houdini, depth in a layer": ([*layer("C", RGBA), "depth.z"], "depth.z"),
    "RenderMan": ([*layer("Ci", "rgb"), "a", "z", *layer("Nn", "xyz"), "zback"], "z"),
    "RenderMan, depth": ([*layer("Ci", "rgb"), "a", "depth.z", *layer("dPdtime", "xyz")], "depth.z"),
    "Omniverse": ([*RGBA, "PtZDepth.R", "PtZDepth.G", "PtZDepth.B", *layer("PtWorldNormal", "RGB")], "PtZDepth.R"),
    "Omniverse, linear": ([*layer("LdrColor", RGBA), "DepthLinearized.R"], "DepthLinearized.R"),
    "Mitsuba": ([*RGBA, "depth.T", *layer("nn", "XYZ"), *layer("position", "XYZ")], "depth.T"),
    "appleseed": ([*RGBA, *layer("depth", "Z"), *layer("albedo", "RGB"), *layer("uv", "XYZ")], "depth.Z"),
    "Cycles, standalone": ([*RGBA, "depth", *layer("normal", "XYZ")], "depth"),
    "Substance": ([*layer("Beauty", RGBA), "SceneDepth"], "SceneDepth"),
    "Natron": ([*layer("Color", RGBA), "Depth.Z", *layer("Forward", "UV")], "Depth.Z"),
    "Z in a pass": ([*layer("diffuse", RGBA), "diffuse.Z"], "diffuse.Z"),
    "a layer of depth beside a Z in a pass": ([*layer("diffuse", "RGBZ"), "depth.Z"], "depth.Z"),
    "numbered": ([*layer("Image", RGBA), "Depth_001.V"], "Depth_001.V"),
    "z-buffer": ([*RGBA, "zbuffer"], "zbuffer"),
    "flat names": ([*RGBA, "camera_z", "normal_x", "normal_y", "normal_z"], "camera_z"),
    "flat names of components": ([*RGBA, "Nx", "Ny", "Nz", "Px", "Py", "Pz", "zdepth"], "zdepth"),
    "flat names of colours": ([*RGBA, "depth_R", "depth_G", "depth_B"], "depth_R"),
    "camel case": ([*RGBA, "worldDepthR", "worldDepthG", "worldDepthB", "worldNormalR"], "worldDepthR"),
    "filtered and exact": ([*RGBA, "Depth.R", "DepthFiltered.R", "depth_aa.R"], "Depth.R"),
    "with its mask": ([*RGBA, "Depth.V", "Depth.mask", "DepthConfidence.V", "depth_valid.V", "depth.alpha"], "Depth.V"),
    "depth of field": ([*RGBA, "depth.Z", "DepthOfField.R", "dof.Z"], "depth.Z"),
    "distance": ([*RGBA, "distance.Z", *layer("N", "XYZ")], "distance.Z"),
    "distance beside depth": ([*RGBA, "distance.R", "depth.R"], "depth.R"),
    "distance to the plane is z": ([*RGBA, "distance_to_image_plane", "distance_to_camera"], "distance_to_image_plane"),
    "distance of a hit": ([*RGBA, "hitdist"], "hitdist"),
    "bits per sample": ([*RGBA, *layer("depth_32bit", "RGB")], "depth_32bit.R"),
    "fewer bits per sample": ([*RGBA, *layer("depth_16bit", "RGB")], "depth_16bit.R"),
    "with a unit": ([*RGBA, "Depth [m]", "Depth_norm"], "Depth [m]"),
    "Arnold, volumes": ([*RGBA, "volume_Z", "depth.Z"], "depth.Z"),
    "a Z in the beauty": ([*layer("Beauty", RGBA), "Beauty.Z", "Depth.Z"], "Depth.Z"),
    "with its variance in a layer": ([*RGBA, "depth.Z", "variance.depth.Z"], "depth.Z"),
    "and a denoised one in a layer": ([*RGBA, "depth.Z", "denoised.depth.Z"], "depth.Z"),
    "a view layer called Depth": (
        [
            *layer("Depth.Combined", RGBA),
            "Depth.Depth.V",
            "Depth.Denoising Depth.V",
            "Depth.Debug Render Time.X",
            *layer("Depth.Noisy Image", RGBA),
            *layer("Depth.Normal", "XYZ"),
        ],
        "Depth.Depth.V",
    ),
    "rgba in a layer of depth": ([*RGBA, *layer("depth.rgba", "RGB")], "depth.rgba.R"),
    "a word of another alphabet": ([*RGBA, "Tiefe.Z"], "Tiefe.Z"),
    "numbered vectors beside depth": ([*layer("Normal", ("X.001", "Y.001", "Z.001")), "Depth.V.001"], "Depth.V.001"),
    "vectors of a rest pose": ([*RGBA, "rest_Px", "rest_Py", "rest_Pz", "Z"], "Z"),
    "the product's name": ([*RGBA, "tgSurfDepth.R", *layer("tgSurfPos", "XYZ")], "tgSurfDepth.R"),
    "points of a product": ([*RGBA, "pointdepth"], "pointdepth"),
    "normalised": ([*RGBA, "DepthNormalized.R"], "DepthNormalized.R"),
    "environment depth": ([*RGBA, "environmentDepth"], "environmentDepth"),
    "Unreal, path tracer": (
        [*RGBA, *layer("FinalImagePathTracer_WorldDepth", RGBA)],
        "FinalImagePathTracer_WorldDepth.R",
    ),
    **{
        f"a view layer called {name}": ([*layer(f"{name}.Combined", RGBA), f"{name}.Depth.Z"], f"{name}.Depth.Z")
        for name in ["Volume", "Shadows", "Water", "fog", "lights", "Background", "Normal", "Position", "001", "beauty"]
    },
    **{
        name: ([*RGBA, name], name)
        for name in [
            *["gt_depth.R", "RawDepth.R", "linear_depth", "depth_linear.V", "DepthImage", "shot010_v2.depth.Z", "zbuf"],
            *[
                "hero_depth.R",
                "AOV_depth.X",
                "depth_float32",
                "depth_32f",
                "depth_cam0",
                "viewZ",
                "eye_z",
                "planar_depth",
            ],
            *["sensor_depth.R", "metric_depth", "depth_mm", "lidar_depth", "Depth.Red", "nearest_depth", "DepthPass.R"],
        ]
    },
    "only channel V": (["V"], "V"),
    "only channel R": (["R"], "R"),
    "only channel with any name": (["whatever"], "whatever"),
    "only channel beside alpha": (["Y", "A"], "Y"),
}

# Files in which no name, or more than one, says which channel is the depth.
REFUSED: dict[str, list[str]] = {
    "two names": ["left", "right"],
    "normals alone": layer("Normal", "XYZ"),
    "normals without a layer": ["X", "Y", "Z"],
    "one component of a normal": ["N.Z"],
    "a mask alone": ["mask"],
    "an object id alone": ["id"],
    "beauty and normals": [*RGBA, *layer("N", "XYZ")],
    "beauty and position": [*layer("Beauty", RGBA), *layer("WorldPosition", "RGB")],
    "beauty and motion": [*RGBA, *layer("ViewLayer.Vector", "XYZW"), *layer("UV", "UVA")],
    "blue and alpha": ["B", "A"],
    "two pictures": [*layer("diffuse", "RGB"), *layer("specular", "RGB")],
    "luminance and chroma": ["Y", "RY", "BY"],
    "luminance and something": ["A", "Y", "V"],
    "beauty and mist": [*layer("ViewLayer.Combined", RGBA), "ViewLayer.Mist.Z"],
    "beauty and back depth": [*RGBA, "ZBack"],
    "beauty and disparity": [*RGBA, "disparity.R"],
    "beauty and inverse depth": [*RGBA, "InverseDepth.R"],
    "beauty and a picture of depth": [*RGBA, *layer("depth_colormap", "RGB")],
    "two view layers": ["ViewLayer.Depth.Z", "ViewLayer_001.Depth.Z"],
    "two views": ["left.Z", "right.Z"],
    "two depths of equal standing": ["WorldDepth.R", "SceneDepth.R"],
    "two numbered depths": ["Depth.V", "Depth_001.V"],
    "a Z in each of two passes": [*layer("diffuse", "RGBZ"), *layer("specular", "RGBZ")],
    "a diffuse picture": layer("diffuse", "RGB"),
    "several values of depth": ["depth.near", "depth.far"],
    "world z": [*RGBA, "world_z"],
    "alpha alone": ["A"],
    "one flat name of a normal": ["Nz"],
    "luminance and chroma of a layer of depth": [*RGBA, "depth.Y", "depth.RY", "depth.BY"],
    "a depth of two components": [*RGBA, "Depth.X", "Depth.Y"],
    "a depth of u and v": [*RGBA, "depth.u", "depth.v"],
    "Blender's second output of one name": ["Depth.V", "Depth.V.001"],
    "a Z with components": [*RGBA, "zDepth", "xDepth", "yDepth"],
}

# Names that must not be taken for depth beside a picture.
VECTORS = [
    *[
        "rest_P?",
        "refP?",
        "objP?",
        "dP?",
        "hitP?",
        "P?_rest",
        "accel_?_0",
        "vel_?_1",
        "Normal.?.001",
        "N.?",
        "xform.?.z",
    ],
    *["normalpass.?", "world?", "pos_?_y", "?Pos", "hit.?", "?Depth"],
]
COMPONENTS = [
    *[
        "worldnormal.z",
        "camnormal.z",
        "wposition.z",
        "motionvector.z",
        "MotionVectorZ",
        "normals.Z",
        "velocity.z",
        "P.z",
    ],
    *["wpos.z", "pworld.Z", "acceleration.z", "rotation.Z", "viewdir.z", "texcoord.z", "opticalflow.z", "translate.z"],
    *["dPdt_motion.z", "Normal_World.Z", "uv.z", "N_z"],
]
NO_DEPTH = [
    *[
        "idepth",
        "rcpDepth",
        "one_over_z",
        "1/z",
        "1/depth.R",
        "inverse.depth.R",
        "InvZ",
        "inv.depth.Z",
        "reciprocal_depth",
    ],
    *[
        "depthoffield.R",
        "lightgroup_depthoffield.R",
        "DoF.Depth.R",
        "dof_depth",
        "focalDepth",
        "FocalDistance",
        "focus.Z",
    ],
    *["rayDepth", "Ray Depth.X", "ray_depth.R", "path_depth", "TraceDepth", "RecursionDepth", "Diffuse Depth.X"],
    *["bvh_depth", "sampleDepth", "bounce_depth", "transmissionDepth.R", "GlossyDepth.V", "depth_bits", "BitDepth"],
    *["depth_std", "depth_var", "depth_sigma", "z_max", "depthMax", "depth_min.Z", "Z.min", "variance.depth.Z"],
    *["mask.depth.Z", "confidence.depth.R", "depth_error", "depthCount", "depth_weight.Z", "uncertainty.Z"],
    *["shadowmap.Z", "shadow_depth", "lightDepth", "optical_depth", "OpticalDepth.R", "WaterDepth.R", "snow_depth"],
    *["DepthBackfaces.R", "backface_depth", "depth_back", "ZBack", "volume_Z", "CustomDepth.R", "tgCloudDepth.R"],
    *["DepthMotion.R", "depthPosition.R", "depthNormal.R", "cryptomatte_depth.R", "Crypto.depth", "DepthOcclusion.R"],
    *["depth_ao.R", "depth_jet.R", "depth_turbo", "Depth_Beauty.R", "depthcolor", "colorized_depth", "depth_viridis"],
    *[
        "depth_grad.R",
        "depth_dx",
        "depthDelta",
        "depth_stdev",
        "recip_z",
        "depth_rainbow",
        "octree_depth",
        "second_depth",
    ],
    *["rearDepth", "sunDepth", "stack_depth", "depth_residual", "zmax", "maxDepth", "invdepth", "thickness"],
    *["DistanceAO", "fogDistance", "depthStencil", "DepthId", "depth_edges", "SignedDistance", "disparity.Z"],
]


@pytest.mark.parametrize(
    "channels",
    [[name.replace("?", c) for c in "xyz"] for name in VECTORS]
    + [[name.replace("?", c) for c in "XYZ"] for name in VECTORS]
    + [[name] for name in COMPONENTS + NO_DEPTH],
    ids=lambda channels: channels[-1],
)
def test_names_of_other_things_are_no_depth(channels: list[str]) -> None:
    """Also next to depth: the name that says it plainly is read."""
    for beside in (list(RGBA), layer("ViewLayer.Combined", RGBA)):
        info = depth.probe(Exr(planes_of([*beside, *channels], None, (2, 3)), "none").bytes())
        assert info.channel is None, info.why
        for plain in ("Z", "depth.Z", "Depth.V", "depth"):
            if any(name.lower() == plain.lower() for name in channels):
                continue
            info = depth.probe(Exr(planes_of([*beside, *channels, plain], None, (2, 3)), "none").bytes())
            assert info.channel is not None, info.why
            assert info.channel.name == plain


def planes_of(channels: list[str], right: str | None, shape: tuple[int, int] = (9, 7)) -> dict[str, np.ndarray]:
    """Return depth in the channel `right`, and something else in each other one."""
    others = {name: np.full(shape, i + 0.5, np.float16) for i, name in enumerate(channels)}
    return others | ({} if right is None else {right: depth_image(*shape)})


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_channel_that_a_program_calls_depth_is_read(program: str) -> None:
    channels, right = PROGRAMS[program]
    planes = planes_of(channels, right)
    file = Exr(planes, "zip").bytes()
    info = depth.probe(file)
    assert info.channel == depth.Channel(right, "float32"), info.why
    assert_same_bits(depth.decode(file), planes[right])
    for name in channels:
        assert_same_bits(depth.decode(file, name), planes[name].astype(np.float32))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_whose_names_do_not_decide_is_refused_with_the_list_and_the_option(kind: str) -> None:
    channels = REFUSED[kind]
    planes = planes_of(channels, None)
    file = Exr(planes, "zip").bytes()
    info = depth.probe(file)
    assert info.channel is None
    with pytest.raises(depth.DecodeError, match=r": channels: expected .*--data\.DOMAIN\.channel") as error:
        depth.decode(file)
    assert info.why in str(error.value)
    assert all(f"'{name}'" in info.why for name in channels)
    for name in channels:  # and the option decides
        assert_same_bits(depth.decode(file, name), planes[name].astype(np.float32))
        assert depth.probe(file, name).why == "as asked for"


@pytest.mark.parametrize("program", ["Blender, multilayer", "Unreal, with object ids", "V-Ray, raw and clamped"])
@pytest.mark.parametrize("compression", ["none", "rle", "zips", "zip"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint32"])
def test_the_choice_depends_on_the_names_alone(program: str, compression: str, dtype: str) -> None:
    channels, right = PROGRAMS[program]
    planes = planes_of(channels, right) | {right: depth_image(9, 7, dtype)}
    file = Exr(planes, compression).bytes()
    assert depth.probe(file).channel == depth.Channel(right, dtype)
    assert_same_bits(depth.decode(file), planes[right].astype(np.float32))


words = st.sampled_from(["ViewLayer", "RenderLayer", "main", "shot010", "Layer 1", "cam"])
pictures = st.sampled_from(["Combined", "beauty", "rgba", "Diffuse Direct", "albedo", "GlossInd", "CryptoObject00"])
vectors = st.sampled_from(["Normal", "N", "P", "WorldPosition", "Vector", "motion_vectors", "dPdu", "velocity"])
depths = st.sampled_from(["Depth", "depth", "Z", "zdepth", "ZDEPTH", "WorldDepth", "z_buffer", "Z-Depth", "ZPass"])
letters = st.sampled_from(["Z", "V", "R", "Y", "z", "r", "RGB", "RGBA", "XYZ", ""])


@settings(max_examples=150, deadline=None)
@given(
    prefix=words | st.none(),
    picture=st.lists(pictures, unique=True, max_size=3),
    vector=st.lists(vectors, unique=True, max_size=3),
    name=depths,
    letter=letters,
    lower=st.booleans(),
)
def test_one_layer_that_says_depth_wins_over_everything_else(
    prefix: str | None, picture: list[str], vector: list[str], name: str, letter: str, lower: bool
) -> None:
    def channels(layer_: str, letters: str) -> list[str]:
        full = f"{prefix}.{layer_}" if prefix else layer_
        named = [f"{full}.{c.lower() if lower else c}" for c in letters]
        return named or [full]

    own = channels(name, letter)
    rest = [c for p in picture for c in channels(p, "RGBA")] + [c for v in vector for c in channels(v, "XYZ")]
    right = next(c for c in own if len(own) == 1 or c[-1] in ("zZ" if letter == "XYZ" else "rR"))
    planes = planes_of([*rest, *own], right, (2, 3))
    file = Exr(planes, "none").bytes()
    assert depth.probe(file).channel == depth.Channel(right, "float32"), depth.probe(file).why
    assert_same_bits(depth.decode(file), planes[right])


@settings(max_examples=100, deadline=None)
@given(
    prefix=words | st.none(),
    groups=st.lists(
        st.tuples(pictures, st.just("RGB")) | st.tuples(vectors, st.just("XYZ")),
        min_size=2,
        max_size=4,
        unique_by=lambda group: group[0].lower(),
    ),
)
def test_pictures_and_vectors_are_never_taken_for_depth(prefix: str | None, groups: list[tuple[str, str]]) -> None:
    channels = [f"{prefix}.{n}.{c}" if prefix else f"{n}.{c}" for n, letters in groups for c in letters]
    file = Exr(planes_of(channels, None, (2, 3)), "none").bytes()
    assert depth.probe(file).channel is None


# Grey pictures


@pytest.mark.parametrize("group", ["", "Image.", "ViewLayer.Combined."])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("compression", ["none", "zip", "piz"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_picture_alone_is_depth_if_it_is_grey(group: str, alpha: bool, compression: str, dtype: str) -> None:
    image = depth_image(35, 6, dtype)
    planes = {f"{group}{c}": image for c in "RGB"} | ({f"{group}A": np.ones_like(image)} if alpha else {})
    file = written(planes, compression)
    assert "grey" in depth.probe(file).why
    assert_same_bits(depth.decode(file), image.astype(np.float32))
    assert_same_bits(depth.decode_batch([file])[0], image.astype(np.float32))
    for channel, (row, column) in itertools.product("GB", [(0, 0), (17, 3), (34, 5)]):
        changed = image.copy()
        changed[row, column] += changed[row, column] * np.finfo(dtype).eps * 2 or 1
        assert changed[row, column] != image[row, column]
        file = written(planes | {f"{group}{channel}": changed}, compression)
        with pytest.raises(depth.DecodeError, match=r"channels: expected depth, or a grey picture, found colour"):
            depth.decode(file)
        with pytest.raises(depth.DecodeError, match=r"found colour"):
            depth.decode_batch([file])
        assert_same_bits(depth.decode(file, f"{group}R"), image.astype(np.float32))


def written(planes: dict[str, np.ndarray], compression: str) -> bytes:
    if compression != "piz":
        return Exr(planes, compression).bytes()
    return multipart({"": planes}, "PIZ")


# Several parts


def multipart(parts: dict[str, dict[str, np.ndarray]], compression: str = "ZIP") -> bytes:
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {
        "type": OpenEXR.scanlineimage,
        "compression": getattr(OpenEXR, f"{compression}_COMPRESSION"),
        "displayWindow": (np.zeros(2, np.int32), np.full(2, 63, np.int32)),  # all parts must have the same
    }
    made = [
        OpenEXR.Part({"name": name} | header if name else dict(header), dict(planes)) for name, planes in parts.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts.exr"
        OpenEXR.File(made).write(str(path))
        return path.read_bytes()


PARTS: dict[str, tuple[dict[str, list[str]], tuple[str, str]]] = {
    "Nuke": ({"rgba": list(RGBA), "depth": ["depth.Z"], "N": layer("N", "XYZ")}, ("depth", "depth.Z")),
    "depth in colours": ({"beauty": list(RGBA), "depth": list("RGB"), "normals": list("RGB")}, ("depth", "R")),
    "Blender": (
        {
            "Combined": layer("ViewLayer.Combined", RGBA),
            "Denoising Depth": ["ViewLayer.Denoising Depth.Z"],
            "Depth": ["ViewLayer.Depth.V"],
            "Normal": layer("ViewLayer.Normal", "XYZ"),
        },
        ("Depth", "ViewLayer.Depth.V"),
    ),
    "a Z beside the colours, too": ({"beauty": [*RGBA, "Z"], "depth": ["Z"]}, ("depth", "Z")),
    "vectors first": ({"P": ["X", "Y", "Z"], "N": ["X", "Y", "Z"], "zdepth": ["Y"]}, ("zdepth", "Y")),
    "integers first": ({"id": ["id"], "beauty": list(RGBA), "z": ["Z"]}, ("z", "Z")),
    "rgba in a part of depth": ({"beauty": list(RGBA), "depth": layer("rgba", "RGB")}, ("depth", "rgba.R")),
    "a part of its variance": ({"rgb": [*RGBA, "depth.Z"], "variance": ["depth.Z"]}, ("rgb", "depth.Z")),
    "X and Y of other parts": ({"a": ["X"], "b": ["Y"], "c": ["Z"]}, ("c", "Z")),
    "a layer inside of a depth part": ({"depth": ["normal.R", "normal.G", "V"], "rgb": list("RGB")}, ("depth", "V")),
}


@pytest.mark.parametrize("kind", PARTS)
def test_the_names_of_parts_take_part(kind: str) -> None:
    names, (part, channel) = PARTS[kind]
    shape = {name: (4 + i, 5 + i) for i, name in enumerate(names)}  # each part has its own size
    parts = {name: planes_of(channels, None, shape[name]) for name, channels in names.items()}
    image = depth_image(*shape[part])
    parts[part][channel] = image
    file = multipart(parts)
    info = depth.probe(file)
    assert info.channel is not None, info.why
    assert info.channel.name in (channel, f"{part}.{channel}") and info.channel.dtype == "float32"
    assert (info.height, info.width) == image.shape
    assert_same_bits(depth.decode(file), image)
    assert_same_bits(depth.decode(file, f"{part}.{channel}"), image)
    assert_same_bits(depth.decode_batch([file, file])[1], image)
    for name, planes in parts.items():
        for inside, plane in planes.items():
            assert_same_bits(depth.decode(file, f"{name}.{inside}"), plane.astype(np.float32))


@pytest.mark.parametrize(
    "names",
    [
        {"left": ["Z", *RGBA], "right": ["Z", *RGBA]},
        {"beauty": list(RGBA), "normals": ["X", "Y", "Z"]},
        {"rgba": list(RGBA), "mist": ["V"]},
        {"depth.left": ["Z"], "depth.right": ["Z"]},
        {"rgb": list(RGBA), "mask": ["depth.Z"]},
        {"rgb": list(RGBA), "normalpass.x": ["x"], "normalpass.y": ["y"], "normalpass.z": ["z"]},
        {"rgb": list(RGBA), "N.x": ["N.x"], "N.y": ["N.y"], "N.z": ["N.z"]},
        {"rgb": list(RGBA), "Nx": ["Y"], "Ny": ["Y"], "Nz": ["Y"]},
    ],
    ids=lambda names: " ".join(names),
)
def test_parts_whose_names_do_not_decide_are_refused(names: dict[str, list[str]]) -> None:
    file = multipart({name: planes_of(channels, None) for name, channels in names.items()})
    with pytest.raises(depth.DecodeError, match=r"channels: expected .*--data\.DOMAIN\.channel"):
        depth.decode(file)


def test_a_part_that_openexr_cannot_read_does_not_move_the_others() -> None:
    parts = {name: {"Z": np.full((4, 4), i, np.float32)} for i, name in enumerate(("rgb", "depth", "back"))}
    file = bytearray(multipart(parts))
    at = file.index(b"compression\0compression\0") + len(b"compression\0compression\0") + 4
    file[at] = 13  # only the first part
    for name, i in (("depth", 1), ("back", 2)):
        try:
            assert_same_bits(depth.decode(bytes(file), f"{name}.Z"), parts[name]["Z"] * 0 + np.float32(i))
        except depth.DecodeError as error:
            assert "OpenEXR library" in str(error)
    with pytest.raises(depth.DecodeError, match="OpenEXR library"):
        depth.decode(bytes(file), "rgb.Z")


def test_a_decoder_does_not_keep_the_choice_of_the_file_before() -> None:
    """One thread decodes files of different kinds in turns, among them files that are refused in between."""
    files = []
    for channels, right in [PROGRAMS["Arnold"], PROGRAMS["Nuke"], PROGRAMS["only channel V"]]:
        planes = planes_of(channels, right)
        files.append((Exr(planes, "zip").bytes(), None, planes[right]))
        files.append((Exr(planes, "zip").bytes(), channels[0], planes[channels[0]].astype(np.float32)))
    refused = Exr(planes_of(REFUSED["beauty and normals"], None), "zip").bytes()
    broken = Exr(planes_of(*PROGRAMS["Nuke"]), "zip", attributes={"displayWindow": ("box2i", b"")}).bytes()
    for (first, channel, image), (second, other, _) in itertools.product(files, files):
        depth.decode(second, other)
        for bad in (refused, broken):
            with pytest.raises(depth.DecodeError):
                depth.decode(bad)
        assert_same_bits(depth.decode(first, channel), image)


# Arrays of an NPZ


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


IMAGE = np.arange(1, 21, dtype=np.float32).reshape(4, 5)


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["depth_a", "img"], "depth_a"),
        (["depth_m", "mask"], "depth_m"),
        (["depth", "q_z", "dist"], "depth"),
        (["z", "q_z"], "z"),
        (["R", "t", "depth_map"], "depth_map"),
        (["depth_dx", "depth_dy", "depth"], "depth"),
        (["arr_0"], "arr_0"),
        (["a"], "a"),
        (["a", "img"], None),
        (["A", "data"], None),
        (["R", "alpha"], None),
        (["R", "G", "B"], None),
        (["Y", "A"], None),
        (["q_z", "img"], None),
        (["t_z", "K"], None),
        (["data", "dist", "mtx"], None),
        (["depth_x", "depth_y", "image"], None),
        (["pose_x", "pose_y", "pose_z"], None),
    ],
)
def test_letters_of_arrays_are_no_channels(names: list[str], right: str | None) -> None:
    arrays = {name: IMAGE + i for i, name in enumerate(names)}
    file = npz(**arrays)
    info = depth.probe(file)
    assert [c.name for c in info.channels] == names
    if right is None:
        assert info.channel is None, info.why
        with pytest.raises(depth.DecodeError, match=r"channels: expected .*--data\.DOMAIN\.channel"):
            depth.decode(file)
    else:
        assert info.channel == depth.Channel(right, "float32"), info.why
        assert_same_bits(depth.decode(file), arrays[right])
    for name in names:
        assert_same_bits(depth.decode(file, name), arrays[name])


NUMBERS = ["depth_scale", "z_near", "z_far", "depth_min", "depth_max", "depth", "z", "Depth_range", "depth_units"]


@pytest.mark.parametrize("number", [np.float32(3), np.arange(2.0), np.array("m")], ids=["0-d", "1-d", "text"])
@pytest.mark.parametrize("name", ["depth", "depthmap", "data"])
@pytest.mark.parametrize("first", [False, True])
def test_numbers_beside_an_array_have_no_part_in_the_choice(name: str, first: bool, number: np.ndarray) -> None:
    numbers = {n: np.asarray(number) for n in NUMBERS if n != name}
    file = npz(**({**numbers, name: IMAGE} if first else {name: IMAGE, **numbers}))
    info = depth.probe(file)
    assert info.channel is not None and info.channel.name == name, info.why
    assert (info.height, info.width) == IMAGE.shape
    assert {c.name for c in info.channels} == {name, *numbers}
    assert_same_bits(depth.decode(file), IMAGE)


@pytest.mark.parametrize("broken", [b"", b"\x93NUMPY", b"no array", b"\x93NUMPY\x01\x00\x08\x00{broken}"])
@pytest.mark.parametrize("first", [False, True])
def test_a_broken_array_beside_depth_does_no_harm(broken: bytes, first: bool) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        if first:
            archive.writestr("pose.npy", broken)
        with archive.open("depth.npy", "w") as array:
            np.save(array, IMAGE)
        if not first:
            archive.writestr("pose.npy", broken)
    info = depth.probe(file.getvalue())
    assert info.channel == depth.Channel("depth", "float32")
    assert depth.Channel("pose", "unknown") in info.channels
    assert_same_bits(depth.decode(file.getvalue()), IMAGE)
    with pytest.raises(depth.DecodeError, match="pose"):
        depth.decode(file.getvalue(), "pose")
