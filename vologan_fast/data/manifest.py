"""The list of the files of a data set, from shards, a manifest or plain folders.

There are five layouts, which are tried in this order:

1. `shards.json` in the folder, and shards beside it. See `shards/index.py`.
2. `training_paths.json` in the folder, the paper's manifest: `{"synthetic_data": [{"color_path": "….jpg",
   "depth_path": "….exr"}, …], "real_data": […]}`, with paths relative to the folder.
3. `synthetic/color/NAME.jpg` with `synthetic/depth/NAME.exr`; likewise `real/`.
4. `synthetic/NAME.jpg` beside `synthetic/NAME.depth.exr`; likewise `real/`.
5. `trainA/NAME.jpg` (synthetic) and `trainB/NAME.jpg` (real), as in CycleGAN's data sets. `testA/` and `testB/` hold
   the held-out images, if they are there.

The images of a domain may have colour only, or depth only, in all layouts. In layout 4, depth only may also be NAME.exr
or another suffix that colour never has, without `.depth`. The folders of layout 5 are read as DOMAIN is in 3 and 4.

The order of a manifest is kept. Folders are read in sorted order. A manifest may come from another person, so the
paths in it must stay inside the folder. A path that leaves the folder is refused, whether it is absolute or contains
`..`. Symbolic links are followed to any place, because only the owner of the folder can have made them. `names` finds
the files whose names were written on another system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vologan_fast.config import DOMAINS, Channels
from vologan_fast.data.errors import DataError
from vologan_fast.data.names import Folder, key
from vologan_fast.data.records import Record, Source, is_file
from vologan_fast.data.shards.index import MANIFEST as SHARDS
from vologan_fast.data.shards.index import PACKING, ShardRecords, find_shards
from vologan_fast.files import absolute_path

MANIFEST = "training_paths.json"
PAIRED, PAIRED_MANIFEST = "paired-test", "paired_paths.json"
"""The subfolder of a data set with images for scoring only, and the list of them in it (`demo/dataset.py`)."""
_PATHS = ("color_path", "depth_path")
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".exr", ".png", ".npy", ".pfm", ".tif", ".tiff", ".npz")
_NEVER_COLOR = tuple(suffix for suffix in DEPTH_SUFFIXES if suffix not in COLOR_SUFFIXES)

LAYOUTS = (
    f"{SHARDS}, {MANIFEST}, DOMAIN/color/NAME.jpg with DOMAIN/depth/NAME.exr, or DOMAIN/NAME.jpg beside "
    f"DOMAIN/NAME.depth.exr, where DOMAIN is {' and '.join(DOMAINS)}; or trainA/NAME.jpg and trainB/NAME.jpg"
)
_LETTERS = {"synthetic": "A", "real": "B"}
"""The ends of the folders' names in layout 5."""


def find_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return all images of the data set in folder `root`, by domain.

    Raises DataError if the folder or the manifest cannot be read, if no layout fits, if a domain is empty, or if a
    file is absent.
    """
    records = list_records(root)
    for domain, found in records.items():
        if not found:
            raise DataError(f"{root}: the {domain} domain is empty; both domains need images")
    alone = [found for found in records.values() if not isinstance(found, ShardRecords)]
    for part in (0, 1):  # all missing colour files come first
        _require_files(
            file for found in alone for r in found if (file := (r.color_file, r.depth_file)[part]) is not None
        )
    return records


def require_files(records: Sequence[Record], channels: Channels, other: str = "--data.channels") -> None:
    """Raise DataError, which names the first image and counts the others, if images lack a file that channels need.

    `other` names what chooses other channels.
    """
    if channels.color and (without := without_color(records)):
        raise DataError(
            f"{records[without[0]].depth}: no colour image for this depth image{_and_more(len(without))}; expected "
            f"one, or {other} depth"
        )
    if channels.depth and (without := without_depth(records)):
        raise DataError(
            f"{records[without[0]].color}: no depth image for this colour image{_and_more(len(without))}; expected "
            f"one, or {other} rgb or grey"
        )


def without_color(records: Sequence[Record]) -> Sequence[int]:
    """Return the indices of the images without a colour file."""
    if isinstance(records, ShardRecords):
        return records.without_color()
    return [i for i, record in enumerate(records) if record.color_file is None]


def without_depth(records: Sequence[Record]) -> Sequence[int]:
    """Return the indices of the images without a depth file."""
    if isinstance(records, ShardRecords):
        return records.without_depth()
    return [i for i, record in enumerate(records) if record.depth_file is None]


def find_test_records(root: Path) -> dict[str, tuple[Record, ...]]:
    """Return the images that a data set in folder `root` names for tests, by domain: those of testA and testB.

    A domain without such images is left out. Raises DataError for two images of one name.
    """
    root = absolute_path(root)
    if any((root / name).is_file() for name in (SHARDS, MANIFEST)):
        return {}
    folder = Folder(root)
    if any(read_folder(_subfolder(folder, domain)) for domain in DOMAINS):
        return {}
    return {domain: found for domain, found in _read_letters(folder, "test").items() if found}


def list_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return all images of the data set in folder `root`, by domain, with fewer checks than `find_records`.

    A domain may be empty, and a file in the manifest may be absent. Raises DataError in the other cases of
    `find_records`.
    """
    root = absolute_path(root)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of training data, found {'a file' if root.exists() else 'nothing'}")
    if (root / SHARDS).is_file():
        return find_shards(root)
    if (root / PACKING).is_file():
        raise DataError(f"{root}: packing these shards was not finished; run the same pack command again")
    if (root / MANIFEST).is_file():
        return _read_manifest(root)
    folder = Folder(root)
    records = {domain: read_folder(_subfolder(folder, domain)) for domain in DOMAINS}
    if not any(records.values()):
        records = _read_letters(folder, "train")
    if not any(records.values()):
        raise DataError(f"{root}: no images found; expected {LAYOUTS}")
    return records


def _read_letters(folder: Folder, part: str) -> dict[str, tuple[Record, ...]]:
    """Return the images of layout 5 in the folders of one part, "train" or "test", by domain."""
    return {domain: read_folder(_subfolder(folder, part + letter)) for domain, letter in _LETTERS.items()}


def _read_manifest(root: Path) -> dict[str, tuple[Record, ...]]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid JSON: expected UTF-8 or UTF-16, found {error}") from None
    except (ValueError, RecursionError) as error:
        hint = " (a backslash must be written twice, or as /)" if "escape" in str(error) else ""
        raise DataError(f"{path}: not valid JSON: {error}{hint}") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: expected an object with the lists {_keys()}, found {_kind(manifest)}")
    folder = Folder(root)
    records = {domain: _read_list(folder, manifest, f"{domain}_data") for domain in DOMAINS}
    _refuse_guesses_of_listed_files(path, folder, manifest)
    return records


def _refuse_guesses_of_listed_files(path: Path, folder: Folder, manifest: dict[str, Any]) -> None:
    """Raise DataError if a file that was guessed for a name is also listed by its own name."""
    if not folder.guessed:
        return
    items = [item for domain in DOMAINS for item in manifest[f"{domain}_data"]]
    names = [item[name] for item in items for name in _PATHS if name in item]
    listed = {os.path.normpath(name.replace("\\", "/")) for name in names}
    for file, written in folder.guessed.items():
        if (name := str(file.relative_to(folder.root))) in listed:
            raise DataError(f"{path}: {written!r} and {name!r} mean the same file here; expected one file each")


def _keys() -> str:
    return " and ".join(f"{domain}_data" for domain in DOMAINS)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_list(folder: Folder, manifest: dict[str, Any], key: str) -> tuple[Record, ...]:
    path = folder.root / MANIFEST
    if key not in manifest:
        raise DataError(f"{path}: the list {key} is missing; expected {_keys()}")
    if not isinstance(manifest[key], list):
        raise DataError(f"{path}: {key} is {_kind(manifest[key])}; expected a list")
    items = [item for item in manifest[key] if isinstance(item, dict)]
    names = [name for name in _PATHS if any(name in item for item in items)] or _PATHS[:1]
    return tuple(_read_item(folder, item, f"{key}[{i}]", names) for i, item in enumerate(manifest[key]))


def _read_item(folder: Folder, item: Any, where: str, names: Sequence[str]) -> Record:
    path = folder.root / MANIFEST
    if not isinstance(item, dict):
        raise DataError(f"{path}: {where} is {_kind(item)}; expected an object with {' and '.join(_PATHS)}")
    files: dict[str, Path] = {}
    for name in names:
        value = item.get(name)
        if not isinstance(value, str) or not value or "\0" in value:
            found = "missing" if name not in item else "empty" if value == "" else f"{value!r}"
            raise DataError(f"{path}: {name} of {where} is {found}; expected a path relative to the folder")
        files[name] = folder.find(value, f"{path}: {name} of {where}")
    return Record(*map(files.get, _PATHS))


def _subfolder(folder: Folder, name: str) -> Path:
    """Return the subfolder of this name, or the only one of a name like it. Raises DataError if there are several."""
    return folder.alike(PurePath(name), str(folder.root)) or folder.root / name


def read_folder(domain: Path) -> tuple[Record, ...]:
    """Return the images of a domain's folder: in layout 3 if it has a folder `color`, else in layout 4."""
    folder = Folder(domain)
    color_folder, depth_folder = _subfolder(folder, "color"), _subfolder(folder, "depth")
    if color_folder.is_dir():
        color = _by_name(color_folder, COLOR_SUFFIXES, "")
        depth = _by_name(depth_folder, DEPTH_SUFFIXES, "")
        expected = f"{depth_folder}/NAME with one of {', '.join(DEPTH_SUFFIXES)}"
    else:
        depth = _by_name(domain, DEPTH_SUFFIXES, ".depth")
        color = _by_name(domain, COLOR_SUFFIXES, "", but=".depth")
        expected = f"NAME.depth with one of {', '.join(DEPTH_SUFFIXES)} beside it"
        if not color and not depth:  # depth alone
            depth = _by_name(depth_folder, DEPTH_SUFFIXES, "") or _by_name(domain, _NEVER_COLOR, "")
    return _paired(color, depth, expected)


def _paired(color: Mapping[str, Path], depth: Mapping[str, Path], expected: str) -> tuple[Record, ...]:
    """Pair images of the same name. An image without such a partner gets the only one whose name is like its own.

    Without any depth, the images have colour only. Without any colour, they have depth only. Raises DataError if only
    some images of colour have depth, and where several names are alike.
    """
    if not depth:
        return tuple(map(Record, color.values()))
    if not color:
        return tuple(Record(None, path) for path in depth.values())
    alone = [name for name in color if name not in depth]
    if not alone:
        return tuple(Record(path, depth[name]) for name, path in color.items())
    colors, depths = _by_key(color), _by_key(depth)
    partners = dict(depth)
    without = []
    for name in alone:
        same = depths.get(key(name), [])
        if len(same) + len(colors[key(name)]) > 2:
            files = [color[c].name for c in colors[key(name)]] + [depth[d].name for d in same]
            raise DataError(f"{color[name]}: which depth belongs to it? Alike are {', '.join(map(repr, files))}")
        if same:
            partners[name] = depth[same[0]]
        else:
            without.append(name)
    if without:
        raise DataError(
            f"{color[without[0]]}: no depth image for this colour image{_and_more(len(without))}; expected {expected}"
        )
    return tuple(Record(path, partners[name]) for name, path in color.items())


def _by_key(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names that are alike."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _by_name(folder: Path, suffixes: tuple[str, ...], tag: str, but: str = "") -> dict[str, Path]:
    """Return the folder's images whose names end with `tag` and one of the suffixes, in sorted order.

    Names that end with `but` and a suffix are left out, such as a preview NAME.depth.jpg beside NAME.depth.png. The
    keys are the names without tag and suffix. Raises DataError if two images have the same key. But an NPZ beside
    another depth file of its name is left out: it holds something else, such as the camera.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        suffix = path.suffix.strip().lower()
        stem = path.stem.lower()
        if suffix not in suffixes or path.name.startswith("."):
            continue
        if not stem.endswith(tag) or (but and stem.endswith(but)):
            continue
        name = path.stem[: len(path.stem) - len(tag)]
        if name in images and suffix == ".npz":
            continue
        if name in images and images[name].suffix.lower() != ".npz":
            raise DataError(f"{path}: a second image of the name of {images[name].name}; expected one")
        images[name] = path
    return images


def _require_files(paths: Iterable[Source]) -> None:
    absent = [path for path in paths if not (isinstance(path, Path) and is_file(path))]
    if absent:
        raise DataError(f"{absent[0]}: no such file{_and_more(len(absent))}")


def _and_more(count: int) -> str:
    return "" if count == 1 else f" (and {count - 1} more)"
