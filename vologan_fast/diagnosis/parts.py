"""Probes of the parts that are compiled or come from others. Each part is used once, not only imported."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

from vologan_fast.diagnosis.finding import Finding, State
from vologan_fast.words import printable

PARTS, TRAINING = "parts", "training"
"""Groups of findings."""
SET_UP = "install the project here again: make setup, or pip install ."
TRITON_NEEDS = (
    "a GPU needs it: install a C compiler and Python's headers (Debian: gcc, python3-dev), and let TRITON_CACHE_DIR be "
    "a folder that can be written"
)
_LAUNCHER = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "vologan_probe", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_vologan_probe(void) { return PyModule_Create(&definition); }
"""
"""Triton compiles such a module before its first launch, to call the kernels from Python."""


class WrongResult(RuntimeError):
    """A part has computed something else than its definition."""


def decoder(_: Path) -> Iterator[Finding]:
    """The depth decoder reads a file."""
    import numpy as np

    from vologan_fast import _depth

    image, file = np.arange(35, dtype=np.float16).reshape(5, 7), io.BytesIO()
    np.save(file, image)
    if not np.array_equal(_depth.decode(file.getvalue(), None, _depth.Limits(), "probe.npy"), image):
        raise WrongResult("it does not decode what NumPy wrote")
    yield Finding(PARTS, "depth decoder", "works", _where(_depth.simd_level, _depth), needed=True)


def batches(_: Path) -> Iterator[Finding]:
    """The native code that makes batches normalises depth."""
    import numpy as np

    from vologan_fast import _batch

    depth = np.array([[0.5, 1.0, 1.5]], np.float32)
    _batch.normalize(depth, 1.0, -0.5, -1.0, 0.0, [])
    if not np.array_equal(depth, np.array([[1 / 1024, 0.5, 1.0]], np.float32)):
        raise WrongResult(f"it normalises depth to {depth.tolist()}")
    yield Finding(PARTS, "batches", "works", _where(_batch.simd_level, _batch), needed=True)


def jpeg_loader(_: Path) -> Iterator[Finding]:
    """The native loader decodes a JPEG as Pillow does, up to rounding."""
    if importlib.util.find_spec("vologan_fast._image_loader") is None:
        why = "it was not built, or its file is gone: Pillow decodes JPEG, which is slower"
        yield Finding(PARTS, "JPEG loader", "off", why, "install libjpeg-turbo (Debian: libjpeg-dev), then make setup")
        return
    import numpy as np
    from PIL import Image

    from vologan_fast import _image_loader

    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(file, "JPEG")
    decoded = _image_loader.decode_jpeg(file.getvalue())
    if decoded is None or np.abs(decoded.astype(int) - np.asarray(Image.open(file))).max() > 2:
        raise WrongResult("it does not decode what Pillow wrote")
    found = f"{_image_loader.simd_level}, {_image_loader.jpeg_backend}"
    yield Finding(PARTS, "JPEG loader", "works", _where(found, _image_loader))


def native_norm(_: Path) -> Iterator[Finding]:
    """The norm's library for CPUs computes what its definition does."""
    import torch
    from vologan_kernels import instance_norm_act, native_library

    advice = "install a C++ compiler (Debian: g++), then make setup or pip install ./kernels"
    x = torch.linspace(-1, 1, 128).view(1, 2, 8, 8)
    if why := native_library.refusal(x):
        state: State = "off" if "not there" in why else "broken"
        yield Finding(PARTS, "native norm", state, printable(why), advice)
        return
    ours, definition = (instance_norm_act(x, impl=impl) for impl in ("native", "reference"))
    if not torch.allclose(ours, definition, atol=1e-5):
        raise WrongResult("it does not compute the instance norm")
    chosen = os.environ.get(native_library.LEVEL_VARIABLE) or native_library.levels()[0]
    found = f"{chosen}, of {' '.join(native_library.levels())}"
    yield Finding(PARTS, "native norm", "works", found)


def triton(_: Path) -> Iterator[Finding]:
    """Triton compiles here. With a GPU, a kernel of ours runs and computes what its definition does."""
    if importlib.util.find_spec("triton") is None:
        yield Finding(PARTS, "Triton", "off", "not installed", "only a GPU needs it: pip install triton")
        return
    import torch
    import triton
    from triton import knobs

    if knobs.runtime.interpret:
        why = "TRITON_INTERPRET is set, so kernels run in the interpreter, which is slow"
        yield Finding(PARTS, "Triton", "broken", why, "unset TRITON_INTERPRET")
        return
    if torch.cuda.is_available():
        from vologan_kernels import instance_norm_act

        x = torch.linspace(-1, 1, 128, device="cuda").view(1, 2, 8, 8)
        ours, definition = (instance_norm_act(x, impl=impl) for impl in ("triton", "reference"))
        if not torch.allclose(ours, definition, atol=1e-5):
            raise WrongResult("the kernel of the instance norm does not compute it")
        yield Finding(PARTS, "Triton", "works", f"{triton.__version__}, a kernel ran on the GPU")
        return
    from triton.runtime.build import compile_module_from_src
    from triton.runtime.cache import get_cache_manager

    get_cache_manager("0" * 64).put(b"", "probe")
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, TRITON_CACHE_DIR=empty):
        compile_module_from_src(_LAUNCHER, "vologan_probe")  # not from the cache
    yield Finding(PARTS, "Triton", "works", f"{triton.__version__}, compiles its launcher; not used without a GPU")


def dali(_: Path) -> Iterator[Finding]:
    """DALI loads our operators."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        yield Finding(PARTS, "DALI", "off", "not installed", "only a GPU needs it: pip install 'vologan-fast[dali]'")
        return
    from vologan_fast.data.loaders import dali

    if why := dali.load_operators():
        advice = "install the project again beside this DALI: make setup"
        yield Finding(PARTS, "DALI", "broken", f"{dali.VERSION}, but {why}", advice)
        return
    on_gpu = "EXR on the GPU too" if dali.decodes_on_gpu() else "built without CUDA: depth is decoded on the CPU"
    yield Finding(PARTS, "DALI", "works", f"{dali.VERSION}, our operators are loaded; {on_gpu}")


def training(_: Path) -> Iterator[Finding]:
    """One step of small networks, with all that a run imports."""
    import torch
    import tyro  # noqa: F401  # the command needs it

    import vologan_fast.training.trainer  # noqa: F401
    from vologan_fast.config import Config, DataConfig, DiscriminatorConfig, GeneratorConfig, TrainConfig
    from vologan_fast.training.build import build_training

    config = Config(
        data=DataConfig(size=32),
        generator=GeneratorConfig(width=4, max_width=8, levels=2),
        discriminator=DiscriminatorConfig(widths=(4, 8), down_widths=(4, 8)),
        train=TrainConfig(batch=1, compile="none"),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = build_training(config, device)[2]
    images = torch.rand(2, 1, 4, 32, 32, device=device)
    began = time.perf_counter()
    losses = step(images[0], images[1], 0)
    if not all(bool(value.isfinite()) for value in losses.terms().values()):
        raise WrongResult("a step of small networks gives losses that are not finite")
    seconds = time.perf_counter() - began
    found = f"a first step of small networks took {seconds:.2f} s on the {'GPU' if device.type == 'cuda' else 'CPU'}"
    yield Finding(TRAINING, "a step", "works", found, needed=True)


def _where(found: str, module: ModuleType) -> str:
    return f"{found}, {printable(str(module.__file__))}"
