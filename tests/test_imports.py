"""The order of imports, and the modules that an import loads, so that each part can be used without the others."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = """
vologan_fast.train  vologan_fast.profile  vologan_fast.data.__main__
vologan_fast.commands
vologan_fast.profiling
vologan_fast.training
vologan_fast.report
vologan_fast.networks  vologan_fast.data
vologan_fast.files  vologan_fast.depth
vologan_fast.config  vologan_fast
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
vologan_fast.data.dataset  vologan_fast.data.loaders
vologan_fast.data.manifest  vologan_fast.data.depth_spec  vologan_fast.data.shards.s3
vologan_fast.data.pixels  vologan_fast.data.shards
vologan_fast.data.records  vologan_fast.data.sampling
vologan_fast.data.errors
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


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "__init__"))


SOURCES = {
    module_name(path): path for package in ("vologan_fast", "kernels") for path in (ROOT / package).rglob("*.py")
}


def imports_of(source, modules):
    """Yield the modules that a source file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (name if name in modules else node.module,) if node.module in modules else ()


def upward(graph, floors):
    """Yield the imports that do not go to a lower floor."""
    rooms = {room: height for height, floor in enumerate(floors.split("\n")) for room in floor.split()}

    def room_of(module):
        return max((room for room in rooms if f"{module}.".startswith(f"{room}.")), key=len, default=None)

    for module, imported in graph.items():
        for other in sorted(imported):
            here, there = room_of(module), room_of(other)
            if None not in (here, there) and here != there and rooms[here] >= rooms[there]:
                yield f"{module} imports {other}"


@pytest.fixture(scope="module")
def graph():
    return {module: set(imports_of(path.read_text(), SOURCES)) - {module} for module, path in SOURCES.items()}


def test_imports_go_down_the_floors(graph):
    assert list(upward(graph, FLOORS)) == []
    assert list(upward(graph, FLOORS_OF_DATA)) == []


def test_every_module_has_a_floor(graph):
    rooms = [room for room in FLOORS.split() if room != "vologan_fast"]
    assert [m for m in graph if not any(f"{m}.".startswith(f"{room}.") for room in rooms)] == ["vologan_fast"]


def test_no_modules_import_each_other_in_a_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))


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
    changed = graph | {module: set(imports_of(line, SOURCES))}
    expected = [f"{module} imports vologan_fast.{found}"]
    assert list(upward(changed, FLOORS)) + list(upward(changed, FLOORS_OF_DATA)) == expected


def test_a_circle_would_be_found(graph):
    changed = graph | {"vologan_fast.data.errors": {"vologan_fast.data.loaders.native"}}
    with pytest.raises(CycleError):
        TopologicalSorter(changed).prepare()
