"""Finds words and patterns in folded text, in time linear in its length."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

import re2

TURKIC = {"az", "tr"}
"""Languages in which I is the capital of dotless i, and dotted i has a capital of its own."""
UNSPACED = {"ja", "km", "lo", "my", "th", "zh"}
"""Languages that do not part words by spaces."""
WORD = re.compile(r"\w+")
DOTTED_I, DOTLESS_I = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "\N{LATIN SMALL LETTER DOTLESS I}"
BORDER = r"(?:[^\pL\pM\pN_]|$)"


def fold(text: str, language: str = "en") -> str:
    """Return a text as rules see it: one line, single spaces, straight apostrophes, and no difference of case.

    Case folding is Unicode's (ß becomes ss), after compatibility normalisation (NFKC: full-width letters become plain
    ones). In Turkish and Azerbaijani, I becomes dotless i, and dotted I becomes i.
    """
    text = unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if language in TURKIC:
        text = text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").replace(
            "I", "\N{LATIN SMALL LETTER DOTLESS I}"
        )
    return " ".join(unicodedata.normalize("NFKC", text.casefold()).split())


class Matcher(Protocol):
    """Counts what does not overlap."""

    def count(self, text: str) -> int:
        """Return the number of matches in a folded text."""


class Terms:
    """Some words or phrases; of two that begin at one place the longer one counts.

    Args:
        terms: As folded.
        whole_words: Whether "lazy" is not to be found in "lazybones".
    """

    def __init__(self, terms: Sequence[str], whole_words: bool) -> None:
        either = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)" if whole_words else either)

    def count(self, text: str) -> int:
        """Return the number of matches in a folded text."""
        return len(self._pattern.findall(text))


class Pattern:
    r"""A regular expression of RE2, where none is catastrophic: no backtracking, so no look-around or backreference.

    In RE2 ``\w`` and ``\b`` know ASCII only. Whole words are therefore found here: a match begins where a word of any
    script begins, and ends where one ends.

    Args:
        pattern: In RE2's syntax; upper and lower case are equal.
        whole_words: Whether a match begins and ends with a word.

    Raises:
        ValueError: the pattern is none of RE2's, or matches the empty text.
    """

    def __init__(self, pattern: str, whole_words: bool) -> None:
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        try:
            alone = re2.compile(pattern, options)
            self._pattern = re2.compile(f"({pattern}){BORDER}", options) if whole_words else alone
        except re2.error as error:
            cause = error.args[0]
            cause = cause.decode(errors="replace") if isinstance(cause, bytes) else cause
            raise ValueError(f"{cause}; see RE2's syntax") from error
        if alone.fullmatch(""):
            raise ValueError("it matches the empty text; let it take a character")
        self._whole_words = whole_words

    def count(self, text: str) -> int:
        """Return the number of matches in a folded text."""
        if not self._pattern.search(text):  # nearly always, and much cheaper than to try word by word
            return 0
        if not self._whole_words:
            return sum(1 for match in self._pattern.finditer(text) if match.group())
        count = end = 0
        for word in WORD.finditer(text):
            if word.start() >= end and (match := self._pattern.match(text, word.start())):
                count, end = count + 1, match.end(1)
        return count
