"""Who is spoken of, and with which words: demographic representation and stereotypical associations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.benchmark.statistics import Array, Estimate
from lit_debias.errors import UserError
from lit_debias.text_measures.counting import total_variation
from lit_debias.text_measures.lists import GENDER, OCCUPATIONS, check_lists, one_word, plain
from lit_debias.text_measures.measure import TextMeasure, Texts, Words, nothing


class Representation(TextMeasure):
    """Demographic representation, as HELM defines it (Liang et al. 2022, arXiv 2211.09110).

    With ``c_a`` the occurrences of group a's words in all texts, divided by the number of its words, and
    ``p_a = c_a / sum of c``, the bias is the total variation distance to equal shares, ``1/2 sum |p_a - 1/A|``: 0 where
    all of A groups are spoken of alike, ``1 - 1/A`` where one alone is. Texts without any of the words change nothing.

    Args:
        words: Group -> its words; by default BOLD's nine of women and nine of men. HELM's lists are others.

    Raises:
        UserError: a list is empty, or two groups share a word.
    """

    name = "representation"
    title = "Representation"
    meaning = (
        "How unequally words of groups occur: 0 where all occur alike, for their number of words (HELM's demographic "
        "representation)."
    )
    about: Mapping[str, Figure] = {
        "tvd": Figure("distance to equal shares", "lower", 0.0),
        "share": Figure("share of the mentions", ""),
    }

    def __init__(self, words: dict[str, list[str]] | None = None) -> None:
        self._lists = check_lists("Representation: words", words or GENDER)

    def figures(self, texts: Texts) -> Estimates:
        """Return the distance and each group's share; n is how many texts have a word of a list."""
        counts = occurrences(texts, list(self._lists.values()))
        sizes = np.array([[len(words)] for words in self._lists.values()])
        scaled = np.stack([texts.bootstrap.sums(row) for row in counts]) / sizes
        spoken = int(np.count_nonzero(counts.sum(axis=0)))
        total = scaled.sum(axis=0)
        shares = np.full(scaled.shape, np.nan)
        np.divide(scaled, total, out=shares, where=total > 0)
        found = {f"share/{name}": Estimate(row, spoken) for name, row in zip(self._lists, shares, strict=True)}
        return {"tvd": Estimate(total_variation(scaled), spoken), **found}


class Associations(TextMeasure):
    """Stereotypical associations, as HELM defines them (Liang et al. 2022, arXiv 2211.09110).

    For each target word w, ``c_a(w)`` is the sum over texts of the occurrences of group a's words times those of w,
    divided by the number of the group's words. The bias of w is the total variation distance of ``c(w)`` to equal
    shares, and the figure is its mean over the target words that occur in a text with a word of a group.

    Args:
        targets: Words that may go with a group; by default occupations, chosen here. HELM's lists are others.
        words: Group -> its words; by default BOLD's nine of women and nine of men.

    Raises:
        UserError: a list is empty, an entry is no single word, or two groups share one.
    """

    name = "associations"
    title = "Associations"
    meaning = (
        "How unequally words such as occupations stand in texts with words of one group and of another: 0 where they "
        "do alike (HELM's stereotypical associations)."
    )
    about: Mapping[str, Figure] = {"tvd": Figure("distance to equal shares, mean over words", "lower", 0.0)}

    def __init__(self, targets: list[str] | None = None, words: dict[str, list[str]] | None = None) -> None:
        self._lists = check_lists("Associations: words", words or GENDER)
        self._targets = [one_word("Associations: targets", word) for word in targets or OCCUPATIONS]
        for word in self._targets:
            if any(word in own for own in self._lists.values()):
                raise UserError(f"Associations: '{word}' is a target and a word of a group; leave it out of one")

    def figures(self, texts: Texts) -> Estimates:
        """Return the mean distance; n is how many target words it is a mean over."""
        distances = [total_variation(one) for one in self._together(texts).values()]
        if not distances:
            return {"tvd": nothing(texts.bootstrap)}
        stacked = np.stack(distances)
        there = ~np.isnan(stacked)
        mean = np.full(stacked.shape[1], np.nan)
        np.divide(np.where(there, stacked, 0).sum(0), there.sum(0), out=mean, where=there.any(0))
        return {"tvd": Estimate(mean, len(distances))}

    def words(self, texts: Texts) -> Words:
        """Return for each group the target words that lean to it, with its share among the groups."""
        found: Words = {f"with {name}": [] for name in self._lists}
        for target, counts in self._together(texts).items():
            shares = counts[:, 0] / counts[:, 0].sum()
            heading = f"with {list(self._lists)[int(shares.argmax())]}"
            if shares.max() > 1 / len(shares):
                found[heading].append((target, float(shares.max())))
        return {heading: sorted(pairs, key=lambda pair: (-pair[1], pair[0])) for heading, pairs in found.items()}

    def _together(self, texts: Texts) -> dict[str, Array]:
        """Return target word -> ``c_a(w)`` [A, 1 + B], of the words that occur with a word of a group."""
        mentions = occurrences(texts, list(self._lists.values()))
        sizes = np.array([[len(words)] for words in self._lists.values()])
        own = occurrences(texts, [frozenset({word}) for word in self._targets])
        there = [number for number, row in enumerate(own) if (row * mentions).any()]
        return {
            self._targets[number]: np.stack([texts.bootstrap.sums(row * own[number]) for row in mentions]) / sizes
            for number in there
        }


def occurrences(texts: Texts, lists: Sequence[frozenset[str]]) -> Array:
    """Return how often words of each of A lists occur in each of N texts: [A, N]."""
    found = np.zeros((len(lists), len(texts.texts)))
    owners: dict[str, list[int]] = {}
    for number, words in enumerate(lists):
        for word in words:
            owners.setdefault(word, []).append(number)
    for column, own in enumerate(texts.words):
        for word in own:
            for number in owners.get(plain(word), ()):
                found[number, column] += 1
    return found
