"""How the package is built: which module may import which."""

from pathlib import Path

import vologan_kernels
from import_graph import imports


def test_triton_is_imported_only_by_kernels_and_where_they_run():
    graph = imports(Path(vologan_kernels.__file__).parent)
    with_triton = {name for name in graph if name.endswith((".kernels", ".device_functions", "_triton"))}
    assert {name.removeprefix("vologan_kernels.") for name in with_triton} == {
        "activations_triton",
        "planned_triton",
        "tiles_triton",
        "adversarial_loss.kernels",
        "instance_norm.device_functions",
        "instance_norm.kernels",
        "nadam.kernels",
        "pixel_loss.kernels",
        "spectral_norm.kernels",
    }
    users = {name for name, needed in graph.items() if needed & with_triton} - with_triton
    assert {name.rpartition(".")[2] for name in users} == {"operation", "optimizer"}
