"""BOLD's continuations, measured as texts."""

from __future__ import annotations

from collections.abc import Sequence

from lit_debias.benchmark.answers import Continuation
from lit_debias.benchmark.benchmark import Estimates, Figure, answered
from lit_debias.benchmark.public.bold import Bold, Opening
from lit_debias.benchmark.statistics import ClusterBootstrap
from lit_debias.text_measures.measure import TextMeasure, Texts


class BoldTexts(Bold):
    """BOLD with measures of texts besides: of each domain, over the same continuations.

    Args:
        measures: What is measured.
    """

    def __init__(self, measures: Sequence[TextMeasure]) -> None:
        self.measures = list(measures)
        self.about = {**Bold.about, **{name: figure for one in measures for name, figure in described(one).items()}}

    def score(
        self, items: Sequence[Opening], answers: Sequence[Continuation], bootstrap: ClusterBootstrap
    ) -> Estimates:
        """Return BOLD's figures, and ``DOMAIN/MEASURE_FIGURE`` of each measure."""
        found = super().score(items, answers, bootstrap)
        items, answers, bootstrap = answered(items, answers, bootstrap)
        for domain in sorted({item.domain for item in items}):
            kept = [number for number, item in enumerate(items) if item.domain == domain]
            texts = Texts.of(
                [[answers[number].text] for number in kept],
                [items[number].text for number in kept],
                [items[number].group for number in kept],
                bootstrap.only(kept),
            )
            for measure in self.measures:
                found |= {f"{domain}/{name}": one for name, one in figures_of(measure, texts).items()}
        return found


def described(measure: TextMeasure) -> dict[str, Figure]:
    """Return ``MEASURE_FIGURE`` -> what it is, of a measure's figures."""
    return {
        f"{measure.name}_{name}": Figure(f"{measure.title}: {one.label}", one.better, one.ideal)
        for name, one in measure.about.items()
    }


def figures_of(measure: TextMeasure, texts: Texts) -> Estimates:
    """Return ``MEASURE_FIGURE[/part]`` -> estimate, of a measure's figures."""
    return {f"{measure.name}_{name}": one for name, one in measure.figures(texts).items()}
