"""The writer of the demo data set: rendered people, and other rendered people seen by a simulated phone.

    python -m vologan_fast.data demo DIR --count 256 --size 64

This command writes a data set in the layout of VoloGAN's data:

    DIR/training_paths.json            {"synthetic_data": [{"color_path", "depth_path"}, …], "real_data": […]}
    DIR/synthetic/0000.jpg, 0000.exr   S: the renderer's own image
    DIR/real/0000.jpg, 0000.exr        T: other people, photographed by the phone of `phone`
    DIR/demo.json                      the arguments of the demo; written last

Colour is JPEG of quality 95, RGB. S has 4:4:4 chroma, and T has 4:2:0, as phones write it. Depth is EXR (half, ZIP, one
channel Z). It holds (z − NEAR) / (FAR − NEAR) · 2 − 1, where z is the planar distance in metres. NEAR and FAR are the
limits of `scene`, 2 and 4 m.

Background has colour 0 and depth -1. A hole is a place where the phone saw the figure but measured nothing. It has
depth NaN and keeps its colour. The folder never holds a clean version of a T image, nor the phone's version of an S
image.

With `--paired-test N` there are also files for scoring only. No manifest of training lists them:

    DIR/paired-test/paired_paths.json  {"paired_data": [{"synthetic": {…}, "real": {…}, "truth": {…}}, …]}
    DIR/paired-test/synthetic/0000.jpg, 0000.exr   and the same in real/ and truth/

They show N further people, each three times. `synthetic` is rendered, and `real` is photographed. `truth` is
photographed without the random effects: noise, random drop-outs, wandering outline and exposure. It is the best
possible result of a translation. The paths in the manifest are relative to DIR/paired-test.

With `--repeats K`, they are photographed K more times, with other noise: in repeat-1/, repeat-2/ and so on. The file
lists these photographs as "repeats" of each scene. The phone and the scene do not move.

Image i of a domain depends only on the seed, the domain and i, so that any number of processes renders the same files.
The folder is made under another name and renamed when it is complete.
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
from vologan_fast.data.manifest import MANIFEST, PAIRED, PAIRED_MANIFEST
from vologan_fast.files import folder_aside, publish, read_regular

FORMAT = 3
"""The version of this layout and of the pictures in it. A folder with another version is not the same demo."""
RECORD = "demo.json"
SPLITS = ("synthetic", "real", PAIRED)
"""The parts of the demo. Each shows different people."""
POOL_ROWS = 16384
"""The rows of pixels to render for which one more process is started."""
KINDS = ("synthetic", "real", "truth")
"""The three views of one paired scene."""

Task = tuple[str, int, int, int, int]
"""Split, index, size and seed of one scene, and the number of its repeated photographs."""


def make_demo(
    directory: str | Path, count: int, size: int, seed: int = 0, paired_test: int = 0, repeats: int = 0
) -> Path:
    """Render the demo data set into `directory`, unless it is there already. Returns the absolute path of the folder.

    Each domain gets `count` images of `size` × `size` pixels. `size` is a multiple of 8, at least 32. `paired_test`
    scenes are added for scoring, and `repeats` more photographs of each of them. Equal arguments give equal files. The
    folder is either complete or absent. A second call for the same folder waits for the first one.

    Raises DataError for impossible arguments, for a `directory` that holds anything except this demo, and for a folder
    that cannot be written.
    """
    record = {"format": FORMAT, "count": count, "size": size, "seed": seed, "paired_test": paired_test}
    if repeats:
        record["repeats"] = repeats
    for name, least in {"count": 1, "size": 32, "seed": 0, "paired_test": 0, "repeats": 0}.items():
        if name not in record:
            continue
        if record[name] < least:
            raise DataError(f"{name}: found {record[name]}, expected at least {least}")
    if repeats and not paired_test:
        raise DataError(f"repeats: found {repeats}, expected 0 without a paired test")
    if size % 8:
        raise DataError(f"size: found {size}, expected a multiple of 8")
    directory = Path(directory).absolute()
    if _is_complete(directory, record):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(directory) as aside:
            if not _is_complete(directory, record):  # no other process made it while this one waited for the lock
                _fill(aside, record)
                publish(directory)
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror or error}") from None
    return directory


def _fill(folder: Path, record: dict[str, int]) -> None:
    """Render the data set of `record` into an empty folder."""
    count, paired, size = record["count"], record["paired_test"], record["size"]
    splits = {"synthetic": count, "real": count, PAIRED: paired}
    repeats = record.get("repeats", 0)
    kinds = (*KINDS, *map(_repeat, range(1, repeats + 1)))
    for sub in ("synthetic", "real", *(f"{PAIRED}/{kind}" for kind in kinds if paired)):
        (folder / sub).mkdir(parents=True)
    tasks = [(split, i, size, record["seed"], repeats) for split, n in splits.items() for i in range(n)]
    _render_all(folder, tasks, f"demo data: {2 * count + len(kinds) * paired} images of {size} × {size}")
    lists = {f"{domain}_data": [_item(domain, i) for i in range(count)] for domain in ("synthetic", "real")}
    _write_json(folder / MANIFEST, lists)
    if paired:
        scenes: list[dict[str, object]] = [{kind: _item(kind, i) for kind in KINDS} for i in range(paired)]
        for i, scene in enumerate(scenes if repeats else []):
            scene["repeats"] = [_item(_repeat(k), i) for k in range(1, repeats + 1)]
        _write_json(folder / PAIRED / PAIRED_MANIFEST, {"paired_data": scenes})
    _write_json(folder / RECORD, record)


def _repeat(number: int) -> str:
    return f"repeat-{number}"


def _item(folder: str, index: int) -> dict[str, str]:
    return {"color_path": f"{folder}/{index:04d}.jpg", "depth_path": f"{folder}/{index:04d}.exr"}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _is_complete(directory: Path, record: dict[str, int]) -> bool:
    """Return whether the demo is there. It is not if the folder is empty or absent.

    Raises DataError for a folder with any other content.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads(read_regular(directory / RECORD, 1 << 16))
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{directory} exists and is not a demo data set; name another folder") from None
    if found != record:
        raise DataError(f"{directory} holds another demo: found {found}, expected {record}; name another folder")
    return True


def _render_all(folder: Path, tasks: list[Task], what: str) -> None:
    """Render all tasks. Use all cores if there is enough work, and show a progress bar if there is a terminal."""
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
    """Ignore Ctrl-C, which the parent handles, and end when the parent is killed.

    Without this, the workers of a pool would continue to write files after the parent's end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _render_task(folder: Path, task: Task) -> bool:
    """Render one scene and write its files."""
    split, index, size, seed, repeats = task
    stream = [seed, SPLITS.index(split), index]
    buffers = render(random_scene(np.random.default_rng(stream)), size)
    name = f"{index:04d}"
    for kind in KINDS if split == PAIRED else (split,):
        where = folder / PAIRED / kind / name if split == PAIRED else folder / split / name
        photograph = _view(kind, buffers, np.random.default_rng([*stream, 1]))
        _write(where, photograph, subsampling=0 if kind == "synthetic" else 2)
    for k in range(1, repeats + 1) if split == PAIRED else ():
        photograph = capture(buffers, np.random.default_rng([*stream, 1 + k]))
        _write(folder / PAIRED / _repeat(k) / name, photograph, subsampling=2)
    return True


def _view(kind: str, buffers: Buffers, rng: np.random.Generator) -> Capture:
    if kind == "synthetic":
        return clean(buffers)
    return capture(buffers, rng if kind == "real" else None)


def _write(stem: Path, photograph: Capture, subsampling: int) -> None:
    """Write `stem`.jpg and `stem`.exr. Background gets colour 0 and depth -1."""
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
