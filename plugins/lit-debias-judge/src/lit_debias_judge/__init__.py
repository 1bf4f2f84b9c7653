"""A reward for lit-debias that asks a language model behind an OpenAI-compatible endpoint."""

from lit_debias import Reward, hookimpl
from lit_debias_judge.reward import LLMJudge
from lit_debias_judge.template import FAIRNESS
from lit_debias_judge.usage import Usage

__all__ = ["FAIRNESS", "LLMJudge", "Usage", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [LLMJudge]
