"""What a benchmark is: items that are read, drawn, put to a model, and scored."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lit_debias.benchmark.files import locate
from lit_debias.benchmark.statistics import ClusterBootstrap, Estimate
from lit_debias.rewards.identity import identity_of, recorded

if TYPE_CHECKING:
    from typing_extensions import Self

    from lit_debias.benchmark.asking import Model

Estimates = dict[str, Estimate]
"""Figures by name."""


@dataclass(frozen=True)
class Item:
    """One question to a model; a benchmark's own class adds what the question is.

    It holds texts, numbers and tuples of them, so that equal items are equal in every process: figures are kept for as
    long as their items stay what they are.
    """

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
    """What it counts, in a few words, with its unit or range: ``bias score, -1 to 1``."""
    better: str
    """``lower``, ``higher``, ``toward`` (the ideal), or empty where none is."""
    ideal: float | None = None
    """What an unbiased model would have; None where nothing is ideal."""
    meaning: str = ""
    """What its benchmark asks; filled in from there."""


class Benchmark(ABC, Generic[ItemT, AnswerT]):
    """One benchmark. The ``__init__`` signature is its YAML schema; most take no options.

    Build cheaply: check arguments in ``__init__``, read files in :meth:`read`. What is an attribute here may be set in
    the class, or in ``__init__`` where it depends on the options.
    """

    _arguments: Any = ((), {})

    name: str
    """Of its figures in ``results.json``: letters, digits, ``_`` and ``-``. ``--benchmarks`` takes it."""
    title: str
    """As tables show it."""
    meaning: str
    """What it asks, in a sentence."""
    about: Mapping[str, Figure]
    """Figures by name. A figure in :meth:`score` may have a part of the data in front of its name or behind it, such as
    ``age/accuracy`` or ``accuracy/age``; no part has the name of a figure."""
    needs_data: bool = True
    """Whether a user must bring its data, in a folder or from the hub. One that brings its own says False: it runs
    without ``--benchmark_data``, and with ``--benchmarks all-offline``."""
    on_hub: bool = False
    """Whether a copy on the hub has all that is needed."""
    files: tuple[str, ...] = ()
    """What the user's folder must hold, each plain or gzipped."""
    asks: int = 1
    """How many calls of :class:`~lit_debias.benchmark.Model` :meth:`ask` makes about each item, for progress."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments, for :meth:`identity`."""
        benchmark = super().__new__(cls)
        object.__setattr__(benchmark, "_arguments", recorded((args, kwargs)))
        return benchmark

    def __init__(self) -> None:
        """Take no options."""

    def identity(self) -> dict[str, Any]:
        """Return what the figures depend on besides the items, as JSON: class, version, source and arguments.

        An evaluation keeps the figures of an arm while this and the items stay what they were. Say more where
        :meth:`ask` or :meth:`score` depends on more, such as another file.

        Raises:
            UnknownIdentityError: an argument does not show what it is, such as a function; then nothing is kept.
        """
        return identity_of(self, self._arguments)

    def check(self, folder: str) -> None:
        """Raise :class:`~lit_debias.plugins.UserError` where a file is missing; reads none."""
        for file in self.files:
            locate(folder, file)

    @abstractmethod
    def read(self, folder: str) -> list[ItemT]:
        """Return all items, the same at every call.

        Args:
            folder: The user's, or ``hub`` (:data:`~lit_debias.benchmark.HUB`); empty where none was given and
                ``needs_data`` is False.

        Raises:
            UserError: a file is malformed.
        """

    @abstractmethod
    def ask(self, model: Model, items: Sequence[ItemT]) -> list[AnswerT]:
        """Return the model's answer [N] to each of items [N]."""

    @abstractmethod
    def score(self, items: Sequence[ItemT], answers: Sequence[AnswerT], bootstrap: ClusterBootstrap) -> Estimates:
        """Return the figures by name, without the benchmark's own; one that rests on nothing has n = 0.

        Args:
            items: [N]; N may be 0, and a part of the data may have no item in a sample.
            answers: [N]; one may be None where it could not be had, see :func:`~lit_debias.benchmark.answered`.
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


def answered(
    items: Sequence[ItemT], answers: Sequence[AnswerT | None], bootstrap: ClusterBootstrap
) -> tuple[Sequence[ItemT], Sequence[AnswerT], ClusterBootstrap]:
    """Return what :meth:`Benchmark.score` is given without the items whose answer is None; draws stay the same."""
    kept = [number for number, answer in enumerate(answers) if answer is not None]
    there = [answer for answer in answers if answer is not None]
    return [items[number] for number in kept], there, bootstrap.only(kept)
