"""Checks that no split has seen another: they raise, so that a leaking data set is never written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.synthetic.taxonomy import Group, Taxonomy

Splits = Mapping[str, Sequence[Row]]

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


class LeakError(UserError):
    """Two splits share what they must not share; the message names the splits and the value."""


def check_prompts(prompts: Splits) -> None:
    """Check the prompts of all splits.

    Raises:
        LeakError: a held-out value, a cell, a twin or a text is in two splits, a text appears twice, or train holds
            too many n-grams of a split with unseen templates.
    """
    for split, column in HELD_OUT.items():
        if split in prompts:
            _check_disjoint(prompts, column, [(split, other) for other in prompts if other != split])
    pairs = _all_pairs(prompts)
    for column in ("twin_id", "prompt"):
        _check_disjoint(prompts, column, pairs)
    cells = {split: [{"cell": cell_of(row)} for row in rows] for split, rows in prompts.items()}
    _check_disjoint(cells, "cell", [(a, b) for a, b in pairs if {a, b} <= {"train", "validation", "test_iid"}])
    _check_unique(prompts, "prompt")
    _check_overlap({split: prompts[split] for split in ("train", *MAX_OVERLAP) if split in prompts}, "prompt")


def check_responses(responses: Splits) -> dict[str, float]:
    """Check the responses of all splits; return the share of each split's n-grams that train holds.

    Raises:
        LeakError: a text is in two splits, or twice in one, or the n-gram overlap is too high.
    """
    _check_disjoint(responses, "response", _all_pairs(responses))
    _check_unique(responses, "response")
    return _check_overlap(responses, "response")


def check_names(tables: Mapping[str, Splits], taxonomy: Taxonomy) -> None:
    """Check that no text of another split names a group that one split holds out, shuffled words aside.

    Raises:
        LeakError: a prompt or response does.
    """
    for split, pattern in held_out_names(taxonomy).items():
        for table, splits in tables.items():
            for row in chain.from_iterable(rows for other, rows in splits.items() if other != split):
                found = pattern.search(row[table.removesuffix("s")])
                if found and row.get("corruption") != "shuffle":
                    raise LeakError(f"{row['split']} names '{found[0]}', which only {split} may: {found.string!r:.100}")


def held_out_names(taxonomy: Taxonomy) -> dict[str, re.Pattern[str]]:
    """Return split -> a pattern of the names of the groups that it alone may use."""
    return {
        "test_group": _any_name([group for pair in taxonomy.pairs if pair.held_out_group for group in pair.groups]),
        "test_category": _any_name(
            [group for pair in taxonomy.pairs if pair.held_out_category for group in pair.groups]
        ),
    }


def _any_name(groups: Sequence[Group]) -> re.Pattern[str]:
    names = sorted({re.escape(name) for group in groups for name in (group.bare, group.people)}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(names) or '$^'})(?!\w)", re.IGNORECASE)


def cell_of(row: Row) -> tuple[str, frozenset[str], str]:
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


def _check_overlap(splits: Splits, column: str) -> dict[str, float]:
    known = {gram for row in splits["train"] for gram in ngrams(row[column])}
    overlaps = {}
    for split in [split for split in splits if split != "train"]:
        overlaps[split] = overlap([row[column] for row in splits[split]], known)
        limit = MAX_OVERLAP.get(split, MAX_OVERLAP_DEFAULT)
        if overlaps[split] > limit:
            raise LeakError(
                f"{split}: train holds {overlaps[split]:.0%} of the {NGRAM}-grams of its {column}s; "
                f"at most {limit:.0%} may"
            )
    return overlaps


def _check_unique(splits: Splits, column: str) -> None:
    """Check that no text repeats; an option of forced choices, and a text off topic, may follow several prompts."""
    for split, rows in splits.items():
        seen = set()
        for row in rows:
            several = row["prompt_kind"] == "forced_choice" or row.get("corruption") == "off_topic"
            text = (row[column], row["prompt"] if several else "")
            if text in seen:
                raise LeakError(f"{split} holds the {column} {row[column]!r:.100} twice")
            seen.add(text)
