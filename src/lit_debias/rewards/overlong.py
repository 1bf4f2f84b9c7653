"""A soft penalty for completions that near the length limit."""

from __future__ import annotations

from lit_debias.errors import UserError
from lit_debias.rewards.reward import Reward, RewardBatch


class SoftOverlong(Reward):
    """Soft overlong punishment of DAPO, arXiv 2503.14476, eq. 13: 0 down to -1 over the last ``buffer`` tokens.

    Has no opinion where completions come as text without tokens.

    Args:
        max_new_tokens: The engine's length limit, in tokens; a completion that reaches it scores -1.
        buffer: Tokens before the limit over which the score falls from 0 to -1.

    Raises:
        UserError: ``buffer`` is not between 1 and ``max_new_tokens``.
    """

    bounds = (-1.0, 0.0)

    def __init__(self, max_new_tokens: int, buffer: int) -> None:
        if not 1 <= buffer <= max_new_tokens:
            raise UserError(f"SoftOverlong: buffer is {buffer}; write 1 to max_new_tokens = {max_new_tokens}")
        self.max_new_tokens = max_new_tokens
        self.buffer = buffer

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [-1, 0]."""
        if batch.completion_ids is None:
            return [None] * len(batch)
        free = self.max_new_tokens - self.buffer
        return [max(-1.0, min(0.0, (free - len(ids)) / self.buffer)) for ids in batch.completion_ids]
