"""The lists of a data set's files, and the errors for folders that are no data sets."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.manifest import DEPTH_SUFFIXES, find_records
from vologan_fast.data.records import Record


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(root: Path, manifest: Any) -> Path:
    root.mkdir(exist_ok=True)
    (root / "training_paths.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return root


def item(color: str, depth: str) -> dict[str, str]:
    return {"color_path": color, "depth_path": depth}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        find_records(root)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_manifest_of_the_paper(tmp_path: Path) -> None:
    for name in ("s/a.jpg", "s/a.exr", "r/b.png", "r/b.exr"):
        touch(tmp_path / name)
    write(tmp_path, {"synthetic_data": [item("s/a.jpg", "s/a.exr")], "real_data": [item("r/b.png", "r/b.exr")]})
    assert find_records(tmp_path) == {
        "synthetic": (Record(tmp_path / "s/a.jpg", tmp_path / "s/a.exr"),),
        "real": (Record(tmp_path / "r/b.png", tmp_path / "r/b.exr"),),
    }


def test_color_and_depth_folders(tmp_path: Path) -> None:
    for domain, suffix in (("synthetic", ".exr"), ("real", ".png")):
        for name in ("b", "a"):
            touch(tmp_path / domain / "color" / f"{name}.JPG")
            touch(tmp_path / domain / "depth" / f"{name}{suffix}")
    touch(tmp_path / "real/depth/depth_without_colour_is_nobody's_business.png")
    records = find_records(tmp_path)
    assert [record.color.name for record in records["synthetic"]] == ["a.JPG", "b.JPG"]
    assert [record.depth.name for record in records["real"]] == ["a.png", "b.png"]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".jpg", "a/" * 3000 + "b.jpg", "\ud800.jpg"):
        root = write(tmp_path / "set", {"synthetic_data": [item(name, name)], "real_data": [item(name, name)]})
        assert "no such file" in refusal(root)


def test_files_beside_each_other(tmp_path: Path) -> None:
    for domain in ("synthetic", "real"):
        for name in ("2", "1"):
            touch(tmp_path / domain / f"{name}.png")
            touch(tmp_path / domain / f"{name}.depth.png")
        touch(tmp_path / domain / "._1.png")  # a file that macOS adds
    assert find_records(tmp_path)["real"] == (
        Record(tmp_path / "real/1.png", tmp_path / "real/1.depth.png"),
        Record(tmp_path / "real/2.png", tmp_path / "real/2.depth.png"),
    )


def test_real_manifests(real_images: Path) -> None:
    assert {d: len(r) for d, r in find_records(real_images / "vologan512").items()} == {"synthetic": 23, "real": 15}
    assert {d: len(r) for d, r in find_records(real_images / "rooms").items()} == {"synthetic": 40, "real": 5}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{", "training_paths.json: not valid JSON"),
        ("[]", "training_paths.json: expected an object"),
        ({"synthetic_data": []}, "the list real_data is missing"),
        ({"synthetic_data": {}, "real_data": []}, "synthetic_data is an object; expected a list"),
        ({"synthetic_data": ["a.jpg"], "real_data": []}, r"synthetic_data\[0\] is a string"),
        ({"synthetic_data": [item("b", "b"), {"color_path": "a"}], "real_data": []}, "depth_path of .* is missing"),
        ({"synthetic_data": [item("", "a")], "real_data": []}, "color_path of .* is empty"),
        ({"synthetic_data": [{"color_path": 3, "depth_path": "a"}], "real_data": []}, "color_path of .* is 3"),
        ({"synthetic_data": [], "real_data": []}, "the synthetic domain is empty"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, manifest: Any, said: str) -> None:
    message = refusal(write(tmp_path, manifest))
    assert message.startswith(str(tmp_path)) and re.search(said, message)


@pytest.mark.parametrize("path", ["../outside.jpg", "/etc/hostname", "s/../../outside.jpg"])
def test_a_manifest_that_points_outside_its_folder(tmp_path: Path, path: str) -> None:
    touch(tmp_path / "outside.jpg")
    root = write(tmp_path / "set", {"synthetic_data": [item(path, "a.exr")], "real_data": []})
    message = refusal(root)
    assert path in message and "outside the folder" in message


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """Data sets may lie on other disks. Only a user who can write to the folder can place a link in it."""
    elsewhere = touch(tmp_path / "elsewhere" / "a.jpg").parent
    touch(elsewhere / "a.exr")
    root = tmp_path / "set"
    both = [item("link/a.jpg", "link/../link/a.exr")]
    write(root, {"synthetic_data": both, "real_data": both})
    (root / "link").symlink_to(elsewhere)
    assert find_records(root)["real"][0].depth == root / "link/a.exr"


def test_absent_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    absent = [item("a.jpg", "a.exr"), item("a.jpg", "b.exr")]
    message = refusal(write(tmp_path, {"synthetic_data": absent, "real_data": absent}))
    assert message == f"{tmp_path / 'a.exr'}: no such file (and 3 more)"


def test_colour_without_depth(tmp_path: Path) -> None:
    for name in ("synthetic/color/a.jpg", "synthetic/depth/a.exr", "real/color/b.jpg", "real/color/c.jpg"):
        touch(tmp_path / name)
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path, DataConfig(size=32), seed=0)
    expected = f"{tmp_path / 'real/color/b.jpg'}: no depth image for this colour image (and 1 more)"
    assert str(error.value).startswith(expected)
    touch(tmp_path / "real/depth/b.exr")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'real/color/c.jpg'}: no depth image for this colour image; expected")


def test_two_depth_images_of_one_name(tmp_path: Path) -> None:
    for name in ("color/a.jpg", "depth/a.exr", "depth/a.png"):
        touch(tmp_path / "synthetic" / name)
    assert "a second image of the name of a.exr" in refusal(tmp_path)


@pytest.mark.parametrize("preview", [".jpg", ".JPG", ".jpeg"])
@pytest.mark.parametrize("suffix", DEPTH_SUFFIXES)
def test_a_preview_of_the_depth_is_no_image(tmp_path: Path, suffix: str, preview: str) -> None:
    for domain in ("synthetic", "real"):
        for name in (
            "1.jpg",
            f"1.depth{suffix}",
            f"1.depth{preview}",
            "2.png",
            f"2.Depth{suffix}",
            f"2.Depth{preview}",
        ):
            touch(tmp_path / domain / name)
    assert find_records(tmp_path)["real"] == (
        Record(tmp_path / "real/1.jpg", tmp_path / f"real/1.depth{suffix}"),
        Record(tmp_path / "real/2.png", tmp_path / f"real/2.Depth{suffix}"),
    )


def test_an_npz_beside_a_depth_image_is_something_else(tmp_path: Path) -> None:
    for domain in ("synthetic", "real"):
        make(
            tmp_path / domain,
            ["color/a.jpg", "color/b.jpg", "color/c.jpg", "depth/a.exr", "depth/b.png", "depth/c.npz"],
        )
        make(tmp_path / domain, ["depth/a.npz", "depth/b.npz"])
    assert [record.depth.name for record in find_records(tmp_path)["real"]] == ["a.exr", "b.png", "c.npz"]


def test_one_domain_without_images(tmp_path: Path) -> None:
    touch(tmp_path / "synthetic/a.jpg")
    touch(tmp_path / "synthetic/a.depth.exr")
    assert "the real domain is empty" in refusal(tmp_path)


def test_a_folder_without_images_says_what_is_understood(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "training_paths.json" in message and "DOMAIN/color/NAME.jpg" in message


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert "found nothing" in refusal(tmp_path / "absent")
    assert "found a file" in refusal(touch(tmp_path / "file"))


# Names from other systems


def plain_items() -> dict[str, list[dict[str, str]]]:
    return {
        f"{d}_data": [item(f"{d}/Color é/{i} a.JPG", f"{d}/depth/{i}.png") for i in range(2)]
        for d in ("synthetic", "real")
    }


def make(root: Path, names: list[str]) -> None:
    for name in names:
        touch(root / name)


def changed(items: Any, change: Callable[[str], str]) -> Any:
    """Apply a change to all paths of a manifest."""
    return {key: [{k: change(v) for k, v in entry.items()} for entry in found] for key, found in items.items()}


CHANGES: dict[str, Callable[[str], str]] = {
    "backslashes": lambda path: path.replace("/", "\\"),
    "backslashes and a dot": lambda path: ".\\" + path.replace("/", "\\"),
    "both separators": lambda path: path.replace("/", "\\", 1),
    "lower case": str.lower,
    "upper case": str.upper,
    "upper case and backslashes": lambda path: path.upper().replace("/", "\\"),
    "decomposed": lambda path: unicodedata.normalize("NFD", path),
    "spaces at the end": lambda path: path + "  ",
    "URL": quote,
    "URL in one piece": lambda path: quote(path, safe=""),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_names_from_other_systems_mean_the_same_files(tmp_path: Path, change: str, encoding: str) -> None:
    """The manifest may have any encoding of JSON and Windows' line ends; the folder lies on a disk of Linux."""
    items = plain_items()
    for found in items.values():
        make(tmp_path, [path for entry in found for path in entry.values()])
    expected = find_records(write(tmp_path, items))
    text = json.dumps(changed(items, CHANGES[change]), ensure_ascii=False, indent=1).replace("\n", "\r\n")
    (tmp_path / "training_paths.json").write_bytes(text.encode(encoding))
    assert find_records(tmp_path) == expected
    assert [record.color.name for record in expected["real"]] == ["0 a.JPG", "1 a.JPG"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("C:\\data\\set\\a.jpg", "an absolute Windows path, with a drive or server"),
        ("d:/data/set/a.jpg", "an absolute Windows path, with a drive or server"),
        ("\\\\server\\share\\a.jpg", "an absolute Windows path, with a drive or server"),
        ("\\data\\a.jpg", "points outside the folder"),
        ("/home/alice/set/a.jpg", "points outside the folder"),
        ("..\\outside.jpg", "points outside the folder"),
        ("s\\..\\..\\outside.jpg", "points outside the folder"),
        ("%2e%2e%2foutside.jpg", "points outside the folder"),
        ("file:///home/alice/a.jpg", "a URL"),
        ("https://example.org/a.jpg", "a URL"),
        ("s\text.jpg", "with a control character: was it a backslash"),
        ("s\new.jpg", "with a control character: was it a backslash"),
    ],
)
def test_names_that_cannot_be_meant_here_say_why(tmp_path: Path, path: str, said: str) -> None:
    touch(tmp_path / "outside.jpg")
    message = refusal(write(tmp_path / "set", {"synthetic_data": [item(path, "a.exr")], "real_data": []}))
    assert said in message and repr(path) in message and "color_path of synthetic_data[0]" in message


def test_single_backslashes_in_json_say_what_is_wrong(tmp_path: Path) -> None:
    text = '{"synthetic_data": [{"color_path": "s\\color\\0.jpg", "depth_path": "s\\d\\0.exr"}], "real_data": []}'
    assert "a backslash must be written twice, or as /" in refusal(write(tmp_path, text))
    (tmp_path / "training_paths.json").write_bytes('{"synthetic_data": "ü"}'.encode("cp1252"))
    assert "expected UTF-8 or UTF-16" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (["a.jpg", "A.jpg"], ["a.JPG"]),  # which of the two?
        (["a.jpg"], ["A.jpg", "a.JPG"]),  # two files there, one here
        (["a.jpg"], ["a.jpg", "A.jpg"]),
        (["a.jpg"], ["A.jpg", "a.jpg"]),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], ["CAF\u00c9.jpg"]),
        (["caf\u00e9.jpg"], ["caf\u00e9.jpg", "cafe\u0301.jpg"]),
        (["C/a.jpg", "c/a.jpg"], ["./C /a.jpg"]),
    ],
)
def test_names_that_may_mean_several_files_are_refused(tmp_path: Path, files: list[str], written: list[str]) -> None:
    make(tmp_path, [*files, "d.exr"])
    entries = [item(path, "d.exr") for path in written]
    message = refusal(write(tmp_path, {"synthetic_data": entries, "real_data": entries[:1]}))
    assert "which one is it?" in message or "the same file" in message


def test_names_that_differ_only_in_case_are_kept_apart(tmp_path: Path) -> None:
    names = ["a.jpg", "A.jpg", "a.exr", "A.exr", "a\\b.jpg", "a/b.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"]
    make(tmp_path, names)
    both = [item(names[i], names[2 + i % 2]) for i in (0, 1, 4, 5, 6, 7)]
    records = find_records(write(tmp_path, {"synthetic_data": both, "real_data": both}))["real"]
    assert [record.color for record in records] == [tmp_path / names[i] for i in (0, 1, 4, 5, 6, 7)]
    assert records[1].depth == tmp_path / "A.exr"


@pytest.mark.parametrize("beside", [False, True])
def test_folders_from_other_systems(tmp_path: Path, beside: bool) -> None:
    """Letters of another case, decomposed letters, and the files that systems add."""
    for domain in ("Synthetic", "REAL"):
        for name in ("a", "Bc", "caf\u00e9", "x%20y"):
            other = {"Bc": "bC", "caf\u00e9": "cafe\u0301", "x%20y": "x y"}.get(name, name)
            touch(tmp_path / domain / ("" if beside else "Color") / f"{name}.JPG")
            touch(tmp_path / domain / (f"{other}.Depth.PNG" if beside else f"DEPTH/{other}.PNG"))
        for name in ("._a.JPG", ".DS_Store", "Thumbs.db", "desktop.ini"):
            touch(tmp_path / domain / ("" if beside else "Color") / name)
    touch(tmp_path / "__MACOSX/Synthetic/Color/._a.JPG")
    records = find_records(tmp_path)
    assert [record.color.name for record in records["real"]] == ["Bc.JPG", "a.JPG", "caf\u00e9.JPG", "x%20y.JPG"]
    depth = [record.depth.name.split(".")[0] for record in records["synthetic"]]
    assert depth == ["bC", "a", "cafe\u0301", "x y"]


@pytest.mark.parametrize(
    ("color", "depth"),
    [
        (["a", "A"], ["a"]),  # the depth of a is not that of A
        (["A"], ["a", "a "]),
        (["caf\u00e9"], ["cafe\u0301", "Cafe\u0301"]),
        (["a b", "a%20b"], ["A B"]),
    ],
)
def test_folders_never_pair_names_that_are_not_unique(tmp_path: Path, color: list[str], depth: list[str]) -> None:
    for domain in ("synthetic", "real"):
        make(tmp_path / domain / "color", [f"{name}.jpg" for name in color])
        make(tmp_path / domain / "depth", [f"{name}.exr" for name in depth])
    message = refusal(tmp_path)
    assert "which depth belongs to it?" in message or "no depth image for this colour image" in message


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("Real", "REAL", "synthetic"):
        make(tmp_path / folder, ["a.jpg", "a.depth.exr"])
    assert "which one is it?" in refusal(tmp_path)
