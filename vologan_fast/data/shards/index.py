"""The format of a data set in shards, and its reader. `pack.py` writes this format.

    shards.json              the shards of both domains, with checksums, also of each file; kinds of depth files
    synthetic-000000.tar     512 images: KEY.jpg, KEY.depth.exr, KEY.jpg, … (webdataset's layout)
    synthetic-000000.idx     the place of each file in the tar, in the format of DALI's wds2idx

The images of a tar may have colour only, or depth only.

A data set that names images for tests has them in shards of their own, such as test-real-000000.tar. They are listed
under "held_out" in shards.json, and the format is then 2. Without them it is 1. A version that does not know them thus
refuses the data set, and does not draw held-out images.

To save memory, a ShardRecords keeps only arrays for its images, and makes each Record on request.

The files may come from another person, so they are checked. The name of a shard must be a plain file name. The size of
a tar must be as recorded. An index must have the recorded checksum, and every place in it must lie inside the tar. The
headers in the tar are never read. They add nothing to the index, and reading them would be slower. `records.read` and
native code compare each file with its CRC-32. Shards of former versions have none, so their files are not compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vologan_fast.checksums import ChangedError, signed, unsigned
from vologan_fast.config import DOMAINS
from vologan_fast.data.errors import DataError
from vologan_fast.data.records import LARGEST, Member, Record, Shard, cause, read_part
from vologan_fast.files import read_regular

MANIFEST = "shards.json"
PACKING = "pack.jsonl"
"""The log of pack.py. If it is there without shards.json, packing has not finished."""
TRAINING, HELD_OUT = "domains", "held_out"
"""The parts of a data set, as shards.json names them. The first has all images if none are named for tests."""
FORMATS = {1: (TRAINING,), 2: (TRAINING, HELD_OUT)}
"""The versions of the format that this file reads, with the parts in them."""
COLOR = ("jpg", "png")
DEPTH = ("depth.exr", "depth.png", "depth.npy", "depth.pfm", "depth.tiff", "depth.npz")
"""The suffixes of colour and depth files. A member's name is KEY.SUFFIX."""

_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.tar")
_KEY = re.compile(rb"[A-Za-z0-9_-]{1,100}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_DIGITS = re.compile(r"[0-9a-f]*")
_INDENT = 1  # of shards.json
_BLOCK = 512
_LONGEST_LINE = 1024
"""Bytes of an image in an index: two names of at most 255 bytes, their suffixes, and four numbers."""
_LARGEST_INDEX = 1 << 27
"""Bytes of the largest index: about a million images in one shard."""
LARGEST_MANIFEST = 1 << 28
"""Bytes of the largest shards.json: 30 million files, with a checksum each."""
_MOST = 1 << 62
"""A bound for offsets and sizes in bytes. Below it, their sum does not overflow."""

Indices = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ShardEntry:
    """The entry of a shard in shards.json."""

    file: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    crc32: str = ""
    """The CRC-32 of each file in the tar, in the order of the index: 8 hexadecimal digits each. Empty: unknown."""

    @property
    def index(self) -> str:
        return index_name(self.file)

    @property
    def largest_index(self) -> int:
        """Bytes that no index of so many images exceeds. Absurd numbers of images have a limit, too."""
        return min(_BLOCK + min(self.samples, self.bytes // _BLOCK) * _LONGEST_LINE, _LARGEST_INDEX)


@dataclass(frozen=True)
class DepthKind:
    """A kind of depth files in a domain. `samples` is the number of files of this kind."""

    format: str
    compression: str
    types: tuple[str, ...]
    """The NumPy names of the channels' types."""
    not_native: str
    """The reason why DALI's operator does not read these files. Empty if it reads them."""
    samples: int


@dataclass(frozen=True)
class DomainShards:
    depth: tuple[DepthKind, ...]
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, eq=False)
class LocalShard:
    """A tar in a folder on this machine."""

    path: Path
    size: int
    sha256: str

    def __str__(self) -> str:
        return str(self.path)

    def local(self) -> Path:
        return self.path

    def read(self, offset: int, size: int) -> bytes:
        try:
            return read_part(self.path, offset, size)
        except OSError as error:
            raise DataError(f"{self.path}: {cause(error)}") from None


@dataclass(frozen=True)
class Index:
    """The places of the files of n images in their shards, and the names of the files."""

    spans: npt.NDArray[np.int64]
    """(n, 4): offset and size of the colour file, offset and size of the depth file, in bytes. The size is 0 where the
    image has no such file."""
    suffixes: npt.NDArray[np.uint8]
    """(n, 2): the index of the suffix in COLOR, and of the suffix in DEPTH."""
    keys: npt.NDArray[np.bytes_]
    """(n,): the keys of the images."""
    crcs: npt.NDArray[np.int64]
    """(n, 2): the CRC-32 of the colour file and of the depth file. -1 where it is unknown."""

    @staticmethod
    def joined(parts: Sequence[Index]) -> Index:
        return Index(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Index)))

    def take(self, index: slice | Indices) -> Index:
        return Index(*(getattr(self, field.name)[index] for field in fields(Index)))


class ShardRecords(Sequence[Record]):
    """The images of a domain, shard after shard.

    A slice or an array of indices selects images, in the order of the indices.
    """

    def __init__(
        self, shards: Sequence[Shard], kinds: tuple[DepthKind, ...], shard: npt.NDArray[np.int32], index: Index
    ) -> None:
        self.shards = shards
        self.kinds = kinds
        self.shard = shard
        """(n,): for each image, the index of its shard in `shards`."""
        self._index = index

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice | Indices) -> ShardRecords: ...
    def __getitem__(self, index: int | slice | Indices) -> Record | ShardRecords:
        if isinstance(index, (slice, np.ndarray)):
            return ShardRecords(self.shards, self.kinds, self.shard[index], self._index.take(index))
        shard = self.shards[self.shard[index]]
        color, color_size, depth, depth_size = self._index.spans[index].tolist()
        color_suffix, depth_suffix = self._index.suffixes[index]
        key = self._index.keys[index].decode()
        crcs = [None if crc == -1 else crc for crc in self._index.crcs[index].tolist()]
        return Record(
            Member(shard, color, color_size, f"{key}.{COLOR[color_suffix]}", crcs[0]) if color_size else None,
            Member(shard, depth, depth_size, f"{key}.{DEPTH[depth_suffix]}", crcs[1]) if depth_size else None,
        )

    def followed_by(self, other: ShardRecords) -> ShardRecords:
        """Return these images and then the other ones."""
        index = Index.joined([self._index, other._index])
        shard = np.concatenate([self.shard, other.shard + np.int32(len(self.shards))])
        return ShardRecords((*self.shards, *other.shards), (*self.kinds, *other.kinds), shard, index)

    def without_color(self) -> list[int]:
        """Return the indices of the images without a colour file."""
        return np.flatnonzero(self._index.spans[:, 1] == 0).tolist()

    def without_depth(self) -> list[int]:
        """Return the indices of the images without a depth file."""
        return np.flatnonzero(self._index.spans[:, 3] == 0).tolist()

    def lengths(self) -> tuple[int, ...]:
        """Return the number of images in each shard that holds any. The images must be in the order of the shards."""
        counts = np.bincount(self.shard, minlength=len(self.shards))
        return tuple(counts[counts > 0].tolist())

    def fingerprint(self) -> str:
        """Return a SHA-256 checksum (hexadecimal) of the images' bytes and their order."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.sha256}\n".encode())
        digest.update(np.ascontiguousarray(self.shard, "<i4").data)
        digest.update(np.ascontiguousarray(self._index.spans, "<i8").data)
        return digest.hexdigest()


def index_name(file: str) -> str:
    """Return the name of a tar's index: synthetic-000000.idx for synthetic-000000.tar."""
    return file.removesuffix(".tar") + ".idx"


def find_shards(root: Path, part: str = TRAINING) -> dict[str, ShardRecords]:
    """Return all images of a part of the data set in shards in folder `root`, by domain. Raises DataError."""

    def fetch(name: str, most: int) -> bytes:
        try:
            return read_regular(root / name, most)
        except OSError as error:
            raise DataError(f"{root / name}: {cause(error)}") from None

    def open_shard(entry: ShardEntry) -> LocalShard:
        path = root / entry.file
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise DataError(f"{path}: {cause(error)}") from None
        if size is None:
            raise DataError(f"{path}: no such file; {root / MANIFEST} lists it")
        if size != entry.bytes:
            raise DataError(f"{path}: expected {entry.bytes} bytes, found {size}")
        return LocalShard(path, entry.bytes, entry.sha256)

    return open_shards(str(root), fetch, open_shard, part=part)


def open_shards(
    root: str,
    fetch: Callable[[str, int], bytes],
    open_shard: Callable[[ShardEntry], Shard],
    threads: int = 16,
    part: str = TRAINING,
) -> dict[str, ShardRecords]:
    """Return all images of a part of the data set in shards with the name `root`, by domain. Raises DataError.

    `fetch` reads shards.json or an index by name, and raises DataError if it has more bytes than the second argument.
    `open_shard` opens the shard of an entry. `threads` threads call both of them.
    """
    domains = parse_manifest(fetch(MANIFEST, LARGEST_MANIFEST), f"{root}/{MANIFEST}", part)

    def read_shard(entry: ShardEntry) -> tuple[Shard, Index]:
        return open_shard(entry), parse_index(fetch(entry.index, entry.largest_index), entry, f"{root}/{entry.index}")

    with ThreadPoolExecutor(threads) as pool:
        return {domain: _join(found.depth, pool.map(read_shard, found.shards)) for domain, found in domains.items()}


def _join(kinds: tuple[DepthKind, ...], found: Iterable[tuple[Shard, Index]]) -> ShardRecords:
    shards, indices = zip(*found, strict=True)
    return ShardRecords(
        shards,
        kinds,
        np.repeat(np.arange(len(shards), dtype=np.int32), [len(index.keys) for index in indices]),
        Index.joined(indices),
    )


# shards.json


def parse_manifest(data: bytes, path: str, part: str = TRAINING) -> dict[str, DomainShards]:
    """Parse shards.json, and return a part of it by domain. `path` is its name for messages. Raises DataError.

    Both domains have training images. The part HELD_OUT has the domains with images for tests.
    """
    try:
        manifest = unsigned(data, _INDENT)
    except ChangedError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    found = _field(manifest, "format", int, path)
    if found not in FORMATS:
        raise DataError(
            f"{path}: format is {found}; expected {' or '.join(map(str, FORMATS))}, which this version reads"
        )
    if unknown := sorted(set(manifest) - {"format", *FORMATS[found]}):
        raise DataError(
            f"{path}: {unknown[0]!r:.60} is no part of format {found}; expected {', '.join(FORMATS[found])}"
        )
    parts: dict[str, dict[str, DomainShards]] = {HELD_OUT: {}}
    for name in FORMATS[found]:
        domains = _field(manifest, name, dict, path)
        where = path if name == TRAINING else f"{path}: {name}"
        parts[name] = {
            domain: _domain(_field(domains, domain, dict, where), f"{where}: {domain}")
            for domain in DOMAINS
            if name == TRAINING or domain in domains
        }
    files = [entry.file for domains in parts.values() for domain in domains.values() for entry in domain.shards]
    if len(set(files)) < len(files):
        raise DataError(f"{path}: {max(files, key=files.count)} is listed twice; expected different shards")
    return parts[part]


def manifest_json(domains: Mapping[str, DomainShards], held_out: Mapping[str, DomainShards] | None = None) -> bytes:
    """Return the content of shards.json, the inverse of `parse_manifest`. `held_out` has the images for tests.

    It ends with its own checksum.
    """
    parts = {TRAINING: domains, HELD_OUT: held_out} if held_out else {TRAINING: domains}
    version = next(version for version, names in FORMATS.items() if names == tuple(parts))
    plain = {name: {domain: _plain(found) for domain, found in part.items()} for name, part in parts.items()}
    return signed({"format": version, **plain}, _INDENT)


def _plain(domain: DomainShards) -> dict[str, Any]:
    plain = asdict(domain)
    for entry in plain["shards"]:
        if not entry["crc32"]:
            del entry["crc32"]
    return plain


def _domain(value: Any, where: str) -> DomainShards:
    shards = tuple(_entry(item, f"{where}: shards[{i}]") for i, item in enumerate(_field(value, "shards", list, where)))
    if not shards:
        raise DataError(f"{where}: the domain is empty; both domains need images")
    kinds = _field(value, "depth", list, where)
    return DomainShards(tuple(_kind(item, f"{where}: depth[{i}]") for i, item in enumerate(kinds)), shards)


def _entry(item: Any, where: str) -> ShardEntry:
    file = _field(item, "file", str, where)
    if not _FILE.fullmatch(file):
        raise DataError(f"{where}: file is {file!r}; expected the plain name of a .tar file")
    samples, size = _count(item, "samples", where), _count(item, "bytes", where)
    crcs = _field(item, "crc32", str, where) if "crc32" in item else ""
    checksums: list[str] = [_field(item, key, str, where) for key in ("sha256", "index_sha256")]
    for checksum in checksums:
        if not _CHECKSUM.fullmatch(checksum):
            raise DataError(f"{where}: {checksum!r} is no SHA-256 checksum; expected 64 hexadecimal digits")
    return ShardEntry(file, samples, size, checksums[0], checksums[1], crcs)


def _kind(item: Any, where: str) -> DepthKind:
    types = _field(item, "types", list, where)
    if not all(isinstance(t, str) for t in types):
        raise DataError(f"{where}: types is {types!r}; expected names of types")
    texts = [_field(item, key, str, where) for key in ("format", "compression", "not_native")]
    return DepthKind(texts[0], texts[1], tuple(types), texts[2], _count(item, "samples", where))


def _field(value: Any, key: str, kind: type, where: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if type(found) is not kind:
        names = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        raise DataError(f"{where}: {key} is {found!r:.60}; expected {names[kind]}")
    return found


def _count(item: Any, key: str, where: str) -> int:
    count: int = _field(item, key, int, where)
    if not 0 < count < _MOST:
        raise DataError(f"{where}: {key} is {count}; expected a positive number of 62 bits")
    return count


# Index files

INDEX_VERSION = b"v1.2"


def index_line(key: str, members: Sequence[tuple[str, int, int]]) -> str:
    """Return the line of one image in an index. `members` are (suffix, offset, size) of its files, colour first."""
    return " ".join(f"{suffix} {offset} {size} {key}.{suffix}" for suffix, offset, size in members) + "\n"


def parse_index(data: bytes, entry: ShardEntry, path: str) -> Index:
    """Parse the index of the shard `entry`. `path` is its name for messages. Raises DataError."""
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        raise DataError(f"{path}: this is not the index that {MANIFEST} names: the checksum differs")
    words = data.split()
    members = (len(words) - 2) // (4 * entry.samples)
    if words[:2] != [INDEX_VERSION, b"%d" % entry.samples] or len(words) != 2 + 4 * members * entry.samples:
        members = 0
    if members not in (1, 2):
        raise DataError(
            f"{path}: expected {INDEX_VERSION.decode()}, {entry.samples}, and as many times suffix, offset, size and "
            "name of colour and of depth, or of one of them; "
            f"found {b' '.join(words[:2])!r:.60} and {max(len(words) - 2, 0)} words"
        )
    parts = [0, 1] if members == 2 else [0] if words[2].decode(errors="replace") in COLOR else [1]
    suffixes = np.zeros((entry.samples, 2), np.uint8)
    spans = np.zeros((entry.samples, 4), np.int64)
    keys: list[bytes] = []
    for first, part in enumerate(parts):
        known = (COLOR, DEPTH)[part]
        found, offsets, sizes, names = (words[i :: 4 * members] for i in range(2 + 4 * first, 6 + 4 * first))
        codes = {suffix.encode(): code for code, suffix in enumerate(known)}
        unknown = set(found) - set(codes)
        if unknown:
            raise DataError(f"{path}: {min(unknown)!r:.60} is no suffix of an image; expected {', '.join(known)}")
        suffixes[:, part] = [codes[suffix] for suffix in found]
        for column, numbers in ((2 * part, offsets), (2 * part + 1, sizes)):
            if not all(map(bytes.isdigit, numbers)) or max(map(len, numbers)) > 18:
                raise DataError(f"{path}: expected offsets and sizes in bytes, found something else")
            spans[:, column] = np.array(numbers).astype(np.int64)
        offset, size = spans[:, 2 * part], spans[:, 2 * part + 1]
        outside = (offset < _BLOCK) | (size < 1) | (size > LARGEST) | (offset + size > entry.bytes)
        if outside.any():
            i = int(outside.argmax())
            raise DataError(
                f"{path}: {names[i]!r:.60} is said to lie at {offset[i]} to {offset[i] + size[i]}; expected a place "
                f"from {_BLOCK} to the tar's end at {entry.bytes}, of at most {LARGEST} bytes"
            )
        here = [name[: -len(suffix) - 1] for suffix, name in zip(found, names, strict=True)]
        for key, suffix, name, other in zip(here, found, names, keys or here, strict=True):
            if not _KEY.fullmatch(key) or name != key + b"." + suffix or key != other:
                raise DataError(f"{path}: {name!r:.60}: expected KEY.SUFFIX, with the same key for colour and depth")
        keys = here
    crcs = np.full((entry.samples, 2), -1, np.int64)
    if entry.crc32:
        crcs[:, parts] = _crcs(entry.crc32, len(parts) * entry.samples, path).reshape(-1, len(parts))
    return Index(spans, suffixes, np.array(keys), crcs)


def _crcs(text: str, count: int, path: str) -> npt.NDArray[np.int64]:
    if len(text) != 8 * count or not _DIGITS.fullmatch(text):
        raise DataError(
            f"{path}: crc32 in {MANIFEST} is {text!r:.60}; expected 8 hexadecimal digits for each of {count} files"
        )
    return np.frombuffer(bytes.fromhex(text), ">u4").astype(np.int64)
