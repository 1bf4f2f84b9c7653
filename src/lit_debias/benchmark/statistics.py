"""Ratios of sums with bootstrap intervals, resampled by cluster so that twins stay together, and by training seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with what it became in B bootstrap samples."""

    samples: Array
    """[1 + B]: the figure itself, then its B replicates; NaN where a sample held nothing to measure."""
    n: int
    """Observations that the figure rests on."""
    by_replica: tuple[float, ...] = ()
    """The figure of each replica, where several are pooled."""

    @property
    def value(self) -> float:
        """The figure on the data as they are."""
        return float(self.samples[0])

    @property
    def interval(self) -> tuple[float, float]:
        """95% percentile interval."""
        replicates = self.samples[1:][~np.isnan(self.samples[1:])]
        low, high = np.percentile(replicates, [2.5, 97.5]) if len(replicates) else (np.nan, np.nan)
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Return ``value``, ``low``, ``high`` and ``n`` as JSON holds them, and ``by_replica`` of a pool."""
        low, high = self.interval
        replicas = {"by_replica": [_json(value) for value in self.by_replica]} if self.by_replica else {}
        return {"value": _json(self.value), "low": _json(low), "high": _json(high), "n": self.n, **replicas}


class ClusterBootstrap:
    """Draws clusters with replacement; equal clusters, draws and seed give equal draws, so arms are paired.

    Args:
        clusters: [N] cluster of each observation.
        draws: B.
        seed: Of the draws.
        strata: [N] what of several things an observation is of, such as prompts and passages; every sample holds as
            many clusters of each as there are. By default all are of one.
    """

    def __init__(self, clusters: Sequence[str], draws: int, seed: int, strata: Sequence[str] | None = None) -> None:
        index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
        self.owner = np.array([index[name] for name in clusters], dtype=int)
        stratum = dict(zip(clusters, strata or [""] * len(clusters), strict=True))
        random = np.random.default_rng(seed)
        self.weights = np.ones((1 + draws, len(index)))
        """[1 + B, clusters] how often each cluster is in a sample; row 0 is the data as they are."""
        for name in dict.fromkeys(stratum.values()):
            inside = [index[cluster] for cluster in index if stratum[cluster] == name]
            count = len(inside)
            self.weights[1:, inside] = random.multinomial(count, np.full(count, 1 / count), size=draws)

    def only(self, kept: Sequence[int]) -> ClusterBootstrap:
        """Return the same draws over some of the N observations, by their numbers."""
        some = copy(self)
        some.owner = self.owner[list(kept)]
        return some

    def sums(self, values: Sequence[float] | Array) -> Array:
        """Return the sum [1 + B] of values [N] in each sample."""
        totals = np.bincount(self.owner, np.asarray(values, dtype=float), minlength=self.weights.shape[1])
        return np.asarray(self.weights @ totals)

    def ratio(self, numerators: Sequence[float] | Array, denominators: Sequence[float] | Array) -> Estimate:
        """Return sum(numerators) / sum(denominators), both [N]; n counts the denominators that are not 0."""
        return Estimate(
            _divide(self.sums(numerators), self.sums(denominators)), int(np.count_nonzero(np.asarray(denominators)))
        )

    def mean(self, values: Sequence[float | None]) -> Estimate:
        """Return the mean of values [N], None left out."""
        return self.ratio([value or 0.0 for value in values], [float(value is not None) for value in values])

    def worst(self, values: Sequence[float | None], groups: Sequence[str], smallest: int) -> Estimate:
        """Return the highest of the groups' means, among groups with at least ``smallest`` values."""
        means = [
            self.mean([value if group == name else None for value, group in zip(values, groups, strict=True)])
            for name in dict.fromkeys(groups)
        ]
        large = [mean for mean in means if mean.n >= smallest]
        if not large:
            return Estimate(np.full(len(self.weights), np.nan), 0)
        stacked = np.stack([mean.samples for mean in large])
        highest = np.where(np.isnan(stacked), -np.inf, stacked).max(axis=0)
        return Estimate(np.where(np.isinf(highest), np.nan, highest), sum(mean.n for mean in large))

    def wasserstein(self, pairs: Sequence[tuple[int, float, float]], strata: Sequence[str]) -> Estimate:
        """Return the Wasserstein-1 distance between first and second scores, averaged over strata by their size.

        In one stratum of m pairs that is ``mean |sorted(first) - sorted(second)|``.

        Args:
            pairs: [M] observation that owns the pair, first score, second score.
            strata: [M] whose distributions are compared; here the two groups of the twins.
        """
        total, mass = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for name in dict.fromkeys(strata):
            owners, first, second = zip(*[p for p, s in zip(pairs, strata, strict=True) if s == name], strict=True)
            weights = self.weights[:, self.owner[list(owners)]]
            scores = np.array([*first, *second])
            order = np.argsort(scores)
            # area between the two cumulative distributions, times the number of pairs
            heights = np.cumsum(np.hstack([weights, -weights])[:, order], axis=1)[:, :-1]
            total += np.abs(heights) @ np.diff(scores[order])
            mass += weights.sum(axis=1)
        return Estimate(_divide(total, mass), len(pairs))


def pool(estimates: Sequence[Estimate], stream: str) -> Estimate:
    """Return the mean over an arm's R replicas, one per training seed, with an interval over prompts and seeds.

    A two-level bootstrap: sample b of every replica holds the same draw of prompts, and R replicas are drawn anew, with
    replacement, in each sample. Few replicas make the interval too narrow: the variance between seeds counts
    (R - 1) / R of what it is, 2/3 for three. One replica is returned as it is, with an interval over prompts only.

    Args:
        estimates: [R] the same measure of each replica, over the same bootstrap.
        stream: Names the draws of replicas: the same in all measures of an arm, another in every arm.

    Returns:
        The pool; NaN in samples that drew a replica with NaN there. ``n`` is the smallest of the replicas' and not
        their sum, for more seeds are not more prompts.
    """
    if len(estimates) == 1:
        return estimates[0]
    stacked = np.stack([estimate.samples for estimate in estimates])
    count, draws = len(estimates), stacked.shape[1] - 1
    drawn = np.random.default_rng(list(stream.encode())).integers(count, size=(count, draws))
    replicates = np.take_along_axis(stacked[:, 1:], drawn, axis=0).mean(axis=0)
    return Estimate(
        np.append(stacked[:, 0].mean(), replicates),
        min(estimate.n for estimate in estimates),
        tuple(estimate.value for estimate in estimates),
    )


def pool_measures(replicas: Sequence[Mapping[str, Estimate]], stream: str) -> dict[str, Estimate]:
    """Return the pool of every measure that all replicas have; see :func:`pool`."""
    names = [name for name in replicas[0] if all(name in replica for replica in replicas)]
    return {name: pool([replica[name] for replica in replicas], stream) for name in names}


def compare(estimate: Estimate, baseline: Estimate) -> dict[str, Any]:
    """Return difference and relative change against a baseline of the same bootstrap, with 95% intervals.

    ``n`` is the smaller of both observations. ``clear`` says whether the interval of the difference leaves out 0. The
    relative change has no interval where the baseline is 0 in some sample.
    """
    difference = Estimate(estimate.samples - baseline.samples, estimate.n)
    relative = Estimate(_divide(difference.samples, baseline.samples), estimate.n)
    low, high = difference.interval
    bounds = (np.nan, np.nan) if np.isnan(relative.samples).any() else relative.interval
    return {
        "difference": _json(difference.value),
        "n": min(estimate.n, baseline.n),
        "low": _json(low),
        "high": _json(high),
        "relative": _json(relative.value),
        "relative_low": _json(bounds[0]),
        "relative_high": _json(bounds[1]),
        "clear": bool(low > 0 or high < 0),
    }


def correlation(x: Array, y: Array, bootstrap: ClusterBootstrap) -> Estimate:
    """Return Pearson's correlation of x and y, both [N]; NaN in samples where one of them does not vary."""
    if not len(x):
        return Estimate(np.full(len(bootstrap.weights), np.nan), 0)
    x, y = x - x.mean(), y - y.mean()  # keeps the sums below from losing digits
    n, sx, sy = bootstrap.sums(np.ones(len(x))), bootstrap.sums(x), bootstrap.sums(y)
    covariance = bootstrap.sums(x * y) - _divide(sx * sy, n)
    spread = (bootstrap.sums(x * x) - _divide(sx**2, n)) * (bootstrap.sums(y * y) - _divide(sy**2, n))
    samples = np.full(len(n), np.nan)
    np.divide(covariance, np.sqrt(np.maximum(spread, 0)), out=samples, where=spread > 1e-12)
    return Estimate(samples, len(x))


def kappa(first: Sequence[bool | None], second: Sequence[bool | None], bootstrap: ClusterBootstrap) -> Estimate:
    """Return Cohen's kappa of two judges' yes and no, both [N]: (agreement - chance) / (1 - chance).

    Rows where one of them has no opinion (None) are left out. It is NaN in samples where both say the same of
    everything, for there chance alone would agree.
    """
    pairs = list(zip(first, second, strict=True))
    there = [float(a is not None and b is not None) for a, b in pairs]
    n = bootstrap.sums(there)

    def share(of: Sequence[bool | None]) -> Array:
        return _divide(bootstrap.sums([known * bool(said) for known, said in zip(there, of, strict=True)]), n)

    agreement, yes, also = share([a == b for a, b in pairs]), share(first), share(second)
    chance = yes * also + (1 - yes) * (1 - also)
    beyond = np.where(np.isclose(agreement, chance, rtol=0, atol=1e-12), 0, agreement - chance)
    return Estimate(_divide(beyond, np.where(chance > 1 - 1e-12, 0, 1 - chance)), int(sum(there)))


def _divide(numerators: Array, denominators: Array) -> Array:
    empty = np.full(len(numerators), np.nan)
    return np.asarray(np.divide(numerators, denominators, out=empty, where=denominators != 0))


def _json(value: float) -> float | None:
    return value if np.isfinite(value) else None
