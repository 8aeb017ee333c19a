"""How the package is built: which module may import which."""

import vologan_kernels
from import_graph import circle, imports, package_folder


def test_no_module_imports_in_a_circle():
    assert circle(imports(package_folder(vologan_kernels))) is None


def test_triton_is_imported_only_by_kernels_and_where_they_run():
    graph = imports(package_folder(vologan_kernels))
    with_triton = {name for name in graph if name.endswith((".kernels", "_triton"))}
    assert {name.removeprefix("vologan_kernels.") for name in with_triton} == {
        "activations_triton",
        "tiles_triton",
        "adversarial_loss.kernels",
        "instance_norm.kernels",
        "nadam.kernels",
        "pixel_loss.kernels",
        "spectral_norm.kernels",
    }
    users = {name for name, needed in graph.items() if needed & with_triton} - with_triton
    assert {name.rpartition(".")[2] for name in users} == {"operation", "optimizer"}


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
