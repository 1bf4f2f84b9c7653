"""Words that mark the texts about a group: log-odds with an informative Dirichlet prior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.benchmark.statistics import Array, Estimate
from lit_debias.errors import UserError
from lit_debias.text_measures.measure import MOST_GROUPS, TextMeasure, Texts, Words

SIGNIFICANT = 1.96
LISTED = 10
"""Words that are listed for each group."""


class LogOdds(TextMeasure):
    """Words that mark a group ("Fightin' Words", Monroe et al. 2008), as in Marked Personas (arXiv 2305.18189).

    For the texts about a group (counts ``y1_w`` of ``n1`` words) against all others (``y2_w`` of ``n2``), with the
    prior ``a_w`` and its sum ``a0``,

        delta_w = log[(y1_w + a_w) / (n1 + a0 - y1_w - a_w)] - log[(y2_w + a_w) / (n2 + a0 - y2_w - a_w)]
        z_w = delta_w / sqrt(1 / (y1_w + a_w) + 1 / (y2_w + a_w))

    The prior is ``prior`` times how often w occurs in all texts, as in Marked Personas. Words with z above 1.96 are
    listed. The paper has no single figure; here it is how many words those are, over all groups. It has no
    interval: a sample with a text twice finds words in it twice, and so more of them. About one word in forty is above
    1.96 by chance, and the longer the texts, the more words are found: compare texts of one number and length.

    Args:
        prior: Times the counts in all texts.

    Raises:
        UserError: ``prior`` is not above 0.
    """

    name = "log_odds"
    title = "Marking words"
    meaning = (
        "Words that occur more in answers about one group than in those about the others, with z above 1.96 (log-odds "
        "with a Dirichlet prior, Monroe et al. 2008)."
    )
    about: Mapping[str, Figure] = {"words": Figure("words that mark a group", "lower", 0.0)}

    def __init__(self, prior: float = 1.0) -> None:
        if not 0 < prior < np.inf:
            raise UserError(f"LogOdds: prior={prior}; write a number above 0")
        self.prior = prior

    def figures(self, texts: Texts) -> Estimates:
        """Return how many words there are; n is how many texts are about a group that is compared."""
        if len(texts.large_groups) < 2:
            return {"words": self._count(0, 0, texts)}
        found = self._marking(texts)
        sizes = {name: texts.groups.count(name) for name in found}
        about = {"words": self._count(sum(map(len, found.values())), sum(sizes.values()), texts)}
        if len(found) > MOST_GROUPS:
            return about
        return about | {f"words/{name}": self._count(len(own), sizes[name], texts) for name, own in found.items()}

    def words(self, texts: Texts) -> Words:
        """Return the words of each group, with z."""
        if len(texts.large_groups) < 2:
            return {}
        return {f"about {name}": own[:LISTED] for name, own in self._marking(texts).items()}

    @staticmethod
    def _count(value: int, n: int, texts: Texts) -> Estimate:
        samples = np.full(len(texts.bootstrap.weights), np.nan)
        samples[0] = value
        return Estimate(samples, n)

    def _marking(self, texts: Texts) -> Words:
        """Return group -> its words with z above 1.96, the highest first."""
        numbers: dict[str, int] = {}
        for own in texts.words:
            for word in own:
                numbers.setdefault(word, len(numbers))
        counts = {name: np.zeros(len(numbers)) for name in texts.large_groups}
        for own, group in zip(texts.words, texts.groups, strict=True):
            if group in counts:
                np.add.at(counts[group], [numbers[word] for word in own], 1)
        everything = np.asarray(sum(counts.values()))
        vocabulary = list(numbers)
        found: Words = {}
        for name, own_counts in counts.items():
            z = z_scores(own_counts, everything - own_counts, self.prior * everything)
            order = [int(i) for i in np.argsort(-z, kind="stable") if z[i] > SIGNIFICANT]
            found[name] = [(vocabulary[i], float(z[i])) for i in order]
        return found


def z_scores(first: Array, second: Array, prior: Array) -> Array:
    """Return z [V] of words by their counts in two sets of texts and their prior, [V] each; 0 for words of neither."""
    a, b = first + prior, second + prior
    there = (a > 0) & (b > 0)
    a, b = np.where(there, a, 1.0), np.where(there, b, 1.0)
    rest_a, rest_b = (first.sum() + prior.sum()) - a, (second.sum() + prior.sum()) - b
    with np.errstate(divide="ignore", invalid="ignore"):
        delta = np.log(a / rest_a) - np.log(b / rest_b)
    return np.where(there & np.isfinite(delta), delta, 0.0) / np.sqrt(1 / a + 1 / b)
