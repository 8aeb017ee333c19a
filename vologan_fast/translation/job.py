"""Translate many files. Threads read and write them while the network computes.

What the model does not make is copied: the depth beside colour, or the colour beside depth. The output folder has a
log, translated.jsonl, with a line for each image that was written: its files, the files that it was made of, and the
weights. An image is translated again only if its line is missing, or if its inputs, the
weights, or the sizes of its outputs have changed. Files are written under another name and then renamed, so no file is
ever partial. A file that the log does not name is somebody else's, and stays. While a command writes, a hidden file has
the names that it is about to publish, because it may be killed before they are in the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vologan_fast.checksums import end_last_line, signed_line, unsigned_line
from vologan_fast.config import DepthSpec
from vologan_fast.data.errors import DataError
from vologan_fast.data.loaders.native import load_color
from vologan_fast.data.pixels import (
    MISSING,
    Bytes,
    Floats,
    Frame,
    Limits,
    check_type,
    check_valid,
    depth_type,
    find_frame,
    is_normalized,
    metres_per_unit,
    open_color,
    picture_shape,
    read_depth,
)
from vologan_fast.data.records import Source, read
from vologan_fast.data.shards.remote import is_url
from vologan_fast.depth import Info
from vologan_fast.files import (
    LONGEST_LINE,
    append_to,
    file_aside,
    lines_of,
    open_regular,
    publish_together,
    read_regular,
)
from vologan_fast.translation.encoding import (
    NEW_COLOR,
    ColorKind,
    DepthKind,
    color_kind,
    new_depth,
    write_color,
    write_depth,
)
from vologan_fast.translation.images import Prepared, Translated, missing_value, prepare, restore
from vologan_fast.translation.inputs import Input, digest
from vologan_fast.translation.translator import Translator

LOG = "translated.jsonl"
_BEGUN = ".translated.begun"
_LARGEST_BEGUN = 1 << 28
"""Bytes of the names that a command was about to publish, which are few."""
FORMAT = 1
"""The version of what is written. Outputs of another version are made again."""


@dataclass
class Done:
    """The result of a job."""

    written: int = 0
    kept: int = 0
    broken: list[str] = field(default_factory=list)
    """One sentence for each image that could not be translated."""
    seconds: float = 0.0
    beyond: list[str] = field(default_factory=list)
    """The depth files that seem to have another unit than the run's. They were translated, now or before."""
    no_records: list[int] = field(default_factory=list)
    """The numbers of the lines of the log that are no records, such as damaged ones."""
    stopped: bool = False
    """Whether the job ended before all images were translated."""


@dataclass(frozen=True)
class _Read:
    """An image that was read."""

    input: Input
    made_of: str
    prepared: Prepared
    color_kind: ColorKind | None
    """The kind of the colour file to write. None if the model makes no colour."""
    depth_kind: DepthKind | None
    beyond: bool
    """Whether its depth seems to have another unit than the run's."""


@dataclass(frozen=True)
class _Written:
    """An image whose files are written, but not yet published."""

    input: Input
    made_of: str
    files: list[tuple[Path, int]]
    """Their paths and open descriptors."""
    unpublished: contextlib.ExitStack
    """Closes the files, and removes those that are not published."""
    beyond: bool


def translate_files(
    model: Translator,
    inputs: Sequence[Input],
    out: Path,
    *,
    part: tuple[int, int] = (0, 1),
    threads: int = 0,
    batch: int = 1,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda count: None,
    max_pixels: int | None = None,
) -> Done:
    """Translate images to files in the folder `out`.

    `part` is (rank, size): of several processes, each translates every size-th image. `threads` read files, and as many
    write files; 0 stands for the cores of this machine. Up to `batch` successive images of equal size go through the
    network together. Larger files than `max_pixels`, by default `data.max_pixels` of the run, are broken. `stop` is
    asked between images. `advance` is called with the number of images that are done.

    A broken image does not end the job. Raises DataError if `out` cannot be written, or if it holds outputs of these
    names that were made of other images or in the other direction. `claimed` keeps other commands away from `out`.

    Inputs of a model with noise say which draw they are (`inputs.Draws`).
    """
    started, done = time.perf_counter(), Done()
    _keep_memory()
    weights = file_digest(model.weights)
    settings = digest(str(FORMAT), model.direction, repr(model.source or model.output_depth), weights)
    threads = threads or os.cpu_count() or 1
    limits = Limits(max_pixels or model.data.max_pixels)
    rank, size = part
    with (
        _Log(out, model, weights, inputs) as log,
        _Publisher(out, log) as publisher,
        _pool(threads, "read") as readers,
        _pool(threads, "write") as writers,
    ):
        done.no_records = log.no_records

        def open_image(index: int) -> _Read | str | None:
            image = _read(inputs[index], out, model, settings, log, limits)
            if log.was_beyond(inputs[index]) if image is None else isinstance(image, _Read) and image.beyond:
                done.beyond.append(str(inputs[index].record.depth))
            return image

        def write_image(image: _Read, y: Tensor) -> str | None:
            try:
                publisher.add(_write(out, image, y, model))
            except _BrokenImage as error:
                return str(error)
            return None

        def wait_for(result: Future[str | None]) -> None:
            if (sentence := result.result()) is None:
                done.written += 1
            else:
                done.broken.append(sentence)
            advance(1)

        writing: deque[Future[str | None]] = deque()
        images = _ahead(readers, open_image, range(rank, len(inputs), size), 2 * threads + batch)
        for group in _groups(_until(stop, images, done), batch, done, advance):
            for image, y in zip(group, _translate(model, group), strict=True):
                writing.append(writers.submit(write_image, image, y))
            while len(writing) > 2 * threads + batch:
                wait_for(writing.popleft())
        while writing:
            wait_for(writing.popleft())
        publisher.finish()
    done.seconds = time.perf_counter() - started
    return done


def _keep_memory() -> None:
    """Let the C library keep memory that is no longer needed: the next image needs the same.

    glibc would give it back to the kernel, and take it again page by page, which is a tenth of the work.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # constants of malloc.h
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: the largest that is allowed
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def file_digest(path: Path) -> str:
    """Return the SHA-256 checksum (hexadecimal) of a file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read(input_: Input, out: Path, model: Translator, settings: str, log: _Log, limits: Limits) -> _Read | str | None:
    """Return the image. None if its outputs are there already, and a sentence if it is broken."""
    try:
        _refuse_overwriting(input_, out, log)
        drawn = [] if input_.draw is None else [str(input_.draw)]
        made_of = digest(settings, *drawn, input_.stamp())
        if log.holds(input_, made_of):
            return None
        record, makes = input_.record, model.target_channels
        color = depth = None
        kind_of_color = NEW_COLOR if makes.color else None
        kind_of_depth = new_depth(model.output_depth) if model.output_depth else None
        if model.source_channels.color:
            color = load_color(record.color, limits)
            if makes.color:
                with open_color(record.color, header=True, limits=limits) as header:
                    kind_of_color = color_kind(header, grey=makes.color == 1)
        if model.source is not None:
            depth, kind_of_depth = _read_depth(record.depth, color, model, model.source, limits)
        prepared = prepare(model, color, depth, kind_of_depth.type if kind_of_depth else None)
        if prepared.normalized is not None:
            check_valid(record.depth, prepared.normalized)
        beyond = model.source is not None and _is_beyond(prepared, model.source)
        return _Read(input_, made_of, prepared, kind_of_color, kind_of_depth, beyond)
    except DataError as error:
        return str(error)


def _is_beyond(prepared: Prepared, spec: DepthSpec) -> bool:
    """Return whether an image's depth seems to have another unit than the run's, as metres for millimetres.

    By convention, normalised depth lies between near and far. In metres, some images of the training set may lie beyond
    the percentiles that are near and far, but not most of their pixels ten times as far, or at a tenth of near.
    """
    assert prepared.depth is not None and prepared.normalized is not None
    assert spec.near is not None and spec.far is not None
    metres = prepared.depth[prepared.normalized > MISSING].astype(np.float64) * metres_per_unit(spec)
    if metres.size == 0:
        return False
    if is_normalized(spec):
        return bool(np.mean((spec.near <= metres) & (metres <= spec.far)) < 0.5)
    return not spec.near / 10 <= np.median(metres) <= spec.far * 10


def _read_depth(
    source: Source, color: Bytes | None, model: Translator, spec: DepthSpec, limits: Limits
) -> tuple[Floats, DepthKind]:
    """Return the depth (h, w) under the colour, or in its file's own picture, and the kind of the file."""
    info, depth = read_depth(source, spec.channel, limits)
    _check_type(source, info, model, spec)
    assert info.channel is not None  # read_depth raises an error instead
    kind = DepthKind(info.format, np.dtype(depth_type(info)), info.channel.name)
    frame = find_frame(source, info, picture_shape(info) if color is None else color.shape)
    return _in_frame(depth, frame, missing_value(kind.type, spec, depth)), kind


def _check_type(source: Source, info: Info, model: Translator, spec: DepthSpec) -> None:
    try:
        check_type(source, info, spec)
    except DataError:
        raise DataError(
            f"{source}: found {depth_type(info)} depth, expected {spec.values} values, as the {model.domain} "
            "images of the run have them (is it the right --direction?)"
        ) from None


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the output folder if it is missing, and keep other commands away from it.

    Raises DataError if it cannot be written, if another command writes into it, or if it holds files and no log.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = next(
            (path for path in out.iterdir() if not path.name.startswith(".") and path.name != "lost+found"), None
        )
        if foreign is not None and not (out / LOG).exists():
            raise DataError(
                f"--out {out}: holds {foreign.name} and no {LOG}; expected a new folder, or one of translate"
            )
        log = append_to(out / LOG)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"--out {out}: another command is writing into it; wait for its end") from None
        except OSError:  # some clusters' file systems have no locks
            pass
        try:
            log.seek(max(log.seek(0, os.SEEK_END) - LONGEST_LINE, 0))
            if lines := log.readlines():
                end_last_line(log, lines[-1])
                log.flush()
        except OSError as error:
            raise DataError(f"{out / LOG}: cannot be written ({error.strerror or error})") from error
        yield
        (out / _BEGUN).unlink(missing_ok=True)  # all that was published is in the log


def _refuse_overwriting(input_: Input, out: Path, log: _Log) -> None:
    """Raise DataError if an output would replace an input, a folder or a file that `translate` has not written."""
    for name in input_.names.values():
        output = out / name
        for folder in output.parents[: len(Path(name).parts) - 1]:
            if folder.is_symlink():
                raise DataError(f"{folder}: a link; expected folders in --out, because a link may lead anywhere")
        try:
            status = output.stat()
        except OSError:  # nothing to replace
            continue
        for source in input_.record.files:
            if isinstance(source, Path) and source.exists() and os.path.samestat(source.stat(), status):
                raise DataError(f"{source}: the output would replace this file; expected another --out")
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{output}: cannot be written (it is a folder)")
        if not log.names(name):
            advice = "expected another --out"
            if log.no_records:
                made = " and ".join(str(out / name) for name in input_.names.values() if (out / name).exists())
                advice = f"if it was made here, remove {made} to make it again, or else expected another --out"
            raise DataError(f"{output}: exists, and {LOG} does not name it; {advice}")


def _in_frame(depth: Floats, frame: Frame, missing: float) -> Floats:
    """Return the depth (h, w) that the colour image shows. Outside of the file's pixels it is `missing`."""
    if frame == Frame(*depth.shape):
        return depth
    placed = np.full((frame.height, frame.width), missing, np.float32)
    seen = frame.crop(depth)
    top, left = max(-frame.top, 0), max(-frame.left, 0)
    placed[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return placed


def _translate(model: Translator, group: Sequence[_Read]) -> list[Tensor]:
    device = next(model.generator.parameters()).device
    images = [image.prepared.image for image in group]
    x = (torch.stack(images) if len(images) > 1 else images[0][None]).to(device)
    with torch.inference_mode():
        noise = None
        if model.noise_channels:
            noise = model.noise_of([image.input.key for image in group], x.shape[2], x.shape[3])
        return list(model(x, noise).cpu().unbind())


class _BrokenImage(Exception):
    """One image cannot be written, for a reason that does not concern the others."""


def _write(out: Path, image: _Read, y: Tensor, model: Translator) -> _Written:
    """Write the files of an image. Raises _BrokenImage, and DataError if the folder cannot be written."""
    try:
        translated = restore(model, y, image.prepared)
    except (DataError, ValueError) as error:
        raise _BrokenImage(f"{image.input.record.files[0]}: {error}") from error
    with contextlib.ExitStack() as unpublished:

        def aside(name: str, write: Callable[[BinaryIO], object]) -> tuple[Path, int]:
            path = out / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = unpublished.enter_context(file_aside(path, alone=True))
                with open(file, "wb", closefd=False) as stream:
                    write(stream)
            except OSError as error:
                kind = _BrokenImage if error.errno == errno.ENAMETOOLONG else DataError
                raise kind(f"{path}: cannot be written ({error.strerror or error})") from error
            except (DataError, TypeError, ValueError) as error:  # a kind of file that the libraries cannot write
                raise _BrokenImage(f"{path}: cannot be written ({error})") from error
            return path, file

        files = [aside(name, _writer(part, image, translated)) for part, name in image.input.names.items()]
        return _Written(image.input, image.made_of, files, unpublished.pop_all(), image.beyond)


def _writer(part: str, image: _Read, translated: Translated) -> Callable[[BinaryIO], object]:
    """Return the function that writes the colour or the depth of an image. What the model does not make is copied."""
    color, depth = translated
    if part == "color" and color is not None and (kind := image.color_kind):
        return lambda file: write_color(file, color, kind)
    if part == "depth" and depth is not None and (kind_ := image.depth_kind):
        return lambda file: write_depth(file, depth, kind_.format, kind_.channel)
    source = image.input.record.color if part == "color" else image.input.record.depth
    return lambda file: file.write(read(source))


class _Publisher:
    """Publishes files in the background, and then notes them in the log.

    Waiting for the disk takes longer than making a file. So all files that were written during one wait are published
    together, in the next. A process that is killed loses the work of two waits.
    """

    def __init__(self, out: Path, log: _Log) -> None:
        self._out = out
        self._folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._log = log
        self._lock = threading.Lock()
        self._ready: list[_Written] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vologan-publish")
        self._publishing = self._thread.submit(self._publish, [])

    def add(self, written: _Written) -> None:
        """Publish these files soon. Any thread may call this. Raises DataError if earlier files cannot be published."""
        with self._lock:
            self._ready.append(written)
            if self._publishing.done():
                self._begin()

    def finish(self) -> None:
        """Publish all files that were added. Raises DataError."""
        with self._lock:
            self._begin()
            self._publishing.result()

    def _begin(self) -> None:
        self._publishing.result()
        self._publishing = self._thread.submit(self._publish, self._ready)
        self._ready = []

    def _publish(self, written: Sequence[_Written]) -> None:
        if not written:
            return
        with contextlib.ExitStack() as unpublished:
            for image in written:
                unpublished.enter_context(image.unpublished)
            sizes = [[os.fstat(file).st_size for _, file in image.files] for image in written]
            try:
                self._log.begin(written)
                publish_together([file for image in written for file in image.files], self._folder)
                self._log.add(zip(written, sizes, strict=True))
            except OSError as error:
                where = error.filename2 or self._out
                raise DataError(f"{where}: cannot be written ({error.strerror or error})") from error

    def __enter__(self) -> _Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        for written in self._ready:  # after an error
            written.unpublished.close()
        os.close(self._folder)


class _Log:
    """The log of an output folder. Several processes may append to it at the same time."""

    def __init__(self, out: Path, model: Translator, weights: str, inputs: Sequence[Input]) -> None:
        self._out = out
        self._constant = {"weights": os.fspath(model.weights), "sha256": weights, "direction": model.direction}
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._file = append_to(out / LOG)
            begun = read_regular(out / _BEGUN, _LARGEST_BEGUN) if (out / _BEGUN).exists() else b""
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
        self._names = {os.fsdecode(name) for name in begun.split(b"\0")}
        """The names that a command had begun to publish when it ended."""
        self._lines: dict[str, dict[str, Any]] = {}
        """The last line that names a file."""
        self.no_records: list[int] = []
        """The numbers of the lines that are none. Then nobody knows what the files are."""
        for number, line in enumerate(lines_of(out / LOG), 1):
            try:
                entry = unsigned_line(line)
                if not isinstance(entry, dict):
                    raise TypeError
                self._lines |= {entry[part]: entry for part in _PARTS if part in entry}
            except (ValueError, TypeError, RecursionError):
                self.no_records.append(number)
        if (end := self._file.seek(0, os.SEEK_END)) and os.pread(self._file.fileno(), 1, end - 1) != b"\n":
            self._file.write(b"\n")
        for input_ in inputs if self._lines else ():
            self._refuse_another(input_)

    def _refuse_another(self, input_: Input) -> None:
        """Raise DataError if a file with the name of an output is a translation of another image.

        An image is another one if its colour or its depth was another file, and that file still exists. So a data set
        may be moved.
        """
        sources = _sources(input_)
        for name in input_.names.values():
            entry = self._lines.get(name)
            if entry is None:
                continue
            held = None
            if entry.get("direction") != self._constant["direction"]:
                held = "a translation in the other direction"
            for part, former in _sources_of(entry).items():
                if part in sources and not _may_replace(sources[part], former):
                    held = held or f"the translation of {former}"
            if held is not None and (self._out / name).exists():
                raise DataError(f"{self._out / name}: holds {held}; expected another --out")

    def names(self, name: str) -> bool:
        """Return whether a file of this name is an output."""
        return name in self._lines or name in self._names

    def begin(self, images: Iterable[_Written]) -> None:
        """Note that the outputs of these images are about to be published."""
        names = (os.fsencode(name) + b"\0" for image in images for name in image.input.names.values())
        with append_to(self._out / _BEGUN) as file:
            file.write(b"".join(names))

    def holds(self, input_: Input, made_of: str) -> bool:
        """Return whether the outputs of this input exist and are up to date."""
        names = list(input_.names.values())
        entry = self._lines.get(names[0], {})
        if entry.get("made_of") != made_of or any(self._lines.get(name) is not entry for name in names):
            return False
        try:
            sizes = [(self._out / name).stat().st_size for name in names]
        except OSError:
            return False
        return sizes == entry.get("bytes")

    def was_beyond(self, input_: Input) -> bool:
        """Return whether an image's depth seemed to have another unit than the run's when it was translated."""
        return self._lines.get(next(iter(input_.names.values())), {}).get("beyond") is True

    def add(self, images: Iterable[tuple[_Written, list[int]]]) -> None:
        """Note that the outputs of these images are published, with their sizes in bytes."""
        for image, sizes in images:
            names = {**image.input.names, "from": _sources(image.input)}
            drawn = {} if image.input.draw is None else dict(zip(("seed", "sample"), image.input.draw, strict=True))
            beyond = {"beyond": True} if image.beyond else {}
            entry = names | drawn | {"bytes": sizes, "made_of": image.made_of} | beyond | self._constant
            self._file.write(signed_line(entry))
            self._file.flush()  # a line at a time, so lines of several processes do not mix

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


_PARTS = ("color", "depth")


def _sources(input_: Input) -> dict[str, str]:
    """Return the names of an image's files, as the log has them."""
    files = zip(_PARTS, (input_.record.color_file, input_.record.depth_file), strict=True)
    return {part: str(file) for part, file in files if file is not None}


def _sources_of(entry: dict[str, Any]) -> dict[str, str]:
    """Return the names of the files that an entry of the log was made of."""
    source = entry.get("from")
    found = source if isinstance(source, dict) else {}
    return {part: found[part] for part in _PARTS if isinstance(found.get(part), str)}


def _may_replace(source: str, former: str) -> bool:
    """Return whether two names of sources mean the same file, or the former one no longer exists.

    A source in a shard is SHARD:NAME. A shard in a bucket counts as one that exists.
    """
    if source == former:
        return True
    if is_url(former):
        return False
    place = _place(former)
    return place is None or place == _place(source)


def _place(source: str) -> tuple[int, int, str] | None:
    """Return the device and the inode of a file or a shard, and the rest of the name. None if there is no such file."""
    for end in (len(source), *(colon.start() for colon in re.finditer(":", source))):
        with contextlib.suppress(OSError, ValueError):
            status = Path(source[:end]).stat()
            return status.st_dev, status.st_ino, source[end:]
    return None


def _until(stop: Callable[[], bool], images: Iterable[Any], done: Done) -> Iterator[Any]:
    for image in images:
        if stop():
            done.stopped = True
            return
        yield image


@contextlib.contextmanager
def _pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=f"vologan-{name}")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[int], Any], items: Iterable[int], count: int) -> Iterator[Any]:
    """Yield work(item) for all items in order. `count` of them are begun before they are needed."""
    rest = iter(items)
    begun = deque(pool.submit(work, item) for item in islice(rest, count))
    while begun:
        result = begun.popleft().result()
        for item in islice(rest, 1):
            begun.append(pool.submit(work, item))
        yield result


def _groups(
    images: Iterable[_Read | str | None], batch: int, done: Done, advance: Callable[[int], None]
) -> Iterator[list[_Read]]:
    """Yield up to `batch` successive images of equal size together. Count the other results in `done`."""
    group: list[_Read] = []
    for image in images:
        if image is None or isinstance(image, str):
            if image is None:
                done.kept += 1
            else:
                done.broken.append(image)
            advance(1)
            continue
        if group and group[0].prepared.image.shape != image.prepared.image.shape:
            yield group
            group = []
        group.append(image)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group
