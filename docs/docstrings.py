"""Griffe: docstrings hold reStructuredText's roles and shapes such as [P][G], which Markdown would take for links."""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainMarkdown(griffe.Extension):
    """Turns roles into code, and keeps shapes from being links."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package once it is loaded."""
        rewrite(pkg)


def rewrite(thing: griffe.Object) -> None:
    """Rewrite the docstring of a module, class or function, and those of its members."""
    if thing.docstring:
        text = re.sub(r":\w+:`[.~]?(.*?)`", r"`\1`", thing.docstring.value)
        thing.docstring.value = text.replace("][", "]\\[")
    for member in thing.members.values():
        if not member.is_alias:
            rewrite(member)
