"""Reads the wordings that come with the package, and helps to write with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_debias.support.files import read_yaml


def own(name: str) -> Any:
    """Return what NAME.yaml beside this file holds."""
    return read_yaml(Path(__file__).with_name(f"{name}.yaml"), "benchmarks:")


def part(name: str) -> str:
    """Return a name as a part of a figure's name, which slashes divide."""
    return name.strip().replace("/", "_").replace(" ", "_")


def capital(words: str) -> str:
    """Return words with a capital first letter."""
    return words[:1].upper() + words[1:]
