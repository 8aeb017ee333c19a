"""The imports between the modules of packages, read from their source. Imports inside functions count too."""

import ast
import graphlib


def imports(*packages):
    """Maps each module in the folders `packages`, by its name, to the set of those modules that it imports."""
    files = {module_name(file, package.parent): file for package in packages for file in package.rglob("*.py")}
    return {name: set(imported(file.read_text(), files)) - {name} for name, file in files.items()}


def module_name(file, root):
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source, modules):
    """The names among `modules` that a source imports. `from a import b` imports a.b if that is a module, else a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not understood here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if {name, node.module} & {*modules})


def circle(graph):
    """The modules of a circle of imports, in order, with the first one also at the end; None if there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None
