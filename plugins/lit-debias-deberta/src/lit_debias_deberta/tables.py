"""Figures as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lit_debias.plugins import counted, printable

FIGURES = ("spearman", "pairwise_accuracy", "ece")


def validation_table(metrics: Mapping[str, float], dimensions: Sequence[str], title: str) -> Table:
    """Return the validation figures, one row per dimension."""
    table = Table("dimension", *FIGURES, title=title)
    for dimension in dimensions:
        table.add_row(dimension, *[number(metrics.get(f"val/{dimension}/{figure}")) for figure in FIGURES])
    return table


def examination_tables(figures: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what :func:`~lit_debias_deberta.examination.examine` found."""
    for split, found in figures.items():
        yield _split(split, found)
    whole = figures["all"]
    yield _correlation(whole["correlation"])
    if whole["hard_negatives"]:
        yield _hard_negatives(whole["hard_negatives"])


def human_tables(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Table]:
    """Yield what :func:`~lit_debias_deberta.human_text.measure` found: a table per source, a row per type of bias."""
    for source, kinds in found.items():
        table = Table("type", "pairs", "fairer one higher", "95%", "mean fairer", "mean other", title=plain(source))
        for kind, row in kinds.items():
            interval = f"{number(row['low'])} to {number(row['high'])}"
            means = (number(row["fairer"]), number(row["less_fair"]))
            table.add_row(plain(kind), str(row["n"]), number(row["value"]), interval, *means)
        yield table


def mixture_tables(about: Mapping[str, Any], title: str) -> Iterator[Table]:
    """Yield the trials of a preference mixture, the groups that were found, and the figures of held-out pairs."""
    table = Table("groups", "restart", "rounds", "log-likelihood", "held out", title=plain(title))
    for trial in about["trials"]:
        figures = (number(trial["log_likelihood"]), number(trial["held_out_log_likelihood"]))
        table.add_row(str(trial["groups"]), str(trial["restart"]), str(trial["rounds"]), *figures)
    yield table
    known = "" if about["purity"] is None else f", purity {number(about['purity'])}"
    if about["held_out"]:
        yield _held_out(about["held_out"], len(about["shares"]))
    sizes = Table("reward", "share of users", title=f"{about['users']} users{known}")
    for group, share in enumerate(about["shares"]):
        sizes.add_row(f"reward_{group}", number(share))
    yield sizes


def _held_out(figures: Mapping[str, float], groups: int) -> Table:
    """Return the accuracy on held-out pairs, by the reward of each user's group and by each reward."""
    rewards = [f"reward_{group}" for group in range(groups)]
    table = Table("users", "own reward", *rewards, title="accuracy on held-out pairs")
    for name in (name for name in figures if name.startswith("accuracy")):
        known = name.removeprefix("accuracy").removeprefix("/")
        columns = [figures.get(f"{reward}/{known}") for reward in rewards]
        table.add_row(plain(known or "all"), number(figures[name]), *map(number, columns))
    return table


def number(value: float | None) -> str:
    """Return three decimals, or a dash for what is not defined."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def plain(text: str) -> str:
    """Return a word of the data as rich shows it letter by letter, without taking it for markup."""
    return escape(printable(text))


def _split(split: str, found: Mapping[str, Any]) -> Table:
    names = [*FIGURES, "ece_uncalibrated"]
    table = Table("dimension", *names, title=f"{plain(split)}: {counted(found['responses'], 'response')}")
    for dimension, figures in found["dimensions"].items():
        table.add_row(dimension, *[number(figures[name]) for name in names])
    return table


def _correlation(correlation: Mapping[str, Any]) -> Table:
    names = correlation["dimensions"]
    table = Table("", *names, title="rank correlation of scores / of labels")
    for name, scores, labels in zip(names, correlation["scores"], correlation["labels"], strict=True):
        table.add_row(name, *[f"{score:.2f} / {label:.2f}" for score, label in zip(scores, labels, strict=True)])
    return table


def _hard_negatives(found: Mapping[str, Mapping[str, float]]) -> Table:
    columns = ("n", "mean score", "mean label", "right order beside biased", "pairs")
    table = Table(
        "responses", *columns, title="fairness of fair texts that name a group (hard negatives), and of others"
    )
    for kind, row in found.items():
        figures = (number(row["score"]), number(row["label"]), number(row["pairwise_accuracy"]))
        table.add_row(plain(kind), str(row["n"]), *figures, str(row["pairs"]))
    return table
