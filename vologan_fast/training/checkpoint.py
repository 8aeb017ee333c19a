"""Checkpoints: one folder per saved step.

    checkpoints/step-00001200/
        generator_st.safetensors  generator_ts.safetensors  discriminator_s.safetensors  discriminator_t.safetensors
        average_st.safetensors  average_ts.safetensors      only with train.average; translate with these generators
        state.pt          the rest of the state that a resumed run needs: optimisers, random number generators, loader,
                          step; with loss.pool, the image pools of all processes
        checksums.json    sizes and checksums of these files (see checksums.py), written last
    checkpoints/best      a link to the checkpoint that was judged best; best-t2s: the same for the other direction

    checkpoints/.reserve      room for the next checkpoint: it is given up when the checkpoint is written

A checkpoint is written into a folder with another name, synced to the disk and then renamed. If the process is killed,
either the whole checkpoint exists or none. A file is compared with its checksum whenever it is read.
"""

from __future__ import annotations

import math
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vologan_fast.checksums import CHECKSUMS
from vologan_fast.files import aside_of, folder_aside, publish, remove, remove_whole, reserve, sync
from vologan_fast.networks import Networks
from vologan_fast.training.checksums import CheckpointError as CheckpointError
from vologan_fast.training.checksums import DamagedError as DamagedError
from vologan_fast.training.checksums import SummedFile, checked, read_checksums, write_checksums
from vologan_fast.words import in_words, say_error

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
_RESERVE = ".reserve"
"""The file that takes the room for the next checkpoint."""
_ROOM_FOR_LOGS = 1 << 20
"""Bytes that are reserved beside a checkpoint, for the lines before it."""
BEST = {"s2t": "best", "t2s": "best-t2s"}
"""The name of the link to the best checkpoint, for each direction of translation."""


def save_checkpoint(
    folder: Path,
    step: int,
    networks: Networks,
    state: dict[str, Any],
    keep: int,
    scores: Mapping[int, float] = {},
    every: int = 0,
) -> Path:
    """Write `folder`/step-########, and return its path.

    The `keep` latest checkpoints stay, those whose step is a multiple of `every`, those that are linked as the best,
    and the one with the lowest of the `scores`, which are by step. The others are removed. Between two checkpoints, a
    file takes the room for the next one, so that nothing else can fill the disk. Raises CheckpointError if the new one
    cannot be written; then all older checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        give_up_reserve(folder)
        _remove_unfinished(folder)
        with folder_aside(target, alone=True) as aside:  # the run folder is locked
            _write(aside, step, networks, state)
            publish(target, replace=True)  # it may replace an old one, if the run was resumed from an earlier step
        best = [*(find_best(folder, direction) for direction in BEST), lowest_score(folder, scores)]
        for old in list_checkpoints(folder)[:-keep]:
            if old not in best and not (every and step_of(old) % every == 0):
                remove_whole(old)
        _reserve(folder, sum(file.stat().st_size for file in target.iterdir()) + _ROOM_FOR_LOGS)
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own where a write has failed
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = ", ".join(path.name for path in list_checkpoints(folder)) or "none"
        raise CheckpointError(
            f"{target}: cannot be written ({getattr(reason, 'strerror', None) or reason}); complete checkpoints: {kept}"
        ) from error
    return target


def give_up_reserve(folder: Path) -> None:
    """Free the room that is reserved in `folder` for the next checkpoint."""
    (folder / _RESERVE).unlink(missing_ok=True)


def _reserve(folder: Path, size: int) -> None:
    """Reserve `size` bytes for the next checkpoint. Say so if there is no room."""
    if not reserve(folder / _RESERVE, size):
        free = in_words(shutil.disk_usage(folder).free)
        what = f"{free} are free on the disk, and the next checkpoint needs {in_words(size)}"
        say_error(f"warning: {folder}: {what}")


def _write(folder: Path, step: int, networks: Networks, state: dict[str, Any]) -> None:
    entries = {}
    for name, network in networks.named_children():
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        with SummedFile(folder / f"{name}.safetensors") as file:
            file.write(save(tensors))
        entries[f"{name}.safetensors"] = file.entry
    with SummedFile(folder / "state.pt") as file:
        torch.save(state, file)
    write_checksums(folder, step, entries | {"state.pt": file.entry})


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
    """Return the checkpoint in `folder` with the lowest of the scores, which are by step. None if none has a score.

    A score that is NaN is the worst.
    """
    scored = [path for path in list_checkpoints(folder) if step_of(path) in scores]
    return min(scored, key=lambda path: nan_last(scores[step_of(path)]), default=None)


def nan_last(score: float) -> float:
    """Return a score by which NaN, which no comparison orders, comes after all others."""
    return math.inf if math.isnan(score) else score


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


def set_damaged_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for a checkpoint any more. Returns the new path.

    Raises CheckpointError if the folder cannot be written.
    """
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    try:
        remove(aside)
        checkpoint.rename(aside)
        sync(checkpoint.parent)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: damaged, and cannot be renamed ({error.strerror or error})") from error
    return aside


def check_whole(checkpoint: Path, state: bool = True) -> None:
    """Read all files of a checkpoint, or only its weights.

    Raises CheckpointError, and names the file, if one is damaged or missing.
    """
    files = _checksums(checkpoint)
    if files is None:  # of a former version
        if state:
            load_state(checkpoint)
        for path in sorted(checkpoint.glob("*.safetensors")):
            load_tensors(path)
        return
    for name in files:
        if state or name != "state.pt":
            with checked(checkpoint / name, files):
                pass


def has_checksums(checkpoint: Path) -> bool:
    """Return whether damage of the checkpoint's files would be noticed. Former versions wrote no checksums."""
    return (checkpoint / CHECKSUMS).exists()


def newest_whole(folder: Path) -> str:
    """Return a part of a sentence that names the newest checkpoint in `folder` that is not damaged, if there is one."""
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            check_whole(checkpoint)
        except CheckpointError:
            continue
        return f"the newest whole checkpoint is {checkpoint}"
    return f"there is no whole checkpoint in {folder}"


def listed(checkpoint: Path, name: str) -> bool:
    """Return whether a file belongs to a checkpoint: by its checksums, or without them, because it is there.

    Raises CheckpointError for damaged checksums.
    """
    files = _checksums(checkpoint)
    return (checkpoint / name).is_file() if files is None else name in files


def _checksums(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    """Return what the checksums.json of a folder tells. None if there is none."""
    named = _NAME.fullmatch(checkpoint.name)  # a copy, or a link, may have another name
    return read_checksums(checkpoint, int(named[1]) if named else None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the `state` that was passed to `save_checkpoint`.

    Raises CheckpointError if it is damaged, lacks an entry, or belongs to another step than the folder's name.
    """
    path = checkpoint / "state.pt"
    with checked(path, _checksums(checkpoint)) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its message advises to load it without a check
            expected = "expected tensors, numbers and texts alone, because anything else may run code"
            raise DamagedError(f"{path}: damaged, or made by something else ({expected})") from error
        except Exception as error:  # torch.load raises a dozen types for a damaged file
            raise DamagedError(f"{path}: damaged ({_first_sentence(error)})") from error
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


def _first_sentence(error: Exception) -> str:
    """Return the first line of a message of torch, without the paths in its source that may follow."""
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__


def load_weights(checkpoint: Path, networks: Networks, averages: bool = True) -> None:
    """Load the weights of the networks from a checkpoint's folder.

    Without `averages`, load only the four networks that are trained. Raises CheckpointError for a file that is missing,
    damaged, or from a network of another configuration, and for weights that are not finite.
    """
    for name, network in networks.named_children():
        if averages or not name.startswith("average_"):
            path = checkpoint / f"{name}.safetensors"
            load_network(path, network)
            for key, value in network.state_dict().items():
                if not value.isfinite().all():  # no step has run yet, so this is no fault of the learning rate
                    raise DamagedError(f"{path}: {key}: expected finite weights, found NaN or infinite values")


def load_network(path: Path, network: nn.Module) -> None:
    """Load the weights of one network from a .safetensors file. Raises CheckpointError, as `load_weights` does."""
    tensors = load_tensors(path)
    for name, value in network.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            found = f"expected {value.dtype}, found {tensors[name].dtype}"
            raise CheckpointError(f"{path}: made by a network of another configuration ({name}: {found})")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: made by a network of another configuration ({first})") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, by their names, after a comparison with the checksum beside it.

    Raises CheckpointError for a file that is missing or damaged.
    """
    with checked(path, _checksums(path.parent)) as file:
        data = file.read()
    try:
        return load(data)
    except Exception as error:  # safetensors checks the header, and json, numpy and torch what it does not
        raise DamagedError(f"{path}: damaged, not a readable safetensors file ({_first_sentence(error)})") from error
