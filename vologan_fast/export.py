"""The command `python -m vologan_fast.export`: the generator of a run as a file that runs elsewhere.

python -m vologan_fast.export runs/first --out exported                            # s2t.pt2 and s2t.onnx
python -m vologan_fast.export runs/first --out exported --format onnx --precision fp16
python -m vologan_fast.export runs/first --out model --format safetensors --license mit
python -m vologan_fast.export latest_net_G_A.pth --foreign --out model --format safetensors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vologan_fast import stopping
from vologan_fast.config import ConfigError
from vologan_fast.words import say, say_error, say_lines

if TYPE_CHECKING:
    from vologan_fast.translation.programs import Agreement
    from vologan_fast.translation.translator import Translator


@dataclass
class Arguments:
    """Write the generator of a run as a program of torch.export, as ONNX, or as a model folder for Hugging Face.

    A program is compared with the network before it is written.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder, whose last checkpoint is used; or a checkpoint's folder; or a .safetensors file in it; or a model
    folder."""
    out: Path
    """Folder to write. Files of the same names are replaced."""
    direction: Literal["s2t", "t2s"] | None = None
    """`s2t`: the generator that makes synthetic images look real. `t2s`: the other one. Default: the direction of a
    file or a model folder, and s2t for a run or a checkpoint."""
    format: tuple[Literal["torch", "onnx", "safetensors"], ...] = ("torch", "onnx")
    """`torch`: DIRECTION.pt2, for torch.export.load. `onnx`: DIRECTION.onnx. `safetensors`: a model folder with
    model.safetensors, config.json, README.md and checksums.json. You may name several."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Type of the programs' weights and of their computation. Inputs and outputs are always float32. The model folder
    keeps the weights as they are."""
    weights: Literal["average", "trained"] = "average"
    """`average`: the averaged weights, if the run has them. `trained`: the weights of the last step."""
    opset: int | None = None
    """Version of ONNX's operators. Default: the choice of torch."""
    foreign: bool = False
    """RUN is a generator of the PyTorch CycleGAN or of CUT, such as latest_net_G_A.pth, for grey or colour images."""
    license: str | None = None
    """Licence for the model card, as Hugging Face names it, such as `mit` or `cc-by-4.0`."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m vologan_fast.export")
    from vologan_fast.data import DataError
    from vologan_fast.training.checkpoint import CheckpointError
    from vologan_fast.translation.programs import ExportError

    try:
        _export(arguments)
    except (ConfigError, DataError, CheckpointError, ExportError) as error:
        say_error(f"error: {error}")
        return 1
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(arguments.run):
            raise  # a file that cannot be read, which `stopping.run` names
        say_error(f"error: --out {arguments.out}: cannot be written ({error.strerror or error})")
        return 1
    return 0


def _export(arguments: Arguments) -> None:
    from vologan_fast.translation.foreign import load_foreign
    from vologan_fast.translation.model_folder import write_model_folder
    from vologan_fast.translation.programs import check_onnx
    from vologan_fast.translation.translator import load

    _refuse_unused(arguments)
    if "onnx" in arguments.format:
        check_onnx(arguments.opset)
    if arguments.foreign:
        model: Translator = load_foreign(arguments.run, arguments.direction, device="cpu")
    else:
        model = load(arguments.run, arguments.direction, device="cpu", averages=arguments.weights == "average")
    say(f"{model.direction}: {model.weights}")
    for format_ in dict.fromkeys(arguments.format):
        if format_ != "safetensors":
            _write_program(model, format_, arguments)
    if "safetensors" in arguments.format:
        for file in write_model_folder(model, arguments.out, arguments.license):
            say(file)


def _refuse_unused(arguments: Arguments) -> None:
    """Raise ConfigError for an option that none of the formats would use."""
    for option, given, formats in (
        ("opset", arguments.opset is not None, {"onnx"}),
        ("precision", arguments.precision != "fp32", {"torch", "onnx"}),
        ("license", arguments.license is not None, {"safetensors"}),
    ):
        if given and not formats & set(arguments.format):
            found, used = " ".join(arguments.format), " or ".join(sorted(formats))
            raise ConfigError(f"--{option}: expected --format {used}, or no --{option}; found --format {found}")
    if arguments.foreign and arguments.weights != "average":
        raise ConfigError("--weights: expected no such option with --foreign, whose file holds one generator")


def _write_program(model: Translator, format_: Literal["torch", "onnx"], arguments: Arguments) -> None:
    """Make a program, compare it with the network, and write it. Raises ExportError if they differ."""
    from vologan_fast.files import write_whole
    from vologan_fast.translation import programs
    from vologan_fast.translation.job import file_digest

    metadata = programs.describe(model, arguments.precision, file_digest(model.weights))
    half = "-fp16" if arguments.precision == "fp16" else ""
    file = arguments.out / f"{model.direction}{half}{programs.SUFFIXES[format_]}"
    if format_ == "onnx":
        data = programs.as_onnx(model, arguments.precision, metadata, arguments.opset)
        run = programs.run_onnx(data)
    else:
        data = programs.as_torch(model, arguments.precision, metadata)
        run = programs.run_torch(data)
    found = programs.compare(run, model, arguments.precision)
    for agreement in found:
        say(f"  {_line(agreement)}")
    if not all(agreement.holds for agreement in found):
        raise programs.ExportError(f"{file}: not written, because it differs from the network by more than is allowed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(file, data, alone=True)
    say(f"{file}: {len(data) / 1e6:.1f} MB. These lines run it:")
    say_lines(f"\n{programs.how_to_run(file, model)}")


def _line(found: Agreement) -> str:
    shape = " × ".join(map(str, found.shape))
    return (
        f"{shape}: {found.difference:.1e} from the network, {found.error:.1e} from float64 "
        f"(at most {found.allowed:.1e} allowed)"
    )


if __name__ == "__main__":
    stopping.run(main)
