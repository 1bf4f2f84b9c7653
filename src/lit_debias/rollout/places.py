"""Groups picked out of what was sampled, and put into the places of others.

A place is the number of a prompt, from 0 to P - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_debias.types import PromptBatch, Rollout, Scores, Support

T = TypeVar("T", bound="PromptBatch | Rollout | Scores")

SAMPLED = ("completion_ids", "completion_mask", "logprobs", "truncated", "texts", "reference_logprobs", "support")
"""Fields of a rollout that another sample of the same prompts changes."""


def pick(record: T, places: Sequence[int]) -> T:
    """Return prompts, groups or scores of some places, in the order that is given."""
    return replace(record, **{f.name: _pick(getattr(record, f.name), places) for f in fields(record)})


def put(rollout: Rollout, places: Sequence[int], groups: Rollout) -> Rollout:
    """Return a rollout with other completions of the prompts at ``places``; groups with longer ones widen all."""
    return replace(rollout, **{n: _put(getattr(rollout, n), places, getattr(groups, n)) for n in SAMPLED})


def put_scores(scores: Scores, places: Sequence[int], groups: Scores) -> Scores:
    """Return scores with those at ``places`` replaced; seconds add up, and rewards that ``groups`` lacks stay."""
    values, valid, failed = (
        {name: _put(old, places, new[name]) if name in new else old for name, old in known.items()}
        for known, new in (
            (scores.values, groups.values),
            (scores.valid, groups.valid),
            (scores.failed, groups.failed),
        )
    )
    seconds = {name: spent + groups.seconds.get(name, 0.0) for name, spent in scores.seconds.items()}
    return Scores(values, valid, seconds, failed, scores.columns)


def _pick(value: Any, places: Sequence[int]) -> Any:
    if isinstance(value, (PromptBatch, Rollout, Scores)):
        return pick(value, places)
    if isinstance(value, (Tensor, Support)):
        return value[torch.tensor(places, dtype=torch.long)]
    if isinstance(value, Mapping):
        return {name: _pick(item, places) for name, item in value.items()}
    if isinstance(value, list):
        return [value[place] for place in places]
    return value  # None, and seconds


def _put(value: Any, places: Sequence[int], groups: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        new = dict(zip(places, groups, strict=True))
        return [new.get(place, old) for place, old in enumerate(value)]
    if isinstance(value, Support):
        starts = _put(value.starts, places, groups.starts + len(value.ids))
        return Support(torch.cat([value.ids, groups.ids]), starts, _put(value.counts, places, groups.counts))
    width = max(value.shape[-1], groups.shape[-1])
    whole = pad(value, (0, width - value.shape[-1])).clone()
    whole[torch.tensor(places, dtype=torch.long)] = pad(groups, (0, width - groups.shape[-1]))
    return whole
