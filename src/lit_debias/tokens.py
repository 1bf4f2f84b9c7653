"""Token ids as the policy takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_debias.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends a completion: all of ``generation_config.eos_token_id``, and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*several, tokenizer.eos_token_id] if i is not None}))


def tokens_of(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return prompt ids and mask [P, S], completion ids and mask [P, G, T]: what packing takes."""
    return rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids, rollout.completion_mask


def pad(rows: list[list[int]], pad_id: int, *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids [N, L] int64 and mask [N, L] bool of ragged rows; L is at least 1."""
    longest = max(1, *(len(row) for row in rows))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = True
    return ids.to(device), mask.to(device)
