"""The list of the files of a data set, from shards, a manifest or plain folders.

There are four layouts, which are tried in this order:

1. `shards.json` in the folder, and shards beside it. See `shards/index.py`.
2. `training_paths.json` in the folder, the paper's manifest: `{"synthetic_data": [{"color_path": "….jpg",
   "depth_path": "….exr"}, …], "real_data": […]}`, with paths relative to the folder.
3. `synthetic/color/NAME.jpg` with `synthetic/depth/NAME.exr`; likewise `real/`.
4. `synthetic/NAME.jpg` beside `synthetic/NAME.depth.exr`; likewise `real/`.

The order of a manifest is kept. Folders are read in sorted order. A manifest may come from another person, so the
paths in it must stay inside the folder. A path that leaves the folder is refused, whether it is absolute or contains
`..`. Symbolic links are followed to any place, because only the owner of the folder can have made them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vologan_fast.config import DOMAINS
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import Record, Source
from vologan_fast.data.shards.index import MANIFEST as SHARDS
from vologan_fast.data.shards.index import PACKING, ShardRecords, find_shards
from vologan_fast.files import absolute_path

MANIFEST = "training_paths.json"
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".exr", ".png", ".npy", ".pfm")

LAYOUTS = (
    f"{SHARDS}, {MANIFEST}, DOMAIN/color/NAME.jpg with DOMAIN/depth/NAME.exr, or DOMAIN/NAME.jpg beside "
    f"DOMAIN/NAME.depth.exr, where DOMAIN is {' and '.join(DOMAINS)}"
)


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
    _require_files(record.color for found in alone for record in found)
    _require_files(record.depth for found in alone for record in found)
    return records


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
    records = {domain: read_folder(root / domain) for domain in DOMAINS}
    if not any(records.values()):
        raise DataError(f"{root}: no images found; expected {LAYOUTS}")
    return records


def _read_manifest(root: Path) -> dict[str, tuple[Record, ...]]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: expected an object with the lists {_keys()}, found {_kind(manifest)}")
    return {domain: _read_list(root, manifest, f"{domain}_data") for domain in DOMAINS}


def _keys() -> str:
    return " and ".join(f"{domain}_data" for domain in DOMAINS)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_list(root: Path, manifest: dict[str, Any], key: str) -> tuple[Record, ...]:
    path = root / MANIFEST
    if key not in manifest:
        raise DataError(f"{path}: the list {key} is missing; expected {_keys()}")
    if not isinstance(manifest[key], list):
        raise DataError(f"{path}: {key} is {_kind(manifest[key])}; expected a list")
    return tuple(_read_item(root, item, f"{key}[{i}]") for i, item in enumerate(manifest[key]))


def _read_item(root: Path, item: Any, where: str) -> Record:
    path = root / MANIFEST
    if not isinstance(item, dict):
        raise DataError(f"{path}: {where} is {_kind(item)}; expected an object with color_path and depth_path")
    files = {}
    for key in ("color_path", "depth_path"):
        value = item.get(key)
        if not isinstance(value, str) or not value or "\0" in value:
            found = "missing" if key not in item else "empty" if value == "" else f"{value!r}"
            raise DataError(f"{path}: {key} of {where} is {found}; expected a path relative to the folder")
        files[key] = Path(os.path.normpath(root / value))
        if not files[key].is_relative_to(root):
            raise DataError(f"{path}: {key} of {where} is {value!r}, which points outside the folder")
    return Record(files["color_path"], files["depth_path"])


def read_folder(folder: Path) -> tuple[Record, ...]:
    """Return the images of a domain's folder: in layout 3 if it has a folder `color`, else in layout 4."""
    if (folder / "color").is_dir():
        color = _by_name(folder / "color", COLOR_SUFFIXES, "")
        depth = _by_name(folder / "depth", DEPTH_SUFFIXES, "")
        expected = f"{folder / 'depth'}/NAME with one of {', '.join(DEPTH_SUFFIXES)}"
    else:
        depth = _by_name(folder, DEPTH_SUFFIXES, ".depth")
        color = {
            name: path for name, path in _by_name(folder, COLOR_SUFFIXES, "").items() if not name.endswith(".depth")
        }
        expected = f"NAME.depth with one of {', '.join(DEPTH_SUFFIXES)} beside it"
    alone = [path for name, path in color.items() if name not in depth]
    if alone:
        raise DataError(f"{alone[0]}: no depth image for this colour image{_and_more(len(alone))}; expected {expected}")
    return tuple(Record(path, depth[name]) for name, path in color.items())


def _by_name(folder: Path, suffixes: tuple[str, ...], tag: str) -> dict[str, Path]:
    """Return the folder's images whose names end with `tag` and one of the suffixes, in sorted order.

    The keys are the names without tag and suffix. Raises DataError if two images have the same key.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in suffixes or not path.stem.endswith(tag) or path.name.startswith("."):
            continue
        name = path.stem.removesuffix(tag)
        if name in images:
            raise DataError(f"{path}: a second image of the name of {images[name].name}; expected one")
        images[name] = path
    return images


def _require_files(paths: Iterable[Source]) -> None:
    absent = [path for path in paths if not (isinstance(path, Path) and path.is_file())]
    if absent:
        raise DataError(f"{absent[0]}: no such file{_and_more(len(absent))}")


def _and_more(count: int) -> str:
    return "" if count == 1 else f" (and {count - 1} more)"
