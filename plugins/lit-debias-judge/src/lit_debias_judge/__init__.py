"""Rewards for lit-debias that ask a language model behind an OpenAI-compatible endpoint."""

from lit_debias import Reward, hookimpl
from lit_debias_judge.reward import LLMJudge
from lit_debias_judge.structured import TYPES, StructuredJudge
from lit_debias_judge.template import EXPLANATION, FAIRNESS
from lit_debias_judge.usage import Usage

__all__ = ["EXPLANATION", "FAIRNESS", "TYPES", "LLMJudge", "StructuredJudge", "Usage", "lit_debias_rewards"]


@hookimpl
def lit_debias_rewards() -> list[type[Reward]]:
    """Return the rewards of this distribution."""
    return [LLMJudge, StructuredJudge]
