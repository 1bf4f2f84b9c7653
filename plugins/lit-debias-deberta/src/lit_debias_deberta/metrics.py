"""How well scores agree with graded labels, per dimension.

Shapes: N responses, D dimensions, M pairs. A figure that the data does not define is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from lit_debias_deberta.losses import pairs_within

BINS = 10


def expected_calibration_error(scores: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error of scores [N] in [0, 1] against graded labels [N].

    Scores fall into ``bins`` bins of equal width, the last one closed. In each bin the mean score is compared with
    the mean label, and the absolute differences are averaged with the bins' counts as weights. With labels 0 and 1
    this is the usual definition.
    """
    if not len(scores):
        return math.nan
    bin_of = (scores * bins).long().clamp(max=bins - 1)
    excess = torch.zeros(bins, dtype=torch.float64, device=scores.device)
    excess.index_add_(0, bin_of, (scores - labels).double())
    return float(excess.abs().sum()) / len(scores)


def pairwise_accuracy(scores: Tensor, labels: Tensor, pairs: Tensor, margin: float) -> float:
    """Return the share of pairs [2, M] that scores [N] order as labels [N] do; an equal score counts half.

    A pair counts where its labels differ by more than ``margin``.
    """
    gap = labels[pairs[0]] - labels[pairs[1]]
    difference = (scores[pairs[0]] - scores[pairs[1]])[gap.abs() > margin]
    gap = gap[gap.abs() > margin]
    if not len(gap):
        return math.nan
    right = (gap.sign() == difference.sign()).double() + 0.5 * (difference == 0).double()
    return float(right.mean())


def spearman(scores: Tensor, labels: Tensor) -> float:
    """Return the rank correlation of scores [N] and labels [N], ties given their mean rank."""
    if len(scores) < 2 or bool((labels == labels[0]).all()) or bool((scores == scores[0]).all()):
        return math.nan
    return float(spearman_corrcoef(scores.float(), labels.float()))


def rank_correlations(values: Tensor) -> list[list[float]]:
    """Return the rank correlations [D, D] of the columns of values [N, D], over the rows where both are there."""
    known = ~values.isnan()
    both = [[known[:, i] & known[:, j] for j in range(values.shape[1])] for i in range(values.shape[1])]
    return [[spearman(values[rows, i], values[rows, j]) for j, rows in enumerate(row)] for i, row in enumerate(both)]


def agreement(
    scores: Tensor, labels: Tensor, groups: Tensor, dimensions: Sequence[str], margin: float
) -> dict[str, dict[str, float]]:
    """Return dimension -> ``spearman``, ``pairwise_accuracy`` and ``ece`` of scores [N, D] against labels [N, D].

    Args:
        scores: [N, D] in [0, 1].
        labels: [N, D], NaN where missing.
        groups: [N] int64, equal for the responses to one prompt.
        dimensions: D names.
        margin: For :func:`pairwise_accuracy`, between responses to one prompt.
    """
    pairs = pairs_within(groups)
    figures = {}
    for name, score, label in zip(dimensions, scores.T, labels.T, strict=True):
        known = ~label.isnan()
        figures[name] = {
            "spearman": spearman(score[known], label[known]),
            "pairwise_accuracy": pairwise_accuracy(score, label, pairs, margin),
            "ece": expected_calibration_error(score[known], label[known]),
        }
    return figures


def hard_negative_figures(
    scores: Tensor, labels: Tensor, groups: Tensor, kinds: Sequence[str], margin: float
) -> dict[str, dict[str, float]]:
    """Return how fair texts that name a group score beside other fair texts and beside biased ones.

    A response is biased where its label lies more than ``margin`` below 1. The rows of the result are ``hard
    negatives``, each kind of them, ``other fair`` and ``biased``. Each has ``n``, the mean ``score`` and ``label``,
    and over the ``pairs`` of such a response with a biased one to the same prompt the ``pairwise_accuracy``.

    Args:
        scores: [N] fairness.
        labels: [N] of fairness, NaN where missing.
        groups: [N] int64, equal for the responses to one prompt.
        kinds: [N] kind of hard negative, empty for others.
        margin: In [0, 1).
    """
    hard = torch.tensor([bool(kind) for kind in kinds])
    biased = labels < 1 - margin
    of_kind = {kind: torch.tensor([k == kind for k in kinds]) for kind in sorted(set(kinds) - {""})}
    rows = {"hard negatives": hard, **of_kind, "other fair": ~hard & (labels >= 1 - margin), "biased": ~hard & biased}
    pairs = pairs_within(groups)
    figures = {}
    for name, members in rows.items():
        against = members[pairs] & biased[pairs.flip(0)]  # [2, M] first or second is a member, the other is biased
        chosen = pairs[:, against.any(0)]
        figures[name] = {
            "n": int(members.sum()),
            "score": float(scores[members].mean()),
            "label": float(labels[members].mean()),
            "pairwise_accuracy": pairwise_accuracy(scores, labels, chosen, margin),
            "pairs": int(((labels[chosen[0]] - labels[chosen[1]]).abs() > margin).sum()),
        }
    return figures


class GradedResponses(Metric):
    """Collects logits, labels and prompts over batches and ranks."""

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("logits", "labels", "groups"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Take in logits [N, D] and labels [N, D], and groups [N] int64, equal for the responses to one prompt."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)
        self.groups.append(groups)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [N, D], labels [N, D] and groups [N] of all batches and ranks."""
        return dim_zero_cat(self.logits), dim_zero_cat(self.labels), dim_zero_cat(self.groups)
