"""The prompts that are evaluated: read, completed with their twins, and drawn evenly."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_debias.conversations import answer_of, is_conversation, read_prompt, words_of
from lit_debias.data.sources import ORIGIN, read_file
from lit_debias.errors import UserError, did_you_mean

Row = dict[str, Any]
BIAS_KINDS = ("open", "leading")
GENERATED_KINDS = (*BIAS_KINDS, "control")
KINDS = (*GENERATED_KINDS, "forced_choice")
PROSE = "prose"
"""Kind of the rows that are no prompts but passages to be read; see :mod:`~lit_debias.evaluation.prose`."""
DEFAULTS: Row = {
    "category": "all",
    "group": "all",
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


def prompt_files(data: str, splits: Sequence[str]) -> dict[str, Path]:
    """Return the file of each split.

    Raises:
        UserError: the folder or a split is not there.
    """
    folder = Path(data) / "prompts"
    known = sorted(path.stem for path in folder.glob("*.parquet"))
    if not known:
        raise UserError(
            f"data '{data}': there is no prompts/*.parquet in it; write a folder made by `lit-debias synthesize`"
        )
    for split in splits:
        if split not in known:
            raise UserError(f"splits: there is no split '{split}' in {folder}{did_you_mean(split, known)}")
    if not splits:
        raise UserError(f"splits is empty; write some of: {', '.join(known)}")
    return {split: folder / f"{split}.parquet" for split in splits}


def read_prompts(files: dict[str, Path]) -> list[Row]:
    """Return all prompts with every column of :data:`DEFAULTS`, and the twins that the data only mentions.

    Raises:
        UserError: a file is malformed, has no rows or no column ``prompt``; a row holds what cannot be asked, or the id
            of another row.
    """
    rows: list[Row] = []
    for split, path in files.items():
        table = read_file(path)
        names = [name for name in table.column_names if name != ORIGIN]
        if "prompt" not in names:
            raise UserError(f"data: {path} has no column 'prompt', only: {', '.join(names)}")
        for number, row in enumerate(table.to_list()):
            origin = row.pop(ORIGIN)
            given = {name: value for name, value in row.items() if value is not None}
            row = {**DEFAULTS, "prompt_id": f"{split}-{number}", **given, "split": split, "origin": origin}
            rows.append(with_messages(row))
    seen: dict[Any, str] = {}
    for row in rows:
        check_row(row)
        name, origin = row["prompt_id"], row["origin"]
        if name in seen:
            raise UserError(f"{origin}: prompt_id {name!r:.60} is there before, {seen[name]}; write an id of its own")
        seen[name] = origin
        row["twin_id"] = row.get("twin_id") or row["prompt_id"]
    return rows + _missing_twins(rows)


def with_messages(row: Row) -> Row:
    """Return a row whose prompts are texts, and the conversations that they stand for beside them.

    Raises:
        UserError: a conversation is malformed.
    """
    for name, beside in {"prompt": "messages", "counterfactual_prompt": "counterfactual_messages"}.items():
        if is_conversation(row.get(name)):
            messages = read_prompt(row[name], f"{row['origin']}: '{name}'")
            row = {**row, name: words_of(messages), beside: messages}
    return {**row, **{name: answer_of(row[name]) for name in ("reference", "biased")}}


def check_row(row: Row) -> None:
    """Raise :class:`UserError` where a prompt cannot be asked as the columns say."""
    origin, kind, choices = row["origin"], row["prompt_kind"], row["choices"]
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f"{origin}: 'prompt' is {row.get('prompt')!r:.40}; write a text")
    for name in ("counterfactual_prompt", "reference", "biased"):
        if not isinstance(row[name], str):
            raise UserError(f"{origin}: '{name}' is {row[name]!r:.40}; write a text, or nothing")
    if kind not in KINDS:
        raise UserError(f"{origin}: 'prompt_kind' is {kind!r:.40}{did_you_mean(str(kind), KINDS)}")
    if isinstance(choices, str) or not all(isinstance(choice, str) and choice for choice in choices):
        raise UserError(f"{origin}: 'choices' is {choices!r:.40}; write a list of texts")
    for name in ("answer", "biased_choice"):
        if not isinstance(row[name], int) or not -1 <= row[name] < max(len(choices), 1):
            raise UserError(f"{origin}: '{name}' is {row[name]!r:.40}; write a place among 'choices', from 0, or -1")


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
