"""A reward that waits for a service, and does not think of the day on which the service falls silent."""

import queue

from lit_debias import Reward, RewardBatch, hookimpl
from lit_debias.plugins import UserError


class Moderation(Reward):
    """The score that a moderation service gives.

    Args:
        replies: Batches that the service answers before it falls silent.

    Raises:
        UserError: `replies` is negative.
    """

    def __init__(self, replies: int = 1) -> None:
        if replies < 0:
            raise UserError(f"Moderation: replies={replies}; write 0 or more")
        self.replies = replies

    def setup(self, device) -> None:
        self.inbox = queue.SimpleQueue()
        for _ in range(self.replies):
            self.inbox.put(0.5)

    def score(self, batch: RewardBatch) -> list[float | None]:
        score = self.inbox.get()
        return [score + len(text) / 1000 for text in batch.completions]


@hookimpl
def lit_debias_rewards():
    return [Moderation]
