"""What a test says about a reward model: per split, how its heads hang together, and on hard negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_debias_deberta.metrics import agreement, expected_calibration_error, hard_negative_figures, rank_correlations

FAIRNESS = "fairness"


@dataclass(frozen=True)
class ScoredResponses:
    """N responses with D labels and scores."""

    splits: list[str]
    """[N] the test split of each."""
    hard_negatives: list[str]
    """[N] kind of hard negative, empty for other responses."""
    groups: Tensor
    """[N] int64, equal for the responses to one prompt."""
    labels: Tensor
    """[N, D], NaN where missing."""
    logits: Tensor
    """[N, D]."""
    scores: Tensor
    """[N, D] calibrated, in [0, 1]."""

    @classmethod
    def join(cls, parts: Sequence[ScoredResponses]) -> ScoredResponses:
        """Return the responses of all parts."""
        return cls(
            splits=[split for part in parts for split in part.splits],
            hard_negatives=[kind for part in parts for kind in part.hard_negatives],
            groups=torch.cat([part.groups for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
        )

    def of_split(self, split: str) -> ScoredResponses:
        """Return the responses of one split."""
        rows = [row for row, name in enumerate(self.splits) if name == split]
        return ScoredResponses(
            splits=[split] * len(rows),
            hard_negatives=[self.hard_negatives[row] for row in rows],
            groups=self.groups[rows],
            labels=self.labels[rows],
            logits=self.logits[rows],
            scores=self.scores[rows],
        )


def examine(tested: ScoredResponses, dimensions: Sequence[str], margin: float) -> dict[str, Any]:
    """Return split -> figures, first over ``all`` of them.

    Per split: ``responses`` (N); ``dimensions``: name -> spearman, pairwise_accuracy, ece, ece_uncalibrated;
    ``correlation``: rank correlations [D, D] of ``scores`` and of ``labels``; ``hard_negatives`` as
    :func:`~lit_debias_deberta.metrics.hard_negative_figures` says, empty where there are none.
    """
    splits = list(dict.fromkeys(tested.splits))
    parts = {"all": tested} | ({split: tested.of_split(split) for split in splits} if len(splits) > 1 else {})
    return {name: _examine(part, list(dimensions), margin) for name, part in parts.items()}


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return ``SPLIT/DIMENSION/FIGURE`` -> value of what :func:`examine` found; undefined ones left out."""
    return {
        f"{split}/{dimension}/{name}": value
        for split, found in figures.items()
        for dimension, values in found["dimensions"].items()
        for name, value in values.items()
        if not math.isnan(value)
    }


def as_json(value: Any) -> Any:
    """Return the value with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _examine(tested: ScoredResponses, dimensions: list[str], margin: float) -> dict[str, Any]:
    figures = agreement(tested.scores, tested.labels, tested.groups, dimensions, margin)
    for name, logits, labels in zip(dimensions, tested.logits.T, tested.labels.T, strict=True):
        known = ~labels.isnan()
        figures[name]["ece_uncalibrated"] = expected_calibration_error(logits[known].sigmoid(), labels[known])
    found = {
        "responses": len(tested.splits),
        "dimensions": figures,
        "correlation": {
            "dimensions": dimensions,
            "scores": rank_correlations(tested.scores),
            "labels": rank_correlations(tested.labels),
        },
        "hard_negatives": {},
    }
    if FAIRNESS in dimensions and any(tested.hard_negatives):
        column = dimensions.index(FAIRNESS)
        found["hard_negatives"] = hard_negative_figures(
            tested.scores[:, column], tested.labels[:, column], tested.groups, tested.hard_negatives, margin
        )
    return found
