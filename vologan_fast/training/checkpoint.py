"""Checkpoints: a folder a step, complete or absent.

    checkpoints/step-00001200/
        generator_st.safetensors  generator_ts.safetensors  discriminator_s.safetensors  discriminator_t.safetensors
        average_st.safetensors  average_ts.safetensors      with train.average: the generators to translate with
        state.pt          optimisers, random number generators, loader, step: what resuming needs beside the weights

A checkpoint is written into a folder with another name, synced to the disk and renamed, so that whatever kills the
process leaves either the whole checkpoint or none.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vologan_fast.files import folder_aside, publish, remove_folder
from vologan_fast.networks import Networks

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong with it."""


def save_checkpoint(folder: Path, step: int, networks: Networks, state: dict[str, Any], keep: int) -> Path:
    """Write `folder`/step-######## and remove all but the `keep` latest; returns the checkpoint's path.

    Raises CheckpointError where the disk does not take it; the checkpoints that were there stay.
    """
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        with folder_aside(target) as aside:
            _write(aside, networks, state)
            publish(target)  # in place of an old one, where the run was resumed from an earlier step
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own words for a full disk
        kept = ", ".join(path.name for path in list_checkpoints(folder)) or "none"
        raise CheckpointError(f"{target}: cannot be written ({error}); complete checkpoints: {kept}") from error
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return target


def _write(folder: Path, networks: Networks, state: dict[str, Any]) -> None:
    for name, network in networks.named_children():
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    torch.save(state, folder / "state.pt")


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for partial in folder.glob("*.partial"):
        shutil.rmtree(partial)


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest step first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of finished steps that a checkpoint's name states."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint}: expected a folder named step-########")
    return int(match[1])


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that `save_checkpoint` was given. Raises CheckpointError."""
    try:
        return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for a damaged file
        raise CheckpointError(f"{checkpoint / 'state.pt'}: cannot be read ({error})") from error


def load_weights(checkpoint: Path, networks: Networks, averages: bool = True) -> None:
    """Load the networks' weights from a checkpoint's folder; without `averages` only the four that learn.

    Raises CheckpointError for what does not fit.
    """
    for name, network in networks.named_children():
        if averages or not name.startswith("average_"):
            _load_network(checkpoint / f"{name}.safetensors", network)


def _load_network(path: Path, network: nn.Module) -> None:
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder with the networks") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: made by a network of another configuration ({first})") from error
