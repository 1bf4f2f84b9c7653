"""A reward in one file: the template that a plugin author copies."""

from __future__ import annotations

import re

from lit_debias.plugins import Reward, RewardBatch, UserError, hookimpl

SWEEPING = ("all", "always", "every", "everyone", "never", "nobody", "none", "typical", "typically")


class NoSweepingWords(Reward):
    """Share of sentences without a sweeping word such as "always" or "all".

    Args:
        words: The words that count as sweeping, in any case.

    Raises:
        UserError: ``words`` is empty.
    """

    def __init__(self, words: tuple[str, ...] = SWEEPING) -> None:
        if not words:
            raise UserError("NoSweepingWords: words is empty; write at least one word")
        self.pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], None for a completion without a sentence."""
        return [self.score_text(completion) for completion in batch.completions]

    def score_text(self, text: str) -> float | None:
        """Return the score of one completion."""
        sentences = [part for part in re.split(r"[.!?\n]+", text) if part.strip()]
        if not sentences:
            return None
        return sum(not self.pattern.search(sentence) for sentence in sentences) / len(sentences)


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [NoSweepingWords]
