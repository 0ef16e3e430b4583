"""Checks the direction of imports, read from the source: packages, circles between modules, and the registry."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
FOLDERS = {"attempt_cli": HERE / "attempt_cli", "attempt_registry": HERE / "registry"}

# What each package and top-level module of attempt_cli may import besides itself and `ANYWHERE`. Rows are in the
# direction of imports: none may import a later one.
ANYWHERE = {
    "errors",
    "placement",
    "bars",
    "hub",
    "keys",
    "late_imports",
    "listener",
    "byte_sizes",
    "name_lists",
    "checked_files",
    "attempt_registry",
}
MAY_IMPORT: dict[str, set[str]] = {
    "hub": set(),
    "byte_sizes": set(),
    "checked_files": set(),
    "plots": set(),
    "changes": set(),
    "sources": set(),
    "composing": {"changes", "sources"},
    "data": set(),
    "backbones": set(),
    "prompted": {"method", "backbones"},
    "artefacts": {"method", "changes", "data", "backbones", "prompted"},
    "session": {"method", "changes", "data", "backbones", "prompted", "artefacts"},
    "evaluation": {"method", "changes", "sources", "data", "backbones", "prompted", "artefacts", "session"},
}
MAY_IMPORT["exchange"] = MAY_IMPORT["evaluation"] | {"evaluation", "composing"}
MAY_IMPORT["sharing"] = MAY_IMPORT["exchange"] | {"exchange"}
MAY_IMPORT["server"] = MAY_IMPORT["exchange"] | {"exchange"}
MAY_IMPORT["training"] = MAY_IMPORT["evaluation"] | {"evaluation"}
MAY_IMPORT["experiments"] = MAY_IMPORT["training"] | {"training", "plots"}
MAY_IMPORT["api"] = MAY_IMPORT["experiments"] | {"experiments", "exchange", "sharing", "server", "sources", "composing"}
MAY_IMPORT["cli"] = MAY_IMPORT["api"] | {"api"}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["__init__"] = MAY_IMPORT["api"] | {"api"}  # lazily: `import attempt_cli` stays free of torch
MAY_IMPORT["errors"] = set()
# these import nothing of ours, and only these libraries
ALONE = {
    "method": {"torch"},
    "placement": set(),
    "bars": {"tqdm"},
    "keys": set(),
    "late_imports": set(),
    "listener": set(),
    "name_lists": set(),
}

# Imports against the direction, for now: (module, module): reason
PACKAGE_EXCEPTIONS: dict[tuple[str, str], str] = {}
CIRCLE_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("attempt_cli.data.task", "attempt_cli.data.fields"): "load_task moves from task to catalogue",
}


def module_of(folder: Path, package: str, file: Path) -> str:
    """Returns a file's module name, without `__init__`."""
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


MODULES = {
    module_of(folder, package, file): file for package, folder in FOLDERS.items() for file in folder.rglob("*.py")
}


def imported(module: str) -> Iterator[str]:
    """Yields the names that a module imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


IMPORTS = {module: sorted(set(imported(module))) for module in MODULES}


def room(module: str) -> str:
    """Returns the package or top-level module of attempt_cli that a module belongs to; else its top-level package."""
    package, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if package == "attempt_cli" else package


OURS = [module for module in MODULES if module.startswith("attempt_cli")]


def test_every_room_has_a_line() -> None:
    assert {room(module) for module in OURS} <= MAY_IMPORT.keys() | ALONE.keys(), "say in MAY_IMPORT what it may import"


@pytest.mark.parametrize("module", OURS)
def test_packages_import_one_way(module: str) -> None:
    own = room(module)
    may = {own, *(set() if own in ALONE else MAY_IMPORT[own] | ANYWHERE)}
    against = [
        name
        for name in IMPORTS[module]
        if name.startswith(("attempt_cli.", "attempt_registry"))
        and room(name) not in may
        and (module, name) not in PACKAGE_EXCEPTIONS
    ]
    assert not against, f"{own} may not import these"


@pytest.mark.parametrize("module", [module for module in OURS if room(module) in ALONE])
def test_some_know_one_library_at_most(module: str) -> None:
    foreign = {name.partition(".")[0] for name in IMPORTS[module]} - set(sys.stdlib_module_names) - {"attempt_cli"}
    assert foreign <= ALONE[room(module)]


def test_no_circles_between_modules() -> None:
    # who asks the root package for the version makes no circle: every import of a module inside it runs it anyway
    graph = {
        module: [name for name in names if name in MODULES and "." in name and (module, name) not in CIRCLE_EXCEPTIONS]
        for module, names in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_registry_knows_neither_torch_nor_the_product() -> None:
    for module in MODULES.keys() - set(OURS):
        known = {name.partition(".")[0] for name in IMPORTS[module]}
        assert not known & {"attempt_cli", "registry", "torch", "transformers"}, module
