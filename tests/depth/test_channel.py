"""Which channel of an EXR is the depth: the names that programs write, in every order, type and compression.

Each file of a table holds its depth in one channel, and other values in all others. `DEPTH` marks the right channel.
"""

from __future__ import annotations

import itertools
import tempfile
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
}


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
