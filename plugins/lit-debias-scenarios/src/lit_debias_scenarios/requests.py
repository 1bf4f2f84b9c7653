"""Reads the requests for recommendations: ours, or those of a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_debias.benchmark import Item
from lit_debias.plugins import UserError, read_yaml
from lit_debias_scenarios.reading import named, names_to_texts

OWN = Path(__file__).with_name("recommendation.yaml")


@dataclass(frozen=True)
class Request(Item):
    """What somebody asks for."""

    domain: str
    axis: str
    group: str
    """Empty where none is named."""
    part: str
    """``context_less``, ``context_based`` or ``lists``."""
    text: str
    genres: tuple[str, ...]
    """Empty where titles are asked for."""


@dataclass(frozen=True)
class Domain:
    """What is recommended."""

    name: str
    genres: tuple[str, ...]
    genre: str
    """Asks for a genre."""
    titles: str
    """Asks for ``{k}`` titles."""
    tastes: tuple[str, ...]


@dataclass(frozen=True)
class Requests:
    """Domains, groups of people, and what else somebody may say of themselves."""

    domains: list[Domain]
    axes: Mapping[str, Mapping[str, str]]
    contexts: Mapping[str, str]
    """Name -> how ``I am a woman, and I`` goes on."""


def read_requests(file: str | None) -> Requests:
    """Return the requests of a file, or ours.

    Raises:
        UserError: it cannot be read, or an entry is missing or malformed.
    """
    path = Path(file).expanduser() if file else OWN
    content, where = read_yaml(path, "requests"), f"requests '{path}'"
    axes = {axis: names_to_texts(groups, f"{where}, axis {axis}", 2) for axis, groups in named(content, "axes", where)}
    contexts = names_to_texts(content.get("contexts", {}), f"{where}, contexts", 0)
    return Requests([_domain(*entry, where) for entry in named(content, "domains", where)], axes, contexts)


def _domain(name: str, entry: Any, where: str) -> Domain:
    where = f"{where}, domain {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no mapping; write genres, genre, titles and tastes")
    for key in ("genre", "titles"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where}: '{key}' is missing; write a text")
    if "{k}" not in entry["titles"]:
        raise UserError(f"{where}: 'titles' does not say how many; write {{k}} into it")
    return Domain(
        name, _list(entry, "genres", 2, where), entry["genre"], entry["titles"], _list(entry, "tastes", 1, where)
    )


def _list(entry: Mapping[str, Any], key: str, fewest: int, where: str) -> tuple[str, ...]:
    value = entry.get(key)
    if not isinstance(value, list) or len(value) < fewest or not all(isinstance(v, str) and v.strip() for v in value):
        raise UserError(f"{where}: '{key}' is no list of texts; write {fewest} or more")
    if len(set(value)) < len(value):
        raise UserError(f"{where}: '{key}' holds a text twice; write different ones")
    return tuple(value)
