"""The contract of a benchmark as a test: what ``lit-debias benchmarks check`` looks at, for tests of plugins too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from lit_debias.benchmark.asking import CannotAskError, Model
from lit_debias.benchmark.benchmark import AnyBenchmark, Estimates, Item, draw
from lit_debias.benchmark.measuring import about, check, read
from lit_debias.benchmark.statistics import ClusterBootstrap
from lit_debias.benchmark.tiny import tiny_policy
from lit_debias.errors import UserError, cause_of
from lit_debias.policy.policy import Policy
from lit_debias.rewards.contract import Finding
from lit_debias.rewards.identity import UnknownIdentityError
from lit_debias.rewards.reward import Reward, RewardBatch
from lit_debias.rewards.suite import RewardSuite

DRAWS = 20
STRATA = 8
"""At most so many strata are scored alone."""


class BrokenError(Exception):
    """A rule of the contract is broken; the message says how."""


class Remark(str):
    """What a check found that a benchmark cannot fail."""


class Lengths(Reward):
    """A judge for tests: it prefers short texts, and has no opinion on empty ones."""

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in (0, 1]."""
        return [1 / len(text) if text else None for text in batch.completions]


def examine(
    benchmark: AnyBenchmark, folder: str = "", policy: Policy | None = None, limit: int = 40, seed: int = 0
) -> list[Finding]:
    """Test the contract of a benchmark on a sample of its items.

    Args:
        benchmark: As configured.
        folder: With its data, or ``hub``; empty for one that brings its own.
        policy: Loaded, to be asked; by default a tiny random model with a chat template.
        limit: At most this many items, whole units.
        seed: Draws them.

    Returns:
        One finding per check. A benchmark whose items cannot be read, or that cannot ask, is not tested further.

    Raises:
        UserError: ``limit`` is below 1.
    """
    if limit < 1:
        raise UserError(f"limit={limit}; write 1 or more")
    if policy is not None:
        return list(_Examination(benchmark, folder, policy, limit, seed).findings())
    with tiny_policy() as tiny:
        return list(_Examination(benchmark, folder, tiny, limit, seed).findings())


class _Examination:
    """Runs the checks; items, answers and figures are kept between them."""

    def __init__(self, benchmark: AnyBenchmark, folder: str, policy: Policy, limit: int, seed: int) -> None:
        self.benchmark, self.folder, self.limit, self.seed = benchmark, folder, limit, seed
        self.policy, self.judges = policy, RewardSuite({"judge": Lengths()})
        self.everything: list[Item] = []
        self.items: list[Item] = []
        self.answers: Sequence[Any] = []
        self.figures: Estimates = {}

    def findings(self) -> Iterator[Finding]:
        """Yield a finding per check; without items, answers or figures there are no more."""
        first = {
            "attributes and files": self.attributes,
            "items": self.read,
            "answers": self.ask,
            "figures": self.score,
        }
        for name, run in first.items():
            yield (finding := _finding(name, run))
            if finding.passed is not True:
                return
        yield _finding("read and drawn again", self.again)
        yield _finding("order of items", self.order)
        yield _finding("no items", self.nothing)
        yield _finding("parts", self.parts)
        yield _finding("no answer", self.none)
        yield _finding("progress", self.progress)
        yield _finding("identity", self.identity)
        yield _finding("time", self.time)

    def attributes(self) -> str:
        check([self.benchmark], self.folder)
        for name, figure in self.benchmark.about.items():
            if figure.better not in ("lower", "higher", "toward", "") or "/" in name:
                raise BrokenError(f"figure '{name}': better={figure.better!r}; write lower, higher, toward, or ''")
            if figure.better == "toward" and figure.ideal is None:
                raise BrokenError(f"figure '{name}' is better toward an ideal; write which")
        return f"{self.benchmark.name}: {', '.join(self.benchmark.about)}"

    def read(self) -> str:
        self.everything = read(self.benchmark, self.folder)
        for number, item in enumerate(self.everything, 1):
            for part in ("unit", "stratum", "cluster"):
                if not (isinstance(getattr(item, part), str) and getattr(item, part)):
                    raise BrokenError(
                        f"item {number} has the {part} {getattr(item, part)!r}; write a text that is not empty"
                    )
        self.items = draw(self.everything, self.limit, self.seed)
        units, strata, clusters = (
            {getattr(i, part) for i in self.everything} for part in ("unit", "stratum", "cluster")
        )
        return f"{len(self.everything)} of {len(units)} units, {len(strata)} strata, {len(clusters)} clusters"

    def ask(self) -> str:
        self.told, start = 0, time.perf_counter()
        self.answers = self._asked(self.items)
        self.seconds = time.perf_counter() - start
        if len(self.answers) != len(self.items):
            raise BrokenError(
                f"ask() returned {len(self.answers)} answers to {len(self.items)} items; return one for each"
            )
        return f"{len(self.answers)} of a sample of {len(self.items)} items"

    def score(self) -> str:
        self.figures = self._scored(self.items, self.answers)
        if not self.figures:
            raise BrokenError("score() returned nothing; return figures by name")
        unseen = set(self.benchmark.about) - set(chain.from_iterable(name.split("/") for name in self.figures))
        found = f"{len(self.figures)}, each described"
        return found + (f"; none is called {', '.join(sorted(unseen))}" if unseen else "")

    def again(self) -> str:
        again = read(self.benchmark, self.folder)
        if list(map(repr, again)) != list(map(repr, self.everything)):
            raise BrokenError(
                "read() returns other items the second time; draw nothing there, and sort what has no order"
            )
        if draw(again, self.limit, self.seed) != self.items:
            raise BrokenError(
                "items are not equal to themselves when read again; let them hold texts, numbers and tuples"
            )
        answers = self._asked(self.items)
        self._compare(self._scored(self.items, answers), "asked again")
        return "equal items, equal samples of equal seeds, equal figures"

    def order(self) -> str:
        order = np.random.default_rng(0).permutation(len(self.items)).tolist()
        items, answers = [self.items[i] for i in order], [self.answers[i] for i in order]
        self._compare(self._scored(items, answers), "with its items in another order")
        return "figures do not depend on it"

    def nothing(self) -> str:
        for name, figure in self._scored([], []).items():
            if figure.n:
                raise BrokenError(f"'{name}' has n={figure.n} without an item; write 0")
        return "nothing is measured, and nothing fails"

    def parts(self) -> str:
        strata = list(dict.fromkeys(item.stratum for item in self.items))[:STRATA]
        for stratum in strata:
            inside = [item.stratum == stratum for item in self.items]
            some = [i for i, there in enumerate(inside) if there]
            self._scored([self.items[i] for i in some], [self.answers[i] for i in some])
        return f"each of {len(strata)} strata alone can be scored"

    def none(self) -> str:
        every_other = [None if i % 2 else answer for i, answer in enumerate(self.answers)]
        for answers in (every_other, [None] * len(self.answers)):
            self._scored(self.items, answers)
        return "an answer may be None: it could not be had"

    def progress(self) -> str:
        calls = self.told / (2 * len(self.items))  # asked twice by now
        asks = max(1, round(calls))
        if asks != self.benchmark.asks:
            raise BrokenError(f"ask() asked {calls:g} times about each item; set asks = {asks} in the class")
        return "every item is counted once"

    def identity(self) -> str:
        try:
            json.dumps(self.benchmark.identity())
        except UnknownIdentityError as reason:
            return Remark(f"cannot be told, so no figures are kept: {reason}; define identity()")
        return "class, version, source and options"

    def time(self) -> str:
        each = self.seconds / len(self.items)
        return Remark(f"{1000 * each:.3g} ms an item on this model; {each * len(self.everything):.2g} s for all")

    # ---------------------------------------------------------------- how

    def _asked(self, items: Sequence[Item]) -> Sequence[Any]:
        return self.benchmark.ask(Model(self.policy, self.judges, self._tell), items)

    def _tell(self, done: int) -> None:
        self.told += done

    def _scored(self, items: Sequence[Item], answers: Sequence[Any]) -> Estimates:
        clusters = ClusterBootstrap([item.cluster for item in items], DRAWS, self.seed)
        found = self.benchmark.score(items, answers, clusters)
        for name, figure in found.items():
            about(self.benchmark, name)
            if figure.samples.shape != (1 + DRAWS,):
                raise BrokenError(
                    f"'{name}' has samples of shape {figure.samples.shape}; take the bootstrap's means and sums"
                )
        return found

    def _compare(self, found: Estimates, how: str) -> None:
        for name in sorted(self.figures.keys() | found.keys()):
            first, second = (one[name].value if name in one else math.nan for one in (self.figures, found))
            if not np.isclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise BrokenError(f"'{name}' is {first}, and {how} {second}; let it depend on items and answers alone")


def _finding(name: str, run: Callable[[], str]) -> Finding:
    try:
        detail = run()
        return Finding(name, None if isinstance(detail, Remark) else True, detail)
    except CannotAskError as reason:
        return Finding(name, None, f"this model cannot be asked: {reason}")
    except (BrokenError, UserError) as broken:
        return Finding(name, False, str(broken))
    except Exception as error:  # of whatever the benchmark does
        return Finding(name, False, cause_of(error))
