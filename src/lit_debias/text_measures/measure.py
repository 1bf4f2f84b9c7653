"""What a measure of texts is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_debias.benchmark.benchmark import Estimates, Figure
from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate
from lit_debias.rewards.identity import identity_of, recorded
from lit_debias.support.text import words

if TYPE_CHECKING:
    from typing_extensions import Self

Words = dict[str, list[tuple[str, float]]]
"""What words a figure rests on: a heading -> word and value, the largest value first."""
SMALLEST_GROUP = 4
"""Texts that a group needs to count in a difference between groups."""
MOST_GROUPS = 6
"""Where there are more groups than these, a measure has their difference and no figure for each."""


@dataclass(frozen=True)
class Texts:
    """N texts, k for each of P prompts, and how the bootstrap draws them."""

    texts: Sequence[str]
    """[N]"""
    groups: Sequence[str]
    """[N] whom a text's prompt is about; empty where that is not known."""
    bootstrap: ClusterBootstrap
    """Over the N texts; those of one prompt lie in one cluster."""
    prompts: Sequence[str]
    """[N] what was asked."""
    owners: Sequence[int]
    """[N] number of the prompt, from 0 to P - 1, the same for its k texts."""
    twins: Sequence[tuple[int, int]] = ()
    """Pairs of prompts, by their numbers, that differ in the group alone."""

    @classmethod
    def of(
        cls,
        answers: Sequence[Sequence[str]],
        prompts: Sequence[str],
        groups: Sequence[str],
        bootstrap: ClusterBootstrap,
        twins: Sequence[tuple[int, int]] = (),
    ) -> Texts:
        """Return the texts of P prompts.

        Args:
            answers: [P][k] at least one text for each.
            prompts: [P]
            groups: [P] as :attr:`groups`.
            bootstrap: Over the P prompts.
            twins: As :attr:`twins`.
        """
        owners = [owner for owner, own in enumerate(answers) for _ in own]
        return cls(
            texts=[text for own in answers for text in own],
            groups=[groups[owner] for owner in owners],
            bootstrap=bootstrap.only(owners),
            prompts=[prompts[owner] for owner in owners],
            owners=owners,
            twins=twins,
        )

    @cached_property
    def words(self) -> list[list[str]]:
        """[N] the words of each text, in lower case."""
        return [words(text) for text in self.texts]

    @cached_property
    def of_prompts(self) -> list[list[int]]:
        """[P] the numbers of each prompt's texts."""
        found: list[list[int]] = [[] for _ in range(max(self.owners, default=-1) + 1)]
        for number, owner in enumerate(self.owners):
            found[owner].append(number)
        return found

    @property
    def over_prompts(self) -> ClusterBootstrap:
        """The same draws over the P prompts."""
        return self.bootstrap.only([numbers[0] for numbers in self.of_prompts])

    @cached_property
    def large_groups(self) -> list[str]:
        """Groups with :data:`SMALLEST_GROUP` texts or more, sorted."""
        counts = {group: 0 for group in self.groups if group}
        for group in self.groups:
            if group:
                counts[group] += 1
        return sorted(group for group, count in counts.items() if count >= SMALLEST_GROUP)


class TextMeasure(ABC):
    """One measure of texts. The ``__init__`` signature is its YAML schema.

    Build cheaply: check arguments in ``__init__``, load models in :meth:`figures`.
    """

    _arguments: Any = ((), {})

    name: str
    """Of its figures: ``texts/NAME_FIGURE`` in ``results.json``."""
    title: str
    """As tables show it."""
    meaning: str
    """What it says, in a sentence or two."""
    about: Mapping[str, Figure]
    """Figures by name. One in :meth:`figures` may have parts behind its name, such as ``share/female``."""
    several: bool = False
    """Whether a figure is made for several texts of one prompt, and says little of one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments, for :meth:`identity`."""
        measure = super().__new__(cls)
        measure._arguments = recorded((args, kwargs))
        return measure

    def __init__(self) -> None:  # noqa: B027  (object's would take anything, now that __new__ does)
        """Take no options."""

    def identity(self) -> dict[str, Any]:
        """Return what the figures depend on, as JSON; see :meth:`lit_debias.Reward.identity`."""
        return identity_of(self, self._arguments)

    @abstractmethod
    def figures(self, texts: Texts) -> Estimates:
        """Return the figures by name; one that rests on nothing has n = 0."""

    def words(self, texts: Texts) -> Words:
        """Return the words that tell groups apart; nothing where the measure has none."""
        return {}

    def __call__(
        self,
        texts: Sequence[str],
        groups: Sequence[str] | None = None,
        clusters: Sequence[str] | None = None,
        draws: int = 1000,
        seed: int = 0,
    ) -> Estimates:
        """Return the figures of texts [N] from anywhere, one for each prompt.

        Args:
            texts: [N]
            groups: [N] whom a text is about; by default that is not known.
            clusters: [N] what the bootstrap draws together; by default each text alone.
            draws: Bootstrap samples.
            seed: Of the bootstrap.
        """
        numbers = clusters or [str(number) for number in range(len(texts))]
        bootstrap = ClusterBootstrap(numbers, draws, seed)
        count = len(texts)
        return self.figures(Texts.of([[text] for text in texts], [""] * count, groups or [""] * count, bootstrap))


def nothing(bootstrap: ClusterBootstrap) -> Estimate:
    """Return the figure of what rests on nothing."""
    return Estimate(np.full(len(bootstrap.weights), np.nan), 0)


def gap(values: Sequence[float | None], texts: Texts) -> Estimate:
    """Return the highest minus the lowest of the means of :attr:`Texts.large_groups`.

    It is at least 0 even where groups do not differ, the more so the smaller the sample.

    Args:
        values: [N] of each text; None is left out.
        texts: Whose groups they are.
    """
    means = [mean for mean in map(texts.bootstrap.mean, by_group(values, texts).values()) if mean.n >= SMALLEST_GROUP]
    if len(means) < 2:
        return nothing(texts.bootstrap)
    stacked = np.stack([mean.samples for mean in means])
    missing = np.isnan(stacked)
    highest, lowest = np.where(missing, -np.inf, stacked).max(0), np.where(missing, np.inf, stacked).min(0)
    spread = np.full(len(highest), np.nan)
    np.subtract(highest, lowest, out=spread, where=np.isfinite(highest))
    return Estimate(spread, sum(mean.n for mean in means))


def by_group(values: Sequence[float | None], texts: Texts) -> dict[str, list[float | None]]:
    """Return group -> values [N], None where a text is about another group, of :attr:`Texts.large_groups`."""
    pairs = list(zip(values, texts.groups, strict=True))
    return {name: [value if group == name else None for value, group in pairs] for name in texts.large_groups}


def each_group(figure: str, values: Sequence[float | None], texts: Texts) -> Estimates:
    """Return ``FIGURE/GROUP`` -> mean of the group's values; nothing where there are many groups."""
    if len(texts.large_groups) > MOST_GROUPS:
        return {}
    return {f"{figure}/{name}": texts.bootstrap.mean(own) for name, own in by_group(values, texts).items()}
