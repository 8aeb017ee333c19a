"""Pack a data set into shards. `shards/index.py` describes their format.

    pack("people", "people-shards")      # 512 images per shard

The files are packed byte for byte. Each domain is shuffled first, so that every shard is a fair sample of it. Training
reads the images of a shard together, and without the shuffling they could be the frames of one video. Equal
sources, shard sizes and seeds give equal tars. Images for tests keep their order, in shards of their own.

A shard appears under its name only when it is complete. It is written to a file beside it, synced, read again and
compared, and then renamed. `pack.jsonl` gets a line for each finished shard. If a killed run is started again, it keeps
the shards whose images have not changed. `shards.json` is written last, and without it the folder is not a data set.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vologan_fast import depth as depth_files
from vologan_fast.checksums import end_last_line, signed_line, unsigned_line
from vologan_fast.config import DOMAINS, DataConfig
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import find_records, find_test_records
from vologan_fast.data.pixels import MOST_PIXELS, Limits, read_color_shape
from vologan_fast.data.records import Record, Source, cause, read, read_part, size_of
from vologan_fast.data.sampling import shuffled
from vologan_fast.data.shards.index import (
    HELD_OUT,
    INDEX_VERSION,
    LARGEST_MANIFEST,
    MANIFEST,
    PACKING,
    TRAINING,
    DepthKind,
    DomainShards,
    ShardEntry,
    index_line,
    index_name,
    manifest_json,
    parse_index,
)
from vologan_fast.files import absolute_path, append_to, aside_of, crc32, file_aside, publish, write_whole
from vologan_fast.words import in_words

_Kind = tuple[str, str, tuple[str, ...], str]
"""The fields of DepthKind except `samples`."""
_READERS = 8
_READ_AHEAD = 32  # images
_COPY = 1 << 20  # bytes
_MAGIC = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_STEM = 32  # characters of a source's name that a key keeps


@dataclass(frozen=True)
class _Job:
    """A shard to make: its images and their keys."""

    part: str
    """TRAINING or HELD_OUT."""
    domain: str
    file: str
    records: Sequence[Record]
    keys: Sequence[str]

    def made_of(self) -> str:
        """Return a checksum of the keys of the images and of the names, sizes and times of their files.

        For images that are in shards already, the shard's checksum takes the place of name and time.
        """
        digest = hashlib.sha256()
        for key, record in zip(self.keys, self.records, strict=True):
            stamps = " ".join(map(_stamp, record.files))
            digest.update(f"{key} {stamps}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _Done:
    """A finished shard: one line of the log."""

    made_of: str
    entry: ShardEntry
    depth: tuple[DepthKind, ...]

    def with_checksums(self, root: Path) -> _Done:
        """Return the shard with the checksums of its files. Former versions recorded none, so they are read."""
        if self.entry.crc32:
            return self
        path = root / self.entry.file
        spans = parse_index((root / self.entry.index).read_bytes(), self.entry, str(root / self.entry.index)).spans
        places = [(offset, size) for offset, size in spans.reshape(-1, 2).tolist() if size]
        crcs = "".join(f"{crc32(read_part(path, *place)):08x}" for place in places)
        return replace(self, entry=replace(self.entry, crc32=crcs))


def pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    shard_size: int = 512,
    seed: int = 0,
    verify: bool = True,
    max_pixels: int = DataConfig.max_pixels,
) -> str:
    """Pack the data set in folder `source` into shards of at most `shard_size` images in folder `target`.

    If an earlier run was stopped, continue it. With `verify`, all shards are read again and compared with their
    checksums, and so are the shards of the earlier run. Returns a line for people that describes the result.

    Files of more than `max_pixels` are an error, before they are decoded. Shards of an earlier run are not looked at.

    Raises DataError for a source that cannot be used, a target that holds something else, a full disk, and before
    anything is written, a disk without room for all shards.
    """
    root = absolute_path(target)
    if shard_size < 1:
        raise DataError(f"--shard-size is {shard_size}; expected at least 1 image")
    if not 1 <= max_pixels <= MOST_PIXELS:
        raise DataError(f"--max-pixels is {max_pixels}; expected 1 to {MOST_PIXELS}")
    limits = Limits(max_pixels)
    records, tests = find_records(Path(source)), find_test_records(Path(source))
    plan = {"source": str(Path(source).resolve()), "shard_size": shard_size, "seed": seed}
    jobs = [job for domain in DOMAINS for job in _jobs(domain, records[domain], shard_size, seed)]
    jobs += [job for domain in tests for job in _test_jobs(domain, tests[domain], shard_size, len(records[domain]))]
    _refuse_too_many(jobs)
    kept = 0
    with _writing(root), _open_log(root, plan) as (log, before), _progress(jobs) as advance:
        done = {}
        made_of = {job.file: job.made_of() for job in jobs}

        def is_made(job: _Job, verify: bool) -> bool:
            found = before.get(job.file)
            if found is None or found.made_of != made_of[job.file] or found.entry.samples != len(job.records):
                return False
            return _is_whole(root, found.entry, verify or not found.entry.crc32)

        _require_room(root, [job for job in jobs if not is_made(job, verify=False)])
        for job in jobs:
            if is_made(job, verify):
                found = before[job.file].with_checksums(root)
                kept += 1
            else:
                found = _Done(made_of[job.file], *_write_shard(root, job, verify, limits))
            if found is not before.get(job.file):
                log.write(signed_line(asdict(found)))
                _sync(log)
            done[job.file] = found
            advance(len(job.records))
        training, held_out = (
            {d: _domain([done[job.file] for job in jobs if (job.part, job.domain) == (part, d)]) for d in found}
            for part, found in ((TRAINING, records), (HELD_OUT, tests))
        )
        write_whole(root / MANIFEST, manifest_json(training, held_out))
        for file in before.keys() - done.keys():  # packed when the source had more images
            for name in (file, index_name(file)):
                (root / Path(name).name).unlink(missing_ok=True)
    size = sum(found.entry.bytes for found in done.values())
    count, of_tests = (sum(map(len, found.values())) for found in (records, tests))
    return (
        f"{root}: {count + of_tests} images in {len(jobs)} shards, {size / 1e9:.3g} GB"
        f"{f'; {of_tests} of the images are held out, as in {source}' if of_tests else ''}"
        f"{f'; {kept} of them were there already' if kept else ''}"
    )


def _jobs(domain: str, records: Sequence[Record], shard_size: int, seed: int) -> list[_Job]:
    order = shuffled(seed, domain, len(records)).tolist()
    return _in_shards(TRAINING, domain, domain, [(_key(k, records[k]), records[k]) for k in order], shard_size)


def _test_jobs(domain: str, records: Sequence[Record], shard_size: int, first: int) -> list[_Job]:
    """Return the shards of images for tests, in their order. Their numbers begin at `first`, so keys are unique."""
    keyed = [(_key(first + k, record), record) for k, record in enumerate(records)]
    return _in_shards(HELD_OUT, domain, f"test-{domain}", keyed, shard_size)


def _in_shards(part: str, domain: str, name: str, keyed: Sequence[tuple[str, Record]], shard_size: int) -> list[_Job]:
    jobs = []
    for i, some in enumerate(np.array_split(np.arange(len(keyed)), -(-len(keyed) // shard_size))):
        chosen = [keyed[k] for k in some.tolist()]
        file = f"{name}-{i:06d}.tar"
        jobs.append(_Job(part, domain, file, [record for _, record in chosen], [key for key, _ in chosen]))
    return jobs


def _key(index: int, record: Record) -> str:
    """Return the key of an image: its number in the source's order, and the beginning of its name.

    The number makes the key unique. The name shows the origin of the image.
    """
    stem = re.sub("[^A-Za-z0-9_-]", "_", record.files[0].name.split(".")[0])
    return f"{index:08d}-{stem[:_STEM]}"


def _stamp(source: Source) -> str:
    if isinstance(source, Path):
        try:
            status = source.stat()
        except OSError as error:
            raise DataError(f"{source}: {cause(error)}") from None
        return f"{source} {status.st_size} {status.st_mtime_ns}"
    return f"{source.shard.sha256} {source.offset} {source.size}"


def _refuse_too_many(jobs: Sequence[_Job]) -> None:
    """Raise DataError if shards.json would be larger than a reader allows."""
    files, most = sum(len(record.files) for job in jobs for record in job.records), LARGEST_MANIFEST // 9
    if files > most:
        raise DataError(f"found {files} files of images; expected at most {most} in a data set of shards")


# The target folder and its log

_LARGEST_LOG = 2 * LARGEST_MANIFEST
"""Bytes of the largest log. It has what the manifest has, and again for shards that were packed anew."""
_SHARD = re.compile(rf"(?:test-)?(?:{'|'.join(DOMAINS)})-\d{{6,}}\.tar")


def _require_room(root: Path, jobs: Sequence[_Job]) -> None:
    """Raise DataError if the disk has no room for the shards."""
    needed, free = sum(map(_tar_bytes, jobs)), shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root}: {in_words(free)} are free; expected room for {in_words(needed)}, the size of {len(jobs)} shards"
        )


def _tar_bytes(job: _Job) -> int:
    """Return the size of the tar of a shard, which is filled up to whole records of tar."""
    files = (max(size_of(file), 0) for record in job.records for file in record.files)
    blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in files) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Convert an OSError, for example of a full disk, to a DataError of one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be written: {cause(error)}; the shards that are done are kept, the same "
            "command goes on with them"
        ) from None


@contextlib.contextmanager
def _open_log(root: Path, plan: dict[str, Any]) -> Iterator[tuple[BinaryIO, dict[str, _Done]]]:
    """Yield the log, open for appending, and the finished shards in it by name.

    Raises DataError if the folder holds something else, if its shards were packed with other settings, or if another
    process is packing into it.
    """
    path = root / PACKING
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not path.is_file())):
        raise DataError(f"{root}: exists and is not empty; expected a new folder, or one that pack was stopped in")
    root.mkdir(parents=True, exist_ok=True)
    with append_to(path) as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{root}: another process is packing into this folder") from None
        if (size := log.seek(0, os.SEEK_END)) > _LARGEST_LOG:
            raise DataError(f"{path}: not a log of pack: expected at most {_LARGEST_LOG} bytes, found {size}")
        log.seek(0)
        lines = log.readlines()
        if lines and not end_last_line(log, lines[-1]):
            lines.pop()
        if not lines:
            log.write(signed_line(plan))
            _sync(log)
        elif (found := _parsed(path, 1, lines[0])) != plan:
            raise DataError(f"{root}: holds shards that were packed otherwise ({found}); expected a new folder")
        done = [_to_done(path, number, _parsed(path, number, line)) for number, line in enumerate(lines[1:], 2)]
        yield log, {item.entry.file: item for item in done}


def _parsed(path: Path, number: int, line: bytes) -> Any:
    try:
        return unsigned_line(line)
    except (ValueError, RecursionError):
        raise _strange(path, number) from None


def _strange(path: Path, number: int) -> DataError:
    """Return the error of a line that pack has not written. The first line holds the settings of all shards."""
    if number == 1:
        advice = f"if pack has made {path.parent}, remove it and pack again"
    else:
        advice = "remove this line, and its shard is packed again"
    return DataError(f"{path}: line {number} is no line of pack, or damaged; {advice}")


def _to_done(path: Path, number: int, item: Any) -> _Done:
    try:
        kinds = tuple(DepthKind(**{**kind, "types": tuple(kind["types"])}) for kind in item["depth"])
        entry = ShardEntry(**item["entry"])
        if not _SHARD.fullmatch(entry.file):  # a shard that is no longer needed is removed, by this name
            raise ValueError
        for found in (entry, *kinds):
            for name, value in vars(found).items():
                kind = int if name in ("samples", "bytes") else tuple if name == "types" else str
                if type(value) is not kind or (isinstance(value, tuple) and {type(item) for item in value} - {str}):
                    raise ValueError
        return _Done(item["made_of"], entry, kinds)
    except (KeyError, TypeError, ValueError):
        raise _strange(path, number) from None


def _is_whole(root: Path, entry: ShardEntry, verify: bool) -> bool:
    path, index = root / entry.file, root / entry.index
    if not index.is_file() or not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    return _checksum(index) == entry.index_sha256 and (not verify or _checksum(path) == entry.sha256)


def _domain(done: Sequence[_Done]) -> DomainShards:
    counts: Counter[_Kind] = Counter()
    for item in done:
        for kind in item.depth:
            counts[kind.format, kind.compression, kind.types, kind.not_native] += kind.samples
    return DomainShards(_kinds(counts), tuple(item.entry for item in done))


def _kinds(counts: Counter[_Kind]) -> tuple[DepthKind, ...]:
    return tuple(DepthKind(*kind, samples=samples) for kind, samples in sorted(counts.items()))


# Making a shard


class _Hashing(io.RawIOBase):
    """A stream that writes to a file and computes the checksum of the written bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def _write_shard(root: Path, job: _Job, verify: bool, limits: Limits) -> tuple[ShardEntry, tuple[DepthKind, ...]]:
    path = root / job.file
    lines, crcs = [f"{INDEX_VERSION.decode()} {len(job.records)}\n"], []
    kinds: Counter[_Kind] = Counter()
    with file_aside(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        stream = _Hashing(file)
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, image in zip(job.keys, _read_images(job.records, limits), strict=True):
                if image.kind is not None:
                    kinds[image.kind] += 1
                lines.append(index_line(key, [(suffix, *_add(tar, f"{key}.{suffix}", d)) for suffix, d in image.files]))
                crcs += [f"{crc32(content):08x}" for _, content in image.files]
        _sync(file)
        size = file.tell()
        checksum = stream.sha256.hexdigest()
        if verify and _checksum(aside_of(path)) != checksum:
            raise DataError(f"{path}: what was read again is not what was written; check the disk")
        index = "".join(lines).encode()
        write_whole(root / index_name(job.file), index)
        publish(path)
    entry = ShardEntry(job.file, len(job.records), size, checksum, hashlib.sha256(index).hexdigest(), "".join(crcs))
    return entry, _kinds(kinds)


@dataclass(frozen=True)
class _Image:
    files: list[tuple[str, bytes]]
    """The suffix and the content of each file, colour first."""
    kind: _Kind | None
    """The kind of the depth file. None if there is none."""


def _read_images(records: Sequence[Record], limits: Limits) -> Iterator[_Image]:
    """Yield the images in order. Threads read up to _READ_AHEAD images at a time. Raises DataError."""
    with ThreadPoolExecutor(_READERS) as pool:
        for first in range(0, len(records), _READ_AHEAD):
            yield from pool.map(partial(_read_image, limits=limits), records[first : first + _READ_AHEAD])


def _read_image(record: Record, limits: Limits) -> _Image:
    """Read the files of an image. Raises DataError.

    The suffixes follow from the contents of the files, because readers of the tar rely on the suffix.
    """
    files: list[tuple[str, bytes]] = []
    if record.color_file is not None:
        color = read(record.color_file)
        suffix = next((suffix for suffix, magic in _MAGIC.items() if color.startswith(magic)), None)
        if suffix is None:
            raise DataError(f"{record.color_file}: not a JPEG or PNG image")
        read_color_shape(record.color_file, limits, color)
        files.append((suffix, color))
    if record.depth_file is None:
        return _Image(files, None)
    depth = read(record.depth_file)
    try:
        info = depth_files.probe(
            depth, name=str(record.depth_file), limits=depth_files.Limits(max_pixels=limits.pixels)
        )
    except depth_files.DecodeError as error:
        raise DataError(str(error)) from None
    types = tuple(sorted({channel.dtype for channel in info.channels}))
    files.append((f"depth.{info.format}", depth))
    return _Image(files, (info.format, info.compression, types, info.reason))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
    """Append a file to the tar, without time and owner. Returns its offset and size in bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)


def _checksum(path: Path) -> str:
    """Return the SHA-256 checksum of a file.

    Where the system offers it, the file is first dropped from the page cache, so that its bytes come from the disk.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(_COPY):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _progress(jobs: Sequence[_Job]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if there is a terminal. Yields a function that advances it by a number of images."""
    console = Console(stderr=True)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(len(job.records) for job in jobs))
        yield lambda count: bar.advance(task, count)
