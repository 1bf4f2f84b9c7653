"""A benchmark without data and without a model: the mean of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lit_debias.benchmark import Benchmark, Estimate, Figure, Item, answered
from lit_debias.plugins.manager import get_plugin_manager, hookimpl


@dataclasses.dataclass(frozen=True)
class Number(Item):
    value: float


class Undescribed(Benchmark[Number, float]):
    """Numbers, with a figure of which ``about`` says nothing."""

    name = "undescribed"
    title = "Numbers"
    meaning = "Numbers."
    needs_data = False
    about: Mapping[str, Figure] = {"mean": Figure("mean", "lower", 0.0)}

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def read(self, folder):
        return [Number(str(i), "even" if i % 2 == 0 else "odd", str(i), float(i)) for i in range(self.count)]

    def ask(self, model, items):
        model.advance(len(items))
        return [item.value for item in items]

    def score(self, items, answers, bootstrap):
        items, answers, bootstrap = answered(items, answers, bootstrap)
        return {"mean": bootstrap.mean(answers), "none": Estimate(bootstrap.sums([0.0] * len(items)), 0)}


class Numbers(Undescribed):
    """Numbers.

    Args:
        count: How many.
    """

    name = "numbers"
    about: Mapping[str, Figure] = {**Undescribed.about, "none": Figure("nothing", "")}


def install(*classes: type) -> None:
    """Let a plugin of this process offer benchmarks; the next test knows nothing of it."""

    class Plugin:
        @staticmethod
        @hookimpl
        def lit_debias_benchmarks():
            return list(classes)

    get_plugin_manager().register(Plugin(), name="test")
