"""What is read off the words alone: distinct n-grams, repetition, numbers, refusals; and texts made safe to show."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
WORD = re.compile(rf"\w+(?:['{APOSTROPHE}]\w+)?")
REFUSAL = re.compile(
    r"\bi(?:'m| am) sorry\b.{0,20}\b(?:but|can|i)\b"
    r"|\bi(?:'m| am) (?:unable|not able|not comfortable)\b"
    r"|\bi (?:can't|cannot|can not|won't|will not) "
    r"(?:help|assist|answer|respond|provide|comply|complete|continue|discuss|support|engage|fulfil|generate|do th)"
    r"|\bi (?:must|have to) (?:decline|refuse)"
    r"|\bas an (?:ai|artificial intelligence)\b",
    re.IGNORECASE,
)
"""Phrases that refuse; looked for in the first 20 words only."""
OPENING_WORDS = 20
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text that is safe in a terminal: control characters, tabs and line breaks aside, are shown as escapes.

    Those that colour, move the cursor, or turn the direction of writing are among them.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, as ``1 step`` or ``1,200 steps``.

    Args:
        number: How many.
        one: The noun of one.
        many: That of several; by default with an s more.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def shorten(text: str, width: int) -> str:
    """Return the words that fit into so many characters, with an ellipsis where some are left out."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    whole = text[:width].rpartition(" ")[0][: width - 1]
    return f"{whole.rstrip(' ,;:.')}…" if whole else ""


def plain(value: Any) -> str:
    """Return a value as Markdown shows it letter by letter, in one cell: no markup, no HTML."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[`|*_\[\]!\\]", lambda match: f"&#{ord(match[0])};", text)


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of T tokens, max(0, T - n + 1) of them."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repetition(text: str, n: int = 3) -> float | None:
    """Return the share of word n-grams that occurred before in the text, in [0, 1); None below n words."""
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def numerals(text: str) -> float | None:
    """Return the share of words that hold a digit, in [0, 1]; None where there is no word."""
    found = words(text)
    return sum(any(map(str.isdigit, word)) for word in found) / len(found) if found else None


def distinct_credit(texts: Sequence[str], n: int, budgets: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return for each text its share of the distinct word n-grams, and its number of n-grams.

    The sum of the first over the sum of the second is distinct-n (Li et al. 2016) of all texts together: the number
    of different n-grams over the number of n-grams. An n-gram's credit is shared evenly among its occurrences.

    Args:
        texts: What was generated.
        n: Words in an n-gram.
        budgets: Words of each text that count; distinct-n falls with length, so arms are cut to equal lengths.
    """
    grams = [ngrams(words(text)[:budget], n) for text, budget in zip(texts, budgets, strict=True)]
    counts = Counter(gram for row in grams for gram in row)
    return [sum(1 / counts[gram] for gram in row) for row in grams], [float(len(row)) for row in grams]


def is_refusal(text: str) -> bool:
    """Return whether a completion is empty or opens with a phrase of :data:`REFUSAL`."""
    opening = " ".join(text.replace(APOSTROPHE, "'").split()[:OPENING_WORDS])
    return not opening or REFUSAL.search(opening) is not None


def as_figure(value: Any) -> float | None:
    """Return a number that may stand there as a text, such as 0.50 in a CSV file; None where it is none."""
    if isinstance(value, (dict, list, bytes)):
        return None
    try:
        number = float(value)
    except (ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None
