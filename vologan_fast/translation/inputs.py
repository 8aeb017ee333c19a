"""The images to translate, and the names of their outputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import COLOR_SUFFIXES, DEPTH_SUFFIXES, list_records, read_folder
from vologan_fast.data.records import Member, Record, Source, cause, is_file
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.remote import find_remote_records, is_url
from vologan_fast.files import absolute_path, cache_folder


@dataclass(frozen=True)
class Input:
    """One image, with the names of its two outputs, relative to the output folder."""

    record: Record
    color: str
    depth: str

    def stamp(self) -> str:
        """Return a text that changes if a file of the image changes: sizes and times, or the shard's checksum.

        Raises DataError for a file that does not exist.
        """
        return "; ".join(_stamp(source) for source in (self.record.color, self.record.depth))


class Inputs(Sequence[Input]):
    """The images of a domain. Each Input is made on request, because a set of shards may hold millions of them."""

    def __init__(self, records: Sequence[Record], root: Path | None, domain: str) -> None:
        self.records = records
        self._root = root
        self._domain = domain

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int
        record = self.records[index]
        return Input(record, self._name(record.color, "color"), self._name(record.depth, "depth"))

    def __iter__(self) -> Iterator[Input]:
        return (self[i] for i in range(len(self)))

    def _name(self, source: Source, what: str) -> str:
        """Return the name of an output. Images of shards get the names that a folder of the same images has."""
        if isinstance(source, Member):
            return f"{self._domain}/{what}/{source.name.replace('.depth.', '.')}"
        return source.name if self._root is None else PurePosixPath(source.relative_to(self._root)).as_posix()


def _one(color: Path, depth: Path) -> list[Input]:
    """Return the input of one image. Files of equal names, in two folders, become NAME.png and NAME.depth.png."""
    name = depth.name if depth.name != color.name else f"{depth.stem}.depth{depth.suffix}"
    return [Input(Record(color, depth), color.name, name)]


def _distinct(records: Sequence[Record]) -> Sequence[Record]:
    """Return the records without repetitions, which weight images for training.

    Raises DataError if two images share a file, since their outputs would be one file.
    """
    if not any(isinstance(record.color, Path) for record in records[:1]):
        return records  # the images of shards have names of their own
    found = dict.fromkeys(records)
    owners: dict[Source, Record] = {}
    for record in found:
        for source in (record.color, record.depth):
            if owners.setdefault(source, record) is not record:
                raise DataError(f"{source}: two images share this file, so their outputs would have one name")
    return list(found)


def find_inputs(data: str, domain: str, depth: Path | None = None) -> Sequence[Input]:
    """Return the images of a domain.

    `data` is a data set in any layout of `data.manifest`, or one in a bucket, or a folder of images of one domain in
    layout 3 or 4, or one colour file. The depth of a single colour file is `depth`, or else the file NAME.depth.*
    beside it or ../depth/NAME.*. Images that are listed several times come once. Raises DataError if there are no
    images, or if two of them share a file.
    """
    if is_url(data):
        return Inputs(find_remote_records(data, ShardCache(cache_folder("shards"), int(100e9)))[domain], None, domain)
    path = absolute_path(data)
    if is_file(path):
        return _one(path, absolute_path(depth) if depth else _depth_of(path))
    if depth is not None:
        raise DataError(f"--depth {depth}: expected one colour file as --data, found {data}")
    try:
        return Inputs(_distinct(_list(path, domain)), path, domain)
    except OSError as error:  # for example, a name that is longer than the file system allows
        raise DataError(f"{data}: {cause(error)}") from None


def refuse_common_outputs(first: Sequence[Input], second: Sequence[Input]) -> None:
    """Raise DataError if an output of the first images has the name of one of the second images.

    Images in shards have no such names, because their outputs lie in a folder of their domain.
    """
    if isinstance(first[0].record.color, Member):
        return
    owners = {name: input_ for input_ in first for name in (input_.color, input_.depth)}
    for input_ in second:
        for name in (input_.color, input_.depth):
            if name in owners:
                raise DataError(
                    f"--direction both: {owners[name].record.color} and {input_.record.color} would both be translated "
                    f"to {name}; expected one direction at a time, each with an --out of its own"
                )


def _list(path: Path, domain: str) -> Sequence[Record]:
    """Return the images of the domain in a data set, or all images of a folder. Raises DataError if there are none."""
    try:
        records = list_records(path)[domain]
    except DataError:
        records = read_folder(path) if path.is_dir() else ()
        if not records:
            raise
    if not records:
        raise DataError(f"{path}: the {domain} domain is empty; it has no images to translate")
    return records


def _depth_of(color: Path) -> Path:
    beside = [color.with_name(f"{color.stem}.depth{suffix}") for suffix in DEPTH_SUFFIXES]
    folder = [color.parent.parent / "depth" / f"{color.stem}{suffix}" for suffix in DEPTH_SUFFIXES]
    found = [path for path in (*beside, *folder) if is_file(path) and path != color]
    if color.suffix.lower() not in COLOR_SUFFIXES or not found:
        raise DataError(f"{color}: no depth image for this colour image; expected {beside[0].name}, or --depth FILE")
    return found[0]


def _stamp(source: Source) -> str:
    if isinstance(source, Member):
        return f"{source.shard.sha256} {source.offset} {source.size}"
    try:
        status = source.stat()
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}") from None
    return f"{os.fspath(source)} {status.st_size} {status.st_mtime_ns}"


def digest(*parts: str) -> str:
    """Return a checksum of texts: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]
