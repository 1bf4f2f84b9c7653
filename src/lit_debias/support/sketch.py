"""Which texts a model was trained on, as a few digests: enough to tell whether other texts are among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_debias.support.hashing import sha256
from lit_debias.support.text import words

SIZE = 512
"""Digests that are kept of a data set: those of its sentences that are lowest, as good as drawn at random."""
DIGITS = 12
SHORTEST = 4
"""Words of a sentence that counts; shorter ones are in every data set."""
_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")


def sketch(texts: Iterable[str]) -> list[str]:
    """Return up to :data:`SIZE` digests of the sentences of texts, sorted; letter case and marks do not count."""
    return sorted(_digests(texts))[:SIZE]


def overlap(texts: Iterable[str], known: Sequence[str]) -> tuple[int, int]:
    """Return how many sentences of texts are among those of a sketch, and how many could be looked up.

    A whole sketch has all sentences of its texts. Of a larger data set it has those with a low digest, so that only
    sentences with a low one can be looked up, and their share estimates that of all.

    Args:
        texts: Those that are looked for.
        known: What :func:`sketch` returned.
    """
    last = known[-1] if len(known) == SIZE else "g"  # after every hexadecimal digit
    tested = {digest for digest in _digests(texts) if digest <= last}
    return len(tested & set(known)), len(tested)


def strings_in(value: Any) -> Iterator[str]:
    """Yield the texts in a value: in its parts, and of mappings in what they hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_in(item)


def _digests(texts: Iterable[str]) -> set[str]:
    found = {tuple(words(sentence)) for text in texts for sentence in _ENDS.split(text)}
    return {sha256([" ".join(sentence)])[:DIGITS] for sentence in found if len(sentence) >= SHORTEST}
