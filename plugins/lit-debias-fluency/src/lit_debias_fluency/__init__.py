"""Fluency under a frozen language model, as a reward for lit-debias."""

from lit_debias import Reward, hookimpl
from lit_debias_fluency.reward import Fluency

__all__ = ["Fluency", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [Fluency]
