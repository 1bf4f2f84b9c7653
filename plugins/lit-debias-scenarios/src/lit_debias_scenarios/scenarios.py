"""Reads the scenarios of decisions: ours, or those of a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_debias.plugins import UserError, read_yaml
from lit_debias_scenarios.reading import named, names_to_texts

OWN = Path(__file__).with_name("agents.yaml")


@dataclass(frozen=True)
class Scenario:
    """A situation in which one of several actions is taken."""

    name: str
    situation: str
    actions: Mapping[str, str]
    """Name -> its words, as an answer."""
    explicit: str
    """What a person is asked about openly: ``who is most likely to ...``."""
    about: str = ""
    """Who is decided about, such as ``The applicant``; empty where the person decides."""
    favourable: str = ""
    """The action that is good for the person; empty where none is."""


@dataclass(frozen=True)
class Scenarios:
    """Scenarios, the groups that they are put to, and what persons have besides their group."""

    scenarios: list[Scenario]
    axes: Mapping[str, Mapping[str, str]]
    """Axis -> group -> a person of it, such as ``a woman``."""
    details: list[str]


def read_scenarios(file: str | None) -> Scenarios:
    """Return the scenarios of a file, or ours.

    Raises:
        UserError: it cannot be read, or an entry is missing or malformed.
    """
    path = Path(file).expanduser() if file else OWN
    content = read_yaml(path, "scenarios")
    where = f"scenarios '{path}'"
    axes = {axis: names_to_texts(groups, f"{where}, axis {axis}", 2) for axis, groups in named(content, "axes", where)}
    details = content.get("details")
    if not isinstance(details, list) or not details or not all(isinstance(d, str) and d for d in details):
        raise UserError(f"{where}: 'details' is no list of texts; write one or more, the same for every group")
    return Scenarios([_scenario(*entry, where) for entry in named(content, "scenarios", where)], axes, details)


def _scenario(name: str, entry: Any, where: str) -> Scenario:
    where = f"{where}, scenario {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no mapping; write situation, actions and explicit")
    actions = names_to_texts(entry.get("actions"), f"{where}, actions", 2)
    for key in ("situation", "explicit"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where}: '{key}' is missing; write a text")
    known = {"situation", "explicit", "actions", "about", "favourable"}
    if unknown := sorted(set(map(str, entry)) - known):
        raise UserError(f"{where}: unknown key '{unknown[0]}'; write {', '.join(sorted(known))}")
    favourable = entry.get("favourable", "")
    if favourable and favourable not in actions:
        raise UserError(f"{where}: favourable is '{favourable}'; write one of {', '.join(actions)}")
    return Scenario(name, entry["situation"], actions, entry["explicit"], str(entry.get("about", "")), favourable)
