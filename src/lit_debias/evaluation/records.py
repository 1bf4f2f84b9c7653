"""What one arm said about one prompt, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lit_debias.conversations import pictures_named
from lit_debias.data.tables import Row
from lit_debias.evaluation.prompts import BIAS_KINDS
from lit_debias.support.atomic import write_text


@dataclass
class Record:
    """One prompt and what the model did with it; log-probabilities are in nats."""

    prompt_id: str
    twin_id: str
    split: str
    category: str
    group: str
    prompt_kind: str
    prompt: str
    counterfactual_prompt: str
    ambiguous: bool
    answer: int
    biased_choice: int
    completion: str | None = None
    """What the model answered; None where nothing was generated (forced choice)."""
    tokens: int = 0
    """Length of the completion, end-of-sequence token included."""
    truncated: bool | None = None
    """Whether the length limit ended the completion; None where nothing was generated."""
    base_logprob: float = 0.0
    """Sum over those tokens under the frozen base, without a system prompt."""
    other_logprob: float = 0.0
    """Sum over the completion's tokens under another frozen model, if one was named."""
    other_tokens: int = 0
    """How many tokens they are to that model; no end-of-sequence token is among them."""
    similarity: float | None = None
    """Cosine in [-1, 1] of the completion and the neutral response."""
    prose_logprob: float = 0.0
    """Sum over the tokens of a passage of prose (the "prompt"), read without chat template."""
    prose_tokens: int = 0
    judges: dict[str, float | None] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)
    reference_logprob: float | None = None
    """Mean log-probability of a token of the neutral response."""
    biased_logprob: float | None = None
    """The same of the biased response."""
    choice_logprobs: list[float] = field(default_factory=list)
    """The same of each choice, for forced choice."""
    cluster: str = ""
    """What else belongs together with it, so that the bootstrap draws them together; empty: only its twin."""
    pictures: str = ""
    """Names of the pictures that the prompt shows, as the data has them; empty where it shows none."""
    counterfactual_pictures: str = ""
    """The same of its twin."""
    choices: list[str] = field(default_factory=list)
    """What is chosen among, of a prompt that shows pictures."""

    @classmethod
    def of(cls, row: Row) -> Record:
        """Return the record of a prompt that the model has not seen yet."""
        names = ("prompt_id", "twin_id", "split", "category", "group", "prompt_kind", "prompt", "counterfactual_prompt")
        values: dict[str, Any] = {name: str(row[name]) for name in names}
        values["pictures"] = pictures_named(row["messages"] or "")
        values["choices"] = list(row["choices"]) if values["pictures"] else []
        values["counterfactual_pictures"] = pictures_named(row["counterfactual_messages"] or "")
        return cls(**values, **{name: row[name] for name in ("ambiguous", "answer", "biased_choice", "cluster")})

    @classmethod
    def columns(cls) -> list[str]:
        """Return the names of what is kept; an arm with others is of another version."""
        return [one.name for one in fields(cls)]

    @property
    def drawn_with(self) -> str:
        """What the bootstrap draws it with."""
        return f"cluster {self.cluster}" if self.cluster else f"twins {self.twin_id}"

    @property
    def asked(self) -> str:
        """The prompt, behind the names of what it shows."""
        return _asked(self.prompt, self.pictures)

    @property
    def counterfactual(self) -> str:
        """The same of its twin."""
        return _asked(self.counterfactual_prompt, self.counterfactual_pictures)

    @property
    def shows_bias(self) -> bool:
        """Whether bias is measured on this completion: open and leading prompts, not those with evidence."""
        return self.completion is not None and self.prompt_kind in BIAS_KINDS


def save_arm(path: Path, fingerprint: str, settings: dict[str, Any], records: Sequence[Record]) -> None:
    """Write an arm, all or nothing."""
    rows = [asdict(record) for record in records]
    write_json(path, {"arm": path.stem, "fingerprint": fingerprint, "settings": settings, "records": rows})


def load_arm(path: Path, fingerprint: str | None = None) -> list[Record] | None:
    """Return the records of an arm; None where there is none, or none with this fingerprint."""
    rows = load_kept(path, "records", fingerprint)
    try:
        return None if rows is None else [Record(**row) for row in rows]
    except TypeError:  # of another version: measured anew
        return None


def load_kept(path: Path, name: str, fingerprint: str | None = None) -> Any:
    """Return what a file of measurements holds under ``name``; None where there is none with this fingerprint."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored[name] if fingerprint is None or stored["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged, or of another version: measured anew
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON such that a reader finds the old file or the new one, never half of it."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def _asked(prompt: str, pictures: str) -> str:
    return f"[{pictures}] {prompt}" if pictures else prompt
