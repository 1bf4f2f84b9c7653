"""``lit-debias rewards new``: an installable plugin with one reward, its test and its README."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager

PREFIX = "lit-debias-"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
FILES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "pairs.jsonl": "pairs.jsonl.jinja",
    "src/{module}/__init__.py": "reward.py.jinja",
    "src/{module}/py.typed": "py.typed.jinja",
    "tests/test_{module}.py": "test.py.jinja",
}
"""Path in the new folder -> template."""


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
    folder = out / name
    if folder.exists():
        raise UserError(f"'{folder}' is there already; write another name, or another --out")
    _check_free(names)
    write(folder, names)
    print(
        f"{folder} is written: the reward {names['cls']}, its test, a README that says how to go on.\n"
        f"  pip install -e {folder}\n"
        f"  lit-debias rewards check {names['cls']} --pairs {folder / 'pairs.jsonl'}"
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
    return {"name": name, "short": short, "module": name.replace("-", "_"), "cls": cls}


def _check_free(names: dict[str, str]) -> None:
    taken = {c.name: c.distribution for c in components(get_plugin_manager()) if c.kind == "reward"}
    taken |= dict.fromkeys(("Reward", "RewardBatch", "UserError"), "lit-debias")
    if origin := taken.get(names["cls"]):
        raise UserError(f"{origin} has a class {names['cls']} already; write another name than '{names['name']}'")
    if find_spec(names["module"]):
        raise UserError(f"there is a module {names['module']} already; write another name than '{names['name']}'")


def write(folder: Path, names: dict[str, str]) -> None:
    """Write the files of a plugin into a new folder.

    Raises:
        UserError: a folder cannot be made, or a file not written.
    """
    try:
        for path, template in FILES.items():
            file = folder / path.format(**names)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render(template, names), encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{error.filename}': {error.strerror}; write another --out") from error


def render(template: str, names: dict[str, str]) -> str:
    """Return one file of a plugin."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lit_debias", "cli/scaffold/templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.get_template(template).render(names)
