"""The images to translate, and the names of their outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vologan_fast.config import CHANNELS, Channels
from vologan_fast.data.checksums import Known
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import (
    COLOR_SUFFIXES,
    DEPTH_SUFFIXES,
    list_records,
    list_test_records,
    read_folder,
    require_files,
)
from vologan_fast.data.records import Member, Record, Source, cause, is_file
from vologan_fast.data.shards.cache import ShardCache
from vologan_fast.data.shards.index import HELD_OUT, ShardRecords
from vologan_fast.data.shards.remote import find_remote_records, is_url
from vologan_fast.files import absolute_path, cache_folder
from vologan_fast.translation.encoding import NEW_COLOR, new_depth
from vologan_fast.translation.translator import Translator, draw_key


class Parts(NamedTuple):
    """The files of an image that a model reads, and those that it makes."""

    reads: Channels = CHANNELS["rgbd"]
    makes: Channels = CHANNELS["rgbd"]
    depth_suffix: str = ".exr"
    """The suffix of depth that is made without a depth file to follow."""

    @staticmethod
    def of(model: Translator) -> Parts:
        spec = model.output_depth
        suffix = "" if spec is None else new_depth(spec).suffix
        return Parts(model.source_channels, model.target_channels, suffix)

    def used(self, record: Record) -> Record:
        """Return the image with the files that are read or copied. A file that will be made anew is neither."""
        return Record(
            record.color_file if self.reads.color or not self.makes.color else None,
            record.depth_file if self.reads.depth or not self.makes.depth else None,
        )


_RGBD = Parts()
_TRAINED = "a model that was trained with --data.channels"


@dataclass(frozen=True)
class Input:
    """One image, with the names of its outputs, relative to the output folder."""

    record: Record
    """The files that are read, or copied."""
    color: str | None
    """None if there is no colour, neither made nor copied."""
    depth: str | None
    draw: tuple[int, int] | None = None
    """Seed and number of the draw, for a model with noise. The names of all draws but one have a folder in front."""

    @property
    def key(self) -> int:
        """The key of the noise (`Translator.noise_of`). It depends on seed, draw and name, not on other images."""
        assert self.draw is not None
        seed, number = self.draw
        name = next(iter(self.names.values())).removeprefix(_folder_of(number))
        return draw_key(str(seed), str(number), name)

    @property
    def names(self) -> dict[str, str]:
        """The names of the outputs: of "color", of "depth", or of both."""
        return {part: name for part, name in (("color", self.color), ("depth", self.depth)) if name is not None}

    def stamp(self) -> str:
        """Return a text that changes if a file of the image changes: sizes and times, or the shard's checksum.

        Raises DataError for a file that does not exist.
        """
        return "; ".join(map(_stamp, self.record.files))


def _folder_of(number: int) -> str:
    return f"sample-{number}/"


class Draws(Sequence[Input]):
    """The images of a domain, each `count` times, for as many draws. The outputs of draw k are in the folder sample-k.

    With `count` None, there is one draw of each image, number 0, without such a folder.
    """

    def __init__(self, inputs: Sequence[Input], seed: int, count: int | None) -> None:
        self._inputs, self._seed, self._count = inputs, seed, count

    def __len__(self) -> int:
        return len(self._inputs) * (self._count or 1)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int
        place, number = divmod(range(len(self))[index], self._count or 1)
        drawn = dataclasses.replace(self._inputs[place], draw=(self._seed, number))
        if self._count is None:
            return drawn
        names = {part: _folder_of(number) + name for part, name in drawn.names.items()}
        return dataclasses.replace(drawn, **names)

    def __iter__(self) -> Iterator[Input]:
        return (self[i] for i in range(len(self)))


class Inputs(Sequence[Input]):
    """The images of a domain. Each Input is made on request, because a set of shards may hold millions of them."""

    def __init__(self, records: Sequence[Record], root: Path | None, domain: str, parts: Parts) -> None:
        self.records = records
        self._root = root
        self._domain = domain
        self._parts = parts

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int
        return _named(self._parts.used(self.records[index]), self._parts, self._name)

    def __iter__(self) -> Iterator[Input]:
        return (self[i] for i in range(len(self)))

    def _name(self, source: Source, what: str) -> str:
        """Return the name of an output. Images of shards get the names that a folder of the same images has."""
        if isinstance(source, Member):
            return f"{self._domain}/{what}/{source.name.replace('.depth.', '.')}"
        return source.name if self._root is None else PurePosixPath(source.relative_to(self._root)).as_posix()


def _named(record: Record, parts: Parts, name: Callable[[Source, str], str]) -> Input:
    """Return the input of a record whose files have these names. A file that is made anew is named after the other."""
    color = None if record.color_file is None else name(record.color_file, "color")
    depth = None if record.depth_file is None else name(record.depth_file, "depth")
    if color is None and parts.makes.color and depth is not None:
        color = _beside(depth, "color", NEW_COLOR.suffix)
    if depth is None and parts.makes.depth and color is not None:
        depth = _beside(color, "depth", parts.depth_suffix)
    return Input(record, color, depth)


def _beside(name: str, what: str, suffix: str) -> str:
    """Return the name of colour for the name of depth, or the other way round, as data sets have them.

    In a folder `color`, it is in the folder `depth` beside it. In another one, depth has `.depth` in its name.
    """
    path, other = PurePosixPath(name), {"color": "depth", "depth": "color"}[what]
    if path.parent.name.lower() == other:
        return (path.parent.parent / what / f"{path.stem}{suffix}").as_posix()
    stem = path.stem.removesuffix(".depth") + (".depth" if what == "depth" else "")
    found = path.with_name(f"{stem}{suffix}")
    return (found if found != path else path.with_name(f"{stem}.{what}{suffix}")).as_posix()


def _one(path: Path, depth: Path | None, parts: Parts) -> list[Input]:
    """Return the input of one image. Files of equal names, in two folders, become NAME.png and NAME.depth.png."""
    if depth is not None and not (parts.reads.color and parts.reads.depth):
        raise DataError(f"--depth {depth}: expected none, because the model reads one file, which is --data")
    if not parts.reads.color:
        if path.suffix.lower() not in DEPTH_SUFFIXES:
            raise DataError(f"{path}: expected a depth file, one of {', '.join(DEPTH_SUFFIXES)}: the model reads depth")
        return [_named(_known(None, path), parts, lambda source, _: source.name)]
    if not parts.reads.depth:
        return [_named(_known(path, None), parts, lambda source, _: source.name)]
    record = _known(path, absolute_path(depth) if depth else _depth_of(path))
    same = record.depth.name == path.name
    return [Input(record, path.name, f"{path.stem}.depth{path.suffix}" if same else record.depth.name)]


def _known(color: Path | None, depth: Path | None) -> Record:
    """Return the image of these files, with their checksums, if a folder has any."""
    return Record(*(None if file is None else Known(file.parent).file(file) for file in (color, depth)))


def _distinct(records: Sequence[Record], parts: Parts) -> Sequence[Record]:
    """Return the records without repetitions, which weight images for training.

    Raises DataError if two images share a file, since their outputs would be one file.
    """
    if not all(isinstance(file, Path) for record in records[:1] for file in record.files):
        return records  # the images of shards have names of their own
    found = dict.fromkeys(map(parts.used, records))
    owners: dict[Source, Record] = {}
    for record in found:
        for source in record.files:
            if owners.setdefault(source, record) is not record:
                raise DataError(f"{source}: two images share this file, so their outputs would have one name")
    return list(found)


def find_inputs(data: str, domain: str, depth: Path | None = None, parts: Parts = _RGBD) -> Sequence[Input]:
    """Return the images of a domain.

    `data` is a data set in any layout of `data.manifest`, or one in a bucket, or a folder of images of one domain in
    layout 3 or 4, or one file. The depth of a single colour file is `depth`, or else the file NAME.depth.* beside it or
    ../depth/NAME.*. Images that are listed several times come once. A data set's images for tests come last.

    Raises DataError if there are no images, if they lack a file that the model reads, or if two outputs would have one
    name.
    """
    if is_url(data):
        cache = ShardCache(cache_folder("shards"), int(100e9))
        remote = find_remote_records(data, cache)[domain]
        if tests := find_remote_records(data, cache, part=HELD_OUT).get(domain):
            remote = remote.followed_by(tests)
        require_files(remote, parts.reads, _TRAINED)
        return Inputs(remote, None, domain, parts)
    path = absolute_path(data)
    if is_file(path):
        return _one(path, depth, parts)
    if depth is not None:
        raise DataError(f"--depth {depth}: expected one colour file as --data, found {data}")
    try:
        records = _list(path, domain)
        require_files(records, parts.reads, _TRAINED)
        return _distinctly_named(Inputs(_distinct(records, parts), path, domain, parts), parts)
    except OSError as error:  # for example, a name that is longer than the file system allows
        raise DataError(f"{data}: {cause(error)}") from None


def _distinctly_named(inputs: Inputs, parts: Parts) -> Inputs:
    """Return the images. Raises DataError if files that are made anew would have equal names."""
    if parts.reads != parts.makes and not isinstance(inputs.records, ShardRecords):
        owners: dict[str, Input] = {}
        for input_ in inputs:
            for name in input_.names.values():
                if owners.setdefault(name, input_) is not input_:
                    raise DataError(
                        f"{owners[name].record.files[0]} and {input_.record.files[0]}: both would be translated to "
                        f"{name}; expected images of different names"
                    )
    return inputs


def refuse_common_outputs(first: Sequence[Input], second: Sequence[Input]) -> None:
    """Raise DataError if an output of the first images has the name of one of the second images.

    Images in shards have no such names, because their outputs lie in a folder of their domain.
    """
    if isinstance(first[0].record.files[0], Member):
        return
    owners = {name: input_ for input_ in first for name in input_.names.values()}
    for input_ in second:
        for name in input_.names.values():
            if name in owners:
                raise DataError(
                    f"--direction both: {owners[name].record.files[0]} and {input_.record.files[0]} would both be "
                    f"translated to {name}; expected one direction at a time, each with an --out of its own"
                )


def _list(path: Path, domain: str) -> Sequence[Record]:
    """Return the images of the domain in a data set, or all images of a folder. Raises DataError if there are none."""
    try:
        records = list_records(path)[domain]
        if tests := list_test_records(path).get(domain):
            if isinstance(records, ShardRecords) and isinstance(tests, ShardRecords):
                records = records.followed_by(tests)
            else:
                records = (*records, *tests)
    except DataError:
        found = path.is_dir() and (list_test_records(path).get(domain) or read_folder(path))
        if not found:
            raise
        records = found
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
