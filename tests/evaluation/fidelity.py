"""torch-fidelity for tests, also where its torchvision was built for another torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest


def import_fidelity(name: str) -> ModuleType:
    """Return a module of torch-fidelity. Skip the test if it is not installed.

    The package imports torchvision for other networks. torchvision of a CUDA build cannot be imported beside torch of
    a CPU build. What these tests need from torch-fidelity uses none of it, so a stand-in takes its place then.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for part in ("", ".datasets", ".transforms", ".transforms.functional", ".models"):
            sys.modules[f"torchvision{part}"] = MagicMock()
    return importlib.import_module(f"torch_fidelity.{name}")
