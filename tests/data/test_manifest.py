"""The lists of a data set's files, and the errors for folders that are no data sets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vologan_fast.data import DataError
from vologan_fast.data.manifest import find_records
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
        ({"synthetic_data": [{"color_path": "a"}], "real_data": []}, "depth_path of .* is missing"),
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
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'real/color/b.jpg'}: no depth image for this colour image (and 1 more)")


def test_two_depth_images_of_one_name(tmp_path: Path) -> None:
    for name in ("color/a.jpg", "depth/a.exr", "depth/a.png"):
        touch(tmp_path / "synthetic" / name)
    assert "a second image of the name of a.exr" in refusal(tmp_path)


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
