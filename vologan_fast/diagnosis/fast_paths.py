"""Probes of the fast paths: which of them a run takes here by default, and why it does not take the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from vologan_fast.diagnosis import parts
from vologan_fast.diagnosis.finding import Finding
from vologan_fast.words import printable

FAST = "fast paths"
FOR_GPUS = "for GPUs; this machine trains on the CPU"


def norms_and_losses(here: Path) -> Iterator[Finding]:
    """Kernels of Triton on a GPU, native norms on a CPU."""
    triton, norm = "Triton kernels", "native norms"
    if not _on_gpu():
        yield Finding(FAST, triton, "off", FOR_GPUS)
        library = next(parts.native_norm(here))
        yield Finding(FAST, norm, library.state, library.found, library.advice)
        return
    (kernels,) = parts.triton(here)
    why = kernels.found if kernels.state == "works" else f"{kernels.found}; plain PyTorch takes their place"
    yield Finding(FAST, triton, kernels.state, why, kernels.advice)
    yield Finding(FAST, norm, "off", "for CPUs; this machine trains on the GPU")


def loading(here: Path) -> Iterator[Finding]:
    """DALI on a GPU, native code on threads elsewhere."""
    from vologan_fast.data.loaders.native import jpeg_decoder

    if _on_gpu():
        (found,) = parts.dali(here)
        yield Finding(FAST, "loading by DALI", found.state, found.found, found.advice)
    else:
        yield Finding(FAST, "loading by DALI", "off", FOR_GPUS)
    if (decoder := jpeg_decoder()) == "Pillow":
        (found,) = parts.jpeg_loader(here)
        yield Finding(FAST, "native loading", "off", found.found, found.advice)
    else:
        yield Finding(FAST, "native loading", "works", f"JPEG by {printable(decoder)}")


def kept_images(_: Path) -> Iterator[Finding]:
    """Images that stay decoded."""
    from vologan_fast.config import DataConfig

    if DataConfig().cache == "none":
        advice = "--data.cache auto, or disk: each image is decoded once for all epochs"
        yield Finding(FAST, "kept images", "off", "off by default", advice)
    else:
        yield Finding(FAST, "kept images", "works", f"the default is {DataConfig().cache}")


def depth_on_the_gpu(_: Path) -> Iterator[Finding]:
    """EXR decoded by a GPU."""
    from vologan_fast import _depth

    name = "depth on the GPU"
    if not _on_gpu():
        yield Finding(FAST, name, "off", FOR_GPUS)
    elif hasattr(_depth, "decode_chunks_on_gpu"):
        yield Finding(FAST, name, "works", "the decoder is built with CUDA")
    else:
        yield Finding(FAST, name, "off", "the decoder is built without CUDA", "install nvcc, then make setup")


def numerics(_: Path) -> Iterator[Finding]:
    """bfloat16 and channels_last."""
    import torch

    from vologan_fast.config import Config
    from vologan_fast.networks import numerics_of
    from vologan_fast.networks.numerics import has_bfloat16_instructions

    chosen = numerics_of(Config(), torch.device("cuda" if _on_gpu() else "cpu"))
    if chosen.dtype == torch.bfloat16:
        yield Finding(FAST, "bfloat16", "works", "the default here")
    elif has_bfloat16_instructions():
        advice = "--train.precision bfloat16: faster here; the page Does it learn? says what it changes"
        yield Finding(FAST, "bfloat16", "off", "float32 is the default on a CPU", advice)
    else:
        yield Finding(FAST, "bfloat16", "off", "this processor has no instructions for it")
    on = chosen.layout == torch.channels_last
    yield Finding(FAST, "channels_last", "works" if on else "off", f"a new run computes in {chosen.layout_name}")


def compiling(_: Path) -> Iterator[Finding]:
    """torch.compile and CUDA graphs."""
    import torch

    from vologan_fast.training.compilation import compile_mode

    on_gpu = _on_gpu()
    if compile_mode("auto", torch.device("cuda" if on_gpu else "cpu")) == "none":
        why, advice = "auto compiles networks on a GPU only", "--train.compile default compiles them here, in minutes"
        yield Finding(FAST, "torch.compile", "off", why, advice)
    else:
        yield Finding(FAST, "torch.compile", "works", "the first step compiles the networks")
    if on_gpu:
        yield Finding(FAST, "CUDA graph", "off", "off by default", "--train.cuda-graph, with one GPU")
    else:
        yield Finding(FAST, "CUDA graph", "off", FOR_GPUS)


def writing(_: Path) -> Iterator[Finding]:
    """ISA-L, which packs the depth files that translate writes."""
    if importlib.util.find_spec("isal") is None:
        yield Finding(FAST, "ISA-L", "off", "not installed: zlib packs files of translate", "pip install isal")
    else:
        from isal import isal_zlib

        isal_zlib.compress(b"")
        yield Finding(FAST, "ISA-L", "works", "packs the files that translate writes")


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
