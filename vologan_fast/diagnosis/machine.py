"""Probes of the machine: versions, processor, GPUs, memory and disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vologan_fast.diagnosis.finding import Finding, State
from vologan_fast.files import cache_folder
from vologan_fast.host import cores, free_host_memory, instruction_sets, processor
from vologan_fast.words import in_a_sentence, in_words, printable

VERSIONS, PROCESSOR, GPU, ROOM = "versions", "processor", "GPU", "memory and disk"
"""Groups of findings."""
_OWN = "vologan-fast", "vologan-kernels"
_NEEDED = (*_OWN, "torch", "numpy", "pillow", "matplotlib", "rich", "safetensors", "tyro")
_OPTIONAL = {
    "triton": "pip install triton",
    "nvidia-dali-cuda130": "pip install 'vologan-fast[dali]'",
    "isal": "pip install isal",
    "tensorboard": "pip install tensorboard",
    "OpenEXR": "pip install 'vologan-fast[exr]'",
    "optuna": "pip install 'vologan-fast[sweep]'",
}
"""Package → the command that installs it."""
_SMI = "nvidia-smi"
_SMI_SECONDS = 30.0


def versions(_: Path) -> Iterator[Finding]:
    """Python, the packages that training needs, and those that make it faster or add to it."""
    yield Finding(VERSIONS, "python", "works", f"{platform.python_version()}, {printable(sys.executable)}")
    found = {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    for name, version in found.items():
        needed = name in _NEEDED
        if version:
            yield Finding(VERSIONS, name, "works", version, needed=needed)
        elif name in _OWN:  # bench/on_gpu.sh and others use it so
            yield Finding(VERSIONS, name, "off", "not installed: it is used from its source folder")
        else:
            command = _OPTIONAL.get(name, f"pip install {name}")
            yield Finding(VERSIONS, name, "broken" if needed else "off", "not installed", command, needed)
    ours = {found[name] for name in _OWN}
    if None not in ours and len(ours) > 1:
        both = " and ".join(f"{name} {found[name]}" for name in _OWN)
        yield Finding(VERSIONS, "both packages", "broken", f"{both}: expected one version", "install both anew")


def _version(name: str) -> str | None:
    """Return the version of an installed package. It is not imported."""
    try:
        return printable(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def processors(_: Path) -> Iterator[Finding]:
    """The processor, its cores and its instruction sets."""
    yield Finding(PROCESSOR, "name", "works", printable(processor()))
    yield Finding(PROCESSOR, "cores", "works", f"{cores()} of {os.cpu_count()} for this process")
    yield Finding(PROCESSOR, "SIMD", "works", ", ".join(instruction_sets()) or "unknown to the system")


def gpus(_: Path) -> Iterator[Finding]:
    """The GPUs that torch can use, or why there are none."""
    import torch

    of_driver = _driver()
    if not torch.cuda.is_available():
        yield _no_gpu(of_driver)
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield Finding(
            GPU,
            f"GPU {i}",
            "works",
            f"{printable(properties.name)}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, {in_words(free)} of {in_words(total)} free",
        )
    yield Finding(GPU, "driver", "works", f"{of_driver or 'unknown'}, torch is built for CUDA {torch.version.cuda}")


def _no_gpu(of_driver: str) -> Finding:
    import torch

    state: State = "broken" if of_driver else "off"  # a GPU that the driver knows should work
    there = f"the driver has a GPU ({of_driver}), but " if of_driver else ""
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA"
        return Finding(GPU, "GPU", state, there + why, "training runs on the CPU; a GPU needs a torch with CUDA")
    try:
        torch.cuda.init()
        why = "torch finds no CUDA device"
    except Exception as error:  # of several types
        why = in_a_sentence(error)
    return Finding(GPU, "GPU", state, there + why, f"training runs on the CPU; for a GPU, see that {_SMI} lists it")


def _driver() -> str:
    """Return the driver and its GPUs in words, as nvidia-smi lists them. "" if there are none."""
    if shutil.which(_SMI) is None:
        return ""
    command = [_SMI, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [printable(line.strip()) for line in asked.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if asked.returncode == 0 else ""


def memory(_: Path) -> Iterator[Finding]:
    """The free memory, within the limits of the control groups."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Finding(ROOM, "memory", "works", f"{in_words(free_host_memory())} of {in_words(total)} free")


def run_folders(run_folder: Path) -> Iterator[Finding]:
    """The disk under the folder for runs, which training must be able to write."""
    yield _disk("run folders", run_folder, "name another folder with --run-dir, of train too", needed=True)


def other_folders(_: Path) -> Iterator[Finding]:
    """The disks under the folders for demo data, kept images and compiled code, and for temporary files."""
    advice = "set XDG_CACHE_HOME to a folder that can be written; without it, there are no demo data"
    yield _disk("cache folder", cache_folder(""), advice)
    yield _disk("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder that can be written")


def _disk(name: str, folder: Path, advice: str, needed: bool = False) -> Finding:
    """Write a file that has no name, where `folder` is or would be made."""
    shown = printable(str(folder))
    try:
        there = folder.absolute()
        while not there.exists() and not there.is_symlink() and there != there.parent:
            there = there.parent
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"written")
            file.flush()
        list(there.iterdir())
        free = shutil.disk_usage(there).free
    except OSError as error:
        why = f"{shown}: cannot be read and written ({error.strerror or error})"
        return Finding(ROOM, name, "broken", why, advice, needed)
    return Finding(ROOM, name, "works", f"{in_words(free)} free in {shown}", needed=needed)
