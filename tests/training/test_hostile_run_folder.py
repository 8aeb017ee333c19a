"""The run folder of a stranger: its links lead to files of ours, its records hold anything. Nothing outside changes."""

import shutil
from pathlib import Path

import pytest
import torch
from test_train import resume, train

from vologan_fast.data.demo import make_demo
from vologan_fast.evaluate import main as evaluate

SAVING = ["--train.validate-every", "1", "--train.save-every", "1", "--train.keep-checkpoints", "1"]
FILES = [
    "report.html",
    ".report.html.partial",
    ".metrics.jsonl.partial",
    "metrics.damaged.jsonl",
    "samples/step-00000002.png",
    "samples/.step-00000002.png.partial",
    "checkpoints/.reserve",
    "checkpoints/best",
    "checkpoints/.best.partial",
]
"""Names at which training writes a file. All of them become links at once."""
FOLDERS = [
    "checkpoints/step-00000002",
    "checkpoints/.step-00000002.partial",
    "checkpoints/.step-00000002.old.partial",
    "checkpoints/.step-00000001.old.partial",
    "checkpoints/step-00000000",
]
"""Names at which it makes or removes a folder."""
REFUSED = [".lock", "metrics.jsonl", "samples", "tensorboard", "wandb", "checkpoints", "bad_steps"]
"""Names that are opened to go on there. A link is refused."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, demo):
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("begun") / "run"
    assert train(run, demo, *SAVING, "--max-steps", "1") == 0
    return run


@pytest.fixture
def run(tmp_path, begun):
    return shutil.copytree(begun, tmp_path / "run", symlinks=True)


@pytest.fixture
def ours(tmp_path):
    """A folder with files, to which the stranger's links lead. After the test, it must be as it was."""
    folder = tmp_path / "ours"
    for name in ("letter", "folder/step-00000000/state.pt", "folder/step-00000002/photo"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"our {name}\n")
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def link(path: Path, target: Path) -> None:
    """Put a link at the path, in place of what is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_evaluate_writes_into_no_link(run, ours, capsys):
    link(run / "evaluation", ours / "folder")
    assert evaluate([str(run)]) != 0
    error = capsys.readouterr().err
    assert "evaluation: expected a folder of this folder, found a link" in error, error


def test_links_at_all_names_that_are_written_lead_nowhere(run, ours, tmp_path):
    for name in FILES:
        link(run / name, ours / ("letter" if "best" not in name else "folder"))
    for name in FOLDERS:
        link(run / name, ours / "folder")
    with (run / "metrics.jsonl").open("a") as log:
        log.write("no record, so that the former log is kept\n")
    assert resume(run, "--max-steps", "2", "--train.report-every", "0") == 0
    for name in ("report.html", "samples/step-00000002.png", "checkpoints/step-00000002", "metrics.damaged.jsonl"):
        assert (run / name).exists() and not (run / name).is_symlink(), name
    assert (run / "checkpoints/step-00000002/state.pt").is_file()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("exists", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_link_where_a_run_goes_on_is_refused(run, ours, capsys, name, exists):
    is_folder = name != ".lock" and not name.endswith(".jsonl")
    target = ours / ("folder" if is_folder else "letter") if exists else ours / "absent"
    if name == "metrics.jsonl" and exists:
        target = ours / "empty"
        target.touch()
    link(run / name, target)
    code = resume(run, "--max-steps", "2")
    *warnings, error = capsys.readouterr().err.splitlines()
    if name == "metrics.jsonl":  # the lines of the log that was there are missing
        assert len(warnings) == 1 and "the report lacks the lost lines" in warnings.pop()
    if target.name == "empty":
        assert target.read_bytes() == b""
        target.unlink()  # `ours` looks for changes
    assert code == 1 and not warnings and "Traceback" not in error, error
    assert f"{name}: expected a fil" in error or f"{name}: expected a folder" in error, error
