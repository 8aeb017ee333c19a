"""The demo data set: rendered people as one domain, other rendered people seen by a simulated phone as the other.

    python -m vologan_fast.data demo DIR --count 256 --size 64

writes, in the layout of VoloGAN's data,

    DIR/training_paths.json            {"synthetic_data": [{"color_path", "depth_path"}, …], "real_data": […]}
    DIR/synthetic/0000.jpg, 0000.exr   S: the renderer's own image
    DIR/real/0000.jpg, 0000.exr        T: other people, photographed by the phone of `phone`
    DIR/demo.json                      what was asked for; written last

Colour is JPEG of quality 95, RGB (S 4:4:4, T 4:2:0 as phones do). Depth is EXR (half, ZIP, one channel Z): planar
distance z in metres becomes (z − NEAR) / (FAR − NEAR) · 2 − 1 with the limits of `scene`, 2 and 4 m.
Background is colour 0 and depth -1; a hole, where the phone saw the figure but measured nothing, is NaN and keeps
its colour. The folder never holds a clean version of a T image, nor the phone's version of an S image.

With `--paired-test N` there is also, for scoring only and in no manifest that training reads,

    DIR/paired-test/paired_paths.json  {"paired_data": [{"synthetic": {…}, "real": {…}, "truth": {…}}, …]}
    DIR/paired-test/synthetic/0000.jpg, 0000.exr   and the same in real/ and truth/

N further people, each three times: rendered, photographed, and photographed without what is random about it
(noise, random drop-outs, wandering outline, exposure): the best that a translation can know. The paths in it are
relative to DIR/paired-test.

Image i of a domain depends on the seed, the domain and i alone, so that any number of processes renders the same
files. The folder is made aside and renamed when complete.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from vologan_fast.data.demo.phone import Capture, capture, clean
from vologan_fast.data.demo.scene import FAR, NEAR, Buffers, random_scene, render
from vologan_fast.data.errors import DataError
from vologan_fast.data.manifest import MANIFEST
from vologan_fast.files import folder_aside, publish

FORMAT = 3
"""Number of this layout and of the pictures in it; a folder of another number is not the same demo."""
RECORD, PAIRED, PAIRED_MANIFEST = "demo.json", "paired-test", "paired_paths.json"
SPLITS = ("synthetic", "real", PAIRED)
"""Each has people of its own."""
POOL_ROWS = 16384
"""Rows of pixels to render that are worth starting another process for."""
KINDS = ("synthetic", "real", "truth")
"""The three views of one paired scene."""

Task = tuple[str, int, int, int]
"""Split, index, size and seed of one scene."""


def make_demo(directory: str | Path, count: int, size: int, seed: int = 0, paired_test: int = 0) -> Path:
    """Render the demo data set into `directory`, unless it is there already, and return that folder.

    `count` images per domain of `size` × `size` pixels; `paired_test` scenes for scoring. Equal arguments give equal
    files. The folder appears complete or not at all; another call for the same folder waits for the first.

    Raises DataError for impossible arguments, when `directory` holds anything but this very demo, and when it cannot be
    written.
    """
    record = {"format": FORMAT, "count": count, "size": size, "seed": seed, "paired_test": paired_test}
    for name, least in {"count": 1, "size": 32, "seed": 0, "paired_test": 0}.items():
        if record[name] < least:
            raise DataError(f"{name}: found {record[name]}, expected at least {least}")
    if size % 8:
        raise DataError(f"size: found {size}, expected a multiple of 8")
    directory = Path(directory).absolute()
    if _is_complete(directory, record):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(directory) as aside:
            if not _is_complete(directory, record):  # nobody made it while we waited for the lock
                _fill(aside, record)
                publish(directory)
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror or error}") from None
    return directory


def _fill(folder: Path, record: dict[str, int]) -> None:
    """Render the data set of `record` into an empty folder."""
    count, paired, size = record["count"], record["paired_test"], record["size"]
    splits = {"synthetic": count, "real": count, PAIRED: paired}
    for sub in ("synthetic", "real", *(f"{PAIRED}/{kind}" for kind in KINDS if paired)):
        (folder / sub).mkdir(parents=True)
    tasks = [(split, i, size, record["seed"]) for split, n in splits.items() for i in range(n)]
    _render_all(folder, tasks, f"demo data: {2 * count + 3 * paired} images of {size} × {size}")
    lists = {f"{domain}_data": [_item(domain, i) for i in range(count)] for domain in ("synthetic", "real")}
    _write_json(folder / MANIFEST, lists)
    if paired:
        triples = [{kind: _item(kind, i) for kind in KINDS} for i in range(paired)]
        _write_json(folder / PAIRED / PAIRED_MANIFEST, {"paired_data": triples})
    _write_json(folder / RECORD, record)


def _item(folder: str, index: int) -> dict[str, str]:
    return {"color_path": f"{folder}/{index:04d}.jpg", "depth_path": f"{folder}/{index:04d}.exr"}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _is_complete(directory: Path, record: dict[str, int]) -> bool:
    """Whether the demo is there. An empty or absent folder: no. Anything else: DataError."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads((directory / RECORD).read_text())
    except (OSError, ValueError):
        raise DataError(f"{directory} exists and is not a demo data set; name another folder") from None
    if found != record:
        raise DataError(f"{directory} holds another demo: found {found}, expected {record}; name another folder")
    return True


def _render_all(folder: Path, tasks: list[Task], what: str) -> None:
    """Render all tasks, on all cores when there is enough to do; a progress bar where there is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"Rendering {what}")
    with ExitStack() as stack:
        done: Iterable[bool] = (_render_task(folder, task) for task in tasks)
        workers = min(len(os.sched_getaffinity(0)), 1 + sum(task[2] for task in tasks) // POOL_ROWS)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(_render_task, [folder] * len(tasks), tasks, chunksize=4)
        for _ in track(done, what, total=len(tasks), console=console, disable=not console.is_terminal):
            pass


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is killed: a pool's workers would go on writing without it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _render_task(folder: Path, task: Task) -> bool:
    """Render one scene and write its files."""
    split, index, size, seed = task
    stream = [seed, SPLITS.index(split), index]
    buffers = render(random_scene(np.random.default_rng(stream)), size)
    name = f"{index:04d}"
    for kind in KINDS if split == PAIRED else (split,):
        where = folder / PAIRED / kind / name if split == PAIRED else folder / split / name
        photograph = _view(kind, buffers, np.random.default_rng([*stream, 1]))
        _write(where, photograph, subsampling=0 if kind == "synthetic" else 2)
    return True


def _view(kind: str, buffers: Buffers, rng: np.random.Generator) -> Capture:
    if kind == "synthetic":
        return clean(buffers)
    return capture(buffers, rng if kind == "real" else None)


def _write(stem: Path, photograph: Capture, subsampling: int) -> None:
    """`stem`.jpg and `stem`.exr. Background: colour 0, depth -1."""
    try:
        import OpenEXR
    except ImportError:
        raise DataError("the demo's depth files need the OpenEXR library: pip install 'vologan-fast[exr]'") from None
    colour = np.where(photograph.mask[..., None], photograph.colour, 0)
    Image.fromarray((colour * 255 + 0.5).astype(np.uint8)).save(f"{stem}.jpg", quality=95, subsampling=subsampling)
    scaled = (photograph.depth - NEAR) / (FAR - NEAR) * 2 - 1
    depth = np.where(photograph.mask, scaled, -1).astype(np.float16)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": depth}).write(f"{stem}.exr")
