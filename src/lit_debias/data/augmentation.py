"""Counterfactual data augmentation: training rows get twins that name the other groups; the originals stay."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from lit_debias.conversations import is_conversation
from lit_debias.data.counterfactuals import Swaps, UnclearError
from lit_debias.data.sources import ORIGIN
from lit_debias.support.text import counted

ABOUT_GROUPS = (
    *("group", "counterfactual_group", "counterfactual_prompt"),
    *("reference", "biased", "choices", "answer", "biased_choice"),
)
"""Columns that say something of a row that is not true of its twin: where they are not swapped, they are empty."""
REASONS = {
    "unclear": "the case of 'her' or 'his', or a spelling, does not say the counterpart",
    "known": "the data has the twin already",
    "reversed": "the twin prefers what the data rejects",
    "elsewhere": "another split has the prompt",
}
"""Why a twin is not there, in words."""


def augment(
    rows: Dataset, prompt_column: str, responses: Sequence[str], swaps: Sequence[Swaps], elsewhere: Collection[str]
) -> tuple[Dataset, Counter[str]]:
    """Return rows with their twins right after them, and how many there are, and are not, of which kind.

    A row gets a twin for each category of which it names a group, so that the two differ in one category alone. All
    its texts are swapped, or none is. ``twin_id`` is the same for a row and its twins, and another one elsewhere.

    Args:
        rows: Training data.
        prompt_column: Its column of prompts: texts or conversations.
        responses: Its columns of responses.
        swaps: Counterparts, by category.
        elsewhere: Prompts of other splits, as :func:`key_of` has them.
    """
    table = rows.with_format("arrow")[:]
    records = table.to_pylist()
    names = (prompt_column, *responses)
    known = {_keys(record, names) for record in records}
    counts: Counter[str] = Counter()
    grown: list[dict[str, Any]] = []
    for record in records:
        own = {**record, "twin_id": str(record["prompt_id"]), "prompt_id": str(record["prompt_id"])}
        grown.append(own)
        for swap in swaps:
            twin, reason = _twin(own, names, swap, known, elsewhere)
            counts[reason] += 1
            if twin is not None:
                known.add(_keys(twin, names))
                grown.append(twin)
    texts = {"prompt_id": pa.string(), "twin_id": pa.string()}
    fields = {field.name: field.type for field in table.schema} | texts
    return Dataset(pa.Table.from_pylist(grown, schema=pa.schema(fields))), counts


def said(counts: Counter[str], rows: int) -> str:
    """Return what was added and what was not, in words."""
    reasons = [f"{counts[name]:,} left out, as {words}" for name, words in REASONS.items() if counts[name]]
    return "; ".join([f"{counted(counts['added'], 'counterfactual twin')} beside {counted(rows, 'prompt')}", *reasons])


def key_of(value: Any) -> str:
    """Return a text or a conversation as a text."""
    return value if isinstance(value, str) else json.dumps(_known(value), sort_keys=True, default=str)


def _known(value: Any) -> Any:
    """Return messages without the keys that they have only because another message has them."""
    if isinstance(value, dict):
        return {name: _known(item) for name, item in value.items() if item is not None}
    return [_known(item) for item in value] if is_conversation(value) else value


def _keys(record: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(key_of(record[name]) for name in names)


def _twin(
    record: dict[str, Any],
    names: Sequence[str],
    swap: Swaps,
    known: Collection[tuple[str, ...]],
    elsewhere: Collection[str],
) -> tuple[dict[str, Any] | None, str]:
    """Return the twin of a row in one category, or None, and what became of it: a key of the counts."""
    try:
        texts = {name: _mapped(record[name], swap.swap) for name in names}
    except UnclearError:
        return None, "unclear"
    prompt, *responses = keys = _keys(texts, names)
    if keys == _keys(record, names):
        return None, "unnamed"
    if keys in known:
        return None, "known"
    if len(responses) > 1 and (prompt, *reversed(responses)) in known:
        return None, "reversed"
    if prompt in elsewhere:
        return None, "elsewhere"
    empty = {name: None for name in ABOUT_GROUPS if name in record and name not in names}
    id_, origin = f"{record['prompt_id']}/{swap.category}", f"{record[ORIGIN]}, {swap.category} swapped"
    about = {"prompt_id": id_, ORIGIN: origin}
    return {**record, **empty, **texts, **about}, "added"


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return a cell with its texts changed; of messages, their contents."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(v, change) if name in ("content", "text") else v for name, v in value.items()}
    return [_mapped(item, change) for item in value] if is_conversation(value) else value
