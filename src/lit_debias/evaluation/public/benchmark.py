"""What a public benchmark is: items that are read, drawn, put to a model, and scored."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from lit_debias.evaluation.public.asking import Model
from lit_debias.evaluation.public.files import locate
from lit_debias.evaluation.statistics import ClusterBootstrap, Estimate

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Item:
    """One question to a model; a benchmark's own class adds what the question is."""

    unit: str
    """Items of one unit are twins (the same context, another polarity, order or evidence): drawn together."""
    stratum: str
    """What a sample has as large a share of as the whole."""
    cluster: str
    """Items of one cluster share a template: the bootstrap draws them together."""


ItemT = TypeVar("ItemT", bound=Item)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Figure:
    """What a figure is, for tables."""

    label: str
    better: str
    """``lower``, ``higher``, ``toward`` (the ideal), or empty where none is."""
    ideal: float | None = None
    """What an unbiased model would have; None where nothing is ideal."""
    meaning: str = ""
    """What its benchmark asks."""


class Benchmark(ABC, Generic[ItemT, AnswerT]):
    """One public benchmark."""

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    """What it asks, in a sentence."""
    about: ClassVar[dict[str, Figure]]
    """Figures by name; a figure may have a part of the data in front of its name or behind it."""
    on_hub: ClassVar[bool] = False
    """Whether a copy on the hub has all that is needed."""
    files: ClassVar[tuple[str, ...]] = ()
    """What its folder must hold."""

    def check(self, folder: str) -> None:
        """Raise :class:`~lit_debias.errors.UserError` where a file is missing; reads none."""
        for file in self.files:
            locate(folder, file)

    @abstractmethod
    def read(self, folder: str) -> list[ItemT]:
        """Return all items."""

    @abstractmethod
    def ask(self, model: Model, items: Sequence[ItemT]) -> list[AnswerT]:
        """Return the model's answer to each item."""

    @abstractmethod
    def score(self, items: Sequence[ItemT], answers: Sequence[AnswerT], bootstrap: ClusterBootstrap) -> Estimates:
        """Return the figures by name, without the benchmark's own; one that rests on nothing has n = 0.

        Args:
            items: [N]
            answers: [N]
            bootstrap: Over the clusters of those items.
        """


AnyBenchmark = Benchmark[Any, Any]


def draw(items: Sequence[ItemT], limit: int | None, seed: int) -> list[ItemT]:
    """Return whole units with at most ``limit`` items (one unit at least), in the order of ``items``.

    Every stratum keeps its share: the i-th of a stratum's S shuffled units comes at (i + 1/2) / S of the way, so a
    sample estimates the figure of the whole. Which units are drawn is a function of the seed; a larger limit only adds.
    """
    if limit is None or limit >= len(items):
        return list(items)
    units: dict[str, list[ItemT]] = defaultdict(list)
    for item in items:
        units[item.unit].append(item)
    strata: dict[str, list[str]] = defaultdict(list)
    for name, members in units.items():
        strata[members[0].stratum].append(name)
    order: list[tuple[float, str, str]] = []
    for stratum, names in sorted(strata.items()):
        shuffled = random.Random(f"{seed}/{stratum}").sample(names, len(names))
        order += [((i + 0.5) / len(names), stratum, name) for i, name in enumerate(shuffled)]
    chosen: set[str] = set()
    room = limit
    for _, _, name in sorted(order):
        room -= len(units[name])
        if room < 0 and chosen:
            break
        chosen.add(name)
    return [item for item in items if item.unit in chosen]


def within(values: Sequence[float | None], keys: Sequence[str], key: str) -> list[float | None]:
    """Return values [N] where keys [N] equal ``key``, None elsewhere."""
    return [value if k == key else None for value, k in zip(values, keys, strict=True)]
