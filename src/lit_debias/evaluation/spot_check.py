"""Chosen measures of a policy as it is now, on a few prompts and samples of benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lit_debias.benchmark.benchmark import AnyBenchmark
from lit_debias.benchmark.measuring import measure as measure_benchmark
from lit_debias.data.images import Images
from lit_debias.data.tables import Row
from lit_debias.errors import UserError, did_you_mean
from lit_debias.evaluation.benchmarked import PublicBenchmarks
from lit_debias.evaluation.contamination import refuse_learned
from lit_debias.evaluation.examiner import PARTS, Examiner, has_preference
from lit_debias.evaluation.measures import MEASURES, Estimates, measure, word_budgets
from lit_debias.evaluation.needs import Asked, obstacle
from lit_debias.evaluation.prompts import (
    BIAS_KINDS,
    GENERATED_KINDS,
    PROSE,
    available,
    choose_splits,
    draw,
    read_prompts,
)
from lit_debias.evaluation.prose import prose_rows, read_prose
from lit_debias.evaluation.readable import check_all
from lit_debias.evaluation.results import bootstrap_of
from lit_debias.export.record import Record
from lit_debias.models.probing.probe import without_adapter_dropout
from lit_debias.plugins.benchmarks import benchmark_classes
from lit_debias.policy.policy import Policy
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support.progress import ignore

V = TypeVar("V")
PROSE_MEASURE = "prose_perplexity"
ASKED_BY = {
    **dict.fromkeys(("preference", "preference_margin"), "preference"),
    **dict.fromkeys(("biased_choice", "accuracy", "min_skew", "max_skew"), "choices"),
    PROSE_MEASURE: "prose",
}
"""Measure -> which of the examiner's parts it rests on; the others rest on answers."""
OTHER_MODELS = ("perplexity_other", "similarity")
"""Measures that need a second model."""


@dataclass(frozen=True)
class Choice:
    """Measures by name: ``gap_intensity`` of every judge, ``gap_intensity/NAME`` of one, ``bbq`` for all its figures.

    Raises:
        UserError: there is no such measure, or it needs a second model.
    """

    measures: tuple[str, ...]
    configured: tuple[AnyBenchmark, ...] = ()
    """Benchmarks that are measured too; all figures of one of which no figure is among the measures."""

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("measures is empty; write some, such as [bias_intensity, gap_intensity]")
        for name in self.firsts:
            if name in OTHER_MODELS:
                raise UserError(f"'{name}' needs a second model, which has no place beside training; leave it out")
            if name not in MEASURES and name not in self._configured and name not in benchmark_classes():
                known = [*MEASURES, *self._configured, *benchmark_classes()]
                raise UserError(f"there is no measure '{name}'{did_you_mean(name, set(known) - set(OTHER_MODELS))}")

    @property
    def _configured(self) -> dict[str, AnyBenchmark]:
        return {benchmark.name: benchmark for benchmark in self.configured}

    @property
    def names(self) -> tuple[str, ...]:
        """The measures, and the names of the benchmarks besides."""
        firsts = {name.partition("/")[0] for name in self.measures}
        return (*self.measures, *(name for name in self._configured if name not in firsts))

    @property
    def firsts(self) -> list[str]:
        """Measures and benchmarks, without the names of judges and figures."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.names))

    @property
    def of_prompts(self) -> list[str]:
        """Those that the prompts of the data are needed for."""
        return [name for name in self.firsts if name in MEASURES and name != PROSE_MEASURE]

    @property
    def benchmarks(self) -> list[str | AnyBenchmark]:
        """The benchmarks among them."""
        return [self._configured.get(name, name) for name in self.firsts if name not in MEASURES]

    @property
    def parts(self) -> list[str]:
        """What a policy must be asked for them, see :data:`~lit_debias.evaluation.examiner.PARTS`."""
        asked = {ASKED_BY.get(name, "answers") for name in self.firsts if name in MEASURES}
        return [part for part in PARTS if part in asked]

    def rests_on(self, row: Row) -> bool:
        """Return whether a prompt counts in one of them."""
        return any(rests_on(measure, row) for measure in self.of_prompts)

    def among(self, found: Mapping[str, V]) -> dict[str, V]:
        """Return what was chosen, in the order of the choice."""
        return {key: found[key] for name in self.names for key in _matching(name, found)}

    def check(self, found: Collection[str]) -> None:
        """Raise :class:`UserError` where something that was chosen is not among all the figures that there are."""
        for name in self.names:
            if not _matching(name, found):
                raise UserError(f"there is no figure '{name}'{did_you_mean(name, found)}")


def _matching(name: str, found: Collection[str]) -> list[str]:
    """Return the figure of a name, or else those below it: of every judge, or all of a benchmark."""
    return [name] if name in found else [key for key in found if key.startswith(f"{name}/")]


def rests_on(measure: str, row: Row) -> bool:
    """Return whether a prompt counts in a measure."""
    if ASKED_BY.get(measure) == "choices":
        return len(row["choices"]) > 1
    if ASKED_BY.get(measure) == "preference":
        return has_preference(row)
    if measure == "refusal_control":
        return bool(row["prompt_kind"] == "control")
    return row["prompt_kind"] in (GENERATED_KINDS if MEASURES[measure].section == "utility" else BIAS_KINDS)


@dataclass(frozen=True)
class SpotCheck:
    """What a few measures are made of.

    Args:
        rows: Prompts and prose that the policy is asked.
        examiner: Asks it.
        benchmarks: Samples of benchmarks; its bootstrap is that of the prompts too.
    """

    rows: Sequence[Row]
    examiner: Examiner
    benchmarks: PublicBenchmarks

    def check(self, policy: Policy) -> None:
        """Raise :class:`UserError` where a loaded policy cannot read what it will be asked."""
        if self.rows:
            check_all(policy, self.rows, self.examiner)

    def check_unseen(self, data: Record, adapter: str | None) -> None:
        """Raise :class:`UserError` where a run would learn from what it will be asked; see :func:`refuse_learned`."""
        prompts = [row["prompt"] for row in self.rows if row["prompt_kind"] != PROSE]
        refuse_learned(prompts, self.benchmarks.samples, data, adapter)

    def figures(self, policy: Policy) -> Estimates:
        """Return every figure of the prompts and benchmarks, of a policy as it is now, without dropout."""
        with without_adapter_dropout(policy.causal_lm):
            return {**self._of_prompts(policy), **self._of_benchmarks(policy)}

    def _of_prompts(self, policy: Policy) -> Estimates:
        if not self.rows:
            return {}
        records = self.examiner.examine(policy, self.rows, ignore)
        bootstrap = bootstrap_of(records, self.benchmarks.bootstrap, self.benchmarks.seed)
        return measure(records, bootstrap, word_budgets([records]))

    def _of_benchmarks(self, policy: Policy) -> Estimates:
        found: Estimates = {}
        b, judges = self.benchmarks, self.examiner.judges
        for sample in b.samples:
            found |= measure_benchmark(policy, sample, b.seed, b.bootstrap, judges, ignore)
        return found


def read_rows(
    choice: Choice,
    data: str | None,
    splits: str | Sequence[str] | None,
    columns: Mapping[str, str] | None,
    limit: int | None,
    seed: int,
    suites: Mapping[str, RewardSuite],
    images: Images | None = None,
) -> list[Row]:
    """Return the prompts, and the prose, that the chosen measures are made of.

    Args:
        choice: The measures.
        data: As :func:`~lit_debias.evaluation.evaluate` takes it, and so for ``splits``, ``columns`` and ``limit``.
        splits: Which of the data are asked.
        columns: Name of a column here -> its name in the data.
        limit: At most this many prompts, of those that a measure rests on.
        seed: Draws them.
        suites: ``judges`` and ``rewards``.
        images: Where the pictures are that the prompts show, if they show some.

    Raises:
        UserError: the data are missing or wrong, or a measure needs what they lack.
    """
    prose = prose_rows(read_prose(None)) if "prose" in choice.parts else []
    if not choice.of_prompts:
        return prose
    if data is None:
        raise UserError(f"'{choice.of_prompts[0]}' is measured on prompts; write data: FOLDER or FILE")
    everything = read_prompts(data, choose_splits(data, splits), columns, images)
    for suite in suites.values():
        suite.check_columns(available(everything))
    rows = draw([row for row in everything if choice.rests_on(row)], limit, seed)
    asked = Asked(rows, [option for option, suite in suites.items() if suite.rewards])
    for name in choice.of_prompts:
        if reason := obstacle(asked, name):
            raise UserError(f"'{name}' cannot be measured: {reason}")
    return rows + prose
