"""A model folder: one generator with its configuration and a model card, as a Hugging Face repository holds them.

DIR/
    model.safetensors   the weights, as they were trained, under our names; the header says the direction
    config.json         the run's; "data" is only the name of the data set, because its place is nobody's business
    README.md           the model card (see card.py)
    checksums.json      size and checksum of the weights (see training/checksums.py); config.json has its own
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from vologan_fast.checksums import CHECKSUMS, checksums, entry_of
from vologan_fast.config import ConfigError
from vologan_fast.files import write_whole
from vologan_fast.training.checkpoint import load_tensors
from vologan_fast.training.checksums import DamagedError, read_checksums
from vologan_fast.training.run_folder import read_config, write_config
from vologan_fast.translation.card import CARD, data_name, foreign_card, model_card
from vologan_fast.translation.foreign import ForeignTranslator
from vologan_fast.translation.programs import SUFFIXES
from vologan_fast.translation.translator import MODEL_FILE, Translator, recorded_direction


def write_model_folder(model: Translator, folder: Path, license: str | None = None) -> list[Path]:
    """Write the model folder of a run's or a foreign generator, or write it again. Returns its files.

    `license` is a licence as Hugging Face names it, such as `mit` or `cc-by-4.0`; none means that none was chosen.
    Raises ConfigError for a folder that holds other files of these names, and if `model` comes from a model folder.
    Raises OSError if the folder cannot be written.
    """
    files = [folder / MODEL_FILE, folder / "config.json", folder / CARD, folder / CHECKSUMS]
    if model.weights.name == MODEL_FILE:
        raise ConfigError(f"{model.weights}: is in a model folder already; expected a run or a checkpoint")
    _refuse_replacing(model, folder)
    if isinstance(model, ForeignTranslator):
        data, config, weights = "unknown", model.config, model.generator.state_dict()
        card = foreign_card(model, license, programs_in(folder))
    else:
        data, config = read_config(model.config_file)
        weights = load_tensors(model.weights)
        card = model_card(model, data, config, license, programs_in(folder))
    folder.mkdir(parents=True, exist_ok=True)
    # One entry in the header: safetensors writes several in any order, and the same weights should give the same file.
    data_of_weights = save(weights, {"direction": model.direction})
    # The checksum comes first, and the weights last. So if this process is killed, nobody can take the weights of one
    # run with the record of another: the checksum is not that of the former weights.
    write_whole(files[3], checksums(None, {MODEL_FILE: entry_of(data_of_weights)}), alone=True)
    write_config(folder, data_name(data), config)
    # Names of programs may have bytes that are not UTF-8.
    write_whole(files[2], card.encode(errors="replace"), alone=True)
    write_whole(files[0], data_of_weights, alone=True)
    return files


def programs_in(folder: Path) -> list[str]:
    """Return the names of the exported programs in a folder, without its subfolders."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in SUFFIXES.values() and path.is_file())


def _refuse_replacing(model: Translator, folder: Path) -> None:
    """Raise ConfigError if the folder holds files of other things, such as a run or a project, or another direction."""
    has_weights = (folder / MODEL_FILE).exists()
    if has_weights and (found := recorded_direction(folder / MODEL_FILE)) != model.direction:
        raise ConfigError(f"{folder}: holds the weights of {found}; expected another folder for {model.direction}")
    try:
        summed = read_checksums(folder, None)
    except DamagedError:
        summed = {MODEL_FILE: {}} if has_weights else {}
    if summed is not None and set(summed) != {MODEL_FILE}:  # those of a checkpoint, for example
        raise ConfigError(f"{folder / CHECKSUMS}: exists; expected a new folder, or one with {MODEL_FILE}")
    if has_weights or summed is not None:  # an export that was killed has left the checksum alone
        return
    for name in ("config.json", CARD):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: exists; expected a new folder, or one with {MODEL_FILE}")
