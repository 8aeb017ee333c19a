"""torch.compile for the networks of a step, with a way back.

What is compiled is each network's forward and backward, as one graph each. Compiled code is kept on disk, where the
next run finds it. What cannot be compiled runs as it is, after one warning.
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

from vologan_fast.files import cache_folder

Result = TypeVar("Result")


def compile_mode(setting: str, device: torch.device) -> str:
    """ "none", "default" or "max-autotune", of `train.compile`."""
    return setting if setting != "auto" else ("default" if device.type == "cuda" else "none")


def compile_networks(networks: list[nn.Module], mode: str) -> None:
    """Compile the forwards of `networks` in place, when they first run; `mode` is "default" or "max-autotune"."""
    for network in networks:
        network.compile(fullgraph=True, dynamic=False, mode=None if mode == "default" else f"{mode}-no-cudagraphs")


def keep_compiled_code() -> Path:
    """Choose the folder for compiled code, before torch does: the user's cache folder, which outlives a reboot, or
    where that cannot be written, one for temporary files.

    Torch chooses when its compiler is first imported, as optimisers do. TORCHINDUCTOR_CACHE_DIR names another.
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
    """run(); where `networks` turn out not to compile, a warning, `start_again()`, and run() with them as they are."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        return run()
    except (TorchDynamoException, InductorError) as error:
        if not any(network._compiled_call_impl for network in networks):
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
    """Inside, compiled networks run as they are: for batches of other sizes than the training step's."""
    return torch.compiler.set_stance("force_eager")
