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
the files whose names were written on another system. `checksums` knows the checksums of the files, if there are any.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vologan_fast.checksums import CHECKSUMS
from vologan_fast.config import DOMAINS, Channels
from vologan_fast.data.checksums import Known
from vologan_fast.data.errors import DataError, readable
from vologan_fast.data.names import Folder, is_added_by_system, key
from vologan_fast.data.records import Record, Source, is_file, read
from vologan_fast.data.shards.index import HELD_OUT, PACKING, ShardRecords, find_shards
from vologan_fast.data.shards.index import MANIFEST as SHARDS
from vologan_fast.files import absolute_path

MANIFEST = "training_paths.json"
PAIRED, PAIRED_MANIFEST = "paired-test", "paired_paths.json"
"""The subfolder of a data set with images for scoring only, and the list of them in it (`demo/dataset.py`)."""
_PATHS = ("color_path", "depth_path")
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".exr", ".png", ".npy", ".pfm", ".tif", ".tiff", ".npz")
_NEVER_COLOR = tuple(suffix for suffix in DEPTH_SUFFIXES if suffix not in COLOR_SUFFIXES)

_BESIDE = (*COLOR_SUFFIXES, ".npz")
"""The suffixes in the folder of layout 4 that are never reported. An NPZ may hold the camera."""

LAYOUTS = (
    f"{SHARDS}, {MANIFEST}, DOMAIN/color/NAME.jpg with DOMAIN/depth/NAME.exr, or DOMAIN/NAME.jpg beside "
    f"DOMAIN/NAME.depth.exr, where DOMAIN is {' and '.join(DOMAINS)}; or trainA/NAME.jpg and trainB/NAME.jpg"
)
_LETTERS = {"synthetic": "A", "real": "B"}
"""The ends of the folders' names in layout 5."""
_LOOKED_AT = 100
"""At most so many subfolders are searched for a data set that may be meant."""


@readable()
def find_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return all images of the data set in folder `root`, by domain.

    Raises DataError if the folder or the manifest cannot be read, if no layout fits, if a domain is empty, or if a
    file is absent.
    """
    records = list_records(root)
    for domain, found in records.items():
        if not found:
            raise DataError(empty_domain(root, domain))
    _require_listed_files(records.values())
    return records


def empty_domain(root: Path, domain: str) -> str:
    """Return the sentence about a domain without images. It names the folder, or the list, in which they are missing.

    `root` is the folder of a data set whose other domain has images.
    """
    root = absolute_path(root)
    needed = f"the {domain} domain is empty; both domains need images"
    if (root / MANIFEST).is_file():
        return f"{root / MANIFEST}: {domain}_data: {needed}"
    place = _read_domains(Folder(root))[0][domain]
    there = "" if place.is_dir() else "no such folder: "
    return "; ".join([f"{place}: {there}{needed}", *_skipped(place, ())])


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


@readable()
def find_test_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return the images that a data set in folder `root` names for tests, by domain.

    They are those of testA and testB, and those that shards have of them. A domain without such images is left out.
    Raises DataError for two images of one name, if a file is absent, and if a folder for tests has files, but none that
    can be read.
    """
    records = list_test_records(root)
    for domain in DOMAINS:
        if domain not in records:
            refuse_unread_tests(root, domain)
    _require_listed_files(records.values())
    return records


def refuse_unread_tests(root: Path, domain: str) -> None:
    """Raise DataError if the domain's folder for tests is not empty, but has no images. Else they would be drawn."""
    folder = Folder(absolute_path(root))
    if _has_letters(folder) and not _read_folder(place := _subfolder(folder, f"test{_LETTERS[domain]}")):
        for sentence in _skipped(place, ()):
            raise DataError(f"{sentence}; without images for tests, expected no files in this folder")


@readable()
def list_test_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return the images for tests, as `find_test_records`. A file may be absent, and other files are not looked at."""
    folder = Folder(absolute_path(root))
    if (folder.root / SHARDS).is_file():
        return find_shards(folder.root, HELD_OUT)
    found = _read_letters(folder, "test") if _has_letters(folder) else {}
    return _with_checksums(Known(folder.root), {domain: records for domain, records in found.items() if records})


def _has_letters(folder: Folder) -> bool:
    """Return whether no other layout than layout 5 fits."""
    if any((folder.root / name).is_file() for name in (SHARDS, MANIFEST)):
        return False
    return not any(_read_folder(_subfolder(folder, domain)) for domain in DOMAINS)


@readable()
def list_records(root: Path) -> Mapping[str, Sequence[Record]]:
    """Return all images of the data set in folder `root`, by domain, with fewer checks than `find_records`.

    A domain may be empty, and a file in the manifest may be absent. Raises DataError in the other cases of
    `find_records`.
    """
    root = absolute_path(root)
    if not root.is_dir():
        found = f"a file{_did_you_mean(root.parents[:3])}" if root.exists() else "nothing"
        raise DataError(f"{root}: expected a folder of training data, found {found}")
    if (root / SHARDS).is_file():
        return find_shards(root)
    if (root / PACKING).is_file():
        raise DataError(f"{root}: packing these shards was not finished; run the same pack command again")
    known = Known(root)
    if (root / MANIFEST).is_file():
        return _with_checksums(known, _read_manifest(root, known))
    folder = Folder(root)
    _, records = _read_domains(folder)
    if not any(records.values()):
        names = [*DOMAINS, *(f"train{letter}" for letter in _LETTERS.values())]
        skipped = [sentence for name in names for sentence in _skipped(_subfolder(folder, name), ())]
        meant = _did_you_mean([*root.parents[:2], *_subfolders(root)])
        raise DataError("; ".join([f"{root}: no images found", *skipped, f"expected {LAYOUTS}"]) + meant)
    return _with_checksums(known, records)


def _with_checksums(known: Known, records: Mapping[str, Sequence[Record]]) -> dict[str, tuple[Record, ...]]:
    return {domain: tuple(map(known.record, found)) for domain, found in records.items()}


def _read_domains(folder: Folder) -> tuple[dict[str, Path], dict[str, tuple[Record, ...]]]:
    """Return the folders of both domains and the images in them: those of layouts 3 and 4, or else those of layout 5.

    If no image is found, the folders are those of layout 5.
    """
    for names in (dict.fromkeys(DOMAINS, ""), _LETTERS):
        places = {domain: _subfolder(folder, f"train{end}" if end else domain) for domain, end in names.items()}
        records = {domain: _read_folder(place) for domain, place in places.items()}
        if any(records.values()):
            break
    return places, records


@readable()
def skipped_files(root: Path) -> dict[str, list[str]]:
    """Return, by domain, a sentence about each folder of images with files that are skipped: their suffix is another.

    The files of a manifest and of shards are listed, and so none is skipped. Raises DataError as `list_records`.
    """
    folder = Folder(absolute_path(root))
    if any((folder.root / name).is_file() for name in (SHARDS, MANIFEST)):
        return {domain: [] for domain in DOMAINS}
    places, records = _read_domains(folder)
    found = {domain: _skipped(place, records[domain]) for domain, place in places.items()}
    if _has_letters(folder):
        for domain, tests in _read_letters(folder, "test").items():
            found[domain] += _skipped(_subfolder(folder, f"test{_LETTERS[domain]}"), tests)
    return found


def _skipped(domain: Path, records: Sequence[Record]) -> list[str]:
    """Return the sentences about the files that `_read_folder` skips in a domain's folder. `records` is its result."""
    folder, colors, depths = Folder(domain), ", ".join(COLOR_SUFFIXES), ", ".join(DEPTH_SUFFIXES)
    color_folder, depth_folder = _subfolder(folder, "color"), _subfolder(folder, "depth")
    used = {file for record in records for file in record.files}
    sentences = []

    def look(place: Path, expected: str, known: Iterable[str], known_with_tag: Iterable[str] = ()) -> None:
        others = Counter(
            path.suffix.strip().lower() or "no suffix"
            for path in _files(place)
            if path not in used
            and path.suffix.strip().lower() not in known
            and not (path.stem.lower().endswith(".depth") and path.suffix.strip().lower() in known_with_tag)
        )
        if total := sum(others.values()):
            listed = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common())
            files = "1 file is" if total == 1 else f"{total} files are"
            sentences.append(f"{place}: {files} skipped, with other suffixes: {listed}; expected {expected}")

    if color_folder.is_dir():
        look(color_folder, f"colour in {colors}", COLOR_SUFFIXES)
    else:
        look(domain, f"colour in {colors}, or depth as NAME.depth with {depths}", _BESIDE, DEPTH_SUFFIXES)
    look(depth_folder, f"depth in {depths}", DEPTH_SUFFIXES)
    return sentences


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, without checksums.json, and those that are hidden or that systems add."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name == CHECKSUMS or entry.name.startswith(".") or is_added_by_system(PurePath(entry.name)):
                continue
            if is_file(path):
                yield path


def _subfolders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())[:_LOOKED_AT]


def _did_you_mean(places: Iterable[Path]) -> str:
    """Return "; did you mean FOLDER?" for the places that hold a data set, or "" if there are none."""
    found = [str(place) for place in places if _looks_like_a_data_set(place)]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _looks_like_a_data_set(root: Path) -> bool:
    """Return whether the folder seems to have a layout. It looks at one image at most."""
    if any(is_file(root / name) for name in (SHARDS, MANIFEST)):
        return True
    suffixes = {*COLOR_SUFFIXES, *DEPTH_SUFFIXES}
    try:
        folder = Folder(root)
        domains = [_subfolder(folder, name) for name in (*DOMAINS, *(f"train{end}" for end in _LETTERS.values()))]
        places = [place for domain in domains for place in (domain, domain / "color", domain / "depth")]
        return any(file.suffix.lower() in suffixes for place in places for file in _files(place))
    except (DataError, OSError):
        return False


def _read_letters(folder: Folder, part: str) -> dict[str, tuple[Record, ...]]:
    """Return the images of layout 5 in the folders of one part, "train" or "test", by domain."""
    return {domain: _read_folder(_subfolder(folder, part + letter)) for domain, letter in _LETTERS.items()}


def _read_manifest(root: Path, known: Known) -> dict[str, tuple[Record, ...]]:
    path = root / MANIFEST
    text = read(known.file(path))
    try:
        manifest = json.loads(text)
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


@readable()
def read_folder(domain: Path) -> tuple[Record, ...]:
    """Return the images of a domain's folder: in layout 3 if it has a folder `color`, else in layout 4."""
    return tuple(map(Known(domain).record, _read_folder(domain)))


def _read_folder(domain: Path) -> tuple[Record, ...]:
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


def _require_listed_files(domains: Iterable[Sequence[Record]]) -> None:
    alone = [found for found in domains if not isinstance(found, ShardRecords)]
    for part in (0, 1):  # all missing colour files come first
        _require_files(
            file for found in alone for r in found if (file := (r.color_file, r.depth_file)[part]) is not None
        )


def _require_files(paths: Iterable[Source]) -> None:
    absent = [path for path in paths if not (isinstance(path, Path) and is_file(path))]
    if absent:
        raise DataError(f"{absent[0]}: no such file{_and_more(len(absent))}")


def _and_more(count: int) -> str:
    return "" if count == 1 else f" (and {count - 1} more)"
