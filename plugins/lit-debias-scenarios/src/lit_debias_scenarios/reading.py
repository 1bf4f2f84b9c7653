"""Takes mappings of names out of YAML; an error says where, and what to write."""

from __future__ import annotations

import re
from typing import Any

from lit_debias.plugins import UserError

NAME = re.compile(r"[\w-]+")


def named(content: Any, key: str, where: str) -> list[tuple[str, Any]]:
    """Return the names and entries of ``content[key]``.

    Raises:
        UserError: there are none, or a name is none.
    """
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{where}: '{key}' is missing; write a mapping of names")
    return [(_name(name, where), entry) for name, entry in found.items()]


def names_to_texts(value: Any, where: str, fewest: int) -> dict[str, str]:
    """Return a mapping of names to different texts.

    Raises:
        UserError: it is none, or there are fewer than ``fewest``.
    """
    if not isinstance(value, dict) or len(value) < fewest or not all(isinstance(v, str) and v for v in value.values()):
        raise UserError(f"{where}: write a mapping of {fewest} or more names to texts")
    if len(set(value.values())) < len(value):
        raise UserError(f"{where}: two texts are equal; write different ones")
    return {_name(name, where): text for name, text in value.items()}


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r:.40} is no name; write letters, digits, _ and -, in quotes where YAML asks")
    return name
