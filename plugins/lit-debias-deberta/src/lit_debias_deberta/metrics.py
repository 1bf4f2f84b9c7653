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


class GradedAgreement(Metric):
    """Collects scores over batches and ranks, and gives ``<dimension>/spearman|pairwise_accuracy|ece``.

    Args:
        dimensions: D names.
        margin: For :func:`pairwise_accuracy`, between responses to one prompt.
    """

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    groups: list[Tensor]

    def __init__(self, dimensions: Sequence[str], margin: float) -> None:
        super().__init__()
        self.dimensions, self.margin = list(dimensions), margin
        for state in ("scores", "labels", "groups"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Take in scores [N, D] and labels [N, D], and groups [N] int64, equal for the responses to one prompt."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels)
        self.groups.append(groups)

    def compute(self) -> dict[str, float]:
        """Return the figures by name; NaN where there is too little to compare."""
        all_scores, all_labels, groups = (dim_zero_cat(s) for s in (self.scores, self.labels, self.groups))
        pairs = pairs_within(groups)
        figures = {}
        for name, scores, labels in zip(self.dimensions, all_scores.T, all_labels.T, strict=True):
            known = ~labels.isnan()
            figures[f"{name}/spearman"] = spearman(scores[known], labels[known])
            figures[f"{name}/pairwise_accuracy"] = pairwise_accuracy(scores, labels, pairs, self.margin)
            figures[f"{name}/ece"] = expected_calibration_error(scores[known], labels[known])
        return figures
