"""Informativeness for lit-debias: an answer near in meaning to a reference that covers its content."""

from lit_debias import Reward, hookimpl
from lit_debias_informativeness.reward import Informativeness

__all__ = ["Informativeness", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [Informativeness]
