"""What a model answers: likelihoods, and continuations with what judges say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from lit_debias.rewards.scoring import NamedScores
from lit_debias.support.text import is_refusal
from lit_debias.types import Rollout


class Likelihood(NamedTuple):
    """The log-likelihood of a text."""

    total: float
    """Sum over its tokens, in nats."""
    tokens: int

    @property
    def mean(self) -> float:
        """Mean over its tokens, in nats; ranks texts like a per-token perplexity or 2 ** (mean log2 p)."""
        return self.total / max(1, self.tokens)


class ImplicitReward(Likelihood):
    """How much likelier a text is to the policy than to the untouched base: ``total`` and ``mean`` are differences."""


class TokenLikelihoods(NamedTuple):
    """The log-likelihood of a text, token by token."""

    ids: list[int]
    """[T] token ids."""
    logprobs: list[float]
    """[T] in nats."""


class Continuation(NamedTuple):
    """What a model writes, as far as no further model is needed to judge it."""

    tokens: int
    """End-of-sequence token included."""
    refused: bool
    intensity: dict[str, float | None]
    """Judge -> 1 - its score, so 0 is fair; None where it has no opinion."""
    text: str

    @classmethod
    def of(cls, tokens: int, text: str, judged: NamedScores) -> Continuation:
        """Return a text of so many tokens with what judge -> score says of it."""
        intensity = {name: score if score is None else 1 - score for name, score in judged.items()}
        return cls(tokens, is_refusal(text), intensity, text)


L = TypeVar("L", bound=Likelihood)


def sums(values: Tensor, rollout: Rollout, kind: Callable[[float, int], L]) -> list[list[L]]:
    """Return values [P, G, T] summed over tokens, as a ``kind`` for each completion."""
    rows = zip(values.double().sum(-1).tolist(), rollout.lengths.tolist(), strict=True)
    return [[kind(total, tokens) for total, tokens in zip(totals, counts, strict=True)] for totals, counts in rows]


def by_token(values: Tensor, rollout: Rollout) -> list[list[TokenLikelihoods]]:
    """Return values [P, G, T] without padding."""
    groups = zip(rollout.completion_ids, rollout.completion_mask, values, strict=True)
    return [[TokenLikelihoods(i[m].tolist(), v[m].tolist()) for i, m, v in zip(*one, strict=True)] for one in groups]


def mean(likelihoods: Sequence[Likelihood]) -> Likelihood:
    """Return the mean of the same text's likelihoods in several places."""
    return Likelihood(sum(one.total for one in likelihoods) / len(likelihoods), likelihoods[0].tokens)
