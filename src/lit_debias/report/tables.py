"""The tables: every measure of every arm, the headline, and several runs in one look."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lit_debias.evaluation import table
from lit_debias.evaluation.meanings import meaning
from lit_debias.evaluation.measures import fluency_measure
from lit_debias.report.sources import Evaluation

TARGET = re.compile(r"toward\s+(-?\d+(?:\.\d+)?)")
SECTIONS = {
    "bias": "Bias",
    "twins": "Twins",
    "utility": "Utility",
    "texts": "Texts of answers",
    "benchmarks": "Benchmarks",
}
UTILITY = ("distinct_2", "similarity", "accuracy")
"""What the headline shows next to bias and perplexity."""


@dataclass(frozen=True)
class Cell:
    """A figure, and whether it is clearly better (``good``) or worse (``bad``) than before; empty where unclear."""

    estimate: dict[str, Any] | None
    mark: str = ""


@dataclass(frozen=True)
class MeasureRow:
    """One measure."""

    section: str
    label: str
    meaning: str
    """What it says, in a sentence or two."""
    direction: str
    """An arrow to where it should go; empty where it should not go anywhere."""
    cells: list[Cell]
    """One for each arm."""
    change: dict[str, Any] | None
    """Of the verdict's arm."""
    mark: str
    part_of: str = ""
    """Title of the benchmark of which this is the figure of a part, such as a category; empty for all others."""

    @property
    def n(self) -> int | None:
        """On how many observations the figures rest; None where arms differ in it."""
        counts = {cell.estimate["n"] for cell in self.cells if cell.estimate}
        return counts.pop() if len(counts) == 1 else None


def direction(better: str) -> str:
    """Return the arrow for ``lower``, ``higher`` or ``toward VALUE``."""
    target = TARGET.match(better)
    return f"→ {target[1]}" if target else {"lower": "↓", "higher": "↑"}.get(better, "")


def mark(evaluation: Evaluation, arm: str, measure: str) -> str:
    """Return ``good`` or ``bad`` where an arm is clearly better or worse than before."""
    return table.mark(evaluation.change(arm, measure), evaluation.results["measures"][measure]["better"])


def measure_rows(evaluation: Evaluation) -> list[MeasureRow]:
    """Return a row per measure, in the order of the results."""
    return [
        MeasureRow(
            section=SECTIONS.get(about["section"], about["section"]),
            label=about["label"],
            meaning=meanings(evaluation)[name],
            direction=direction(about["better"]),
            cells=[Cell(evaluation.estimate(arm, name), mark(evaluation, arm, name)) for arm in evaluation.arms],
            change=evaluation.change(evaluation.arm, name),
            mark=mark(evaluation, evaluation.arm, name),
            part_of=_part_of(name, about),
        )
        for name, about in evaluation.results["measures"].items()
    ]


def _part_of(name: str, about: Mapping[str, Any]) -> str:
    """Return the title of the benchmark that ``BENCHMARK/FIGURE/PART`` belongs to, ``TITLE (PART): FIGURE``."""
    whole = about["section"] != "benchmarks" or name.count("/") < 2 or "overall" in name.split("/")
    return "" if whole else str(about["label"]).partition(" (")[0]


def meanings(evaluation: Evaluation) -> dict[str, str]:
    """Return measure -> what it says; empty where that is not known."""
    return {name: about.get("meaning") or meaning(name) for name, about in evaluation.results["measures"].items()}


def word_rows(evaluation: Evaluation) -> list[tuple[str, str, list[str]]]:
    """Return measure, heading and the words of each arm with their values, as a measure of texts found them."""
    found: dict[str, dict[str, Any]] = evaluation.results.get("words", {})
    places = dict.fromkeys(
        (measure, heading) for own in found.values() for measure, headings in own.items() for heading in headings
    )
    return [
        (
            measure.replace("_", " "),
            heading,
            [_words(found.get(arm, {}).get(measure, {}).get(heading, ())) for arm in evaluation.arms],
        )
        for measure, heading in places
    ]


def _words(pairs: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"{word} ({value:.2f})" for word, value in pairs)


def headline(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return title, primary estimate and a few utility figures of each arm in focus; empty without a primary one."""
    primary = evaluation.results["verdict"]["measure"]
    measured = evaluation.results["measures"]
    return [
        {
            "arm": arm,
            "title": evaluation.titles[arm],
            "measure": primary,
            "primary": Cell(evaluation.estimate(arm, primary), mark(evaluation, arm, primary)),
            "utility": {
                name: Cell(evaluation.estimate(arm, name), mark(evaluation, arm, name))
                for name in (fluency_measure(measured), *UTILITY)
                if evaluation.estimate(arm, name)
            },
        }
        for arm in evaluation.focus
        if evaluation.estimate(arm, primary)
    ]


def run_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the primary figures of each run, each for the arm of its own verdict."""
    rows = []
    for evaluation in evaluations:
        verdict = evaluation.results["verdict"]
        checks = verdict.get("checks", [])
        rows.append(
            {
                "name": str(evaluation.run),
                "arm": evaluation.titles[evaluation.arm],
                "before": evaluation.estimate("before", verdict["measure"]),
                "after": evaluation.estimate(evaluation.arm, verdict["measure"]),
                "bias": evaluation.change(evaluation.arm, verdict["measure"]),
                "perplexity": evaluation.change(evaluation.arm, fluency_measure(evaluation.results["measures"])),
                "checks": f"{sum(check['passed'] for check in checks)} of {len(checks)}",
            }
        )
    return rows


def over_runs(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return mean and sample standard deviation over runs of ``before``, ``after``, ``bias`` and ``perplexity``.

    The first two are figures, the last two relative changes. What fewer than two runs have is left out.
    """
    found = {}
    for key, of in {"before": "value", "after": "value", "bias": "relative", "perplexity": "relative"}.items():
        values = [row[key][of] for row in rows if row[key] is not None and row[key][of] is not None]
        if len(values) > 1:
            found[key] = (mean(values), stdev(values))
    return found
