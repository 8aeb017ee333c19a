"""torch.compile for the networks of a step, with a fallback.

The forward and the backward of each network are compiled as one graph each. The compiled code is kept on disk for the
next runs. If the networks cannot be compiled, there is one warning and they run uncompiled.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from vologan_kernels.triton_setup import cannot_compile

from vologan_fast.files import cache_folder

Result = TypeVar("Result")


def compile_mode(setting: str, device: torch.device) -> str:
    """Return "none", "default" or "max-autotune", for the setting `train.compile`."""
    return setting if setting != "auto" else ("default" if device.type == "cuda" else "none")


def compile_networks(networks: list[nn.Module], mode: str) -> None:
    """Let each of `networks` be compiled in place at its first call. `mode` is "default" or "max-autotune"."""
    for network in networks:
        network.compile(fullgraph=True, dynamic=False, mode=None if mode == "default" else f"{mode}-no-cudagraphs")


def keep_compiled_code() -> Path:
    """Choose the folder for compiled code, and return its path.

    The folder is in the user's cache folder, which outlives a reboot. If that cannot be written, the folder is one for
    temporary files. The environment variable TORCHINDUCTOR_CACHE_DIR overrides both. Call this early: torch chooses its
    own folder when its compiler is first imported, and optimisers import it.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache_folder("compiled")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            folder = Path(tempfile.gettempdir()) / f"vologan_fast-{os.getuid()}" / "compiled"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def compiled_or_not(run: Callable[[], Result], networks: list[nn.Module], start_again: Callable[[], None]) -> Result:
    """Return run(). If `networks` fail to compile, warn, call `start_again()`, and return an uncompiled run()."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        return run()
    except Exception as error:
        of_compiler = isinstance(error, (TorchDynamoException, InductorError)) or cannot_compile(error)
        if not of_compiler or not any(network._compiled_call_impl for network in networks):
            raise
        for network in networks:
            network._compiled_call_impl = None
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        warnings.warn(
            f"torch.compile fails for these networks, they run uncompiled ({type(error).__name__}: {reason}). "
            "--train.compile none does so from the start",
            stacklevel=2,
        )
        start_again()
        return run()


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled networks run uncompiled, for batches of other sizes than in training."""
    return torch.compiler.set_stance("force_eager")
