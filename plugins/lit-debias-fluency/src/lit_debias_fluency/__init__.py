"""Rewards for lit-debias that keep the language: fluency under a frozen model, and variety over a batch."""

from lit_debias import Reward, hookimpl
from lit_debias_fluency.reward import Fluency
from lit_debias_fluency.variety import Variety

__all__ = ["Fluency", "Variety", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [Fluency, Variety]
