"""Checks the names, draws the samples, asks the policy, and returns the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lit_debias.errors import UserError, did_you_mean
from lit_debias.evaluation.public.asking import Model
from lit_debias.evaluation.public.bbq import BBQ
from lit_debias.evaluation.public.benchmark import AnyBenchmark, Estimates, Figure, Item, draw
from lit_debias.evaluation.public.bold import Bold
from lit_debias.evaluation.public.cbbq import CBBQ
from lit_debias.evaluation.public.crows_pairs import CrowsPairs
from lit_debias.evaluation.public.files import HUB, PUBLISHED
from lit_debias.evaluation.public.stereoset import StereoSet
from lit_debias.evaluation.public.winogender import Winogender
from lit_debias.evaluation.statistics import ClusterBootstrap
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.text import counted

BENCHMARKS: dict[str, AnyBenchmark] = {
    benchmark.name: benchmark for benchmark in (CrowsPairs(), StereoSet(), BBQ(), CBBQ(), Winogender(), Bold())
}
"""Public benchmarks by name."""


def check(names: Sequence[str], folder: str) -> None:
    """Check names and files before a model is loaded.

    Args:
        names: Some of :data:`BENCHMARKS`.
        folder: Holds a folder for each (``crows_pairs/``, ``stereoset/``, ...), files plain or gzipped; or ``hub``.

    Raises:
        UserError: there is no such benchmark, folder or file, or the hub has no complete copy.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"benchmarks: there is no '{name}'{did_you_mean(name, BENCHMARKS)}")
    if names and folder != HUB and not Path(folder).expanduser().is_dir():
        raise UserError(f"benchmarks: there is no folder '{folder}'; write one that holds {names[0]}/, or '{HUB}'")
    for name in names:
        benchmark = BENCHMARKS[name]
        if folder != HUB:
            benchmark.check(folder)
        elif not benchmark.on_hub:
            raise UserError(f"benchmarks: the hub's copies lack what {name} needs; write a folder with {name}/")


@dataclass(frozen=True)
class Sample:
    """What is asked of one benchmark."""

    name: str
    items: Sequence[Item]
    available: int

    @property
    def size(self) -> str:
        """``n of N``."""
        return f"{len(self.items)} of {self.available}"

    @property
    def note(self) -> str | None:
        """What a reader should know of a sample that is not the whole."""
        if len(self.items) == self.available:
            return None
        return (
            f"{BENCHMARKS[self.name].title}: {counted(self.size, 'item')}, drawn by seed so that every stratum keeps "
            "its share and twins stay together"
        )


def samples(names: Sequence[str], folder: str, limit: int | None, seed: int) -> list[Sample]:
    """Return what :func:`measure` will ask, for totals and notes; equal arguments give equal samples."""
    found = []
    for name in names:
        items = _read(name, folder)
        found.append(Sample(name, draw(items, limit, seed), len(items)))
    return found


def measure(
    policy: Policy,
    names: Sequence[str],
    folder: str,
    limit: int | None,
    seed: int,
    bootstrap: int,
    judges: RewardSuite,
    advance: Callable[[int], None],
) -> Estimates:
    """Return the figures of the benchmarks as ``benchmark/[part/]figure[/part]``, see :func:`about`.

    Args:
        policy: Loaded; its adapter counts, and its system prompt where a chat template is used (BBQ, CBBQ, BOLD).
        names: Of benchmarks, checked by :func:`check`.
        folder: Where their files are, or ``hub``.
        limit: At most this many items of each benchmark, whole units of twins; None for all.
        seed: Draws the samples and the bootstrap.
        bootstrap: Bootstrap samples, of items that share a template together.
        judges: Set up; used by BOLD.
        advance: Told how many items are done, of those in :func:`samples`.

    Returns:
        Estimates, paired with those of other policies by equal arguments. Figures that rest on nothing are left out.
    """
    model = Model(policy, judges, advance)
    found: Estimates = {}
    for sample in samples(names, folder, limit, seed):
        benchmark = BENCHMARKS[sample.name]
        answers = benchmark.ask(model, sample.items)
        clusters = ClusterBootstrap([item.cluster for item in sample.items], bootstrap, seed)
        for figure, estimate in benchmark.score(sample.items, answers, clusters).items():
            if estimate.n and math.isfinite(estimate.value):  # a correlation of equal numbers is none
                found[f"{sample.name}/{figure}"] = estimate
    return found


def about(name: str) -> Figure:
    """Return what a figure of :func:`measure` is; the label says which benchmark and which part of it."""
    benchmark, *parts = name.split("/")
    described = BENCHMARKS[benchmark].about
    figure = next(part for part in parts if part in described)
    rest = ", ".join(part.replace("_", " ") for part in parts if part != figure)
    found = described[figure]
    title = f"{BENCHMARKS[benchmark].title} ({rest})" if rest else BENCHMARKS[benchmark].title
    return Figure(f"{title}: {found.label}", found.better, found.ideal, BENCHMARKS[benchmark].meaning)


@lru_cache(maxsize=8)  # every arm asks the same
def _read(name: str, folder: str) -> list[Item]:
    try:
        items = list(BENCHMARKS[name].read(folder))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        cause = " ".join(repr(error).split())
        raise UserError(f"benchmarks: {name} in '{folder}' has another layout ({cause:.100}); {PUBLISHED}") from error
    if not items:
        raise UserError(f"benchmarks: {name} in '{folder}' has no items; {PUBLISHED}")
    return items
