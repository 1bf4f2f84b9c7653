"""Token ids as the policy takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_debias.packing.groups import PackedGroups, pack
from lit_debias.types import Rollout


def pack_rollout(rollout: Rollout, groups: slice = slice(None), mask: Tensor | None = None) -> PackedGroups:
    """Return a rollout's groups, packed with their pictures.

    Args:
        rollout: P groups.
        groups: Which of them, by default all.
        mask: [P, G, T] bool, the tokens that count, by default all of the completions.
    """
    return pack(
        rollout.prompt_ids[groups],
        rollout.prompt_mask[groups],
        rollout.completion_ids[groups],
        (rollout.completion_mask if mask is None else mask)[groups],
        rollout.pictures and rollout.pictures[groups],
    )


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
