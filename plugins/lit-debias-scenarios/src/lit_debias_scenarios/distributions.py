"""How far apart the genres are that two groups are recommended."""

from __future__ import annotations

import numpy as np

from lit_debias_scenarios.disparity import Array


def entropy(shares: Array) -> Array:
    """Return the entropy in bits of shares [K, ...]."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=0))


def jensen_shannon(first: Array, second: Array) -> Array:
    """Return the Jensen-Shannon divergence ``H((p + q) / 2) - (H(p) + H(q)) / 2`` in bits, 0 to 1, of [K, ...]."""
    return np.asarray(entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2)


def parity(first: Array, second: Array) -> Array:
    """Return the largest statistical parity difference ``|p - q|`` of a genre, 0 to 1, of [K, ...]."""
    return np.asarray(np.abs(first - second).max(axis=0))


def impact(first: Array, second: Array) -> Array:
    """Return the smallest disparate impact, ``p / q`` or ``q / p``, of a genre, 0 to 1, of [K, ...].

    NaN where a genre has no share in either; such a ratio is none.
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    ratios = np.divide(low, high, out=np.full_like(high, np.nan), where=high > 0)
    return np.asarray(ratios.min(axis=0))
