"""Any Hugging Face text classifier as a reward for lit-debias."""

from lit_debias import Reward, hookimpl
from lit_debias_classifier.reward import TextClassifier

__all__ = ["TextClassifier", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [TextClassifier]
