"""The command `python -m vologan_fast.doctor`, on this machine and on machines with parts that are really broken."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tyro")  # training needs it
import vologan_kernels

import vologan_fast
from vologan_fast.diagnosis.finding import Finding
from vologan_fast.diagnosis.isolated import findings
from vologan_fast.diagnosis.probes import PROBES, Probe
from vologan_fast.doctor import report

WITHOUT = "TRITON_INTERPRET", "VOLOGAN_KERNELS_LEVEL", "XDG_CACHE_HOME", "CC"


class Machine:
    """An environment of Python with copies of both packages, in which a test breaks things."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "env" / "bin" / "python"
        self.environment = {name: value for name, value in os.environ.items() if name not in WITHOUT}
        self.environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "TRITON_CACHE_DIR": str(folder / "triton")}
        venv.create(folder / "env", symlinks=True)
        (self.packages,) = (folder / "env" / "lib").glob("python*/site-packages")
        # The others come from this environment. Its own .pth files, such as those of editable installations, do not.
        (self.packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
        for package in (vologan_fast, vologan_kernels):
            for path in package.__path__:  # an editable installation has two folders
                target = self.packages / package.__name__
                shutil.copytree(path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

    def file(self, pattern: str) -> Path:
        """Return the one installed file that the pattern means."""
        (path,) = self.packages.glob(pattern)
        return path

    def stand_in(self, package: str, code: str) -> None:
        """Install another package under the name of one that is there."""
        folder = self.packages / package.replace(".", "/")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code)

    def doctor(self, *arguments: str) -> tuple[int, dict[str, Finding], dict[str, object]]:
        """Run the command. Return its status, the findings by name (of fast paths as "fast NAME"), and its JSON."""
        command = [self.python, "-m", "vologan_fast.doctor", "--json", *arguments]
        ended = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
        said = json.loads(ended.stdout)
        found = [Finding(**fields) for fields in said["findings"]]
        assert all(finding.found.isprintable() and finding.advice.isprintable() for finding in found)
        lines = list(report(found))
        assert all(any(finding.found in line for line in lines) for finding in found)
        names = {f"{'fast ' if f.group == 'fast paths' else ''}{f.name}": f for f in found}
        return ended.returncode, names, said


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def unreadable(folder: Path) -> Path:
    """Make a folder that cannot be read. Root can read all folders, so then it is a file."""
    folder.mkdir()
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        folder.rmdir()
        folder.write_text("")
    return folder


def test_a_whole_machine(machine: Machine) -> None:
    status, found, said = machine.doctor()
    assert (status, said["can_train"]) == (0, True)
    assert {finding.state for finding in found.values()} <= {"works", "off"}, found
    assert found["depth decoder"].found.startswith(("avx2", "sse4.1", "neon", "scalar"))
    assert found["batches"].found.startswith(("avx512", "avx2", "scalar"))
    assert found["torch"].state == found["a step"].state == found["native norm"].state == "works"
    assert found["fast native norms"].found == found["native norm"].found
    assert found["memory"].found.endswith("free") and "runs" in found["run folders"].found
    assert not (machine.folder / "runs").exists()
    assert list(report(list(found.values())))[-1] == "training can run here"


def test_broken_optional_parts_are_lines_and_training_can_run(machine: Machine) -> None:
    tools = machine.folder / "tools"  # a PATH without a compiler
    tools.mkdir()
    machine.environment["PATH"] = str(tools)
    machine.file("vologan_fast/_image_loader*.so").unlink()
    machine.file("vologan_kernels/_native.so").write_text("no library")
    machine.stand_in("nvidia", "")
    machine.stand_in("nvidia.dali", "raise ImportError('libdali.so: cannot open shared object file')")
    machine.environment["XDG_CACHE_HOME"] = str(unreadable(machine.folder / "closed"))
    status, found, said = machine.doctor()
    assert (status, said["can_train"]) == (0, True)
    states = {name: found[name].state for name in ("Triton", "JPEG loader", "native norm", "DALI", "cache folder")}
    assert states == {
        "Triton": "broken",
        "JPEG loader": "off",
        "native norm": "broken",
        "DALI": "broken",
        "cache folder": "broken",
    }
    assert "compiler" in found["Triton"].found and "C compiler" in found["Triton"].advice
    assert "Pillow" in found["JPEG loader"].found and "Pillow" in found["fast native loading"].found
    assert "_native.so cannot be loaded" in found["native norm"].found == found["fast native norms"].found
    assert "libdali.so" in found["DALI"].found
    assert "closed" in found["cache folder"].found
    assert found["a step"].state == "works"


def test_a_machine_that_cannot_train(machine: Machine) -> None:
    machine.file("vologan_fast/_depth*.so").unlink()
    machine.stand_in("triton", "")
    closed = unreadable(machine.folder / "closed\x1b[31m")
    status, found, said = machine.doctor("--run-dir", str(closed / "runs"))
    assert (status, said["can_train"]) == (1, False)
    assert "_depth" in found["depth decoder"].found and "make setup" in found["depth decoder"].advice
    assert found["Triton"].state == "broken" and "triton" in found["Triton"].found
    assert r"closed\x1b[31m" in found["run folders"].found
    assert found["torch"].state == found["memory"].state == "works"
    last = list(report(list(found.values())))[-1]
    assert last.startswith("training cannot run here: ") and {"depth decoder", "run folders", "a step"} <= set(
        last.partition(": ")[2].split(", ")
    )


@pytest.mark.slow
def test_a_library_that_ends_the_process_is_a_line(machine: Machine) -> None:
    """The rest of a library that is cut off is read past its end, which is SIGBUS. Training would die of it, too."""
    library = machine.file("vologan_kernels/_native.so")
    library.write_bytes(library.read_bytes()[:1000])
    machine.stand_in("nvidia", "")
    machine.stand_in("nvidia.dali", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    status, found, _ = machine.doctor()
    assert status == 1
    assert "SIGSEGV" in found["DALI"].found
    assert all("SIG" in found[name].found for name in ("native norm", "a step"))
    assert found["memory"].state == found["batches"].state == "works"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stand_in", "code", "broken", "status"),
    [
        ("triton", "raise ImportError('libtriton.so: version GLIBC_9 not found')", "GLIBC_9", 0),
        ("triton", "raise SystemExit(3)", "SystemExit", 1),  # torch imports Triton where it is installed
        ("torch", "raise OSError('libcudart.so.13: cannot open shared object file')", "libcudart", 1),
        ("torch", "import os\nos._exit(4)", "status 4", 1),
        ("numpy", "1 / 0", "ZeroDivisionError", 1),
        ("tyro", "raise ImportError('<script>\x1b[2J\\n')", r"\x1b[2J", 1),
    ],
)
def test_a_broken_package_is_a_line(machine: Machine, stand_in: str, code: str, broken: str, status: int) -> None:
    machine.stand_in(stand_in, code)
    ended, found, _ = machine.doctor()
    assert ended == status
    assert any(broken in finding.found for finding in found.values() if finding.state == "broken")
    assert found["memory"].state == "works"


def test_a_probe_that_hangs_or_crashes_stops_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The names are those of real probes in the other process, which is another program here."""
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\nshift 3\nfor name; do case $name in\n  hangs) sleep 60 ;;\n  crashes) kill -ILL $$ ;;\n"
        """  *) echo '{"probe": "", "findings": []}' ;;\nesac; done\n"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def look(folder: Path) -> Iterator[Finding]:
        return iter(())

    for name in list(PROBES):
        monkeypatch.delitem(PROBES, name)
    for name in ("fine", "hangs", "crashes", "fine too"):
        monkeypatch.setitem(PROBES, name, Probe(look, "group", name, "mend it", needed=name == "crashes"))
    found = findings(tmp_path, seconds=2)
    assert [finding.name for finding in found] == ["hangs", "crashes"]
    assert "within 2 s" in found[0].found and "SIGILL" in found[1].found
    assert [finding.prevents_training for finding in found] == [False, True]
