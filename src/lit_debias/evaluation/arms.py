"""What is compared: the base as it is, asked for fairness, and with adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.evaluation.table import TITLES


@dataclass(frozen=True)
class Arm:
    """What is compared: the base as it is, asked for fairness, or with an adapter; or one replica of that."""

    name: str
    """Of its files; that of a replica ends in its number, from 1: ``sft.2``."""
    adapter: str | None = None
    system_prompt: str | None = None


def make_arms(
    system_prompt: str | None, adapter: str | list[str] | None, adapters: Mapping[str, str | list[str]]
) -> dict[str, list[Arm]]:
    """Return the replicas of each arm, in the order of tables: the base, asked for fairness, adapters, "after" last.

    Raises:
        UserError: a name is taken, or cannot be the name of a file; an arm has no adapter, or one of them twice.
    """
    for name in adapters:
        if name in TITLES or not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"adapters: '{name}' cannot name an arm; write letters, digits, _ or -, not {list(TITLES)}")
    return {
        "before": [Arm("before")],
        **({"prompt_only": [Arm("prompt_only", system_prompt=system_prompt)]} if system_prompt else {}),
        **{name: make_replicas(name, folders, f"adapters: '{name}'") for name, folders in adapters.items()},
        **({"after": make_replicas("after", adapter, "adapter")} if adapter is not None else {}),
    }


def make_replicas(name: str, folders: str | list[str], option: str) -> list[Arm]:
    """Return the arm of one adapter, or one for each of several.

    Raises:
        UserError: the list is empty, or a folder is there twice.
    """
    if isinstance(folders, str):
        return [Arm(name, folders)]
    if not folders:
        raise UserError(f"{option} is an empty list; write a folder, or a list of folders, one per training seed")
    places = [Path(folder).expanduser().resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{option} lists the folder '{folder}' twice; write each training seed's own folder")
    if len(folders) == 1:
        return [Arm(name, folders[0])]
    return [Arm(f"{name}.{number}", folder) for number, folder in enumerate(folders, 1)]
