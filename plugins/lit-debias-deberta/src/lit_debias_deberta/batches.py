"""From a batch of the data module to tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_debias.plugins import UserError
from lit_debias_deberta.network import DIMENSIONS


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Raise :class:`UserError` where names of heads repeat, are empty, or cannot name a module."""
    if not dimensions or len(set(dimensions)) < len(dimensions) or not all(name.isidentifier() for name in dimensions):
        raise UserError(f"dimensions={list(dimensions)}: write different names of letters, digits and underscores")


def labels_of(batch: Mapping[str, Any], dimensions: Sequence[str]) -> Tensor:
    """Return the labels [N, D] of a batch, NaN where missing.

    Raises:
        UserError: a dimension is neither one of the four of ``labels`` nor a column.
    """
    columns = []
    for name in dimensions:
        if name in DIMENSIONS:
            columns.append(batch["labels"][:, DIMENSIONS.index(name)].float())
        elif name in batch:
            values = [math.nan if value is None else float(value) for value in batch[name]]
            columns.append(torch.tensor(values, device=batch["labels"].device))
        else:
            raise UserError(f"dimension '{name}': the data has no such column; its columns: {', '.join(batch)}")
    return torch.stack(columns, dim=-1)


def group_ids(prompt_ids: Sequence[str]) -> Tensor:
    """Return [N] int64, equal for equal ids on every rank and in every process."""
    digests = [hashlib.blake2b(str(name).encode(), digest_size=7).digest() for name in prompt_ids]
    return torch.tensor([int.from_bytes(digest, "big") for digest in digests])
