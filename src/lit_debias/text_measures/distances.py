"""Wasserstein-1 distances between scores of groups, with bootstrap samples."""

from __future__ import annotations

import numpy as np

from lit_debias.benchmark.statistics import Array, Estimate
from lit_debias.text_measures.measure import Texts, nothing

Scores = list[float | None]
"""[N] of texts; None where there is no opinion."""
DRAWS = 128
"""Bootstrap samples that are in memory together."""


def between_twins(values: Scores, texts: Texts) -> Estimate:
    """Return the mean over pairs of twins of W1 between their k scores: ``mean |sorted(first) - sorted(second)|``.

    It is I.F., individual fairness, of Huang et al. 2020 (arXiv 1911.03064). With one text a prompt it is the mean
    absolute difference.
    """
    gaps: list[float | None] = [None] * len(texts.of_prompts)
    taken: dict[int, list[float]] = {}
    for first, second in texts.twins:
        one, other = (sorted(_known(values, texts.of_prompts[number])) for number in (first, second))
        if len(one) == len(other) > 0:
            taken.setdefault(first, []).append(float(np.abs(np.subtract(one, other)).mean()))
    for owner, own in taken.items():
        gaps[owner] = float(np.mean(own))
    return texts.over_prompts.mean(gaps)


def between_twin_groups(values: Scores, texts: Texts) -> Estimate:
    """Return W1 between all scores of one group and of the other, averaged over pairs of groups of twins by their size.

    It is the distance that ``gap_distribution`` has of intensities: which twin is whose does not matter, and what one
    prompt loses another may gain.
    """
    pairs: list[tuple[int, float, float]] = []
    strata: list[str] = []
    for owners in texts.twins:
        ordered = sorted(owners, key=lambda owner: texts.groups[texts.of_prompts[owner][0]])
        first, second = (texts.of_prompts[owner] for owner in ordered)
        for i, j in zip(first, second, strict=False):
            one, other = values[i], values[j]
            if one is not None and other is not None:
                pairs.append((i, one, other))
                strata.append(f"{texts.groups[i]}/{texts.groups[j]}")
    return texts.bootstrap.wasserstein(pairs, strata) if pairs else nothing(texts.bootstrap)


def from_all(values: Scores, texts: Texts) -> Estimate:
    """Return the mean over groups of W1 between the group's scores and those of all groups.

    It is G.F., group fairness, of Huang et al. 2020 (arXiv 1911.03064), over groups with four texts or more.
    """
    groups = set(texts.large_groups)
    kept = [i for i, value in enumerate(values) if value is not None and texts.groups[i] in groups]
    names = sorted({texts.groups[i] for i in kept})
    if len(names) < 2:
        return nothing(texts.bootstrap)
    scores = np.array([value for i in kept if (value := values[i]) is not None])
    order = np.argsort(scores, kind="stable")
    kept = [kept[i] for i in order]
    members = np.array([[texts.groups[i] == name for i in kept] for name in names])
    owner, every = texts.bootstrap.owner[kept], texts.bootstrap.weights
    parts = [
        _from_all(every[start : start + DRAWS][:, owner], members, np.diff(scores[order]))
        for start in range(0, len(every), DRAWS)
    ]
    return Estimate(np.concatenate(parts), len(kept))


def _from_all(weights: Array, members: Array, widths: Array) -> Array:
    """Return the mean distance [S] of samples with weights [S, n] of sorted scores ``widths`` [n - 1] apart."""
    whole = np.cumsum(weights, axis=1)
    whole = whole / whole[:, -1:]
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for member in members:
        own = np.cumsum(weights * member, axis=1)
        there = own[:, -1] > 0
        shares = own[there] / own[there, -1:]
        total[there] += np.abs(shares - whole[there])[:, :-1] @ widths
        count += there
    found = np.full(len(weights), np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found


def _known(values: Scores, numbers: list[int]) -> list[float]:
    return [value for number in numbers if (value := values[number]) is not None]
