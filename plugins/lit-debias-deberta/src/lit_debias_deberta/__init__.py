"""A trained reward model for lit-debias: its training, and the rewards that its heads give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_debias import Reward, hookimpl
from lit_debias_deberta.rewards import (
    DebertaFairness,
    DebertaNeutrality,
    DebertaQuality,
    DebertaRelevance,
    DebertaReward,
)
from lit_debias_deberta.scorer import RewardScorer

if TYPE_CHECKING:
    from lit_debias_deberta.training import RewardModel

__all__ = [
    "DebertaFairness",
    "DebertaNeutrality",
    "DebertaQuality",
    "DebertaRelevance",
    "DebertaReward",
    "RewardModel",
    "RewardScorer",
    "lit_debias_rewards",
]


def __getattr__(name: str) -> Any:
    """Import the training code on its first use: Lightning takes seconds, and the rewards do not need it."""
    if name == "RewardModel":
        from lit_debias_deberta.training import RewardModel

        return RewardModel
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [DebertaFairness, DebertaNeutrality, DebertaRelevance, DebertaQuality]
