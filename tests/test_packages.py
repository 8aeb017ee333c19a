"""The two packages have one version, and vologan-kernels needs torch alone."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import distribution, requires, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_both_packages_have_one_version():
    assert version("vologan-kernels") == version("vologan-fast")
    assert f"vologan-kernels=={version('vologan-fast')}" in requires("vologan-fast")


def lend(name: str, packages: Path) -> None:
    """Links a distribution and all that it needs into the folder `packages`."""
    requirements = pytest.importorskip("packaging.requirements")
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(installed.locate_file(top))
    for requirement in map(requirements.Requirement, installed.requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            lend(requirement.name, packages)


@pytest.fixture
def python(tmp_path) -> Path:
    """The interpreter of an environment that holds torch, what torch needs, and the wheel of vologan-kernels."""
    pytest.importorskip("scikit_build_core")
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT / "kernels"]
    subprocess.run(wheel, check=True)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *tmp_path.glob("*.whl")], check=True)
    lend("torch", next(tmp_path.glob("venv/lib/python*/site-packages")))
    return python


RUN_GUIDE = """
import re, sys, vologan_kernels
assert vologan_kernels.__file__.startswith(sys.prefix), vologan_kernels.__file__
for absent in "matplotlib", "numpy", "vologan_fast":
    try:
        __import__(absent)
    except ImportError:
        continue
    raise AssertionError(f"{absent} is there")
namespace = {}
for block in re.findall(r"```python\\n(.*?)```", sys.stdin.read(), re.DOTALL):
    exec(block, namespace)
"""


@pytest.mark.slow
def test_the_guides_to_the_kernels_run_with_torch_alone(python, tmp_path):
    guides = [*sorted((ROOT / "docs").glob("kernels*.md")), ROOT / "kernels" / "README.md"]
    assert len(guides) > 1
    for guide in guides:
        text = guide.read_text()
        result = subprocess.run(
            [python, "-c", RUN_GUIDE], input=text, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{guide.name}: {result.stderr}"
        assert result.stdout == "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)), guide.name
