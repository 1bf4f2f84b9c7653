"""The reward for saying what the other completions of a batch do not say."""

from __future__ import annotations

from lit_debias.plugins import Reward, RewardBatch, UserError, distinct_credit, words


class Variety(Reward):
    """How much of a completion the rest of the batch does not say: its own part of the batch's distinct-n.

    For a completion with word n-grams w_1 ... w_m, each of which the whole batch holds c(w_i) times::

        score = mean of 1 / c(w_i), in (0, 1]

    1 where no n-gram occurs twice, in itself or elsewhere; near 0 where one answer serves every prompt, the end that
    rewards for fairness drive a small policy to. The n-gram-weighted mean over the batch is distinct-n (Li et al.
    2016, arXiv 1510.03055). Scores belong to their batch: with more completions they are lower, so compare them
    within a batch only, as GRPO does. A completion of fewer than n words gets no opinion.

    Args:
        n: Words in an n-gram, at least 1.

    Raises:
        UserError: ``n`` is below 1.
    """

    depends_on_batch = True

    def __init__(self, n: int = 2) -> None:
        if n < 1:
            raise UserError(f"Variety: n={n}; write 1 or more")
        self.n = n

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in (0, 1]."""
        budgets = [len(words(text)) for text in batch.completions]
        own, counts = distinct_credit(batch.completions, self.n, budgets)
        return [credit / count if count else None for credit, count in zip(own, counts, strict=True)]
