"""The tables in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_debias.evaluation.needs import by_reason

TITLES = {"before": "before", "prompt_only": "asked for fairness", "after": "after"}
MARKS = {"good": ("green", " ✓"), "bad": ("red", " ✗"), "": ("", "")}
LABEL_WIDTH = {True: 16, False: 24}
"""Least width of the column that says what is measured, with intervals (two lines to a figure anyway) and without."""
GAP = 2
"""Between columns."""
HEADINGS, WORDS = 3, 5
"""Groups of a measure whose words are printed, and words of each; the report has more."""


@dataclass(frozen=True)
class Column:
    """A column of figures: its heading, and a cell for each measure."""

    heading: str
    cells: list[Text]

    @property
    def width(self) -> int:
        """Width that cuts off no line of a cell and no part of the heading, which may break after _ and -."""
        lines = [line for cell in self.cells for line in cell.plain.splitlines()]
        return max(map(len, [*_broken(self.heading).split(), *lines]))

    def add_to(self, table: Table) -> None:
        """Give the table this column, its heading broken where it must be."""
        longest = max(map(len, self.heading.split()))
        table.add_column(self.heading if longest <= self.width else _broken(self.heading), width=self.width)


def as_tables(results: dict[str, Any], width: int) -> list[Table]:
    """Return the arms side by side, clear changes marked, and the change of the one that the verdict is about.

    Where all arms fit, each figure has its 95% interval below it. Where they do not, there are figures only, in as many
    tables as it takes.

    Args:
        results: What ``lit-debias evaluate`` writes.
        width: Of the terminal, in characters.
    """
    columns = list(_columns(results, intervals=True))
    intervals = _fits(columns, width - LABEL_WIDTH[True])
    if not intervals:
        columns = list(_columns(results, intervals=False))
    parts = [[columns[0]]]
    for column in columns[1:]:
        if intervals or _fits([*parts[-1], column], width - LABEL_WIDTH[False]):
            parts[-1].append(column)
        else:
            parts.append([column])
    tables = [_table(results, part) for part in parts]
    tables[0].title = "Bias and utility" + (", with 95% intervals" if intervals else "")
    tables[-1].caption = "✓ clearly better, ✗ clearly worse than before (95% interval of the change)" + (
        "" if intervals else "\nFor intervals: results.json, the report, or a wider terminal"
    )
    return tables


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables, what arms differ in, the notes and the verdict."""
    for table in as_tables(results, console.width):
        console.print(table)
    for line in against(results):
        console.print(line, markup=False)
    for line in word_lines(results):
        console.print(line, style="dim", markup=False)
    for reason, labels in by_reason(results["not_measured"]).items():
        console.print(f"not measured, {reason}: {'; '.join(labels)}", style="dim", markup=False)
    for note in results["notes"]:
        console.print(f"note: {note}", style="dim", markup=False)
    console.print(results["verdict"]["sentence"], style="bold", markup=False)


def word_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield for each arm what words measures of texts found: the clearest, of a few groups."""
    for arm, measures in results.get("words", {}).items():
        for measure, headings in measures.items():
            clearest = sorted(headings.items(), key=lambda own: -own[1][0][1])[:HEADINGS]
            said = [f"{name}: {', '.join(word for word, _ in words[:WORDS])}" for name, words in clearest]
            yield f"{measure.replace('_', ' ')}, {title(arm)}: {'; '.join(said)}"


def against(results: dict[str, Any]) -> list[str]:
    """Return for each arm but "before" how the verdict's arm differs from it in the verdict's measure, in words."""
    verdict = results["verdict"]
    titles = {name: results.get("titles", {}).get(name) or title(name) for name in results["arms"]}
    lines = []
    for name, change in verdict.get("against", {}).items():
        if change["difference"] is None:
            continue
        said = f"{titles[verdict['arm']]} against {titles[name]}: {results['measures'][verdict['measure']]['label']}"
        count = f", n = {change['n']}" if "n" in change else ""  # results of earlier versions do not say
        bounds = "" if change["low"] is None else f" ({change['low']:+.3g} to {change['high']:+.3g}{count})"
        lines.append(f"{said} {change['difference']:+.3g}{bounds}{'' if change['clear'] else ', unclear'}")
    return lines


def title(arm: str) -> str:
    """Return the words for an arm."""
    return TITLES.get(arm, arm)


def seeds(results: dict[str, Any], arm: str) -> str:
    """Return how many training seeds an arm pools, in words; empty where it is one."""
    count = results["arms"][arm].get("replicas", 1)
    return f"{count} seeds" if count > 1 else ""


def mark(change: dict[str, Any] | None, better: str) -> str:
    """Return ``good`` or ``bad`` where a change against "before" is clearly for the better or the worse, else empty.

    Args:
        change: Of ``comparisons`` in the results; None where there is none.
        better: ``lower``, ``higher``, ``toward VALUE``, or empty where neither is.
    """
    if change is None or change["difference"] is None or not change["clear"]:
        return ""
    falls = change["difference"] < 0
    improved = {"lower": falls, "higher": not falls}.get(better)
    if better.startswith("toward"):
        improved = change.get("nearer")
    return {True: "good", False: "bad", None: ""}[improved]


def _columns(results: dict[str, Any], intervals: bool) -> Iterator[Column]:
    measures, changed = results["measures"].items(), results["verdict"]["arm"]
    for arm, found in results["arms"].items():
        changes = results["comparisons"].get(arm, {})
        cells = [
            _estimate(found["measures"].get(name), mark(changes.get(name), about["better"]), intervals)
            for name, about in measures
        ]
        yield Column(f"{title(arm)} {seeds(results, arm)}".strip(), cells)
    if changed:
        changes = results["comparisons"][changed]
        heading = "change" if changed == "after" else f"change of {changed}"
        cells = [_change(changes.get(name), mark(changes.get(name), about["better"])) for name, about in measures]
        yield Column(heading, cells)


def _broken(heading: str) -> str:
    return re.sub(r"(?<=[_-])(?=\w)", " ", heading)


def _fits(columns: list[Column], width: int) -> bool:
    return sum(GAP + column.width for column in columns) <= width


def _table(results: dict[str, Any], columns: list[Column]) -> Table:
    table = Table("measure", box=box.SIMPLE_HEAD, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        column.add_to(table)
    section = ""
    for (label, about_section), cells in zip(
        [(about["label"], about["section"]) for about in results["measures"].values()],
        zip(*[column.cells for column in columns], strict=True),
        strict=True,
    ):
        if about_section != section:
            section = about_section
            table.add_row(Text(section, style="bold"))
        table.add_row(Text(label), *cells)
    return table


def _estimate(estimate: dict[str, Any] | None, marked: str, intervals: bool) -> Text:
    if estimate is None or estimate["value"] is None:
        return Text("-")
    colour, sign = MARKS[marked]
    cell = Text(f"{estimate['value']:.3g}{sign}", style=colour)
    if intervals and estimate["low"] is not None:
        cell = Text.assemble(cell, "\n", (f"{_bound(estimate['low'])} to {_bound(estimate['high'])}", "dim"))
    return cell


def _bound(value: float) -> str:
    """Return an end of an interval, in few characters."""
    return f"{value:.3g}" if 1 <= abs(value) < 1000 else f"{value:.{0 if abs(value) > 1 else 3}f}"


def _change(change: dict[str, Any] | None, marked: str) -> Text:
    if change is None or change["difference"] is None:
        return Text("-")
    cell = Text(f"{change['difference']:+.3g}", style=MARKS[marked][0])
    return cell if change["clear"] else Text.assemble(cell, ("\nunclear", "dim"))
