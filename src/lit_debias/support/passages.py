"""Passages of prose: what blank lines separate in a text file."""

from __future__ import annotations

from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.support.files import read_text


def read_passages(path: Path, what: str) -> list[str]:
    """Return the passages of a text file.

    Args:
        path: The file.
        what: Stands before its name in errors, such as ``prose``.

    Raises:
        UserError: there is no such file, it is no UTF-8 text, or it holds no passage.
    """
    found = passages(read_text(path.expanduser(), what))
    if not found:
        raise UserError(f"{what} '{path}' is empty; write passages separated by blank lines into it")
    return found


def passages(text: str) -> list[str]:
    """Return what blank lines separate, each passage in one line."""
    lines = [line.strip() for line in text.splitlines()]
    return [passage for block in "\n".join(lines).split("\n\n") if (passage := " ".join(block.split()))]
