"""The reward: a start, plus the weight of each match, within [0, 1]."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from lit_debias.plugins import Reward, RewardBatch, UserError, described, words
from lit_debias_rules.lexicon import find_lexicon, read_lexicon


class Rules(Reward):
    """What words and regular expressions find in a completion; a rough tool, for a rule cannot read.

    For rules with weights w_i that match c_i times, up to their limits l_i::

        score = clip(start + sum of w_i * min(c_i, l_i), 0, 1)

    A completion without a word has no score (None). The README describes the files and the package's own lexicons,
    ``generalising`` (English) and ``generalising_zh``.

    Args:
        lexicons: Files, YAML or one word or phrase a line, and names of the package's own.
        start: Score without a match: 1 where rules are penalties, 0 where they are rewards.
        weight: Of rules that have none; below 0 it is a penalty.
        language: Of files that name none; it decides case folding and whether words are parted by spaces.

    Raises:
        UserError: there is no such file, it is malformed, or a number is out of range.
    """

    def __init__(
        self,
        lexicons: tuple[str, ...] = ("generalising",),
        start: float = 1.0,
        weight: float = -0.25,
        language: str = "en",
    ) -> None:
        if not lexicons or isinstance(lexicons, str):
            raise UserError("Rules: lexicons must be a list with at least one file or name, such as [generalising]")
        if not 0 <= start <= 1 or not weight or not math.isfinite(weight):
            raise UserError(f"Rules: start={start}, weight={weight}; write 0 <= start <= 1 and a weight other than 0")
        self.lexicons = tuple(str(find_lexicon(name)) for name in lexicons)
        self.start, self.weight, self.language = start, weight, language
        self._read = [read_lexicon(find_lexicon(path), weight, language) for path in self.lexicons]

    def identity(self) -> dict[str, Any]:
        """Return what scores depend on; a lexicon of the package counts by its content too."""
        return {**super().identity(), "files": described(self.lexicons)}

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], None for a completion without a word."""
        return [self.score_text(text) if words(text) else None for text in batch.completions]

    def score_text(self, text: str) -> float:
        """Return the score in [0, 1] of one completion."""
        found = [match for lexicon in self._read for match in lexicon.matches(text)]
        gain = sum(rule.weight * min(count, rule.limit or count) for rule, count in found)
        return min(1.0, max(0.0, self.start + gain))

    def matches(self, text: str) -> Counter[str]:
        """Return name -> number of matches for the rules that match, to see why a completion scores as it does."""
        found: Counter[str] = Counter()
        for lexicon in self._read:
            found.update({rule.name: count for rule, count in lexicon.matches(text)})
        return found
