"""Groups things by their numbers, and says how far two groupings agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from math import comb

import numpy as np

from lit_debias.benchmark.statistics import Array


def average_linkage(points: Array, count: int) -> list[int]:
    """Return a group for each of N points: agglomerative clusters by mean Euclidean distance, merged down to ``count``.

    Args:
        points: [N, D]
        count: Groups; N where there are fewer points.
    """
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    groups = [[i] for i in range(len(points))]
    while len(groups) > count:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        a, b = min(pairs, key=lambda pair: distances[np.ix_(groups[pair[0]], groups[pair[1]])].mean())
        groups[b] += groups.pop(a)
    owner = {point: number for number, group in enumerate(groups) for point in group}
    return [owner[point] for point in range(len(points))]


def adjusted_rand(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the adjusted Rand index of two groupings of the same N things (Hubert & Arabie 1985).

    1 where they are the same, 0 on average by chance; 1 where both are trivial, all in one group or all alone.
    """
    together = _pairs(zip(first, second, strict=True))
    own, other, total = _pairs(first), _pairs(second), comb(len(first), 2)
    expected = own * other / total if total else 0.0
    most = (own + other) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def _pairs(groups: Iterable[Hashable]) -> int:
    """Return how many pairs of things share a group."""
    return sum(comb(size, 2) for size in Counter(groups).values())
