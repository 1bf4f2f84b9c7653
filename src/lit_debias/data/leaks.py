"""Checks that no split has seen another: they raise, so that a leaking data set is never written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Splits = Mapping[str, Sequence[Record]]

HELD_OUT = {
    "test_template": "template_id",
    "test_group": "group",
    "test_scenario": "scenario",
    "test_category": "category",
}
"""Split -> the column whose values no other split may have."""
NGRAM = 8
"""Words in the n-grams that are compared."""
MAX_OVERLAP = {"test_template": 0.1}
"""Split -> the largest share of its word n-grams that train may hold; others share frames with train by design."""
MAX_OVERLAP_DEFAULT = 0.75


class LeakError(Exception):
    """Two splits share what they must not share; the message names the splits and the value."""


def check_prompts(prompts: Splits) -> None:
    """Check the prompts of all splits.

    Raises:
        LeakError: a held-out value, a cell, a twin or a text is in two splits, or a text appears twice.
    """
    for split, column in HELD_OUT.items():
        _check_disjoint(prompts, column, [(split, other) for other in prompts if other != split])
    pairs = _all_pairs(prompts)
    for column in ("twin_id", "prompt"):
        _check_disjoint(prompts, column, pairs)
    cells = {split: [{"cell": cell_of(row)} for row in rows] for split, rows in prompts.items()}
    _check_disjoint(cells, "cell", [(a, b) for a, b in pairs if {a, b} <= {"train", "validation", "test_iid"}])
    _check_unique(prompts, "prompt")


def check_responses(responses: Splits) -> dict[str, float]:
    """Check the responses of all splits; return the share of each split's n-grams that train holds.

    Raises:
        LeakError: a text is in two splits or twice in one, or the n-gram overlap is too high.
    """
    _check_disjoint(responses, "response", _all_pairs(responses))
    _check_unique(responses, "response")
    known = {gram for row in responses["train"] for gram in ngrams(row["response"])}
    overlaps = {}
    for split in [split for split in responses if split != "train"]:
        overlaps[split] = overlap([row["response"] for row in responses[split]], known)
        limit = MAX_OVERLAP.get(split, MAX_OVERLAP_DEFAULT)
        if overlaps[split] > limit:
            raise LeakError(f"{split}: train holds {overlaps[split]:.0%} of its {NGRAM}-grams; at most {limit:.0%} may")
    return overlaps


def cell_of(row: Record) -> tuple[str, frozenset[str], str]:
    """Return what prompts that belong together share: family, groups of the twins, theme."""
    return row["template_id"], frozenset((row["group"], row["counterfactual_group"])), row["theme"]


def ngrams(text: str, size: int = NGRAM) -> set[tuple[str, ...]]:
    """Return the word n-grams of a text, in lower case."""
    words = text.lower().split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def overlap(texts: Iterable[str], known: set[tuple[str, ...]]) -> float:
    """Return the share of the n-grams of ``texts`` that is in ``known``, 0 where there are none."""
    grams = [gram for text in texts for gram in ngrams(text)]
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def _all_pairs(splits: Splits) -> list[tuple[str, str]]:
    names = list(splits)
    return [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]


def _check_disjoint(splits: Splits, column: str, pairs: Iterable[tuple[str, str]]) -> None:
    values = {split: {row[column] for row in rows} for split, rows in splits.items()}
    for a, b in pairs:
        shared = values[a] & values[b]
        if shared:
            raise LeakError(f"{a} and {b} share {len(shared)} values of '{column}', such as {min(shared, key=str)!r}")


def _check_unique(splits: Splits, column: str) -> None:
    for split, rows in splits.items():
        seen = set()
        for row in rows:
            if row[column] in seen:
                raise LeakError(f"{split} holds the {column} {row[column]!r:.100} twice")
            seen.add(row[column])
