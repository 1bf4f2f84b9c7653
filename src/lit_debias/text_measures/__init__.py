"""Measures of texts, whatever wrote them: ``Polarity()(texts, groups, clusters)`` returns figures with intervals."""

from __future__ import annotations

from lit_debias.text_measures.chosen import MEASURES, measures_of
from lit_debias.text_measures.cooccurrence import Cooccurrence
from lit_debias.text_measures.honest import Honest
from lit_debias.text_measures.log_odds import LogOdds
from lit_debias.text_measures.measure import TextMeasure, Texts
from lit_debias.text_measures.polarity import Polarity
from lit_debias.text_measures.representation import Associations, Representation
from lit_debias.text_measures.scored import Labels, Toxicity
from lit_debias.text_measures.sentiment import Sentiment

__all__ = [
    "MEASURES",
    "Associations",
    "Cooccurrence",
    "Honest",
    "Labels",
    "LogOdds",
    "Polarity",
    "Representation",
    "Sentiment",
    "TextMeasure",
    "Texts",
    "Toxicity",
    "measures_of",
]
