"""Checkpoints: one folder per saved step.

    checkpoints/step-00001200/
        generator_st.safetensors  generator_ts.safetensors  discriminator_s.safetensors  discriminator_t.safetensors
        average_st.safetensors  average_ts.safetensors      only with train.average; translate with these generators
        state.pt          the rest of the state that a resumed run needs: optimisers, random number generators, loader,
                          step; with loss.pool, the image pools of all processes
    checkpoints/best      a link to the checkpoint that was judged best; best-t2s: the same for the other direction

A checkpoint is written into a folder with another name, synced to the disk and then renamed. If the process is killed,
either the whole checkpoint exists or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vologan_fast.files import aside_of, folder_aside, publish, remove, remove_whole, sync
from vologan_fast.networks import Networks

_NAME = re.compile(r"step-(\d{8,})")
_STATE: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "optimizers": dict,
    "loader": dict,
    "data": str,
    "rng": torch.Tensor,
    "cuda_rng": (torch.Tensor, type(None)),
}
"""The entries of the state that a resumed run reads, with their types."""
BEST = {"s2t": "best", "t2s": "best-t2s"}
"""The name of the link to the best checkpoint, for each direction of translation."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written. The message names the file and the problem."""


def save_checkpoint(
    folder: Path, step: int, networks: Networks, state: dict[str, Any], keep: int, scores: Mapping[int, float] = {}
) -> Path:
    """Write `folder`/step-########, and return its path.

    The `keep` latest checkpoints stay, those that are linked as the best, and the one with the lowest of the `scores`,
    which are by step. The others are removed. Raises CheckpointError if the new one cannot be written; then all older
    checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        with folder_aside(target, alone=True) as aside:  # the run folder is locked
            _write(aside, networks, state)
            publish(target, replace=True)  # it may replace an old one, if the run was resumed from an earlier step
        best = [*(find_best(folder, direction) for direction in BEST), lowest_score(folder, scores)]
        for old in list_checkpoints(folder)[:-keep]:
            if old not in best:
                remove_whole(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have own errors for a full disk
        kept = ", ".join(path.name for path in list_checkpoints(folder)) or "none"
        raise CheckpointError(f"{target}: cannot be written ({error}); complete checkpoints: {kept}") from error
    return target


def _write(folder: Path, networks: Networks, state: dict[str, Any]) -> None:
    for name, network in networks.named_children():
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    torch.save(state, folder / "state.pt")


def _remove_unfinished(folder: Path) -> None:
    """Remove the partial folders that a killed process left behind while it wrote or removed them."""
    for pattern in ("step-*.partial", ".step-*.partial"):  # former versions did not hide them
        for partial in folder.glob(pattern):
            remove(partial)


def forget_start(folder: Path) -> None:
    """Remove step 0, which a start from other weights may have left in `folder` when it was killed.

    Raises CheckpointError if there are later steps, which belong to a run.
    """
    for old in reversed(list_checkpoints(folder)):
        if step_of(old) > 0:
            raise CheckpointError(f"{old}: found without config.json; expected both, or neither where a run starts")
        remove_whole(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, lowest step first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def find_best(folder: Path, direction: str = "s2t") -> Path | None:
    """Return the checkpoint in `folder` that is linked as the best. None if there is no such link, or no checkpoint."""
    link = folder / BEST[direction]
    checkpoint = folder / link.readlink() if link.is_symlink() else None
    return checkpoint if checkpoint in list_checkpoints(folder) else None


def lowest_score(folder: Path, scores: Mapping[int, float]) -> Path | None:
    """Return the checkpoint in `folder` with the lowest of the scores, which are by step. None if none has a score."""
    scored = [path for path in list_checkpoints(folder) if step_of(path) in scores]
    return min(scored, key=lambda path: scores[step_of(path)], default=None)


def link_best(checkpoint: Path, direction: str = "s2t") -> Path:
    """Make `best` beside a checkpoint a link to it, or move the link there, at once. Returns the link.

    Raises CheckpointError if it cannot be written, and for a checkpoint that does not exist.
    """
    link = checkpoint.parent / BEST[direction]
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such checkpoint; was it removed by a run that is training?")
    try:
        aside = aside_of(link)
        remove(aside)
        aside.symlink_to(checkpoint.name)
        aside.rename(link)
        sync(link.parent)
    except OSError as error:
        raise CheckpointError(f"{link}: cannot be written ({error.strerror or error})") from error
    return link


def step_of(checkpoint: Path) -> int:
    """Return the number of finished steps, read from the checkpoint's name. Raises CheckpointError for other names."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint}: expected a folder named step-########")
    return int(match[1])


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the `state` that was passed to `save_checkpoint`.

    Raises CheckpointError if it cannot be read, lacks an entry, or belongs to another step than the folder's name.
    """
    path = checkpoint / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for a damaged file
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected the state of a run, found {type(state).__name__}")
    for name, kind in _STATE.items():
        if name not in state:
            raise CheckpointError(f"{path}: expected the entry {name!r}, found only {', '.join(map(str, state))}")
        if not isinstance(state[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(k.__name__ for k in kinds)
            raise CheckpointError(f"{path}: {name}: expected {expected}, found {type(state[name]).__name__}")
    if state["step"] != step_of(checkpoint):
        raise CheckpointError(f"{path}: step: expected {step_of(checkpoint)}, found {state['step']}")
    return state


def load_weights(checkpoint: Path, networks: Networks, averages: bool = True) -> None:
    """Load the weights of the networks from a checkpoint's folder.

    Without `averages`, load only the four networks that are trained. Raises CheckpointError for a file that is missing,
    damaged, or from a network of another configuration.
    """
    for name, network in networks.named_children():
        if averages or not name.startswith("average_"):
            load_network(checkpoint / f"{name}.safetensors", network)


def load_network(path: Path, network: nn.Module) -> None:
    """Load the weights of one network from a .safetensors file. Raises CheckpointError, as `load_weights` does."""
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint folder with the networks") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: made by a network of another configuration ({first})") from error
