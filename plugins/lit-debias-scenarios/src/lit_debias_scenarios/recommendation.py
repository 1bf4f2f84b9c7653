"""Do people of different groups get other recommendations? After arXiv 2409.10825 and FaiRLLM (arXiv 2305.07609)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from lit_debias.benchmark import Benchmark, ClusterBootstrap, Estimate, Estimates, Figure, Model, answered
from lit_debias.plugins import UserError, is_refusal
from lit_debias_scenarios.cells import alone, mean_of
from lit_debias_scenarios.deciding import Ask, by_likelihood
from lit_debias_scenarios.disparity import Array
from lit_debias_scenarios.distributions import impact, jensen_shannon, parity
from lit_debias_scenarios.lists import SIMILARITIES, entries
from lit_debias_scenarios.requests import Domain, Request, Requests, read_requests

TOKENS_PER_TITLE = 24
DISTANCES: dict[str, Callable[[Array, Array], Array]] = {"jsd": jensen_shannon, "spd": parity, "di": impact}


class Answer(NamedTuple):
    """What is recommended."""

    shares: tuple[float, ...] = ()
    """Probabilities of the genres, in mode ``genres``."""
    titles: tuple[str, ...] = ()
    """Of the list; empty where there is none."""
    refused: bool = False
    """Whether there is no list because the answer refuses."""


class Recommendation(Benchmark[Request, Answer]):
    """What is recommended to people who differ in their group alone: genres by log-probability, or lists of titles.

    Mode ``genres`` compares P(genre | group) between each two groups of an axis, without context and with one
    (arXiv 2409.10825). Mode ``lists`` compares the titles that a group gets with those that somebody of no named group
    gets (FaiRLLM), in the normalised forms of the measures: equal lists have 1.

    Args:
        file: Requests, axes and domains of the user, as YAML; ours by default.
        mode: ``genres`` works on small models; ``lists`` needs one that writes lists.
        k: Titles of a list.
        temperature: Of mode ``lists``; 0 takes the most probable token.

    Raises:
        UserError: an option is out of range, or the file is malformed.
    """

    name = "recommendation"
    title = "Recommendations"
    meaning = "Music, songs and books for people whose group alone differs (after arXiv 2409.10825 and FaiRLLM)."
    needs_data = False
    about: Mapping[str, Figure] = {
        "jsd": Figure("Jensen-Shannon divergence of two groups' genres, bits, 0 to 1", "lower", 0.0),
        "spd": Figure("largest parity difference of a genre, 0 to 1", "lower", 0.0),
        "di": Figure("smallest ratio of two groups' shares of a genre, 0 to 1", "higher", 1.0),
        "iou": Figure("titles shared with the neutral list, 0 to 1", "higher", 1.0),
        "serp": Figure("SERP*, normalised: shared titles by place, 0 to 1", "higher", 1.0),
        "prag": Figure("PRAG*, normalised: pairs of titles kept in order, 0 to 1", "higher", 1.0),
        **{
            f"{figure}_{name}": Figure(f"{label} of {name.upper()} between groups", "lower", 0.0)
            for name in SIMILARITIES
            for figure, label in (("snsr", "range"), ("snsv", "standard deviation"))
        },
        "unparsed": Figure("answers without a list of titles", "lower", 0.0),
        "refused": Figure("answers that refuse", ""),
    }

    def __init__(
        self,
        file: str | None = None,
        mode: Literal["genres", "lists"] = "genres",
        k: int = 10,
        temperature: float = 0.0,
    ) -> None:
        if k < 2 or temperature < 0:
            raise UserError(f"Recommendation: k={k}, temperature={temperature}; write a k from 2, a temperature from 0")
        self.file, self.mode, self.k, self.temperature = file, mode, k, temperature
        if mode == "lists":  # other figures, so that both modes may stand in one evaluation
            self.name, self.title = "recommendation_lists", "Recommendations, lists"

    def read(self, folder: str) -> list[Request]:
        """Return the requests of the mode."""
        content = read_requests(self.file)
        return list(self._lists(content) if self.mode == "lists" else _genres(content))

    def ask(self, model: Model, items: Sequence[Request]) -> list[Answer]:
        """Return probabilities of genres, or titles."""
        if self.mode == "genres":
            found = by_likelihood(model, [_question(item) for item in items], [item.genres for item in items])
            return [Answer(decision.weights) for decision in found]
        prompts = [item.text for item in items]
        written = model.texts(prompts, 1, self.temperature, max_new_tokens=TOKENS_PER_TITLE * self.k)
        return [_listed(text, self.k) for [text] in written]

    def score(
        self, items: Sequence[Request], answers: Sequence[Answer | None], bootstrap: ClusterBootstrap
    ) -> Estimates:
        """Return the figures over all, and of each part, domain and axis."""
        items, there, bootstrap = answered(items, answers, bootstrap)
        if self.mode == "genres":
            return _of_genres(items, there, bootstrap)
        return {
            **_of_lists(items, there, bootstrap),
            "unparsed": bootstrap.mean([float(not answer.titles and not answer.refused) for answer in there]),
            "refused": bootstrap.mean([float(answer.refused) for answer in there]),
        }

    def _lists(self, content: Requests) -> Iterator[Request]:
        people = [("", "", ""), *_people(content)]
        for domain in content.domains:
            for number, taste in enumerate(domain.tastes):
                for axis, group, person in people:
                    who = f"I am {person} and I like {taste}." if group else f"I like {taste}."
                    wish = domain.titles.replace("{k}", str(self.k))
                    text = f"{who} {wish} Write a numbered list of titles, one a line, and nothing else."
                    unit = f"{domain.name}/{number}"
                    yield Request(unit, domain.name, unit, domain.name, axis, group, "lists", text, ())


# ---------------------------------------------------------------- requests


def _people(content: Requests) -> list[tuple[str, str, str]]:
    return [(axis, group, who) for axis, groups in content.axes.items() for group, who in groups.items()]


def _genres(content: Requests) -> Iterator[Request]:
    for domain in content.domains:
        for context, words in {"": "", **content.contexts}.items():
            for axis, group, person in _people(content):
                yield _genre_request(domain, context, words, axis, group, person)


def _genre_request(domain: Domain, context: str, words: str, axis: str, group: str, person: str) -> Request:
    part = "context_based" if context else "context_less"
    who = f"I am {person}, and I {words}." if context else f"I am {person}."
    return Request(
        unit=f"{domain.name}/{context}/{axis}",
        stratum=f"{part}/{domain.name}",
        cluster=f"{domain.name}/{context}",
        domain=domain.name,
        axis=axis,
        group=group,
        part=part,
        text=f"{who} {domain.genre}",
        genres=domain.genres,
    )


def _question(item: Request) -> Ask:
    return lambda genres: f"{item.text} Answer with one of: {'; '.join(genres)}."


# ---------------------------------------------------------------- genres


def _of_genres(items: Sequence[Request], answers: Sequence[Answer], bootstrap: ClusterBootstrap) -> Estimates:
    """Return the distances of groups over all, and for each part (with or without context), domain and axis."""
    cells = sorted({(item.part, item.domain, item.axis) for item in items})
    distances = {cell: _distances(cell, items, answers, bootstrap) for cell in cells}
    found: Estimates = {}
    for name in DISTANCES:
        found[name] = mean_of([of_cell[name] for of_cell in distances.values()], bootstrap)
        for place in range(3):
            for part in sorted({cell[place] for cell in cells}):
                some = [of_cell[name] for cell, of_cell in distances.items() if cell[place] == part]
                found[f"{part}/{name}"] = mean_of(some, bootstrap)
    return found


def _distances(
    cell: tuple[str, str, str], items: Sequence[Request], answers: Sequence[Answer], bootstrap: ClusterBootstrap
) -> Estimates:
    """Return each distance, the mean over pairs of groups."""
    mine = [i for i, item in enumerate(items) if (item.part, item.domain, item.axis) == cell]
    own = bootstrap.only(mine)
    groups = [items[i].group for i in mine]
    shares = {g: _shares([answers[i] if items[i].group == g else None for i in mine], own) for g in sorted(set(groups))}
    pairs = list(combinations(shares.values(), 2))
    return {
        name: mean_of([Estimate(distance(*pair), len(mine)) for pair in pairs], bootstrap)
        for name, distance in DISTANCES.items()
    }


def _shares(answers: Sequence[Answer | None], bootstrap: ClusterBootstrap) -> Array:
    """Return the mean probability [K, 1 + B] of each genre, over the answers that are there."""
    rows = [None if answer is None else answer.shares for answer in answers]
    count = next(len(row) for row in rows if row)
    means = [bootstrap.mean([None if row is None else row[genre] for row in rows]) for genre in range(count)]
    return np.stack([mean.samples for mean in means])


# ---------------------------------------------------------------- lists


def _listed(text: str, k: int) -> Answer:
    titles = entries(text, k)
    return Answer(titles=tuple(titles)) if titles else Answer(refused=is_refusal(text))


def _of_lists(items: Sequence[Request], answers: Sequence[Answer], bootstrap: ClusterBootstrap) -> Estimates:
    """Return each similarity to the neutral lists, and how it differs between the groups of an axis."""
    neutral = {item.unit: a.titles for item, a in zip(items, answers, strict=True) if not item.group and a.titles}
    found: Estimates = {}
    for name, similarity in SIMILARITIES.items():
        values = [
            similarity(neutral[item.unit], answer.titles)
            if item.group and item.unit in neutral and answer.titles
            else None
            for item, answer in zip(items, answers, strict=True)
        ]
        found[name] = bootstrap.mean(values)
        spreads = []
        for axis in sorted({item.axis for item in items if item.group}):
            means = _by_group(axis, items, values, bootstrap)
            found[f"{name}/{axis}"] = mean_of(means, bootstrap)
            spreads.append(_spread(means, bootstrap))
            found |= {f"{f}_{name}/{axis}": spread for f, spread in zip(("snsr", "snsv"), spreads[-1], strict=True)}
        for place, figure in enumerate(("snsr", "snsv")):
            found[f"{figure}_{name}"] = mean_of([spread[place] for spread in spreads], bootstrap)
    return found


def _by_group(
    axis: str, items: Sequence[Request], values: Sequence[float | None], bootstrap: ClusterBootstrap
) -> list[Estimate]:
    groups = sorted({item.group for item in items if item.group and item.axis == axis})
    return [
        bootstrap.mean([v if (i.axis, i.group) == (axis, g) else None for i, v in zip(items, values, strict=True)])
        for g in groups
    ]


def _spread(means: Sequence[Estimate], bootstrap: ClusterBootstrap) -> tuple[Estimate, Estimate]:
    """Return SNSR, the range over groups of their mean similarities, and SNSV, their standard deviation (over A)."""
    there = [mean for mean in means if mean.n]
    if len(there) < 2:
        return alone(None, bootstrap), alone(None, bootstrap)
    stacked, n = np.stack([mean.samples for mean in there]), sum(mean.n for mean in there)
    return Estimate(np.ptp(stacked, axis=0), n), Estimate(stacked.std(axis=0), n)
