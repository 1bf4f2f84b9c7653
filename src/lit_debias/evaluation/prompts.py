"""The prompts that are evaluated: read, completed with their twins, and drawn evenly."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from lit_debias.conversations import answer_of, is_conversation, read_prompt, words_of
from lit_debias.data.columns import renamed
from lit_debias.data.images import Images
from lit_debias.data.module import check_prompts_of
from lit_debias.data.sources import ORIGIN, default_splits, load_split, split_names
from lit_debias.data.tables import Row, text_columns
from lit_debias.errors import UserError, did_you_mean
from lit_debias.evaluation.cells import CELLS, PLACES, read_cells

BIAS_KINDS = ("open", "leading")
GENERATED_KINDS = (*BIAS_KINDS, "control")
HELD_OUT = ("test_template", "test_group")
"""Splits of the synthetic data that are asked where none is named."""
PROSE = "prose"
"""Kind of the rows that are no prompts but passages to be read; see :mod:`~lit_debias.evaluation.prose`."""
NOBODY = "all"
"""Group and category of a prompt whose data does not say."""
DEFAULTS: Row = {
    "twin_id": "",
    "cluster": "",
    "category": NOBODY,
    "group": NOBODY,
    "prompt_kind": "open",
    "counterfactual_prompt": "",
    "counterfactual_group": "",
    "reference": "",
    "biased": "",
    "choices": (),
    "answer": -1,
    "biased_choice": -1,
    "ambiguous": False,
    "messages": None,
    "counterfactual_messages": None,
}
"""What a prompt has where the data does not say."""
MENTIONED = "counterfactual_prompt"
TEXTS = ("prompt", "cluster")
"""Texts in a CSV file too, besides those of the synthetic data."""
ASKED = ("prompt_kind", "reference", "biased", "choices", "answer", "biased_choice", "ambiguous")
"""What makes two questions of one prompt."""


def choose_splits(data: str, splits: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the splits that are asked: those that are named, else held-out ones, ``test``, or the only one.

    Raises:
        UserError: the data or a split is not there, none is named, or there are several to choose from.
    """
    known = split_names(data, "prompts")
    if splits is None:
        found = default_splits(known, (HELD_OUT, ("test",)))
        if found is None:
            raise UserError(f"splits: data '{data}' has {', '.join(known) or 'none'}; name those that are asked")
        return found
    names = (splits,) if isinstance(splits, str) else tuple(splits)
    for name in names:
        if name not in known and "," in name:
            raise UserError(f"splits: '{name}' is one name; write a list: '[{', '.join(name.split(','))}]'")
        if name not in known:
            raise UserError(f"splits: there is no split '{name}' in data '{data}'{did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise UserError(f"splits: '{name}' is there twice; write it once")
    if not names:
        raise UserError(f"splits is empty; write some of: {', '.join(known)}")
    return names


def read_prompts(
    data: str, splits: Sequence[str], columns: Mapping[str, str] | None = None, images: Images | None = None
) -> list[Row]:
    """Return all prompts with every column of :data:`DEFAULTS`, and the twins that the data only mentions.

    Args:
        data: As :class:`~lit_debias.data.PromptDataModule` takes it.
        splits: As :func:`choose_splits` returns them.
        columns: Name of a column here -> its name in the data.
        images: Where the pictures are that the prompts show, if they show some.

    Raises:
        UserError: a file is malformed, has no rows or no column ``prompt``; a row holds what cannot be asked, what an
            earlier row asks, or the id of another row.
    """
    tables = {split: _read_split(data, split, columns or {}, images) for split in splits}
    names = dict.fromkeys(name for table in tables.values() for name in table.column_names if name != ORIGIN)
    rows = []
    for split, table in tables.items():
        check_prompts_of(data, table, "prompt", "--columns '{prompt: COLUMN}'")
        for number, given in enumerate(table.to_list()):
            origin = given.pop(ORIGIN)
            rows.append(_to_row(given, names, {"prompt_id": f"{split}-{number}", "split": split, "origin": origin}))
    check_repetition(rows)
    link_twins(rows)
    return rows + _missing_twins(rows)


def _read_split(data: str, split: str, columns: Mapping[str, str], images: Images | None) -> Dataset:
    texts = {columns.get(name, name) for name in (*TEXTS, *([] if images is None else [images.column]))}
    rows = load_split(data, "prompts", split, text_columns("prompts", columns) | texts)
    if rows is None:
        raise UserError(f"splits: there is no split '{split}' in data '{data}'")
    rows = renamed(rows, columns, data, [name for name in rows.column_names if name != ORIGIN])
    if images is None:
        return rows
    mentioned = rows[MENTIONED] if MENTIONED in rows.column_names else [None] * len(rows)
    for origin, text in zip(rows[ORIGIN], mentioned, strict=True):
        if text:
            raise UserError(
                f"{origin}: '{MENTIONED}' would show no picture; leave it out, and write a row of its own for the twin"
            )
    return images.into(rows, "prompt", data)


def _to_row(given: Row, names: Iterable[str], about: Row) -> Row:
    """Return a row of the data with all columns: what is empty has its default, or None where there is no default."""
    given = with_messages(given, about["origin"])
    cells = read_cells(given, about["origin"])
    unread = {name: DEFAULTS[name] for name in (*CELLS, *PLACES) if name in DEFAULTS}
    row = {**DEFAULTS, **dict.fromkeys(names), **given, **unread, **about, **cells}
    if "ambiguous" not in cells:  # nothing decides where no choice is right
        row["ambiguous"] = row["biased_choice"] >= 0 > row["answer"]
    return row


def with_messages(given: Row, origin: str) -> Row:
    """Return a row whose prompts are texts, and the conversations that they stand for beside them.

    Raises:
        UserError: a conversation is malformed.
    """
    texts: Row = {name: answer_of(given[name]) for name in ("reference", "biased") if name in given}
    for name, beside in {"prompt": "messages", "counterfactual_prompt": "counterfactual_messages"}.items():
        if is_conversation(given.get(name)):
            messages = read_prompt(given[name], f"{origin}: '{name}'")
            texts |= {name: words_of(messages), beside: messages}
    return {**given, **texts}


def check_repetition(rows: Sequence[Row]) -> None:
    """Raise :class:`UserError` where a row has the id of another one, or asks exactly what another one asks."""
    ids: dict[str, str] = {}
    asked: dict[Any, str] = {}
    for row in rows:
        origin, name = row["origin"], row["prompt_id"]
        if name in ids:
            raise UserError(f"{origin}: prompt_id {name!r:.60} is there before, {ids[name]}; write an id of its own")
        ids[name] = origin
        question = tuple(str(row[column]) for column in ("prompt", "messages", *ASKED))
        if question in asked:
            raise UserError(f"{origin}: {row['prompt']!r:.60} is asked before, {asked[question]}; leave one out")
        asked[question] = origin


def link_twins(rows: Sequence[Row]) -> None:
    """Let two rows with the same ``twin_id`` know each other's prompt and group; a row without one is its own twin.

    Raises:
        UserError: more than two rows have one ``twin_id``, and do not say which belong together.
    """
    twins: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["twin_id"] and not row["counterfactual_prompt"]:
            twins[row["twin_id"]].append(row)
        row["twin_id"] = row["twin_id"] or row["prompt_id"]
    for name, members in twins.items():
        if len(members) > 2:
            raise UserError(
                f"{members[2]['origin']}: the third row with twin_id {name!r:.60}; twins are two prompts that differ "
                "in the group alone: give each pair an id of its own, or map another column to 'cluster'"
            )
        for row, other in itertools.permutations(members, 2):
            row["counterfactual_prompt"], row["counterfactual_group"] = other["prompt"], other["group"]
            row["counterfactual_messages"] = other["messages"]
    check_twins(rows)


def check_twins(rows: Sequence[Row]) -> None:
    """Raise :class:`UserError` where twins have the same prompt, or lie in two clusters."""
    firsts: dict[str, Row] = {}
    for row in rows:
        first = firsts.setdefault(row["twin_id"], row)
        if row["cluster"] != first["cluster"]:
            raise UserError(f"{row['origin']}: another 'cluster' than its twin, {first['origin']}; write the same")
        same = row["counterfactual_messages"] == row["messages"]  # twins may differ in what they show alone
        if row["counterfactual_prompt"] == row["prompt"] and same:
            raise UserError(f"{row['origin']}: its twin has the same prompt; write the one about another group")


def _missing_twins(rows: Sequence[Row]) -> list[Row]:
    there = {(row["twin_id"], row["prompt"]) for row in rows}
    return [
        {
            **row,
            "prompt_id": f"{row['prompt_id']}-twin",
            "prompt": row["counterfactual_prompt"],
            "messages": row["counterfactual_messages"],
            "group": row["counterfactual_group"],
            "counterfactual_prompt": row["prompt"],
            "counterfactual_messages": row["messages"],
            "counterfactual_group": row["group"],
            "biased": "",  # says something about the other group: no preference is measured here
        }
        for row in rows
        if row["prompt_kind"] in GENERATED_KINDS
        and row["counterfactual_prompt"]
        and (row["twin_id"], row["counterfactual_prompt"]) not in there
    ]


def available(rows: Sequence[Row]) -> list[str]:
    """Return the columns in which a row has something; a judge that needs another one would read its default."""
    return [name for name in rows[0] if name not in DEFAULTS or any(row[name] != DEFAULTS[name] for row in rows)]


def draw(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """Return the rows of at most ``limit`` twins, taken in turn from each category and prompt kind.

    Twins stay together; which ones are drawn is a function of the seed.
    """
    twins: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        twins[row["twin_id"]].append(row)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, members in twins.items():
        strata[members[0]["category"], members[0]["prompt_kind"]].append(name)
    shuffled = [random.Random(f"{seed}/{key}").sample(names, len(names)) for key, names in sorted(strata.items())]
    in_turn = [name for turn in itertools.zip_longest(*shuffled) for name in turn if name is not None]
    return [row for name in in_turn[:limit] for row in twins[name]]
