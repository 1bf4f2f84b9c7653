"""The table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

TITLES = {"before": "before", "prompt_only": "asked for fairness", "after": "after"}


def as_table(results: dict[str, Any]) -> Table:
    """Return the arms side by side, each with its 95% interval, and the change of the one the verdict is about."""
    arms, changed = results["arms"], results["verdict"]["arm"]
    table = Table("measure", *(title(name) for name in arms), title="Bias and utility, with 95% intervals")
    if changed:
        table.add_column("change" if changed == "after" else f"change of {changed}")
    section = ""
    for name, about in results["measures"].items():
        if about["section"] != section:
            table.add_section()
            section = about["section"]
        cells = [_estimate(arm["measures"].get(name)) for arm in arms.values()]
        if changed:
            cells.append(_change(results["comparisons"][changed].get(name), about["better"]))
        table.add_row(about["label"], *cells)
    return table


def title(arm: str) -> str:
    """Return the words for an arm."""
    return TITLES.get(arm, arm)


def _estimate(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    interval = "" if estimate["low"] is None else f" [dim]{estimate['low']:.3g} to {estimate['high']:.3g}[/]"
    return f"{estimate['value']:.3g}{interval}"


def _change(change: dict[str, Any] | None, better: str) -> str:
    if change is None or change["difference"] is None:
        return "-"
    text = f"{change['difference']:+.3g}"
    if not change["clear"]:
        return f"[dim]{text}, unclear[/]"
    improved = (change["difference"] < 0) == (better == "lower")
    colour = "" if not better else "[green]" if improved else "[red]"
    return f"{colour}{text}{'[/]' if colour else ''}"
