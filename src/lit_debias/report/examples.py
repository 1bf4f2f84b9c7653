"""Model output side by side: twins, and the prompts that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_debias.evaluation.measures import intensities, judges_of, twin_pairs
from lit_debias.evaluation.records import Record

Arms = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Change:
    """One prompt before and after; intensities in [0, 1]."""

    prompt: str
    before: str
    after: str
    intensity_before: float
    intensity_after: float

    @property
    def change(self) -> float:
        """Negative where bias fell."""
        return self.intensity_after - self.intensity_before


def largest_changes(before: Sequence[Record], after: Sequence[Record], count: int) -> tuple[list[Change], list[Change]]:
    """Return the prompts whose bias intensity fell most, and those where it rose most, by the first judge."""
    names = judges_of(before)
    if not names:
        return [], []
    values = zip(before, after, intensities(before, names[0]), intensities(after, names[0]), strict=True)
    changes = [
        Change(first.asked, first.completion or "", second.completion or "", old, new)
        for first, second, old, new in values
        if old is not None and new is not None
    ]
    ordered = sorted(changes, key=lambda change: change.change)
    fell = [change for change in ordered if change.change < 0]
    rose = [change for change in reversed(ordered) if change.change > 0]
    return fell[:count], rose[:count]


def side_by_side(arms: Arms, count: int) -> list[list[dict[str, Any]]]:
    """Return ``count`` pairs of twins, those that the base treats most differently, with all answers."""
    records = arms["before"]
    names = judges_of(records)
    values = intensities(records, names[0]) if names else [None] * len(records)
    pairs = sorted(twin_pairs(records), key=lambda pair: -_gap(values[pair[0]], values[pair[1]]))
    return [[_side(arms, index, names[0] if names else "") for index in pair] for pair in pairs[:count]]


def _gap(first: float | None, second: float | None) -> float:
    return 0.0 if first is None or second is None else abs(first - second)


def _side(arms: Arms, index: int, judge: str) -> dict[str, Any]:
    record = arms["before"][index]
    answers = {}
    for name, records in arms.items():
        score = records[index].judges.get(judge)
        intensity = None if score is None else 1 - score
        answers[name] = {"text": records[index].completion or "", "intensity": intensity}
    return {"group": record.group, "prompt": record.asked, "answers": answers}
