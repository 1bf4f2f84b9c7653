"""The reward: likelihood under a frozen model, less what is repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_debias.plugins import LanguageModel, Reward, RewardBatch, UserError, check_model


class Fluency(Reward):
    """How well a completion reads: log-probability under a frozen language model, less what is repeated.

    For a completion of T tokens with mean log-probability m (nats per token, temperature 1)::

        likelihood = clip((m - floor) / (ceiling - floor), 0, 1)
        score      = likelihood * max(0, 1 - repetition_weight * repetition) * min(1, T / min_tokens)

    ``repetition`` is the share of token n-grams that occurred before in the completion, 0 for fewer than
    ``ngram`` tokens. Loops are the likeliest text there is, so likelihood alone would reward them; and above
    ``ceiling`` more likely text earns nothing more, so sampled prose is not pushed towards the model's most
    boring answer. An empty completion scores 0. The README shows the measurements behind the default anchors.

    The log-probabilities are those of the policy's frozen base, which training computes anyway where
    the KL coefficient is not 0. With ``model`` the reward has a frozen model of its own instead.

    Args:
        floor: Mean log-probability that scores 0, in nats per token; words in random order lie below it.
        ceiling: Mean log-probability that scores 1; the base model's own samples lie around it.
        repetition_weight: How fast repetition costs the score, at least 0; with 2 it is gone when half is repeated.
        ngram: Tokens in an n-gram, at least 1.
        min_tokens: Shorter completions are scaled down, so that "Yes." does not beat a sentence.
        model: Frozen model that judges: a local folder, ``pkg://PACKAGE/FILE.gguf``, or a hub id.
        batch_size: Completions in one forward pass of ``model``.
        chat_template_kwargs: Variables of the chat template of ``model``, such as ``{enable_thinking: false}``.

    Raises:
        UserError: an argument is out of range, or ``model`` names nothing.
    """

    needs_reference_logprobs = True
    speed_options = ("batch_size",)

    def __init__(
        self,
        floor: float = -6.0,
        ceiling: float = -2.5,
        repetition_weight: float = 2.0,
        ngram: int = 3,
        min_tokens: int = 8,
        model: str | None = None,
        batch_size: int = 16,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not -math.inf < floor < ceiling <= 0:
            raise UserError(f"Fluency: floor={floor}, ceiling={ceiling}; write floor < ceiling <= 0")
        if not 0 <= repetition_weight < math.inf:
            raise UserError(f"Fluency: repetition_weight={repetition_weight}; write a number from 0 up")
        if min(ngram, min_tokens, batch_size) < 1:
            raise UserError(
                f"Fluency: ngram={ngram}, min_tokens={min_tokens}, batch_size={batch_size}; write at least 1"
            )
        if model is not None:
            check_model(model)
            self.needs_reference_logprobs = False  # the own model answers instead
        self.floor, self.ceiling = floor, ceiling
        self.repetition_weight, self.ngram, self.min_tokens = repetition_weight, ngram, min_tokens
        self._judge = (
            None if model is None else LanguageModel(model, batch_size, chat_template_kwargs=chat_template_kwargs)
        )

    def setup(self, device: torch.device) -> None:
        """Load the own model, if there is one."""
        if self._judge is not None:
            self._judge.load(device)

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N scores in [0, 1].

        Raises:
            UserError: the batch holds no log-probabilities and there is no own model.
        """
        ids, logprobs = self._read(batch)
        rows = zip(batch.completions, ids, logprobs, strict=True)
        return [self.score_tokens(tokens, values) if text.strip() else 0.0 for text, tokens, values in rows]

    def score_tokens(self, ids: Sequence[int], logprobs: Tensor) -> float:
        """Return the score in [0, 1] of one completion: its T token ids and their log-probabilities [T]."""
        if not ids:
            return 0.0
        mean = max(self.floor, float(logprobs.mean()))  # in this order, NaN becomes the floor like -inf
        likelihood = min((mean - self.floor) / (self.ceiling - self.floor), 1.0)
        novelty = max(0.0, 1.0 - self.repetition_weight * repetition(ids, self.ngram))
        return likelihood * novelty * min(1.0, len(ids) / self.min_tokens)

    def _read(self, batch: RewardBatch) -> tuple[list[list[int]], list[Tensor]]:
        if self._judge is not None:
            return self._judge.read(batch.prompts, batch.completions)
        if batch.completion_ids is None or batch.reference_logprobs is None:
            raise UserError("Fluency: no log-probabilities of a reference at hand here; write init_args: {model: ...}")
        return batch.completion_ids, batch.reference_logprobs


def repetition(ids: Sequence[int], n: int) -> float:
    """Return the share of n-grams that occurred before, in [0, 1); 0 for fewer than ``n`` tokens."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
