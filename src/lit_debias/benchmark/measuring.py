"""Reads and draws what benchmarks ask, puts it to a policy, and returns the figures."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lit_debias.benchmark.asking import Model
from lit_debias.benchmark.benchmark import AnyBenchmark, Estimates, Figure, Item, draw
from lit_debias.benchmark.files import HUB, PUBLISHED
from lit_debias.benchmark.statistics import ClusterBootstrap
from lit_debias.errors import UserError, cause_of
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite

NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Sample:
    """What is asked of one benchmark."""

    benchmark: AnyBenchmark
    items: Sequence[Item]
    available: int

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.benchmark.name

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
            f"{self.benchmark.title}: {self.size} items, drawn by seed so that every stratum keeps its share "
            "and twins stay together"
        )


def check(benchmarks: Sequence[AnyBenchmark], folder: str) -> None:
    """Check names and files before a model is loaded.

    Args:
        benchmarks: What will be asked.
        folder: Holds a folder for each (``crows_pairs/``, ``stereoset/``, ...), files plain or gzipped; or ``hub``;
            or empty, where none of them needs data.

    Raises:
        UserError: a name cannot be one or is there twice, there is no such folder or file, or the hub has no complete
            copy.
    """
    for benchmark in benchmarks:
        _check_attributes(benchmark)
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"benchmarks: '{name}' is there twice; leave one out, or give it another name")
    needy = [benchmark for benchmark in benchmarks if benchmark.needs_data]
    if needy:
        _check_data(needy, folder)


def _check_attributes(benchmark: AnyBenchmark) -> None:
    cls = type(benchmark).__name__
    for attribute in ("name", "title", "meaning", "about"):
        if not hasattr(benchmark, attribute):
            raise UserError(f"benchmark {cls} has no '{attribute}'; write it into the class")
    if not NAME.fullmatch(benchmark.name):
        raise UserError(
            f"benchmark {cls}: name={benchmark.name!r:.40}; write letters, digits, _ and -, as it is a part of its "
            "figures' names"
        )


def _check_data(needy: Sequence[AnyBenchmark], folder: str) -> None:
    first = needy[0].name
    if not folder:
        raise UserError(f"benchmarks: where are the files of {first}? write benchmark_data: FOLDER, or {HUB}")
    if folder != HUB and not Path(folder).expanduser().is_dir():
        raise UserError(f"benchmarks: there is no folder '{folder}'; write one that holds {first}/, or '{HUB}'")
    for benchmark in needy:
        if folder != HUB:
            benchmark.check(folder)
        elif not benchmark.on_hub:
            raise UserError(
                f"benchmarks: the hub's copies lack what {benchmark.name} needs; write a folder with {benchmark.name}/"
            )


def samples(benchmarks: Sequence[AnyBenchmark], folder: str, limit: int | None, seed: int) -> list[Sample]:
    """Return what :func:`measure` is to ask; equal arguments give equal samples.

    Args:
        benchmarks: Checked by :func:`check`.
        folder: As there.
        limit: At most this many items of each benchmark, whole units of twins; None for all.
        seed: Draws them.

    Raises:
        UserError: a file is malformed, or there are no items.
    """
    found = []
    for benchmark in benchmarks:
        items = read(benchmark, folder)
        found.append(Sample(benchmark, draw(items, limit, seed), len(items)))
    return found


def read(benchmark: AnyBenchmark, folder: str) -> list[Item]:
    """Return all items of a benchmark.

    Raises:
        UserError: a file is malformed, or there are none.
    """
    where = f"benchmarks: {benchmark.name} in '{folder}'" if benchmark.needs_data else f"benchmarks: {benchmark.name}"
    try:
        items = list(benchmark.read(folder))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        cause = " ".join(repr(error).split())
        raise UserError(f"{where} has another layout ({cause:.100}); {PUBLISHED}") from error
    if not items:
        raise UserError(f"{where} has no items; {PUBLISHED}")
    return items


def measure(
    policy: Policy,
    sample: Sample,
    seed: int,
    bootstrap: int,
    judges: RewardSuite,
    advance: Callable[[int], None],
) -> Estimates:
    """Return a benchmark's figures as ``benchmark/[part/]figure[/part]``, see :func:`about`.

    Args:
        policy: Loaded; its adapter counts, and its system prompt where a chat template is used.
        sample: What it is asked.
        seed: Of the bootstrap.
        bootstrap: Bootstrap samples, of items that share a template together.
        judges: Set up; they judge what is written.
        advance: Told how many items are done; all of them once it returns.

    Returns:
        Estimates, paired with those of other policies by equal arguments. Figures that rest on nothing are left out.

    Raises:
        CannotAskError: this policy cannot be asked.
        UserError: the benchmark fails, or returns what is no figure of its own.
    """
    benchmark, items = sample.benchmark, sample.items
    progress = Progress(benchmark.asks, len(items), advance)
    with blamed(benchmark, "ask"):
        answers = benchmark.ask(Model(policy, judges, progress.tell), items)
    if len(answers) != len(items):
        raise UserError(f"benchmark '{sample.name}': ask() returned {len(answers)} answers to {len(items)} items")
    progress.finish()
    clusters = ClusterBootstrap([item.cluster for item in items], bootstrap, seed)
    with blamed(benchmark, "score"):
        found = benchmark.score(items, answers, clusters)
    for figure in found:
        about(benchmark, figure)  # before anything rests on it
    # a correlation of equal numbers is none
    there = {name: one for name, one in found.items() if one.n and math.isfinite(one.value)}
    return {f"{sample.name}/{name}": estimate for name, estimate in there.items()}


class Progress:
    """Counts items where a benchmark asks several times about each, and never more than there are.

    Args:
        asks: How often it asks about each.
        total: Items that there are.
        advance: Told how many more are done.
    """

    def __init__(self, asks: int, total: int, advance: Callable[[int], None]) -> None:
        self.asks, self.total, self.advance = asks, total, advance
        self._asked = self._told = 0

    def tell(self, asked: int) -> None:
        """Count items that were asked once."""
        self._asked += asked
        self._tell(min(self.total, self._asked // self.asks))

    def finish(self) -> None:
        """Count the rest."""
        self._tell(self.total)

    def _tell(self, done: int) -> None:
        if done > self._told:
            self.advance(done - self._told)
        self._told = max(done, self._told)


@contextmanager
def blamed(benchmark: AnyBenchmark, method: str) -> Iterator[None]:
    """Say in one line which method of which benchmark failed, and where.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"benchmark '{benchmark.name}': {method}() failed in {place.filename}, line {place.lineno}: "
            f"{cause_of(error)}; lit-debias benchmarks check {type(benchmark).__name__} says more"
        ) from error


def about(benchmark: AnyBenchmark, name: str) -> Figure:
    """Return what a figure of a benchmark is; the label says which benchmark and which part of it.

    Args:
        benchmark: Whose it is.
        name: As its ``score`` has it, ``[part/]figure[/part]``.

    Raises:
        UserError: the benchmark's ``about`` says nothing of it.
    """
    parts = name.split("/")
    figure = next((part for part in parts if part in benchmark.about), None)
    if figure is None:
        raise UserError(
            f"benchmark '{benchmark.name}': score() returns '{name}', of which 'about' says nothing; "
            f"write {', '.join(benchmark.about)}, or describe it there"
        )
    rest = ", ".join(part.replace("_", " ") for part in parts if part != figure)
    found = benchmark.about[figure]
    title = f"{benchmark.title} ({rest})" if rest else benchmark.title
    return Figure(f"{title}: {found.label}", found.better, found.ideal, benchmark.meaning)
