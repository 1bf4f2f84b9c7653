"""A reward for lit-debias that looks for words and regular expressions."""

from lit_debias import Reward, hookimpl
from lit_debias_rules.reward import Rules

__all__ = ["Rules", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [Rules]
