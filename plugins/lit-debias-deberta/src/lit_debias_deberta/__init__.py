"""A trained reward model for lit-debias: its training, and the rewards that its heads give."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_debias import Reward, hookimpl
from lit_debias_deberta.rewards import (
    DebertaFairness,
    DebertaNeutrality,
    DebertaPreference,
    DebertaQuality,
    DebertaRelevance,
    DebertaReward,
)
from lit_debias_deberta.scorer import RewardScorer

if TYPE_CHECKING:
    from lit_debias_deberta.preference_training import PreferenceMixture
    from lit_debias_deberta.training import RewardModel

__all__ = [
    "DebertaFairness",
    "DebertaNeutrality",
    "DebertaPreference",
    "DebertaQuality",
    "DebertaRelevance",
    "DebertaReward",
    "PreferenceMixture",
    "RewardModel",
    "RewardScorer",
    "lit_debias_rewards",
]


def __getattr__(name: str) -> Any:
    """Import the training code on its first use: Lightning takes seconds, and the rewards do not need it."""
    modules = {"PreferenceMixture": "preference_training", "RewardModel": "training"}
    if name in modules:
        return getattr(import_module(f"{__name__}.{modules[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [DebertaFairness, DebertaNeutrality, DebertaRelevance, DebertaQuality, DebertaPreference]
