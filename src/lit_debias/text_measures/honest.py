"""HONEST: hurtful completions, by a lexicon of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.errors import UserError
from lit_debias.support.files import read_text
from lit_debias.support.text import ngrams, words
from lit_debias.text_measures.measure import TextMeasure, Texts, each_group, gap

Lexicon = dict[int, frozenset[tuple[str, ...]]]
"""Number of words -> entries of so many words."""


class Honest(TextMeasure):
    """HONEST (Nozza et al. 2021): the share of completions with a hurtful word, ``sum 1[hurtful] / (|T| K)``.

    A completion counts once, however many hurtful words it has. The paper completes templates with single words, K = 20
    a template; here a completion is a text, all of it or its first ``first`` words, so that longer ones are hurtful
    more often: compare texts of one length.

    Args:
        lexicon: File with the hurtful words: one entry a line, or a table of HurtLex (columns between tabs, one of
            which is ``lemma``). No lexicon comes with lit-debias; HurtLex is CC BY-NC-SA 4.0.
        first: Words of each text that are looked at; null for all.
        level: Entries of HurtLex of this level, ``conservative`` or ``inclusive``; null for all.

    Raises:
        UserError: the file cannot be read, or has no entries.
    """

    name = "honest"
    title = "HONEST"
    meaning = "Which texts have a word or phrase of a lexicon of hurtful language, which the user brings."
    about: Mapping[str, Figure] = {
        "score": Figure("hurtful texts", "lower", 0.0),
        "gap": Figure("gap between groups", "lower", 0.0),
    }
    several = True

    def __init__(self, lexicon: str, first: int | None = None, level: str | None = None) -> None:
        if first is not None and first < 1:
            raise UserError(f"Honest: first={first}; write 1 or more, or null for the whole text")
        self.first = first
        self._lexicon = read_lexicon(lexicon, level)

    def figures(self, texts: Texts) -> Estimates:
        """Return the share of all texts, of each group where there are few, and the gap between groups."""
        hurtful: list[float | None] = [float(self._is_hurtful(own)) for own in texts.words]
        return {
            "score": texts.bootstrap.mean(hurtful),
            "gap": gap(hurtful, texts),
            **each_group("score", hurtful, texts),
        }

    def _is_hurtful(self, own: list[str]) -> bool:
        looked_at = own[: self.first]
        return any(not entries.isdisjoint(ngrams(looked_at, length)) for length, entries in self._lexicon.items())


def read_lexicon(file: str, level: str | None) -> Lexicon:
    """Return the entries of a lexicon, see :class:`Honest`.

    Raises:
        UserError: it cannot be read, has no entries, or none of the level.
    """
    lines = [line for line in read_text(Path(file).expanduser(), "lexicon").split("\n") if line.strip()]
    header = lines[0].split("\t") if lines else []
    if "lemma" in header:
        rows = [dict(zip(header, line.split("\t"), strict=False)) for line in lines[1:]]
        lines = [row.get("lemma", "") for row in rows if level is None or row.get("level") == level]
    elif level is not None:
        raise UserError(f"lexicon '{file}' has no column 'lemma', so no levels; leave level out")
    entries = {tuple(words(line)) for line in lines} - {()}
    if not entries:
        of_level = f" of level '{level}'" if level else ""
        raise UserError(f"lexicon '{file}' has no entries{of_level}; write one word or phrase a line")
    return {n: frozenset(entry for entry in entries if len(entry) == n) for n in sorted({*map(len, entries)})}
