"""Tiny runs for the tests of what becomes of a trained generator. Nothing is trained: the weights are random."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vologan_fast.config import PRESETS, Config, DepthSpec
from vologan_fast.networks import Networks
from vologan_fast.training.checkpoint import save_checkpoint
from vologan_fast.training.run_folder import write_config

DEPTH = DepthSpec("m", None, 0.5, 4.5, (0.0,), None, None, "float")


def tiny(preset: str = "demo", **generator: object) -> Config:
    """Return a preset with the smallest networks. `generator` changes settings of the generator."""
    config = PRESETS[preset]
    small = {"width": 4, "max_width": 8, "levels": 1, **generator}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, size=32, synthetic=DEPTH, real=DEPTH),
        generator=dataclasses.replace(config.generator, **small),  # type: ignore[arg-type]
        discriminator=dataclasses.replace(config.discriminator, widths=(4, 4, 8), down_widths=(4, 4, 8)),
    )


def make_run(
    folder: Path, config: Config | None = None, data: str = "/data/of/somebody/rooms", fingerprint: str = "f" * 64
) -> Path:
    """Write a run folder with one checkpoint, whose weights are all random, and return it."""
    config = config or tiny()
    torch.manual_seed(0)
    networks = Networks(config)
    with torch.no_grad():
        for network in networks.translators:
            for parameter in network.parameters():  # the residual network begins as the identity
                parameter.add_(0.2 * torch.randn_like(parameter))
    state = {"step": 7, "optimizers": {}, "loader": {}, "data": fingerprint, "rng": torch.zeros(1)}
    state["cuda_rng"] = None
    save_checkpoint(folder / "checkpoints", 7, networks, state, keep=1)
    write_config(folder, data, config)
    lines = [
        {"step": 5, "split": "held_out", "generator_st/cycle": 0.5, "generator_ts/cycle": 0.25},
        {"step": 7, "split": "train", "generator_st/cycle": 0.125},
        {"step": 9, "split": "held_out", "generator_st/cycle": 0.0625, "generator_ts/cycle": 0.03125},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def error(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one sentence with which a command fails."""
    assert main(list(arguments)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]
