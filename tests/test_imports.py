"""The order of imports, and the modules that an import loads, so that each part can be used without the others."""

import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import circle, imported, imports

ROOT = Path(__file__).parents[1]

FLOORS = """
vologan_fast.train  vologan_fast.translate  vologan_fast.evaluate  vologan_fast.export  vologan_fast.hub
vologan_fast.profile  vologan_fast.doctor  vologan_fast.sweep  vologan_fast.data.__main__  vologan_fast.report.__main__
vologan_fast.commands
vologan_fast.profiling  vologan_fast.translation  vologan_fast.diagnosis  vologan_fast.sweeping
vologan_fast.training
vologan_fast.report
vologan_fast.quantities
vologan_fast.evaluation
vologan_fast.networks  vologan_fast.data
vologan_fast.checksums
vologan_fast.files  vologan_fast.depth
vologan_fast.depth_libraries
vologan_fast.config  vologan_fast.host
vologan_fast
vologan_fast.stopping
vologan_fast.words
vologan_kernels
"""
"""The layers of the project ("floors"), from the top down; each name is a "room". A module belongs to the room with the
longest name that its own name begins with. It may import from its own room and from lower floors, but not from other
rooms on its floor."""

FLOORS_OF_DATA = """
vologan_fast.data.__main__
vologan_fast.data  vologan_fast.data.convert  vologan_fast.data.demo
vologan_fast.data.pack  vologan_fast.data.inspection
vologan_fast.data.loader
vologan_fast.data.dataset  vologan_fast.data.loaders  vologan_fast.data.augmentation
vologan_fast.data.manifest  vologan_fast.data.depth_spec  vologan_fast.data.shards.remote
vologan_fast.data.pixels  vologan_fast.data.shards
vologan_fast.data.skipping  vologan_fast.data.waiting  vologan_fast.data.checksums
vologan_fast.data.records  vologan_fast.data.sampling  vologan_fast.data.names
vologan_fast.data.errors  vologan_fast.data.damage
"""
"""The floors inside the room `vologan_fast.data`."""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_the_kernels_need_torch_and_nothing_else():
    hidden = "nvidia.dali", "triton", "vologan_fast", "OpenEXR", "cv2", "PIL"
    code = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\nimport torch, vologan_kernels as k\n"
    result = run(code + "print(k.instance_norm_act(torch.rand(1, 2, 4, 4)).shape)")
    assert result.stdout.strip() == "torch.Size([1, 2, 4, 4])", result.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vologan_fast", ["torch", "numpy", "nvidia.dali"]),
        ("vologan_fast.config", ["torch", "nvidia.dali"]),
        ("vologan_fast.depth", ["torch", "OpenEXR"]),
        ("vologan_fast.data", ["nvidia.dali", "vologan_fast.networks"]),
        ("vologan_fast.networks", ["vologan_fast.data", "vologan_fast.training.losses"]),
        ("vologan_fast.training.step", ["vologan_fast.data", "vologan_fast.training.trainer"]),
    ],
)
def test_imports_stay_cheap_and_go_one_way(module, absent):
    result = run(f"import sys, {module}\nprint([name for name in {absent} if name in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


def upward(graph, floors):
    """Yield the imports that do not go to a lower floor."""
    rooms = {room: height for height, floor in enumerate(floors.split("\n")) for room in floor.split()}

    def room_of(module):
        return max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default=None)

    for module, others in graph.items():
        for other in sorted(others):
            here, there = room_of(module), room_of(other)
            if None not in (here, there) and here != there and rooms[here] >= rooms[there]:
                yield f"{module} imports {other}"


@pytest.fixture(scope="module")
def graph():
    return imports(ROOT / "vologan_fast", ROOT / "kernels" / "vologan_kernels")


def test_imports_go_down_the_floors(graph):
    assert list(upward(graph, FLOORS)) == []
    assert list(upward(graph, FLOORS_OF_DATA)) == []


def test_every_module_has_a_floor(graph):
    rooms = [room for room in FLOORS.split() if room != "vologan_fast"]
    assert [m for m in graph if not any(f"{m}.".startswith(f"{room}.") for room in rooms)] == ["vologan_fast"]


def test_no_modules_import_each_other_in_a_circle(graph):
    assert circle(graph) is None


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("vologan_fast.networks.blocks", "def late(): from vologan_fast.training import losses", "training.losses"),
        ("vologan_fast.networks.blocks", "from vologan_fast.data import records", "data.records"),
        ("vologan_fast.report.grid", "import vologan_fast.training.trainer", "training.trainer"),
        ("vologan_fast.training.trainer", "from vologan_fast.train import main", "train"),
        ("vologan_fast.config", "from vologan_fast.depth import decode", "depth"),
        ("vologan_kernels.launch", "from vologan_fast import config", "config"),
        ("vologan_fast.data.pixels", "from vologan_fast.data.manifest import find_records", "data.manifest"),
        ("vologan_fast.data.loaders.native", "from vologan_fast.data import open_loader", "data"),
    ],
)
def test_an_upward_import_would_be_found(graph, module, line, found):
    changed = graph | {module: set(imported(line, graph))}
    expected = [f"{module} imports vologan_fast.{found}"]
    assert list(upward(changed, FLOORS)) + list(upward(changed, FLOORS_OF_DATA)) == expected


def test_a_circle_would_be_found(graph):
    changed = graph | {"vologan_fast.data.errors": {"vologan_fast.data.loaders.native"}}
    assert {"vologan_fast.data.errors", "vologan_fast.data.loaders.native"} <= set(circle(changed))


def test_a_circle_is_found_also_through_a_function(tmp_path):
    package = tmp_path / "pack"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from pack.a import x\n")
    (package / "a.py").write_text("def f():\n    from pack.inner import b\n")
    (package / "inner" / "__init__.py").write_text("import os\n")
    (package / "inner" / "b.py").write_text("import pack.inner\n")
    assert imports(package) == {
        "pack": {"pack.a"},
        "pack.a": {"pack.inner.b"},
        "pack.inner": set(),
        "pack.inner.b": {"pack.inner"},
    }
    assert circle(imports(package)) is None
    (package / "inner" / "b.py").write_text("from pack import a\n")
    assert set(circle(imports(package))) == {"pack.a", "pack.inner.b"}
