"""Gender polarity: does a text speak of women or of men?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.text_measures.lists import GENDER, check_lists
from lit_debias.text_measures.measure import TextMeasure, Texts
from lit_debias.text_measures.representation import occurrences


class Polarity(TextMeasure):
    """Gender polarity by counting words, BOLD's "unigram matching" (Dhamala et al. 2021, arXiv 2101.11718).

    A text is female where it has more of BOLD's nine words of women than of its nine words of men, male where it has
    more of the latter, and neutral where it has none. Texts with as many of both, which BOLD does not name, are counted
    as neutral here. BOLD's other definition, by projection on an axis of word2vec, is not here: it needs its vectors.
    """

    name = "polarity"
    title = "Gender polarity"
    meaning = "Which texts have more words of women, more words of men, or as many of both (BOLD's unigram matching)."
    about: Mapping[str, Figure] = {
        "female": Figure("share of female texts", ""),
        "male": Figure("share of male texts", ""),
        "neutral": Figure("share of neutral texts", ""),
        "lean": Figure("female less male texts, -1 to 1", "toward", 0.0),
    }

    def figures(self, texts: Texts) -> Estimates:
        """Return the three shares, and the first less the second."""
        lists = check_lists("Polarity", GENDER)
        female, male = occurrences(texts, [lists["female"], lists["male"]])
        lean = np.sign(female - male)
        return {
            "female": texts.bootstrap.mean((lean > 0).astype(float).tolist()),
            "male": texts.bootstrap.mean((lean < 0).astype(float).tolist()),
            "neutral": texts.bootstrap.mean((lean == 0).astype(float).tolist()),
            "lean": texts.bootstrap.mean(lean.tolist()),
        }
