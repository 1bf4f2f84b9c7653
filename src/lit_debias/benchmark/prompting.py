"""How benchmarks put texts to a policy: in which words, with which system message, and in which batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lit_debias.conversations import with_system
from lit_debias.types import PromptBatch

Ask = str | Callable[[Sequence[str]], str]
"""A question, or what writes it: of the choices in the order in which it lists them."""
System = str | Sequence[str | None] | None
"""A system message for all N prompts, or one for each; None for the policy's own."""


def wordings(question: Ask, choices: Sequence[str], rotations: bool) -> list[str]:
    """Return a question as it is asked: once, or with its K choices listed from each of them on.

    Raises:
        TypeError: the question is a text, whose choices cannot be rotated.
    """
    if isinstance(question, str):
        if rotations:
            raise TypeError("rotations need a question that is a function: it writes the choices in a given order")
        return [question]
    starts = range(len(choices)) if rotations else (0,)
    return [question([*choices[start:], *choices[:start]]) for start in starts]


def asked_as(texts: Sequence[str], systems: Sequence[str | None]) -> PromptBatch:
    """Return prompts [N] with the system messages [N] of those that have one of their own."""
    if not any(systems):
        return PromptBatch(list(texts))
    messages = [with_system(text, system) for text, system in zip(texts, systems, strict=True)]
    return PromptBatch(list(texts), messages=messages)


def numbered(keys: Sequence[str]) -> list[str]:
    """Return keys [N] that differ: each with its number among its equals."""
    seen: Counter[str] = Counter()
    found = []
    for key in keys:
        found.append(f"{key}\0{seen[key]}")
        seen[key] += 1
    return found


def even(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows of texts filled up with empty ones to the length of the longest."""
    widest = max(map(len, rows))
    return [[*row, *[""] * (widest - len(row))] for row in rows]


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the numbers of N rows, at most ``size`` at a time, rows of one length together."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])  # pads little
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
