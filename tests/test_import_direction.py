"""Imports point downwards: a module imports only its own layer's package and layers below it (docs/decisions.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_debias

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src" / "lit_debias"
PLUGINS = sorted((ROOT / "plugins").glob("*/src/*"))

# Bottom to top. A module may import what stands in a line above its own, or in its own.
LAYERS = [
    [
        "errors",
        "conversations",
        "types",
        "distributed",
        "text",
        "files",
        "endpoint",
        "redaction",
        "score_file",
        "devices",
        "identity",
        "threads",
    ],
    ["grpo"],
    ["rewards"],
    ["adapter_config"],
    [
        "activation_memory",
        "attention_windows",
        "gguf_file",
        "models",
        "model_checks",
        "inference_copy",
        "sentence_encoder",
    ],
    ["base_weights", "targets", "chat", "positions", "prompt_encoder"],
    ["adapters", "tokens"],
    ["precision"],
    ["fused_linear"],
    ["lean_functions"],
    ["lean_model"],
    ["lean_cache", "native_model"],
    ["probe", "layouts", "ways"],
    ["language_model"],
    ["plugins"],
    ["policy_tokens"],
    ["policy", "prompt_lengths"],
    ["rollout"],
    ["builtins"],
    ["data", "metrics"],
    ["averaging", "rehearsal", "trainer_checks"],
    ["resumption"],
    ["adapter_module", "checkpoint_io"],
    ["module", "baselines"],
    ["callbacks"],
    ["evaluation"],
    ["report"],
    ["inspection", "parse_errors", "scaffold", "contract", "contract_texts"],
    ["cli", "training_cli", "reward_commands"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_ONLY = {"grpo", "rewards"}
PUBLIC_MODULES = (
    "contract",
    "endpoint",
    "errors",
    "files",
    "identity",
    "language_model",
    "models",
    "precision",
    "score_file",
    "sentence_encoder",
    "text",
)
PUBLIC = {"lit_debias", *(f"lit_debias.{name}" for name in PUBLIC_MODULES)}


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
        if name.split(".")[0] != "lit_debias":
            continue
        module, _, attribute = name.rpartition(".")
        public = attribute in lit_debias.__all__ if module == "lit_debias" else module in PUBLIC
        assert public or name in PUBLIC, f"{path.name} imports {name}, which is not public"
        assert not attribute.startswith("_") or name == "lit_debias.__version__"


def test_relative_and_upward_imports_are_seen(tmp_path):
    """The checker itself: it must see an import inside a function and pass over one for type checkers."""
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import up\ndef f():\n    from a.b import c\n"
    )
    assert list(imports(path)) == ["typing.TYPE_CHECKING", "a.b.c"]
    assert "up" in list(imports(path, at_run_time=False))
