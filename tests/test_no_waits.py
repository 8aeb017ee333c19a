"""Nothing in a step or in a batch makes the host wait for a GPU. This reads the code, also code that no test runs.

A copy between host and GPU goes through `loaders/host_memory.py`. Numbers in a step come from `device.constants`, which
keeps them. `tests/data/test_batches_without_a_wait.py` and `test_the_host_waits_for_nothing_in_a_step` run the code.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IN_A_STEP = [
    "kernels/vologan_kernels",
    "vologan_fast/networks",
    "vologan_fast/data/augmentation.py",
    "vologan_fast/data/loader.py",
    "vologan_fast/data/loaders",
    *(
        f"vologan_fast/training/{name}.py"
        for name in (
            *("capture", "contrast", "contrastive_step", "cutmix", "cycle_step", "differentiable_augmentation"),
            *("fast_step", "finite", "image_pool", "losses", "pending", "penalty", "sample_random", "step"),
        )
    ),
]
WAITS = {"cpu", "cuda", "item", "new_tensor", "nonzero", "numpy", "synchronize", "tolist"}
"""Methods for which the host waits, if the tensor is on a GPU."""
ALLOWED = {
    "device.py:_constants": "once for each value",
    "device.py:numbers": "on the CPU alone",
    "optimizer.py:_restore": "not in a step",
    "rows.py:_tensors": "only for a count that somebody else has put into the state",
    "resident.py:keep_images": "once, before the first batch",
    "resident.py:put": "once, before the first batch",
    "resident.py:_table": "once, before the first batch",
    "resident.py:_stored_places": "once, before the first batch",
    "resident.py:drawn": "memory of the host, and NumPy",
    "resident.py:_pack_natively": "on the CPU alone",
    "native.py:submit": "memory of the host",
    "dali.py:iteration": "NumPy",
    "loader.py:_shards_of": "NumPy",
    "image_pool.py:state_dict": "in a checkpoint",
    "image_pool.py:load_state_dict": "in a resume",
    "finite.py:arrived": "for a copy that was begun many steps before",
    "pending.py:arrived": "only with wait, for an event",
    "pending.py:add": "limits how far the host runs ahead",
    "host_memory.py:wait": "at the end of a loader",
}
"""Functions that may wait, and why."""


def waits(source: str) -> list[tuple[str, int, str]]:
    """Return (function, line, call) of all calls that may make the host wait."""
    found = []

    def look(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and is_wait(child):
                found.append((inside, child.lineno, ast.unparse(child)))
            look(child, inside)

    look(ast.parse(source), "")
    return found


def is_wait(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    name, keywords = call.func.attr, {k.arg: ast.unparse(k.value) for k in call.keywords}
    arguments = [ast.unparse(argument) for argument in call.args]
    non_blocking = keywords.get("non_blocking") == "True"
    if name in WAITS:
        return True
    if name in ("tensor", "as_tensor"):
        return ast.unparse(call.func.value) == "torch" and keywords.get("device", "'cpu'") != "'cpu'"
    return name == "to" and not non_blocking and any("device" in a for a in (*arguments, *keywords.values()))


def test_nothing_in_a_step_or_a_batch_waits():
    files = [
        file for name in IN_A_STEP for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    assert len(files) > 60
    used, found = set(), []
    for file in files:
        for function, line, call in waits(file.read_text()):
            if (name := f"{file.name}:{function}") in ALLOWED:
                used.add(name)
            else:
                found.append(f"{file.relative_to(ROOT)}:{line} in {function}: {call}")
    assert not found, "\n".join(found)
    assert used == set(ALLOWED), f"not needed any more: {set(ALLOWED) - used}"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x.to(device)", 1),
        ("x.to(y.device, torch.float32)", 1),
        ("x.to(device=self.device)", 1),
        ("x.to(device, non_blocking=True)", 0),
        ("x.to(torch.float32)", 0),
        ("torch.tensor([1.0], device=x.device)", 1),
        ("torch.tensor([1.0])", 0),
        ("x.new_tensor(weights)", 1),
        ("def f():\n    return x.sum().item() + y.cpu()", 2),
        ("torch.cuda.synchronize()", 1),
    ],
)
def test_the_reader_finds_what_waits(code, count):
    assert len(waits(code)) == count
