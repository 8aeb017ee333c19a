"""Training images that are decoded once and kept in memory or in a packed file.

    keep_images: files → decoder → codes → host memory, GPU memory or a packed file
    ResidentSource: sampler → gather, flip, shift, scale, mask, pack → batch

`keep_images` runs once, when a loader is opened. `ResidentSource` makes the batch of every step, in one pass over the
kept images: csrc/python/batch.cpp on the CPU, or `resident_triton` on a GPU. `pack_plain` is the definition of both.

Colour is kept with 8 bits, as in the files. The depth of a domain is kept in one of three forms:

- If all its files hold half, or all hold unsigned integers of 8 or 16 bits: the value of the *file*, as a 16-bit code.
  The table `Images.levels` holds the normalised depth of each of the 65,536 codes (`depth_levels`). Normalised depth
  rounded to half would also take 16 bits, but the error would be up to 2⁻¹².
- Otherwise (float32, signed or wider integers, or a mixture): normalised depth as float32.
- Otherwise, with `data.cache_depth` = "compact": one of 65,534 levels of normalised depth. The error is up to 2⁻¹⁷.

Except with "compact", no precision is lost: a batch from kept images has the same bits as a batch decoded from files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from vologan_kernels.dispatch import implementation

from vologan_fast import _batch
from vologan_fast.config import CHANNELS, DOMAINS, Channels
from vologan_fast.data.errors import DataError
from vologan_fast.data.loaders.host_memory import Reads, host_memory, send
from vologan_fast.data.loaders.kept_place import choose_place
from vologan_fast.data.loaders.packed_file import ArraySpec, PackedFile, Write, make_packed, open_packed
from vologan_fast.data.loaders.source import Batches, FileSource, Plan
from vologan_fast.data.pixels import (
    BACKGROUND,
    MISSING,
    NEAREST,
    NO_DEPTH,
    DepthRule,
    Floats,
    check_valid,
    depth_type,
    normalize_depth,
    probe_depth,
    read_color_shape,
    read_cropped,
    read_cropped_depth,
)
from vologan_fast.data.records import KnownFile, Record, Source, fetch_whole
from vologan_fast.data.shards.index import ShardRecords
from vologan_fast.data.waiting import ReadingThreads, result_of
from vologan_fast.files import cache_folder
from vologan_fast.host import free_host_memory
from vologan_fast.words import in_words

FORMAT = 3
"""The version of the packed file's content. It is part of the file's name, so that files of other versions are not
used."""
PREFETCH = 2
"""The number of batches that are made ahead of the requested one."""
_CODES = 1 << 16
_FIRST_LEVEL = 2  # the first code of valid depth in "compact"; code 0 is background, code 1 is missing
_LARGE = 256  # from this number of images on, there is a progress bar

Indices = npt.NDArray[np.int32]
"""The places of images in a domain's records: (N,)."""
Draws = npt.NDArray[np.int32]
"""The samples of a batch, from `Sampler.rows`: (N, 4) of index, flip, top and left."""
Put = Callable[[str, int, "np.ndarray[Any, Any] | Tensor"], None]
"""put(array, i, values) stores `values` as entry i of the array with the name `array`. It may be called from any
thread."""


@dataclass(frozen=True)
class Job:
    """The images to keep, and the source that decodes them."""

    plan: Plan
    compact: bool
    """Whether depth of more than 16 bits is kept in 16 bits, with loss."""
    decoder: FileSource
    used: Callable[[str], list[int]] | None = None
    """Returns the place of the image that is kept for each image of a domain: itself unless it is bad. None: a bad
    image is an error."""

    @property
    def count(self) -> int:
        """The number of images of all domains."""
        return sum(map(len, self.plan.records.values()))


@dataclass(frozen=True)
class Images:
    """The kept images of one domain, in GPU memory or in host memory, which is pinned if a GPU reads it."""

    color: Tensor | None
    """uint8 (n, H, W, 3). None if the batches have no colour."""
    depth: Tensor | None
    """(n, H, W): uint16 codes, or normalised float32. None if the batches have no depth."""
    levels: Tensor | None
    """float32 (65536,): the normalised depth of each code, on the device of the batches. None if there are no codes."""
    channels: Channels = CHANNELS["rgbd"]
    """The channels of the batches."""

    @property
    def arrays(self) -> list[Tensor]:
        """Colour and depth, if they are there."""
        return [array for array in (self.color, self.depth) if array is not None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.arrays[0].shape[1:3]
        return height, width

    def drawn(self, index: Indices, device: torch.device) -> Images:
        """Copy images into new host memory, from which they can be sent to `device`. `index` is (N,)."""

        def copied(array: Tensor | None) -> Tensor | None:
            if array is None:
                return None
            out = host_memory((len(index), *array.shape[1:]), array.dtype, device)
            return torch.index_select(array, 0, torch.from_numpy(index).long(), out=out)

        return dataclasses.replace(self, color=copied(self.color), depth=copied(self.depth))


@dataclass(frozen=True)
class StoredImages:
    """The kept images of one domain in a packed file."""

    file: PackedFile
    domain: str
    records: Sequence[Record]
    """The images' files, which an error names."""
    levels: Tensor | None
    """See `Images`."""
    channels: Channels
    """The channels of the batches."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = next(iter(self.file.specs.values())).shape[1:3]
        return height, width

    def drawn(self, index: Indices, device: torch.device) -> Images:
        """Read images into new host memory, from which they can be sent to `device`. `index` is (N,).

        Raises DataError, which names the packed file and the image, for bytes that are not those that were written.
        """
        arrays: dict[str, Tensor] = {}
        for kind in ("color", "depth"):
            name = f"{self.domain}/{kind}"
            spec = self.file.specs.get(name)
            if spec is None:
                continue
            arrays[kind] = host_memory((len(index), *spec.shape[1:]), getattr(torch, spec.dtype), device)
            for entry, out in zip(index.tolist(), arrays[kind].numpy(), strict=True):
                try:
                    self.file.read(name, entry, out)
                except DataError as error:
                    image = self.records[entry].files[0]
                    raise DataError(f"{error}: {image}; remove the packed file, and it is made again") from None
        return Images(arrays.get("color"), arrays.get("depth"), self.levels, self.channels)


@dataclass(frozen=True)
class Kept:
    """The kept images of both domains, with a description of their place for people."""

    images: Mapping[str, Images | StoredImages]
    description: str
    bytes_on_disk: int = 0
    """Size of the packed file, if the images are in one."""


# The kept form of depth


def kept_as(types: set[str], compact: bool) -> str:
    """Return the kept form of depth files whose samples have these NumPy types.

    It is "half", "integer", "float32" or "compact".
    """
    if types == {"float16"}:
        return "half"
    if types <= {"uint8", "uint16"}:
        return "integer"
    return "compact" if compact else "float32"


def depth_levels(kind: str, rule: DepthRule) -> Floats | None:
    """Return the normalised depth of each 16-bit code: (65536,). None for "float32", which has no codes."""
    codes = np.arange(_CODES, dtype=np.uint16)
    if kind == "half":
        return normalize_depth(codes.view(np.float16).astype(np.float32), rule)
    if kind == "integer":
        return normalize_depth(codes.astype(np.float32), rule)
    if kind == "compact":
        valid = np.linspace(NEAREST, 1, _CODES - _FIRST_LEVEL)
        return np.concatenate([[BACKGROUND, MISSING], valid]).astype(np.float32)
    return None


def encode_depth(depth: Floats, kind: str, rule: DepthRule) -> np.ndarray[Any, Any]:
    """Convert file values (H, W) to the kept form: uint16 codes, or normalised float32."""
    if kind == "half":
        return depth.astype(np.float16).view(np.uint16)
    if kind == "integer":
        return depth.astype(np.uint16)
    normalized = normalize_depth(depth, rule)
    if kind == "float32":
        return normalized
    level = (normalized - np.float32(NEAREST)) * np.float32((_CODES - 1 - _FIRST_LEVEL) / (1 - NEAREST))
    codes = np.rint(level).clip(0, _CODES - 1 - _FIRST_LEVEL).astype(np.uint16) + np.uint16(_FIRST_LEVEL)
    codes[normalized == BACKGROUND] = 0
    codes[normalized == MISSING] = 1
    return codes


# Decoding and keeping all images


def keep_images(job: Job, wanted: str, device: torch.device, processes: int = 1, quiet: bool = False) -> Kept | str:
    """Decode all images and keep them at the place `wanted`, a value of `data.cache` other than "none".

    Returns the images. If "auto" finds no room, it returns the reason instead, as one line. Each of the `processes` on
    this machine keeps its own images, but with "disk" they share one file. Raises DataError, which names the file, for
    a broken file. Raises ConfigError or DataError if there is no room.
    """
    if wanted == "disk":
        return _keep_on_disk(job, device, quiet)
    host, free = free_host_memory(), torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if wanted == "auto":  # do not read all headers of a data set that cannot fit
        place, why = choose_place(wanted, _least_bytes(job), host, free, processes)
        if place == "none":
            return why
    if job.used is not None:
        job = _with_good(job, {domain: job.used(domain) for domain in DOMAINS})
    kinds = _kinds(job)
    specs = _array_specs(job, kinds)
    pinned = device.type == "cuda"
    needed = sum(_allocated(spec, pinned) for spec in specs.values())
    place, why = choose_place(wanted, needed, host, free, processes)
    if place == "none":
        return why
    arrays = {
        name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
        if place == "device"
        else host_memory(spec.shape, getattr(torch, spec.dtype), device)
        for name, spec in specs.items()
    }

    def put(array: str, i: int, values: np.ndarray[Any, Any] | Tensor) -> None:
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.require(values, requirements="W"))  # Pillow's memory is read-only
        arrays[array][i].copy_(values)

    _decode_all(job, kinds, put, quiet)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the threads copied in streams of their own
    return Kept(_images(job, kinds, arrays, device), f"in {_PLACES[place]} ({why}){_about(job, needed)}")


_PLACES = {"host": "host memory", "device": "GPU memory"}


def _keep_on_disk(job: Job, device: torch.device, quiet: bool) -> Kept:
    path = cache_folder("images") / f"{_fingerprint(job)}.images"
    found = "made before"
    file = open_packed(path)
    if file is not None and job.used is not None:
        used = {domain: _stored_places(file, domain) for domain in DOMAINS}
        _note_bad(job, used)
        job = _with_good(job, used)
    if file is None:
        found = "made now"
        used = {} if job.used is None else {domain: job.used(domain) for domain in DOMAINS}
        job = _with_good(job, used)
        kinds = _kinds(job)

        def fill(write: Write) -> None:
            def put(array: str, i: int, values: np.ndarray[Any, Any] | Tensor) -> None:
                write(array, i, np.ascontiguousarray(values.cpu() if isinstance(values, Tensor) else values))

            _decode_all(job, kinds, put, quiet)
            for domain, places in used.items():
                for i, kept in enumerate(places):
                    write(f"{domain}/used", i, np.array(kept, np.int64))

        specs = _array_specs(job, kinds)
        specs |= {f"{domain}/used": ArraySpec((len(places),), "int64") for domain, places in used.items()}
        make_packed(path, {"kept_as": kinds}, specs, fill)
        file = open_packed(path)
        assert file is not None
    size = path.stat().st_size
    images = {
        domain: StoredImages(
            file,
            domain,
            job.plan.records[domain],
            _table(job, domain, file.header["kept_as"][domain], device),
            job.plan.channels[domain],
        )
        for domain in DOMAINS
    }
    return Kept(images, f"in {path} ({found}){_about(job, size)}", size)


def _with_good(job: Job, used: Mapping[str, Sequence[int]]) -> Job:
    """Return the job with the images that are used, by their places, in the places of the bad ones."""
    records = dict(job.plan.records)
    for domain, places in used.items():
        if any(place != i for i, place in enumerate(places)):
            records[domain] = [records[domain][place] for place in places]
    return dataclasses.replace(job, plan=dataclasses.replace(job.plan, records=records))


def _stored_places(file: PackedFile, domain: str) -> list[int]:
    name = f"{domain}/used"
    places = np.empty(file.specs[name].shape, np.int64)
    for i in range(len(places)):
        file.read(name, i, places[i : i + 1])
    return places.tolist()


def _note_bad(job: Job, used: Mapping[str, Sequence[int]]) -> None:
    """Note the images that were bad when a packed file was made. They are read again, to find the reason."""
    plan = job.plan
    assert plan.skipping is not None
    for domain, places in used.items():
        for i, place in enumerate(places):
            if place == i:
                continue
            record, reason = plan.records[domain][i], DataError("it was bad when the images were kept")
            try:
                read_cropped(record, plan.specs[domain], plan.size, plan.channels[domain], plan.limits)
            except DataError as error:
                reason = error
            plan.skipping.skip(record, "train", domain, 0, reason)


def _about(job: Job, needed: int) -> str:
    count = job.count
    return f": {count} images, {in_words(needed)}, decoded by {job.decoder.decoder}"


def _fingerprint(job: Job) -> str:
    """Return a checksum of everything that the packed file depends on: the settings, the decoder and the image files.

    Files enter by name, size, time, and checksum if it is known. Files in shards enter by the shards' checksums.
    """
    digest = hashlib.sha256()
    specs = {domain: dataclasses.asdict(spec) for domain, spec in job.plan.specs.items()}
    height, width = job.plan.size
    size = height if height == width else [height, width]  # a file of squares that exists keeps its name
    digest.update(json.dumps([FORMAT, size, job.compact, job.decoder.decoder, specs], sort_keys=True).encode())
    kept = {domain: (bool(channels.color), channels.depth) for domain, channels in job.plan.channels.items()}
    if set(kept.values()) != {(True, True)}:
        digest.update(json.dumps(kept, sort_keys=True).encode())
    if job.used is not None:
        digest.update(json.dumps(job.plan.limits).encode())
    for domain in DOMAINS:
        records = job.plan.records[domain]
        if isinstance(records, ShardRecords):
            digest.update(f"{domain} {records.fingerprint()}\n".encode())
            continue
        for record in records:
            for file in _files(record, job.plan.channels[domain]):
                digest.update(f"{domain} {_stamp(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _files(record: Record, channels: Channels) -> list[Source]:
    """Return the files of an image that its channels need."""
    return [record.color] * (channels.color > 0) + ([record.depth] if channels.depth else [])


def _stamp(file: Source) -> str:
    assert isinstance(file, Path)
    try:
        status = file.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        stamp = "absent"  # decoding will raise the error
    crc = f" {file.crc:08x}" if isinstance(file, KnownFile) and file.crc is not None else ""
    return f"{stamp} {os.fspath(file.resolve())}{crc}"


def _kinds(job: Job) -> dict[str, str]:
    """Return the kept form of each domain's depth, from the headers of all its files. Raises DataError.

    The type of the chosen channel decides. For shards, `shards.json` gives the types of all channels of the depth files
    instead. They do not suffice for EXR of several parts, as earlier versions recorded only the first part.
    """
    limits = job.plan.limits
    with ThreadPoolExecutor(job.plan.threads * len(DOMAINS)) as pool:
        kinds = {}
        for domain in DOMAINS:
            records = job.plan.records[domain]
            if not job.plan.channels[domain].depth:
                kinds[domain] = "none"
                continue
            if isinstance(records, ShardRecords):
                types = {t for kind in records.kinds for t in kind.types}
                if any(kind.not_native == "several parts" for kind in records.kinds):
                    types.add("float32")
            else:
                channel = job.plan.specs[domain].channel
                types = set(
                    pool.map(lambda r, channel=channel: depth_type(probe_depth(r.depth, channel, limits)), records)
                )
            kinds[domain] = kept_as(types, job.compact)
        return kinds


def _array_specs(job: Job, kinds: Mapping[str, str]) -> dict[str, ArraySpec]:
    specs = {}
    for domain in DOMAINS:
        shape = (len(job.plan.records[domain]), *job.plan.size)
        if job.plan.channels[domain].color:
            specs[f"{domain}/color"] = ArraySpec((*shape, 3), "uint8")
        if job.plan.channels[domain].depth:
            specs[f"{domain}/depth"] = ArraySpec(shape, "float32" if kinds[domain] == "float32" else "uint16")
    return specs


def _least_bytes(job: Job) -> int:
    pixels = math.prod(job.plan.size)
    return sum(
        len(job.plan.records[domain]) * pixels * (3 * (channels.color > 0) + 2 * channels.depth)
        for domain, channels in job.plan.channels.items()
    )


def _allocated(spec: ArraySpec, pinned: bool) -> int:
    """Return the bytes that an array takes. The pinned memory allocator of torch rounds up to a power of two."""
    size = spec.shape[0] * spec.entry_bytes
    return 1 << (size - 1).bit_length() if pinned else size


def _images(
    job: Job, kinds: Mapping[str, str], arrays: Mapping[str, Tensor], device: torch.device
) -> dict[str, Images]:
    return {
        domain: Images(
            arrays.get(f"{domain}/color"),
            arrays.get(f"{domain}/depth"),
            _table(job, domain, kinds[domain], device),
            job.plan.channels[domain],
        )
        for domain in DOMAINS
    }


def _table(job: Job, domain: str, kind: str, device: torch.device) -> Tensor | None:
    """Return the `levels` of a domain's images."""
    if not job.plan.channels[domain].depth:
        return None
    levels = depth_levels(kind, DepthRule.of(job.plan.specs[domain]))
    return None if levels is None else torch.from_numpy(levels).to(device)


def _decode_all(job: Job, kinds: Mapping[str, str], put: Put, quiet: bool) -> None:
    """Decode all images on many threads, and call `put` for the colour and the depth of each. Raises DataError."""
    count = job.count
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(job.plan.threads * len(DOMAINS), thread_name_prefix="vologan-data") as pool,
        Progress(console=console, disable=quiet or count < _LARGE or not console.is_terminal) as bar,
    ):
        task = bar.add_task(f"decoding {count} images", total=count)
        for domain in DOMAINS:
            for _ in _decode_domain(job, domain, kinds[domain], put, pool):
                bar.advance(task)


def _decode_domain(job: Job, domain: str, kind: str, put: Put, pool: ThreadPoolExecutor) -> Iterator[None]:
    records, spec, size = job.plan.records[domain], job.plan.specs[domain], job.plan.size
    channels, limits = job.plan.channels[domain], job.plan.limits
    rule = DepthRule.of(spec) if channels.depth else NO_DEPTH
    levels = depth_levels(kind, rule)

    def keep_color(i: int, color: Tensor) -> None:
        put(f"{domain}/color", i, color)
        if channels.depth:
            keep_depth(i)

    def keep_depth(i: int) -> None:
        record = records[i]
        fetch_whole(record.depth)
        shape = read_color_shape(record.color, limits) if channels.color else None
        depth = encode_depth(read_cropped_depth(record, spec, size, shape, limits), kind, rule)
        check_valid(record.depth, depth if levels is None else levels[depth])
        put(f"{domain}/depth", i, depth)

    if not channels.color:
        yield from pool.map(keep_depth, range(len(records)))
        return
    first = 0
    for colors in job.decoder.colors(domain, records):
        yield from pool.map(keep_color, range(first, first + len(colors)), colors)
        first += len(colors)


# Batches


class ResidentSource:
    """Training batches from kept images.

    On the CPU, threads make the next batches before they are requested, one thread for each batch. A GPU makes a batch
    when it is requested. From a packed file, threads read the images of the next batches into pinned memory. The host
    waits for the GPU only at the end, because the kept images must outlive the kernels that read them.
    """

    def __init__(self, plan: Plan, kept: Kept) -> None:
        self._plan = plan
        self._images = kept.images
        self.description = f"resident {kept.description}"

    def batches(self, step: int) -> Batches:
        """See `BatchSource`."""
        device, sampler = self._plan.device, self._plan.sampler
        memory = {domain: _batch.BatchMemory() for domain in DOMAINS}
        reads = Reads(device)

        def begin(step: int) -> list[Tensor | _Drawn]:
            return [begin_domain(domain, step) for domain in DOMAINS]

        def begin_domain(domain: str, step: int) -> Tensor | _Drawn:
            images, draws = self._images[domain], sampler.rows(domain, step)
            if device.type == "cpu":
                return _pack_on_cpu(images, draws, memory[domain])
            if isinstance(images, Images) and _is_readable(images):
                return _Drawn(images, draws)
            return _gathered(images, draws, device)

        def finish(begun: Tensor | _Drawn) -> Tensor:
            if isinstance(begun, Tensor):
                return begun.permute(0, 3, 1, 2)
            batch = _pack_on_gpu(begun, device)
            reads.add()
            return batch.permute(0, 3, 1, 2)

        try:
            with ReadingThreads(self._plan.threads * len(DOMAINS)) as pool:
                pending: deque[Future[list[Tensor | _Drawn]]] = deque()
                for ahead in itertools.count(step):
                    pending.append(pool.submit(begin, ahead))
                    if len(pending) > PREFETCH:  # the images may be in a file that is read only now
                        begun = result_of(pending.popleft(), list, self._plan.patience)
                        yield tuple(map(finish, begun))
        finally:
            reads.wait()


def _pack_on_cpu(images: Images | StoredImages, draws: Draws, memory: _batch.BatchMemory) -> Tensor:
    batch = memory.empty(len(draws), *images.size, images.channels.number)
    if isinstance(images, Images):
        _pack_natively(images, draws, batch)
    else:
        for i in range(len(draws)):  # one after the other, so that an image stays in the processor's caches
            one = draws[i : i + 1].copy()
            found = images.drawn(one[:, 0], torch.device("cpu"))
            one[:, 0] = 0
            _pack_natively(found, one, batch[i : i + 1])
    return torch.from_numpy(batch)


def _pack_natively(images: Images, draws: Draws, batch: Floats) -> None:
    levels = None if images.levels is None else images.levels.numpy()
    color, depth = (None if array is None else array.numpy() for array in (images.color, images.depth))
    _batch.pack(color, depth, levels, draws, batch)


@dataclass(frozen=True)
class _Drawn:
    """Images for a batch that a GPU makes, and the draws that fit them."""

    images: Images
    """The kept images, or those of one batch in pinned memory."""
    draws: Draws
    gathered: bool = False
    """Whether the images are those of one batch."""


def _is_readable(images: Images) -> bool:
    """Return whether a GPU can read the kept images. The kernel reads RGBD also in pinned memory."""
    first = images.arrays[0]
    return first.device.type == "cuda" or (first.is_pinned() and images.channels == CHANNELS["rgbd"])


def _gathered(images: Images | StoredImages, draws: Draws, device: torch.device) -> _Drawn:
    """Copy the drawn images into new memory, from which they can be sent to `device`."""
    found = images.drawn(draws[:, 0], device)
    draws = draws.copy()
    draws[:, 0] = np.arange(len(draws))
    return _Drawn(found, draws, True)


def _pack_on_gpu(drawn: _Drawn, device: torch.device) -> Tensor:
    """Return the batch of `drawn`. The kernel makes RGBD, and `pack_plain` makes other channels.

    If Triton cannot be used, `pack_plain` also makes RGBD.
    """
    if drawn.gathered:
        sent = [None if array is None else send(array, device) for array in (drawn.images.color, drawn.images.depth)]
        drawn = dataclasses.replace(drawn, images=dataclasses.replace(drawn.images, color=sent[0], depth=sent[1]))
    draws = send(torch.from_numpy(drawn.draws), device)
    kind = "auto" if drawn.images.channels == CHANNELS["rgbd"] else "reference"
    pack = implementation("batches from kept images", kind, draws, _pack_plainly, _packing_kernel)
    batch: Tensor = pack(drawn, draws)
    return batch


def _packing_kernel() -> Callable[[_Drawn, Tensor], Tensor]:
    from vologan_fast.data.loaders import resident_triton

    def pack(drawn: _Drawn, draws: Tensor) -> Tensor:
        color, depth = drawn.images.color, drawn.images.depth
        assert color is not None and depth is not None
        batch = torch.empty(len(draws), *color.shape[1:3], 4, device=draws.device)
        resident_triton.pack(color, depth, drawn.images.levels, draws, batch)
        return batch

    return pack


def _pack_plainly(drawn: _Drawn, draws: Tensor) -> Tensor:
    """Do what the kernel does, on images in GPU memory or in pinned memory."""
    if drawn.images.arrays[0].device != draws.device:
        return _pack_on_gpu(_gathered(drawn.images, drawn.draws, draws.device), draws.device)
    return pack_plain(drawn.images, draws)


def pack_plain(images: Images, draws: Tensor) -> Tensor:
    """Return the batch of `draws`, rows of (index, flip, top, left), as (N, H, W, C) float32.

    It flips, pads with zeros at the bottom and at the right, and crops from (top, left). This is the definition; native
    code does the same in one pass, and so does the Triton kernel for RGBD.
    """
    height, width = images.arrays[0].shape[1:3]
    index, flip, top, left = (column[:, None, None] for column in draws.long().unbind(1))
    rows = torch.arange(height, device=draws.device)[None, :, None] + top
    columns = torch.arange(width, device=draws.device)[None, None, :] + left
    inside = (rows < height) & (columns < width)
    columns = torch.where(flip != 0, width - 1 - columns, columns)
    place = index, rows.clamp(max=height - 1), columns.clamp(0, width - 1)
    seen, planes = inside, []
    if images.depth is not None:
        depth = images.depth[place]
        if images.levels is not None:
            depth = images.levels[depth.long()]
        seen = seen & (depth != BACKGROUND)
        planes.append(depth[..., None])
    if images.color is not None:
        color = images.color[place]
        if images.channels.color == 1:
            red, green, blue = color.int().split(1, dim=3)
            color = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
        level = torch.full((), 255.0, device=color.device)  # a GPU would multiply by 1/255 if it were a number
        planes.insert(0, color / level)
    return torch.cat(planes, dim=3) * seen[..., None]
