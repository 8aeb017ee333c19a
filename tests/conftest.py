"""Fixtures for all tests: the folder of real images, equal random numbers, and the scripts in bench/static_cost."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any test imports Triton, whose decorators read it


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Return the folder of real RGB-D images: $VOLOGAN_TEST_DATA, by default `../shared/data` beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOLOGAN_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real images: neither $VOLOGAN_TEST_DATA nor {default}")
    return folder


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """Give every test the same random numbers, and one thread, since the tensors are too small for more.

    On a GPU, cuDNN takes convolutions that give the same bits each time, whatever a test before has set.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def counting_script() -> Callable[[str], ModuleType]:
    """Return a function that imports a script of bench/static_cost by its name."""
    pytest.importorskip("triton")
    folder = str(Path(__file__).parents[1] / "bench" / "static_cost")

    def load(name: str) -> ModuleType:
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)

    return load
