"""What a machine or a server must have for a run, and what was found there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """One line of ``lit-debias doctor``."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    """What to do where it is not."""
    required: bool = False
    """Whether nothing runs without it."""
