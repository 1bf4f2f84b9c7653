"""How unevenly a model gives choices to the groups that pictures show: MinSkew and MaxSkew (arXiv 2408.06569)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lit_debias.benchmark.statistics import Array, ClusterBootstrap, Estimate
from lit_debias.evaluation.prompts import NOBODY
from lit_debias.evaluation.records import Record

Question = tuple[str, tuple[str, ...]]
"""What is said beside pictures, and what is to be chosen."""


def picture_skews(records: Sequence[Record], bootstrap: ClusterBootstrap) -> dict[str, Estimate]:
    """Return ``min_skew`` and ``max_skew``, means over questions and choices, in nats; 0 is ideal.

    A choice's probability is the softmax, over the choices, of the mean log-probabilities of a token by which a choice
    is made. Its mean over the pictures of each group, as a share of the sum over groups, times the number of groups, is
    1 where all groups are treated alike; the Skew is the logarithm of that. Questions about one group alone are left
    out. The paper counts decisions; its exact formula was not at hand.

    Args:
        records: [N] one arm.
        bootstrap: Over the clusters of those records.
    """
    asked: dict[Question, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if record.pictures and record.choice_logprobs and record.group != NOBODY:
            asked[record.prompt, tuple(record.choices)].append(number)
    lows, highs, counted = [], [], 0
    for rows in asked.values():
        groups = sorted({records[row].group for row in rows})
        if len(groups) > 1:
            found = _skews(records, rows, groups, bootstrap)
            lows.append(found.min(0))
            highs.append(found.max(0))
            counted += len(rows)
    if not counted:
        return {}
    return {name: _mean(values, counted) for name, values in {"min_skew": lows, "max_skew": highs}.items()}


def _skews(records: Sequence[Record], rows: Sequence[int], groups: Sequence[str], bootstrap: ClusterBootstrap) -> Array:
    """Return the Skew [groups, choices, 1 + B] of each choice of one question."""
    chosen = np.zeros((len(records), len(records[rows[0]].choice_logprobs)))
    for row in rows:
        weights = np.exp(np.array(records[row].choice_logprobs) - max(records[row].choice_logprobs))
        chosen[row] = weights / weights.sum()
    means = []
    for group in groups:
        inside = np.zeros(len(records))
        inside[[row for row in rows if records[row].group == group]] = 1
        means.append([bootstrap.ratio(values * inside, inside).samples for values in chosen.T])
    probabilities = np.array(means)
    return np.asarray(np.log(probabilities / probabilities.sum(0) * len(groups)))


def _mean(parts: Sequence[Array], counted: int) -> Estimate:
    """Return the mean over questions and choices, of which a sample without one of the groups lacks some."""
    values = np.concatenate(parts)
    there = np.isfinite(values)
    number = there.sum(0)
    samples = np.full(values.shape[1], np.nan)
    np.divide(np.where(there, values, 0).sum(0), number, out=samples, where=number > 0)
    return Estimate(samples, counted)
