"""Write docs/reference.md from signatures and docstrings: ``make docs``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from typing import Any

from docstring_parser import parse
from lightning import Callback, LightningDataModule

from lit_debias import callbacks, cli, data
from lit_debias.baselines import DPO, SFT
from lit_debias.module import GRPO
from lit_debias.plugins import components, get_plugin_manager
from lit_debias.policy import QLoRAPolicy

HEAD = """# Reference

Written by `make docs` from the code. Classes go by these short names in YAML.
"""


def section(heading: str, target: Callable[..., Any]) -> str:
    """Return a heading, the prose of the docstring, and a table of the options."""
    prose = cleandoc(target.__doc__ or "").split("\nArgs:")[0].split("\nRaises:")[0]
    return f"### {heading}\n\n{markdown(prose.strip())}\n{table(target)}"


def markdown(text: str) -> str:
    """Return reStructuredText as our docstrings use it in Markdown."""
    return re.sub(r":\w+:`[.~]?(.*?)`", r"`\1`", text.replace("``", "`")).replace("::\n", ":\n")


def table(target: Callable[..., Any]) -> str:
    """Return the parameters of a class or function as a Markdown table; nothing where there are none."""
    described = parse(target.__doc__ or "").params
    meaning = {p.arg_name: markdown(" ".join((p.description or "").split())) for p in described}
    rows = [
        f"| `{p.name}` | `{escaped(p.annotation)}` | {default(p)} | {escaped(meaning.get(p.name, ''))} |"
        for p in signature(target).parameters.values()
        if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]
    head = "\n| option | type | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" if rows else ""


def escaped(text: Any) -> str:
    """Return text for a cell of a table."""
    return str(text).replace("|", "\\|")


def default(parameter: Parameter) -> str:
    """Return how a parameter is preset."""
    if parameter.default is Parameter.empty:
        return "required"
    value = getattr(parameter.default, "__name__", None) or repr(parameter.default)
    return f"`{value}`"


def exported(package: Any, base: type) -> list[type]:
    """Return the classes of one kind that a package exports."""
    objects = [getattr(package, name) for name in package.__all__]
    return [item for item in objects if isinstance(item, type) and issubclass(item, base)]


def parts() -> Iterator[str]:
    """Yield the page."""
    yield HEAD
    yield f"## Command line\n\n```text\n{cli.overview()}\n```\n"
    for name, command in cli.COMMANDS.items():
        yield section(f"`lit-debias {name}`", command.load())
    yield "## Training\n"
    for cls in (GRPO, SFT, DPO, QLoRAPolicy, *exported(data, LightningDataModule), *exported(callbacks, Callback)):
        yield section(f"`{cls.__name__}`", cls)
    found = components(get_plugin_manager())
    for kind in ("reward", "aggregator", "engine"):
        yield f"## {kind.capitalize()}s\n"
        yield from (section(f"`{c.name}` ({c.distribution})", c.cls) for c in found if c.kind == kind)


if __name__ == "__main__":
    page = Path(__file__).parent / "reference.md"
    page.write_text("\n".join(parts()))
    print(f"wrote {page}")
