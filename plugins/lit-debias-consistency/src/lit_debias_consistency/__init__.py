"""Counterfactual consistency for lit-debias: the same request about two groups is judged alike."""

from lit_debias import Reward, hookimpl
from lit_debias_consistency.reward import CounterfactualConsistency

__all__ = ["CounterfactualConsistency", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [CounterfactualConsistency]
