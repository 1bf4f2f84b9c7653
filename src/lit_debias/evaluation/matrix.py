"""``lit-debias matrix``: what each training set does to each benchmark, from the results of several evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_debias.errors import UserError, did_you_mean
from lit_debias.evaluation.table import mark, title
from lit_debias.support.atomic import write_text
from lit_debias.support.files import as_object, parse_json, read_text
from lit_debias.support.text import plain, printable

SECTION = "benchmarks"
ON_IT = "trained on it"
SIGNS = {"good": " ✓", "bad": " ✗", "": ""}


@dataclass(frozen=True)
class Row:
    """An arm of an evaluation."""

    trained_on: str
    """Names of the data sets; of an untrained arm its own words."""
    source: str
    """The file, and the arm in it."""
    results: Mapping[str, Any]
    arm: str

    def figure(self, name: str) -> dict[str, Any] | None:
        """Return a figure with its interval and mark, or why it is none; None where it was not measured."""
        benchmark = name.partition("/")[0]
        reason = self.results.get("contaminated", {}).get(self.arm, {}).get(benchmark)
        if reason:
            return {"contaminated": reason}
        measured = self.results["arms"][self.arm]["measures"].get(name)
        if measured is None or measured["value"] is None:
            return None
        change = self.results["comparisons"].get(self.arm, {}).get(name)
        marked = mark(change, self.results["measures"][name]["better"])
        return {key: measured.get(key) for key in ("value", "low", "high", "n")} | {"mark": marked}


def matrix(results: Sequence[str], figures: list[str] | None = None, out: str | None = None) -> None:
    """Show what training on each data set does to each benchmark: a row an arm, a column a figure.

    Args:
        results: Files results.json of lit-debias evaluate, or the folders that hold them: one model, the same items.
        figures: Names of figures, such as stereoset/overall/ss; by default one of each benchmark.
        out: File to write the table to, .md or .json.

    Raises:
        UserError: a file cannot be read, they are of several models or of different items, or a figure is not there.
    """
    if out is not None and Path(out).suffix not in (".md", ".json"):
        raise UserError(f"--out {out}: write a file that ends with .md or .json")
    found = {path: _read(path) for path in results}
    _check_alike(found)
    columns = _columns(found, figures)
    rows = list(_rows(found))
    _show(rows, columns)
    if out is not None:
        write_text(Path(out), _markdown(rows, columns) if out.endswith(".md") else _json(rows, columns))
        print(f"written: {out}")


def _read(path: str) -> dict[str, Any]:
    place = Path(path).expanduser()
    file = place / "results.json" if place.is_dir() else place
    found = as_object(parse_json(read_text(file, "results"), f"results '{file}'"), f"results '{file}'")
    if not {"arms", "measures", "comparisons", "settings"} <= set(found):
        raise UserError(f"results '{file}' are not those of lit-debias evaluate; name its folder OUT")
    if not any(about["section"] == SECTION for about in found["measures"].values()):
        raise UserError(f"results '{file}' have no benchmark; evaluate with --benchmarks")
    return found


def _check_alike(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise :class:`UserError` where the figures of two files cannot stand in one column."""
    known: dict[str, tuple[str, Any]] = {}
    for path, results in found.items():
        settings = results["settings"]
        items = settings.get("benchmarks", {}).get("items", {})
        alike = {"model": settings["model"], **{f"items of {name}": digest for name, digest in items.items()}}
        for what, value in alike.items():
            first, other = known.setdefault(what, (path, value))
            if other != value:
                raise UserError(f"'{first}' and '{path}' differ in the {what}; evaluate both with the same options")


def _columns(found: Mapping[str, Mapping[str, Any]], figures: list[str] | None) -> dict[str, str]:
    """Return figure -> its label."""
    about = {
        name: entry
        for results in found.values()
        for name, entry in results["measures"].items()
        if entry["section"] == SECTION
    }
    for name in figures or ():
        if name not in about:
            raise UserError(f"--figures: there is no figure '{name}'{did_you_mean(name, list(about))}")
    return {name: about[name]["label"] for name in figures or _one_each(about)}


def _one_each(about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the first figure of each benchmark that should come near an ideal, else its first."""
    of_benchmarks: dict[str, list[str]] = {}
    for name in about:
        of_benchmarks.setdefault(name.partition("/")[0], []).append(name)
    return [
        next((name for name in names if about[name]["better"].startswith("toward")), names[0])
        for names in of_benchmarks.values()
    ]


def _rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the arms that were not trained, of the first file, and the others of every file."""
    for number, (path, results) in enumerate(found.items()):
        for arm in results["arms"]:
            if arm in ("before", "prompt_only"):
                if not number:
                    yield Row(title(arm), path, results, arm)
            else:
                names = results.get("trained_on", {}).get(arm) or ["not known"]
                yield Row(" and ".join(names), f"{path}: {arm}", results, arm)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if "contaminated" in figure:
        return ON_IT
    interval = "" if figure["low"] is None else f" ({figure['low']:.3g} to {figure['high']:.3g})"
    return f"{figure['value']:.3g}{SIGNS[figure['mark']]}{interval}"


def _cells(rows: Sequence[Row], columns: Mapping[str, str]) -> list[list[str]]:
    return [[row.trained_on, row.source, *(_cell(row.figure(name)) for name in columns)] for row in rows]


def _show(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    table = Table("trained on", "results", *columns, box=box.SIMPLE_HEAD, title="Training set by benchmark")
    table.caption = f"✓ clearly better, ✗ clearly worse than before; '{ON_IT}' is no measurement"
    for cells in _cells(rows, columns):
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


def _markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    lines = [["trained on", "results", *(f"{name}: {label}" for name, label in columns.items())]]
    lines += [["---"] * len(lines[0]), *_cells(rows, columns)]
    return "".join(f"| {' | '.join(map(plain, line))} |\n" for line in lines)


def _json(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    found = [
        {"trained_on": row.trained_on, "results": row.source, "figures": {name: row.figure(name) for name in columns}}
        for row in rows
    ]
    return json.dumps({"figures": dict(columns), "rows": found}, indent=2) + "\n"
