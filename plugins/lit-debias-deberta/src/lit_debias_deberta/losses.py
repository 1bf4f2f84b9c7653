"""Losses on graded labels, and the pairs that ranking looks at.

Shapes: N responses, D dimensions, M pairs. A label is in [0, 1], or NaN where nobody gave one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Regression = Literal["bce", "mse"]


def regression_loss(logits: Tensor, labels: Tensor, kind: Regression = "bce") -> Tensor:
    """Return the mean loss of logits [N, D] against the labels [N, D] that are there; 0 where there are none.

    ``bce`` is the cross-entropy with the label as a probability, ``mse`` the squared error of the sigmoid.
    """
    known = ~labels.isnan()
    targets = labels.nan_to_num()
    if kind == "bce":
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        loss = (logits.sigmoid() - targets).square()
    return (loss * known).sum() / known.sum().clamp(min=1)


def ranking_loss(logits: Tensor, labels: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """Return the mean Bradley-Terry loss, -log sigmoid(better - worse), over pairs and dimensions.

    Args:
        logits: [N, D].
        labels: [N, D].
        pairs: [2, M] rows of responses to one prompt.
        margin: A pair counts in a dimension where its labels differ by more.
    """
    gap, difference = _of_pairs(labels, pairs), _of_pairs(logits, pairs)
    counts = gap.abs() > margin
    return (F.softplus(-gap.sign() * difference) * counts).sum() / counts.sum().clamp(min=1)


def pairs_within(groups: Tensor) -> Tensor:
    """Return the pairs [2, M] of different rows whose ``groups`` [N] (int64) are equal."""
    order = groups.argsort(stable=True)
    sizes = torch.unique(groups, return_counts=True)[1].tolist()
    return torch.cat([torch.combinations(rows, 2) for rows in torch.split(order, sizes)]).T


def _of_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Return first minus second, [M, D]; 0 where one is missing."""
    return (values[pairs[0]] - values[pairs[1]]).nan_to_num()


def preference_loss(margins: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over N pairs of -log sigmoid(margin), weighted over K rewards; with K = 1 it is Bradley-Terry's.

    Args:
        margins: [N, K] chosen minus rejected, under each reward.
        weights: [N, K] how much whose pair it is belongs to each reward's group; rows add up to 1.
    """
    return (F.softplus(-margins) * weights).sum(-1).mean()
