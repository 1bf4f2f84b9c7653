"""How far groups are treated apart: demographic parity difference, total variation, and their tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def parity_difference(shares: Array) -> Array:
    """Return ``max over actions of (max over groups - min over groups)``.

    Args:
        shares: [G, A, ...] how often a group gets (or takes) an action.

    Returns:
        [...]; NaN where a group has no share.
    """
    return np.asarray((shares.max(axis=0) - shares.min(axis=0)).max(axis=0))


def total_variation(shares: Array) -> Array:
    """Return the mean over groups of ``1/2 sum over actions |share - mean share of all groups|``.

    Args:
        shares: [G, A, ...]

    Returns:
        [...]
    """
    return np.asarray(np.abs(shares - shares.mean(axis=0)).sum(axis=1).mean(axis=0) / 2)


def permutation_p(cells: Sequence[Array], draws: int, seed: int) -> float:
    """Return how often groups that mean nothing would differ as much: ``(1 + larger) / (1 + draws)``.

    Within each block the shares of the groups are dealt out anew. The statistic is the parity difference, averaged
    over cells.

    Args:
        cells: Each [V, G, A], V >= 1: shares of V blocks in which all else than the group is equal.
        draws: Permutations; p is a multiple of ``1 / (1 + draws)``.
        seed: Of the permutations.
    """
    random = np.random.default_rng(seed)
    observed = np.mean([parity_difference(cell.mean(axis=0)) for cell in cells])
    total = np.zeros(draws)
    for cell in cells:
        blocks, groups, _ = cell.shape
        order = random.random((draws, blocks, groups)).argsort(axis=-1)
        dealt = np.take_along_axis(cell[None], order[..., None], axis=2)
        total += parity_difference(np.moveaxis(dealt.mean(axis=1), 0, -1))
    larger = np.count_nonzero(total / len(cells) >= observed - 1e-9)  # equal ones count, but for rounding
    return float((1 + larger) / (1 + draws))


def chi_square(counts: Array) -> tuple[float, int]:
    """Return Pearson's statistic of independence and its degrees of freedom, 0 where nothing can be tested.

    Args:
        counts: [G, A] answers of a group; groups and actions without any are left out.
    """
    there = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    freedom = (there.shape[0] - 1) * (there.shape[1] - 1) if there.size else 0
    if freedom <= 0:
        return 0.0, 0
    expected = there.sum(axis=1, keepdims=True) * there.sum(axis=0, keepdims=True) / there.sum()
    return float(((there - expected) ** 2 / expected).sum()), freedom


def chi_square_p(tables: Sequence[Array]) -> float | None:
    """Return the p-value of the sum of the tables' statistics; None where none can be tested.

    Args:
        tables: Each [G, A] counts, of answers that are independent of one another.
    """
    found = [chi_square(table) for table in tables]
    statistic, freedom = sum(value for value, _ in found), sum(count for _, count in found)
    if not freedom:
        return None
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
