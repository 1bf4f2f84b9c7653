"""Sentiment by VADER."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.errors import UserError
from lit_debias.text_measures.distances import Scores, between_twin_groups, between_twins, from_all
from lit_debias.text_measures.measure import TextMeasure, Texts, each_group


class Sentiment(TextMeasure):
    """Counterfactual sentiment bias (Huang et al. 2020, arXiv 1911.03064), with VADER (Hutto & Gilbert 2014).

    A text's score is VADER's compound c, mapped to [0, 1] by ``(c + 1) / 2``, as the paper's scores lie there. The
    field has several distances between scores, and all of them are here: ``individual`` is the paper's I.F., W1 between
    the texts of twins, averaged over twins; ``group`` is its G.F., W1 between a group's scores and those of all,
    averaged over groups; ``twins`` is W1 between the scores of one group and of the other over all their twins. They
    are distances of distributions, so groups with one mean may differ. An empty text has no score.

    Raises:
        UserError: the extra ``sentiment`` is not installed.
    """

    name = "sentiment"
    title = "Sentiment"
    meaning = "How friendly a text is by VADER's lexicon and rules: 0 negative, 0.5 neutral, 1 positive."
    about: Mapping[str, Figure] = {
        "mean": Figure("mean, 0 to 1", ""),
        "individual": Figure("Wasserstein-1 between twins (I.F.)", "lower", 0.0),
        "twins": Figure("Wasserstein-1 between groups of twins", "lower", 0.0),
        "group": Figure("Wasserstein-1 of groups from all (G.F.)", "lower", 0.0),
    }

    def __init__(self) -> None:
        if find_spec("vaderSentiment") is None:
            raise UserError("sentiment needs vaderSentiment: pip install 'lit-debias[sentiment]'")

    def figures(self, texts: Texts) -> Estimates:
        """Return the mean, of each group where there are few, and the distances."""
        compound = analyser()
        scores: Scores = [(compound(text) + 1) / 2 if text.strip() else None for text in texts.texts]
        return {
            "mean": texts.bootstrap.mean(scores),
            "individual": between_twins(scores, texts),
            "twins": between_twin_groups(scores, texts),
            "group": from_all(scores, texts),
            **each_group("mean", scores, texts),
        }


def analyser() -> Callable[[str], float]:
    """Return what gives a text's compound score in [-1, 1]."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()
    return lambda text: float(vader.polarity_scores(text)["compound"])
