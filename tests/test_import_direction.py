"""Imports point downwards: a module imports only its own layer's package and layers below it (docs/decisions.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_debias
from lit_debias import benchmark, plugins

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src" / "lit_debias"
PLUGINS = sorted((ROOT / "plugins").glob("*/src/*"))

# Bottom to top. A package may import what stands in a line above its own.
LAYERS = [
    "errors",
    "support",
    "conversations",
    "types",
    "grpo",
    "packing",
    "rewards",
    "aggregators",
    "data",
    "models",
    "forward",
    "policy",
    "rollout",
    "benchmark",
    "text_measures",
    "plugins",
    "export",
    "synthetic",
    "training",
    "evaluation",
    "report",
    "cli",
    "__main__",
]
LEVEL = {name: level for level, name in enumerate(LAYERS)}
TORCH_ONLY = {"grpo", "packing", "rewards", "aggregators"}
PUBLIC = {"lit_debias": lit_debias, "lit_debias.plugins": plugins, "lit_debias.benchmark": benchmark}


def imports(path: Path, *, at_run_time: bool = True) -> Iterator[str]:
    """Yield the modules that a file imports, ``a.b`` for ``from a import b``; not those for type checkers."""
    tree = ast.parse(path.read_text())
    skipped = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if at_run_time and id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def core_layers(path: Path) -> Iterator[str]:
    """Yield the layers of the core that a file imports."""
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "lit_debias":
            yield rest.split(".")[0]


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_has_its_layer():
    found = {layer(path) for path in files(CORE)} - {"__init__"}
    assert found <= set(LEVEL), f"give {sorted(found - set(LEVEL))} a place in LAYERS"


@pytest.mark.parametrize("path", [p for p in files(CORE) if p != CORE / "__init__.py"], ids=identify)
def test_imports_point_downwards(path):
    own = layer(path)
    for imported in core_layers(path):
        if imported in ("", "__version__"):  # the package itself, for its version
            continue
        assert imported in LEVEL, f"{path.name} imports lit_debias.{imported}: import from the module that defines it"
        assert imported == own or LEVEL[imported] <= LEVEL[own], f"{own} must not import {imported}, which is above it"


@pytest.mark.parametrize("path", [p for p in files(CORE) if layer(p) in TORCH_ONLY], ids=identify)
def test_mathematics_and_rewards_import_torch_only(path):
    standard = {"__future__", *sys.stdlib_module_names}
    foreign = {name.split(".")[0] for name in imports(path, at_run_time=False)} - standard - {"torch", "lit_debias"}
    assert not foreign


@pytest.mark.parametrize("path", files(CORE), ids=identify)
def test_the_core_never_imports_a_plugin(path):
    packages = {folder.name for folder in PLUGINS}
    assert packages, "no plugins found"
    assert not packages & {name.split(".")[0] for name in imports(path, at_run_time=False)}
    assert not [package for package in packages if package in path.read_text()], "the core must not name a plugin"


@pytest.mark.parametrize("path", [p for folder in PLUGINS for p in files(folder)], ids=identify)
def test_official_plugins_use_public_names_only(path):
    for name in imports(path, at_run_time=False):
        module, _, attribute = name.rpartition(".")
        if name.split(".")[0] == "lit_debias":
            assert attribute in PUBLIC[module].__all__, f"{path.name} imports {name}, which is not public"


@pytest.mark.parametrize("package", PUBLIC.values(), ids=PUBLIC)
def test_public_names_are_there_and_are_one_list(package):
    assert {*package.MODULES, "__version__"} - {"__version__"} == set(package.__all__) - {"__version__"}
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(package, "nothing")  # noqa: B009


def test_the_guide_explains_every_public_name_of_authors():
    guide = (ROOT / "docs" / "plugins.md").read_text()
    assert not [name for name in plugins.__all__ if f"`{name}" not in guide]


def test_relative_and_upward_imports_are_seen(tmp_path):
    """The checker itself: it must see an import inside a function and pass over one for type checkers."""
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import up\ndef f():\n    from a.b import c\n"
    )
    assert list(imports(path)) == ["typing.TYPE_CHECKING", "a.b.c"]
    assert "up" in list(imports(path, at_run_time=False))
