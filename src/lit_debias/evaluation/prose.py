"""Held-out prose: passages that nobody trained on, whose perplexity says what is left of the language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.evaluation.prompts import DEFAULTS, PROSE
from lit_debias.support.passages import read_passages

OWN = Path(__file__).with_name("prose.txt")
LONGEST = 2000
"""Characters of a passage; more may not fit a small model's context."""


def read_prose(path: str | None) -> list[str]:
    """Return the passages of a text file, separated by blank lines; those of lit-debias where no file is named.

    Raises:
        UserError: there is no such file, it is no UTF-8 text, it holds no passage, or one that is too long.
    """
    found = read_passages(OWN if path is None else Path(path), "prose")
    for number, passage in enumerate(found, 1):
        if len(passage) > LONGEST:
            raise UserError(
                f"prose '{path}': passage {number} has {len(passage)} characters; write passages of at most {LONGEST}, "
                "separated by blank lines"
            )
    return found


def prose_rows(found: Sequence[str]) -> list[Row]:
    """Return passages in the form of prompts; each is a cluster of its own."""
    names = [f"{PROSE}-{number}" for number in range(len(found))]
    return [
        {**DEFAULTS, "prompt_id": name, "twin_id": name, "split": PROSE, "prompt_kind": PROSE, "prompt": passage}
        for name, passage in zip(names, found, strict=True)
    ]
