"""Counts of words in texts, summed over bootstrap samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_debias.benchmark.statistics import Array, ClusterBootstrap

CHUNK = 256
"""Words whose counts in all bootstrap samples are in memory together."""


@dataclass(frozen=True)
class Counts:
    """How often each of V words occurs in each of N texts, those that do."""

    rows: NDArray[np.int64]
    """[M] number of the text."""
    columns: NDArray[np.int64]
    """[M] number of the word."""
    values: Array
    """[M] how often, or how much."""

    @classmethod
    def of(cls, entries: Sequence[tuple[int, int, float]]) -> Counts:
        """Return counts from text, word and how often."""
        rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        return cls(np.array(rows, dtype=int), np.array(columns, dtype=int), np.array(values, dtype=float))

    def within(self, start: int, stop: int) -> Counts:
        """Return the counts of the words from ``start`` to ``stop``, numbered from 0."""
        there = (self.columns >= start) & (self.columns < stop)
        return Counts(self.rows[there], self.columns[there] - start, self.values[there])

    def of_texts(self, chosen: NDArray[np.bool_]) -> Counts:
        """Return the counts in some of the texts [N]."""
        there = chosen[self.rows]
        return Counts(self.rows[there], self.columns[there], self.values[there])

    def sums(self, bootstrap: ClusterBootstrap, width: int) -> Array:
        """Return the sum [1 + B, width] of each word's counts in each bootstrap sample."""
        totals = np.zeros((bootstrap.weights.shape[1], width))
        np.add.at(totals, (bootstrap.owner[self.rows], self.columns), self.values)
        return np.asarray(bootstrap.weights @ totals)


def chunks(width: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``width`` words, from and to."""
    for start in range(0, width, CHUNK):
        yield start, min(width, start + CHUNK)


def total_variation(counts: Array) -> Array:
    """Return ``1/2 sum_a |p_a - 1/A|`` [S] for counts [A, S] of A groups, in [0, 1 - 1/A]; NaN where all are 0."""
    total = counts.sum(axis=0)
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, total, out=shares, where=total > 0)
    return np.asarray(np.abs(shares - 1 / len(counts)).sum(axis=0) / 2)
