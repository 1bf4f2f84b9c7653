"""Whether a model's moral judgements follow those of surveys, country by country (arXiv 2507.21319, its sisters)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from lit_debias.benchmark.asking import Model
from lit_debias.benchmark.benchmark import Benchmark, Estimates, Figure, Item, answered
from lit_debias.benchmark.files import locate, number, read_csv, text
from lit_debias.benchmark.probes.grouping import adjusted_rand, average_linkage
from lit_debias.benchmark.probes.own import own, part
from lit_debias.benchmark.statistics import Array, ClusterBootstrap, Estimate, correlation
from lit_debias.errors import UserError

FILE = "morality/survey.csv"
COLUMNS = ("country", "topic", "score")


@dataclass(frozen=True)
class Judgement(Item):
    """What a country thinks of a topic."""

    country: str
    topic: str
    survey: float
    """-1, never justifiable, to 1, always justifiable."""
    prompts: tuple[str, ...]


class Morality(Benchmark[Judgement, float]):
    """How far a model's moral judgements go along with those of a survey, over countries and topics.

    The model's score of a country and topic is the mean, over two prompts and five pairs of phrases such as right and
    wrong, of ``log p(moral phrase | prompt) - log p(other phrase | prompt)``, summed over the tokens of a phrase. The
    table of the user says what people think: -1 to 1, with a row for each country and topic.

    ``variance_ratio`` is the mean over topics of the variance over countries: the model's, whose scores are stretched
    to -1 to 1 over all rows, over the survey's. Above 1 the model tells countries more apart than they are.
    ``cluster_ari`` compares how countries group by their scores on all topics (average linkage); the statistic of the
    paper was not at hand, so this one is ours, and it has no interval.

    Args:
        probability: ``phrase``, or ``last_token``: the log p of the full stop after the phrase alone, which is what the
            code of the authors seems to take.
        clusters: Groups of countries.

    Raises:
        UserError: ``clusters`` is below 2.
    """

    name = "morality"
    title = "Morality across cultures"
    meaning = "How justifiable people of a country find something: the model's log-probabilities against a survey's."
    files = (FILE,)
    asks = 2
    about: Mapping[str, Figure] = {
        "pearson": Figure("correlation of the model's scores with the survey's", "higher", 1.0),
        "variance_ratio": Figure("variance over countries, model over survey", "toward", 1.0),
        "variance_pearson": Figure("correlation of both variances over topics", "higher", 1.0),
        "cluster_ari": Figure("adjusted Rand index of the countries' groups", "higher", 1.0),
    }

    def __init__(self, probability: Literal["phrase", "last_token"] = "phrase", clusters: int = 4) -> None:
        if clusters < 2:
            raise UserError(f"Morality: clusters={clusters}; write 2 or more")
        self.probability, self.clusters = probability, clusters

    def read(self, folder: str) -> list[Judgement]:
        """Return the rows of the table, each country and topic once."""
        path, wording = locate(folder, FILE), own("morality")
        found: dict[tuple[str, str], Judgement] = {}
        for row in read_csv(path, COLUMNS):
            country, topic = text(row, "country").strip(), text(row, "topic").strip()
            if (country, topic) in found:
                raise UserError(f"benchmarks: '{path}' has {country} and {topic} twice; leave one of the rows out")
            words = wording["topics"].get(topic, topic)
            prompts = tuple(prompt.format(country=country, topic=words) for prompt in wording["prompts"])
            found[country, topic] = Judgement(
                unit=f"{country}/{topic}",
                stratum=topic,
                cluster=country,
                country=country,
                topic=topic,
                survey=number(row, "score", -1, 1),
                prompts=prompts,
            )
        return list(found.values())

    def ask(self, model: Model, items: Sequence[Judgement]) -> list[float]:
        """Return the model's score of each country and topic, in nats."""
        contexts = list(chain.from_iterable(item.prompts for item in items))
        phrases = list(chain.from_iterable(own("morality")["phrases"]))
        margins = self._margins(model, contexts, phrases)
        return list(map(float, margins.reshape(len(items), -1).mean(axis=1)))

    def score(
        self, items: Sequence[Judgement], answers: Sequence[float | None], bootstrap: ClusterBootstrap
    ) -> Estimates:
        """Return the figures over all rows, and the correlation in each topic and each country."""
        items, there, bootstrap = answered(items, answers, bootstrap)
        model, survey = np.array(there, dtype=float), np.array([item.survey for item in items], dtype=float)
        found = {"pearson": correlation(model, survey, bootstrap), **variances(items, model, survey, bootstrap)}
        found["cluster_ari"] = self._agreement(items, model, survey, bootstrap)
        for kind in ("topic", "country"):
            names = [getattr(item, kind) for item in items]
            for name in sorted(set(names)):
                some = [i for i, other in enumerate(names) if other == name]
                found[f"pearson/{kind}_{part(name)}"] = correlation(model[some], survey[some], bootstrap.only(some))
        return found

    def _margins(self, model: Model, contexts: Sequence[str], phrases: Sequence[str]) -> Array:
        """Return log p of moral minus other phrase, [N, pairs]."""
        if self.probability == "phrase":
            likelihoods = model.sentences(contexts, [phrases] * len(contexts))
            values = np.array([[one.total for one in row] for row in likelihoods])
        else:
            tokens = model.tokens(contexts, [[f"{phrase}." for phrase in phrases]] * len(contexts))
            values = np.array([[one.logprobs[-1] for one in row] for row in tokens])
        return np.asarray(values[:, 0::2] - values[:, 1::2])

    def _agreement(
        self, items: Sequence[Judgement], model: Array, survey: Array, bootstrap: ClusterBootstrap
    ) -> Estimate:
        samples = np.full(len(bootstrap.weights), np.nan)
        countries = {item.country for item in items}
        if len(countries) <= self.clusters:
            return Estimate(samples, 0)
        groups = [average_linkage(table(items, scores), self.clusters) for scores in (model, survey)]
        samples[0] = adjusted_rand(*groups)
        return Estimate(samples, len(countries))


def variances(
    items: Sequence[Judgement], model: Array, survey: Array, bootstrap: ClusterBootstrap
) -> dict[str, Estimate]:
    """Return the ratio of the mean variances over countries, and the correlation of the variances over topics."""
    topics = sorted({item.topic for item in items})
    names = np.array([item.topic for item in items])
    both = [
        np.array([_variance(scores, (names == topic).astype(float), bootstrap) for topic in topics])
        for scores in (stretched(model), survey)
    ]
    if not topics:
        empty = Estimate(np.full(len(bootstrap.weights), np.nan), 0)
        return {"variance_ratio": empty, "variance_pearson": empty}
    own_mean, other_mean = (one.mean(axis=0) for one in both)
    ratio = np.full(len(own_mean), np.nan)
    np.divide(own_mean, other_mean, out=ratio, where=other_mean > 1e-12)
    return {
        "variance_ratio": Estimate(ratio, len(items)),
        "variance_pearson": Estimate(_column_correlation(*both), len(topics)),
    }


def stretched(scores: Array) -> Array:
    """Return scores [N] mapped linearly to -1 to 1; 0 where they are all equal."""
    if not len(scores) or scores.max() == scores.min():
        return np.zeros(len(scores))
    return np.asarray(2 * (scores - scores.min()) / (scores.max() - scores.min()) - 1)


def table(items: Sequence[Judgement], scores: Array) -> Array:
    """Return scores [N] as [countries, topics], both sorted; what is missing is the mean of its topic."""
    countries, topics = (sorted({getattr(item, name) for item in items}) for name in ("country", "topic"))
    found = np.full((len(countries), len(topics)), np.nan)
    for item, score in zip(items, scores, strict=True):
        found[countries.index(item.country), topics.index(item.topic)] = score
    return np.where(np.isnan(found), np.nanmean(found, axis=0), found)


def _variance(scores: Array, counted: Array, bootstrap: ClusterBootstrap) -> Array:
    """Return the variance [1 + B] of the scores [N] that are counted, in each sample."""
    mean = bootstrap.ratio(scores * counted, counted).samples
    squares = bootstrap.ratio(scores**2 * counted, counted).samples
    return np.asarray(np.maximum(squares - mean**2, 0))


def _column_correlation(x: Array, y: Array) -> Array:
    """Return the correlation of the columns of x and y, both [T, 1 + B]; NaN where one of them does not vary."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    found = np.full(len(spread), np.nan)
    return np.asarray(np.divide((x * y).sum(axis=0), spread, out=found, where=spread > 1e-12))
