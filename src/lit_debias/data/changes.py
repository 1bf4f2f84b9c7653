"""What a data module changes of its rows: pairs without a difference left out, groups balanced, twins added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from datasets import Dataset, concatenate_datasets

from lit_debias.conversations import answer_of
from lit_debias.data.augmentation import augment, said
from lit_debias.data.counterfactuals import Swaps
from lit_debias.data.module import require_column
from lit_debias.data.sources import ORIGIN
from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.support.skew import Pair, extremes, resample, shares_of, weights
from lit_debias.support.text import counted

SKEW_WEIGHT = "skew_weight"
"""Column that :func:`balanced` adds: the loss weight of each row."""
CONCEPT, GROUP = "concept", "group"
Changed = tuple[Dataset, str]
"""Rows, and what was done to them, in words; empty where nothing was."""


def without_ties(path: str, rows: Dataset, responses: Sequence[str], groups: Sequence[Sequence[int]]) -> Changed:
    """Leave out rows whose responses are one text: nothing can be preferred there. Their twins go with them.

    Args:
        path: The data, for errors.
        rows: With the columns of responses.
        responses: Two columns or more.
        groups: Rows that stay together.

    Raises:
        UserError: no row is left.
    """
    texts = zip(*([answer_of(value) for value in rows[name]] for name in responses), strict=True)
    tied = {row for row, values in enumerate(texts) if _are_one(values)}
    if not tied:
        return rows, ""
    kept = sorted(row for group in groups if tied.isdisjoint(group) for row in group)
    names = " and ".join(f"'{name}'" for name in responses)
    if not kept:
        raise UserError(f"data '{path}': {names} are the same text in every row; write two that differ")
    others = len(rows) - len(kept) - len(tied)
    twins = f", and {counted(others, 'twin')} of theirs" if others else ""
    left_out = f"{len(tied):,} of {counted(len(rows), 'row')} left out, as {names} are the same text{twins}"
    return rows.select(kept), left_out


def with_given_twins(rows: Dataset, prompt_column: str) -> Dataset:
    """Add the twins that rows give as ``counterfactual_prompt`` alone, as ``lit-debias evaluate`` asks them too.

    A twin has the row's columns, with the groups exchanged and nothing in ``biased``: that says something about the
    other group.
    """
    if not {"twin_id", "counterfactual_prompt"} <= set(rows.column_names):
        return rows
    counts = Counter(rows["twin_id"])
    alone = [row for row in rows if counts[row["twin_id"]] == 1 and row["counterfactual_prompt"]]
    twins = [_twin_of(row, prompt_column) for row in alone]
    return concatenate_datasets([rows, Dataset.from_list(twins, features=rows.features)]) if twins else rows


def _twin_of(row: Row, prompt_column: str) -> Row:
    exchanged = {
        "prompt_id": f"{row['prompt_id']}-twin",
        ORIGIN: f"{row[ORIGIN]} (its twin)",
        prompt_column: row["counterfactual_prompt"],
        "counterfactual_prompt": row[prompt_column],
        "group": row.get("counterfactual_group"),
        "counterfactual_group": row.get("group"),
        "biased": "",
    }
    return row | {name: value for name, value in exchanged.items() if name in row}


def _are_one(values: Sequence[object]) -> bool:
    known = {" ".join(value.split()) if isinstance(value, str) else "" for value in values}
    return len(known) == 1 and "" not in known


def balanced(path: str, rows: Dataset, seed: int, tau: float) -> Changed:
    """Resample rows by the Skew of their group in their concept, and add the loss weights of what is left.

    Raises:
        UserError: a column is missing, or no two groups can be compared.
    """
    for name in (CONCEPT, GROUP):
        require_column(path, rows, name, f"data.init_args.columns.{name}")
    pairs = _pairs(rows)
    groups = {pair[1] for pair in pairs if pair}
    if len(groups) < 2:
        raise UserError(
            f"data '{path}': balance compares the groups of a concept, and rows with a '{CONCEPT}' have "
            f"{counted(len(groups), f'{GROUP!r}')}; name other columns with data.init_args.columns"
        )
    chosen = rows.select(resample(pairs, seed, tau, tau))
    left = _pairs(chosen)
    (low, high), (now_low, now_high) = extremes(shares_of(pairs)), extremes(shares_of(left))
    done = (
        f"balance: {counted(len(chosen), 'row')} of {len(rows):,}, MinSkew {low:.2f} to {now_low:.2f}, "
        f"MaxSkew {high:.2f} to {now_high:.2f}"
    )
    return weighed(path, chosen, weights(left)), done


def weighed(path: str, rows: Dataset, values: Sequence[float]) -> Dataset:
    """Return rows with their loss weights.

    Raises:
        UserError: the data has such a column.
    """
    if SKEW_WEIGHT in rows.column_names:
        raise UserError(f"data '{path}' has a column '{SKEW_WEIGHT}', which balance writes; give it another name")
    return rows.add_column(SKEW_WEIGHT, list(values))


def _pairs(rows: Dataset) -> list[Pair | None]:
    both = list(zip(rows[CONCEPT], rows[GROUP], strict=True))
    known = [not {None, ""} & set(pair) for pair in both]
    return [(str(concept), str(group)) if there else None for (concept, group), there in zip(both, known, strict=True)]


def with_twins(
    path: str,
    rows: Dataset,
    prompt_column: str,
    responses: Sequence[str],
    swaps: Sequence[Swaps],
    elsewhere: Collection[str],
) -> Changed:
    """Add counterfactual twins; see :func:`lit_debias.data.augmentation.augment`.

    Raises:
        UserError: there are none to add.
    """
    grown, counts = augment(rows, prompt_column, responses, swaps, elsewhere)
    words = f"augment: {said(counts, len(rows))}"
    if not counts["added"]:
        named = ", ".join(swap.category for swap in swaps)
        raise UserError(f"data '{path}': {words}; leave augment out, or name other categories than {named}")
    return grown, words
