"""Small trained runs for the tests of reports. Their names try to be more than text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_runs import EVIL, trained

from vologan_fast.data.demo import make_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=8, size=32)


@pytest.fixture(scope="session")
def evil_data(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """Return the demo data set in a folder, and with names of files, that are HTML."""
    folder = tmp_path_factory.mktemp("evil") / f"data {EVIL}"
    pairs = {}
    for domain in ("synthetic", "real"):
        place = folder / domain / EVIL
        place.mkdir(parents=True)
        pairs[f"{domain}_data"] = []
        for color in sorted((demo / domain).glob("*.jpg")):
            files = {"color_path": color, "depth_path": color.with_suffix(".exr")}
            for file in files.values():
                shutil.copy(file, place)
            found = {kind: str((place / file.name).relative_to(folder)) for kind, file in files.items()}
            pairs[f"{domain}_data"].append(found)
    (folder / "training_paths.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, evil_data: Path) -> Path:
    """Return a run of three steps on the data with evil names. Its own name is evil, too."""
    return trained(tmp_path_factory.mktemp("runs") / EVIL, evil_data, "--max-steps", "3", "--train.save-every", "1")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, evil_data: Path) -> Path:
    """Return a run on the same data with other settings."""
    options = ["--max-steps", "2", "--loss.cycle", "3", "--generator.hole-head"]
    return trained(tmp_path_factory.mktemp("runs") / "other", evil_data, *options)


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """Return a run of CUT on colour alone, which has one generator and no depth."""
    options = ["--max-steps", "2", "--train.method", "cut", "--data.channels", "rgb", "--contrast.patches", "8"]
    options += ["--discriminator.depth-gradient", "0"]
    return trained(tmp_path_factory.mktemp("runs") / "cut", demo, *options)
