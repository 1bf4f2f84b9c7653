"""Co-occurrence: which words stand near words of women, and which near words of men?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.benchmark.statistics import Array, Estimate
from lit_debias.errors import UserError
from lit_debias.text_measures.counting import Counts, chunks
from lit_debias.text_measures.lists import GENDER, STOP_WORDS, check_lists, plain
from lit_debias.text_measures.measure import TextMeasure, Texts, Words, nothing

LISTED = 10
"""Words that are listed for each group."""
SEEN = 2.0
"""Least weight of a word near both groups together for it to be listed."""


class Cooccurrence(TextMeasure):
    """Co-occurrence bias (Bordia & Bowman 2019, arXiv 1904.03035).

    With ``c(w, g)`` the weight of word w near words of group g,

        P(w | g) = [c(w, g) / sum_i c(w_i, g)] / [c(g) / sum_i c(w_i)]
        bias(w) = log P(w | first) / P(w | second)

    in nats, and the figure is the mean of ``|bias(w)|`` over the words that occur near a word of either group. Stop
    words and the groups' words are left out. The paper has two contexts: a fixed window, which is the default, and all
    of a text with weights ``0.95 ** distance``, which is ``window: null, decay: 0.95``. ``smoothing`` is added to every
    ``c(w, g)``; without it a word near one group alone would be infinitely biased. It makes the figure of few texts
    depend on it, so compare texts of one number and length.

    Args:
        words: Two groups -> their words, the first over the second; by default BOLD's nine of women and nine of men.
        window: Words on either side that are near; null for all of the text.
        decay: A word at distance d weighs ``decay ** d``.
        smoothing: Added to each ``c(w, g)``.

    Raises:
        UserError: a number is out of range, or there are not two groups.
    """

    name = "cooccurrence"
    title = "Co-occurrence"
    meaning = (
        "How much likelier words are near words of one group than near words of the other, in nats, whichever it is "
        "(Bordia & Bowman 2019)."
    )
    about: Mapping[str, Figure] = {"bias": Figure("log ratio near one group over the other, nats", "lower", 0.0)}

    def __init__(
        self,
        words: dict[str, list[str]] | None = None,
        window: int | None = 10,
        decay: float = 1.0,
        smoothing: float = 1.0,
    ) -> None:
        self._lists = check_lists("Cooccurrence: words", words or GENDER)
        if len(self._lists) != 2:
            raise UserError(f"Cooccurrence compares two groups, and 'words' has {len(self._lists)}; write two")
        if (window is not None and window < 1) or not 0 < decay <= 1 or smoothing <= 0:
            raise UserError(
                f"Cooccurrence: window={window}, decay={decay}, smoothing={smoothing}; write a window of 1 or more, a "
                "decay above 0 and up to 1, and a smoothing above 0"
            )
        self.window, self.decay, self.smoothing = window, decay, smoothing

    def figures(self, texts: Texts) -> Estimates:
        """Return the mean; n is how many words it is a mean over."""
        near = Near.of(self, texts)
        if not near.vocabulary:
            return {"bias": nothing(texts.bootstrap)}
        total, count = np.zeros(len(texts.bootstrap.weights)), np.zeros(len(texts.bootstrap.weights))
        sizes = near.sizes(texts)
        for start, stop in chunks(len(near.vocabulary)):
            scores, there = near.scores(texts, sizes, start, stop, self.smoothing)
            total += np.where(there, np.abs(scores), 0).sum(axis=1)
            count += there.sum(axis=1)
        mean = np.full(len(total), np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return {"bias": Estimate(mean, len(near.vocabulary) if np.isfinite(mean[0]) else 0)}

    def words(self, texts: Texts) -> Words:
        """Return the words that lean most to each group, with ``bias(w)`` in its favour."""
        near = Near.of(self, texts)
        sizes = near.sizes(texts)
        pairs: list[tuple[str, float]] = []
        for start, stop in chunks(len(near.vocabulary)):
            scores, _ = near.scores(texts, sizes, start, stop, self.smoothing)
            seen = sum(side.within(start, stop).sums(texts.bootstrap, stop - start)[0] for side in near.sides)
            own = zip(near.vocabulary[start:stop], scores[0].tolist(), np.asarray(seen).tolist(), strict=True)
            pairs += [(word, score) for word, score, weight in own if weight >= SEEN and np.isfinite(score)]
        first, second = self._lists
        leaning = {first: pairs, second: [(word, -score) for word, score in pairs]}
        return {
            f"near {name}": sorted([p for p in own if p[1] > 0], key=lambda p: (-p[1], p[0]))[:LISTED]
            for name, own in leaning.items()
        }

    def neighbours(self, words: list[str]) -> Iterator[tuple[int, str, float]]:
        """Yield the number of a group, a word near a word of it, and the weight of the distance between them."""
        owners = {word: number for number, own in enumerate(self._lists.values()) for word in own}
        plainly = [plain(word) for word in words]
        for place, owner in [(place, owners[word]) for place, word in enumerate(plainly) if word in owners]:
            reach = len(plainly) if self.window is None else self.window
            for other in range(max(0, place - reach), min(len(plainly), place + reach + 1)):
                word = plainly[other]
                if word not in owners and word not in STOP_WORDS:
                    yield owner, word, self.decay ** abs(other - place)


class Near:
    """What stands near the words of two groups: :attr:`vocabulary` [V], and counts of each group."""

    def __init__(self, vocabulary: list[str], sides: tuple[Counts, Counts], mentions: tuple[Array, Array]) -> None:
        self.vocabulary, self.sides, self.mentions = vocabulary, sides, mentions

    @classmethod
    def of(cls, measure: Cooccurrence, texts: Texts) -> Near:
        """Return what a measure finds in texts."""
        numbers: dict[str, int] = {}
        entries: tuple[list[tuple[int, int, float]], ...] = ([], [])
        mentions = np.zeros((2, len(texts.texts)))
        lists = list(measure._lists.values())
        for row, own in enumerate(texts.words):
            for side in (0, 1):
                mentions[side, row] = sum(plain(word) in lists[side] for word in own)
            for side, word, weight in measure.neighbours(own):
                entries[side].append((row, numbers.setdefault(word, len(numbers)), weight))
        return cls(list(numbers), (Counts.of(entries[0]), Counts.of(entries[1])), (mentions[0], mentions[1]))

    def sizes(self, texts: Texts) -> tuple[Array, Array]:
        """Return ``sum_i c(w_i, g)`` of each group, [1 + B], without smoothing."""
        first, second = (self._total(side, texts) for side in self.sides)
        return first, second

    def scores(
        self, texts: Texts, sizes: tuple[Array, Array], start: int, stop: int, smoothing: float
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Return ``bias(w)`` [1 + B, W] of some words, NaN where a group is never named, and which words count."""
        counts = [side.within(start, stop).sums(texts.bootstrap, stop - start) for side in self.sides]
        named = [texts.bootstrap.sums(row) for row in self.mentions]
        there = (counts[0] + counts[1] > 0) & ((named[0] > 0) & (named[1] > 0))[:, None]
        spread = smoothing * len(self.vocabulary)
        logs = [
            np.log(own + smoothing) - np.log(size + spread)[:, None] for own, size in zip(counts, sizes, strict=True)
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = np.log(named[0]) - np.log(named[1])
            found = logs[0] - logs[1] - offset[:, None]
        return np.where(there, found, np.nan), there

    @staticmethod
    def _total(side: Counts, texts: Texts) -> Array:
        return Counts(side.rows, np.zeros_like(side.columns), side.values).sums(texts.bootstrap, 1)[:, 0]
