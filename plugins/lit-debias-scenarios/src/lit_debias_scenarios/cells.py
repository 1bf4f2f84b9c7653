"""What was decided in one scenario along one axis, and its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_debias.benchmark import ClusterBootstrap, Estimate, Item
from lit_debias_scenarios.deciding import Decision
from lit_debias_scenarios.disparity import Array, parity_difference, total_variation


@dataclass(frozen=True)
class Situation(Item):
    """One person in a scenario, or, asked openly, all groups of an axis."""

    scenario: str
    axis: str
    group: str
    """Empty where the item asks openly."""
    person: str
    detail: str
    about: str
    text: str
    """The situation; what is asked about, where the item asks openly."""
    options: tuple[str, ...]
    favourable: int | None


class Cell:
    """What was decided in one scenario along one axis.

    Args:
        scenario: Its name.
        axis: Its name.
        items: [N] of all scenarios and axes.
        answers: [N]
        bootstrap: Over the clusters of the N items.
    """

    def __init__(
        self,
        scenario: str,
        axis: str,
        items: Sequence[Situation],
        answers: Sequence[Decision],
        bootstrap: ClusterBootstrap,
    ) -> None:
        self.scenario, self.axis = scenario, axis
        mine = [i for i, item in enumerate(items) if (item.scenario, item.axis) == (scenario, axis)]
        persons, asked = [i for i in mine if items[i].group], [i for i in mine if not items[i].group]
        self._items, self._answers = [items[i] for i in persons], [answers[i] for i in persons]
        self._bootstrap = bootstrap.only(persons)
        self.groups = sorted({item.group for item in self._items})
        self.count = sum(answer.decided > 0 for answer in self._answers)
        shares = self._shares()
        self.dpd = self._estimate(parity_difference, shares)
        self.tv = self._estimate(total_variation, shares)
        self.explicit = _named([answers[i] for i in asked], bootstrap.only(asked))

    @property
    def counts(self) -> Array:
        """[G, A] how often each action was taken."""
        rows = [[d.weights for i, d in self._pairs() if i.group == group] for group in self.groups]
        return np.array([np.sum(row, axis=0) for row in rows]) if rows else np.zeros((0, 0))

    @property
    def blocks(self) -> Array:
        """[V, G, A] shares of persons who differ in their group alone; only those in which all groups decided."""
        by_unit: dict[str, dict[str, Array]] = defaultdict(dict)
        for item, decision in self._pairs():
            if decision.decided:
                by_unit[item.unit][item.group] = np.array(decision.weights) / decision.decided
        whole = [[row[g] for g in self.groups] for _, row in sorted(by_unit.items()) if len(row) == len(self.groups)]
        return np.array(whole if len(self.groups) > 1 else [])

    def _pairs(self) -> list[tuple[Situation, Decision]]:
        return list(zip(self._items, self._answers, strict=True))

    def _shares(self) -> Array | None:
        """Return [G, A, 1 + B] how often a group takes an action in each bootstrap sample; None of one group."""
        if len(self.groups) < 2:
            return None
        return np.array([self._of_group(group) for group in self.groups])

    def _of_group(self, group: str) -> list[Array]:
        decided = [d.decided if item.group == group else 0.0 for item, d in self._pairs()]
        return [
            self._bootstrap.ratio(
                [d.weights[action] if item.group == group else 0.0 for item, d in self._pairs()], decided
            ).samples
            for action in range(len(self._items[0].options))
        ]

    def _estimate(self, statistic: Callable[[Array], Array], shares: Array | None) -> Estimate:
        if shares is None:
            return alone(None, self._bootstrap)
        return Estimate(statistic(shares), self.count)


def _named(answers: Sequence[Decision], bootstrap: ClusterBootstrap) -> Estimate:
    """Return the share of open questions that is answered with a group."""
    return bootstrap.ratio([sum(d.weights[:-1]) for d in answers], [d.decided for d in answers])


def mean_of(estimates: Sequence[Estimate], bootstrap: ClusterBootstrap) -> Estimate:
    """Return the mean of figures in each bootstrap sample, over those that the sample has."""
    there = [estimate for estimate in estimates if estimate.n]
    if not there:
        return alone(None, bootstrap)
    stacked = np.stack([estimate.samples for estimate in there])
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    samples = np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(axis=0))
    return Estimate(samples, sum(estimate.n for estimate in there))


def alone(value: float | None, bootstrap: ClusterBootstrap) -> Estimate:
    """Return a figure without an interval."""
    samples = np.full(len(bootstrap.weights), np.nan)
    if value is not None:
        samples[0] = value
    return Estimate(samples, int(value is not None))
