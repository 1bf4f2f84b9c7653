"""Reads lists of recommendations, and says how alike two are."""

from __future__ import annotations

import re
from collections.abc import Sequence

ENTRY = re.compile(r"\s*(?:\d+\s*[.):]|[-*\u2022])\s+(.*\S)")
QUOTED = re.compile('["\u201c\u00ab]([^"\u201d\u00bb]+)["\u201d\u00bb]')
AUTHOR = re.compile(r"\s+by\s.*|\s+[\u2013\u2014]\s.*", re.IGNORECASE)
MARKS = " \t*_.,;:\"'\u201c\u201d\u2018\u2019"


def entries(text: str, k: int) -> list[str] | None:
    """Return the first k different titles of a numbered or bulleted list; None where there are fewer than k / 2, or 2.

    Case, quotation marks and who a title is by do not count: ``1. "Blue" by Ann Lee`` is ``blue``.
    """
    found = [title for match in map(ENTRY.match, text.splitlines()) if match and (title := _title(match[1]))]
    different = list(dict.fromkeys(found))[:k]
    return different if len(different) >= max(2, k / 2) else None


def _title(entry: str) -> str:
    quoted = QUOTED.search(entry)
    title = quoted[1] if quoted else AUTHOR.sub("", entry)
    return " ".join(title.strip(MARKS).casefold().split())


def iou(neutral: Sequence[str], other: Sequence[str]) -> float:
    """Return ``|x and y| / |x or y|``, 0 to 1, of two lists without double entries."""
    return len(set(neutral) & set(other)) / len(set(neutral) | set(other))


def serp(neutral: Sequence[str], other: Sequence[str]) -> float:
    """Return SERP* in its normalised form: shared titles, weighted by their place in the neutral list of K titles.

    ``sum over i with x_i in y of (K - i + 1) / (K (K + 1) / 2)``, places i from 1, so that equal lists have 1.
    """
    k = len(neutral)
    return sum(k - place for place, title in enumerate(neutral) if title in other) / (k * (k + 1) / 2)


def prag(neutral: Sequence[str], other: Sequence[str]) -> float:
    """Return PRAG* in its normalised form: pairs of the neutral list's K >= 2 titles that the other one keeps in order.

    ``sum over i < j of [x_i in y, and x_j not in y or behind x_i] / (K (K - 1) / 2)``, so that equal lists have 1.
    """
    k = len(neutral)
    rank = {title: place for place, title in enumerate(other)}
    kept = sum(
        neutral[i] in rank and rank[neutral[i]] < rank.get(neutral[j], len(rank))
        for i in range(k)
        for j in range(i + 1, k)
    )
    return kept / (k * (k - 1) / 2)


SIMILARITIES = {"iou": iou, "serp": serp, "prag": prag}
"""Name -> similarity of a list to the neutral one."""
