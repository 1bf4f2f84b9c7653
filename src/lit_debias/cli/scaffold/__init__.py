"""``lit-debias rewards new`` and ``benchmarks new``: an installable plugin with its test and its README."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager

PREFIX = "lit-debias-"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
RESERVED = ("Reward", "RewardBatch", "UserError", "Benchmark", "Item", "Pair", "Model")
"""Classes that the templates import or define."""
REWARD_FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "pairs.jsonl": "pairs.jsonl.jinja",
    "src/{module}/__init__.py": "reward.py.jinja",
    "src/{module}/py.typed": "py.typed.jinja",
    "tests/test_{module}.py": "test.py.jinja",
}
"""Path in the new folder -> template."""
BENCHMARK_FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "benchmark_README.md.jinja",
    "src/{module}/__init__.py": "benchmark.py.jinja",
    "src/{module}/items.jsonl": "benchmark_items.jsonl.jinja",
    "src/{module}/py.typed": "py.typed.jinja",
    "tests/test_{module}.py": "benchmark_test.py.jinja",
}


def new(name: str, out: Path = Path()) -> None:
    """Write an installable plugin with one reward, its test, a README, and pairs for `lit-debias rewards check`.

    Args:
        name: Name of the distribution and of its folder: small letters, digits and hyphens. ``lit-debias-brevity``
            gives the module ``lit_debias_brevity`` with the class ``Brevity``.
        out: Folder in which the new folder is made.

    Raises:
        UserError: the name does not fit, the folder is there already, or the module's or the class's name is taken.
    """
    names = names_of(name)
    folder = write("reward", out / name, names, REWARD_FILES)
    print(
        f"{folder} is written: the reward {names['cls']}, its test, a README that says how to go on.\n"
        f"  pip install -e {folder}\n"
        f"  lit-debias rewards check {names['cls']} --pairs {folder / 'pairs.jsonl'}"
    )


def new_benchmark(name: str, out: Path = Path()) -> None:
    """Write an installable plugin with one benchmark, its items, its test, and a README.

    Args:
        name: Name of the distribution and of its folder: small letters, digits and hyphens. ``lit-debias-kitchens``
            gives the module ``lit_debias_kitchens`` with the class ``Kitchens``, whose figures are ``kitchens/...``.
        out: Folder in which the new folder is made.

    Raises:
        UserError: the name does not fit, the folder is there already, or the module's or the class's name is taken.
    """
    names = names_of(name)
    folder = write("benchmark", out / name, names, BENCHMARK_FILES)
    print(
        f"{folder} is written: the benchmark {names['cls']}, its items, its test, a README that says how to go on.\n"
        f"  pip install -e {folder}\n"
        f"  lit-debias benchmarks check {names['key']}"
    )


def names_of(name: str) -> dict[str, str]:
    """Return what the templates call things.

    Raises:
        UserError: the name is not made of small letters, digits and hyphens.
    """
    short = name.removeprefix(PREFIX)
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' is no name for a plugin; write small letters, digits and hyphens: {PREFIX}brevity")
    cls = "".join(word.capitalize() for word in short.split("-"))
    if not cls.isidentifier():
        raise UserError(f"'{name}' gives no name for a class; write a letter first: {PREFIX}brevity")
    key, title = short.replace("-", "_"), short.replace("-", " ").capitalize()
    return {"name": name, "short": short, "key": key, "title": title, "module": name.replace("-", "_"), "cls": cls}


def _check_free(kind: str, names: dict[str, str]) -> None:
    of_kind = [c for c in components(get_plugin_manager()) if c.kind == kind]
    offered = {name: component.distribution for component in of_kind for name in component.names}
    taken = dict.fromkeys(RESERVED, "lit-debias") | offered
    for name in (names["cls"], names["key"]):
        if origin := taken.get(name):
            what = kind if name in offered else "class"
            raise UserError(f"{origin} has a {what} {name} already; write another name than '{names['name']}'")
    if find_spec(names["module"]):
        raise UserError(f"there is a module {names['module']} already; write another name than '{names['name']}'")


def write(kind: str, folder: Path, names: dict[str, str], files: Mapping[str, str]) -> Path:
    """Write the files of a plugin into a new folder, and return it.

    Args:
        kind: ``reward`` or ``benchmark``.
        folder: The new folder.
        names: What templates call things, see :func:`names_of`.
        files: Path in the folder -> template.

    Raises:
        UserError: the folder is there already, a name is taken, or a file cannot be written.
    """
    if folder.exists():
        raise UserError(f"'{folder}' is there already; write another name, or another --out")
    _check_free(kind, names)
    try:
        for path, template in files.items():
            file = folder / path.format(**names)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render(template, {**names, "kind": kind}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{error.filename}': {error.strerror}; write another --out") from error
    return folder


def render(template: str, names: dict[str, str]) -> str:
    """Return one file of a plugin."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lit_debias", "cli/scaffold/templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.get_template(template).render(names)
