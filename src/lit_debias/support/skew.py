"""The Skew of groups in concepts, and what anti-stereotype de-biasing (arXiv 2408.06569) does with it.

The paper does it to pictures and their captions; here it is done to rows of text. Its exact formula of the Skew could
not be seen: this is the common one (Geyik et al. 2019).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random

Pair = tuple[str, str]
"""Concept and group of a row."""
Shares = Mapping[str, Mapping[str, float]]
"""Concept -> group -> its share among the concept's rows, or the probability that a model gives it."""


def shares_of(pairs: Sequence[Pair | None]) -> dict[str, dict[str, float]]:
    """Return the share of each group in each concept, of every group that any concept has; None is no row of either."""
    counts = Counter(pair for pair in pairs if pair)
    totals: Counter[str] = Counter()
    for (concept, _), count in counts.items():
        totals[concept] += count
    groups = sorted({group for _, group in counts})
    return {concept: {g: counts[concept, g] / total for g in groups} for concept, total in totals.items()}


def skews(shares: Shares) -> dict[Pair, float]:
    """Return ``log(share / ideal share)`` in nats, ideally the same share for all groups; -inf where one is missing."""
    return {
        (concept, group): math.log(share * len(of_groups)) if share else -math.inf
        for concept, of_groups in shares.items()
        for group, share in of_groups.items()
    }


def extremes(shares: Shares) -> tuple[float, float]:
    """Return MinSkew and MaxSkew, the means over concepts of the lowest and the highest Skew of a group; 0 is ideal."""
    found: dict[str, list[float]] = defaultdict(list)
    for (concept, _), skew in skews(shares).items():
        found[concept].append(skew)
    return sum(map(min, found.values())) / len(found), sum(map(max, found.values())) / len(found)


def resample(pairs: Sequence[Pair | None], seed: int, drop: float = 1.0, duplicate: float = 1.0) -> list[int]:
    """Return the rows that are trained on, some of them missing and some there twice, in their order.

    A row whose group is too frequent in its concept is dropped with probability ``Skew / (Skew + drop)``. Of one that
    is too rare, ``|Skew|`` is added to an account of its group and concept; where that exceeds ``duplicate``, the row
    comes twice and ``duplicate`` is taken off. (The paper's account may start from 0 again; that could not be seen.)

    Args:
        pairs: [N], None where a row lacks concept or group; it is kept.
        seed: Draws what is dropped.
        drop: The paper's first tau; the larger, the fewer are dropped.
        duplicate: The paper's second tau; the larger, the fewer come twice.
    """
    found, draws = skews(shares_of(pairs)), Random(seed)
    accounts: dict[Pair, float] = defaultdict(float)
    kept: list[int] = []
    for row, pair in enumerate(pairs):
        skew = found[pair] if pair else 0.0
        if skew > 0 and draws.random() < skew / (skew + drop):
            continue
        kept.append(row)
        if pair and skew < 0:
            accounts[pair] -= skew
            if accounts[pair] > duplicate:
                accounts[pair] -= duplicate
                kept.append(row)
    return kept


def weights(pairs: Sequence[Pair | None]) -> list[float]:
    """Return ``exp(-Skew)`` of each row [N], the loss weight; its mean is 1 where every concept has every group."""
    found = skews(shares_of(pairs))
    return [math.exp(-found[pair]) if pair else 1.0 for pair in pairs]
