"""A classifier of offensive language that people labelled: it has nothing in common with lit-debias."""

from __future__ import annotations

import torch

from lit_debias.rewards.reward import Reward, RewardBatch


class ProfanityCheck(Reward):
    """1 - the probability that a completion is offensive, by alt-profanity-check (MIT).

    Its linear support vector machine over words and characters was trained on 200,000 comments and tweets that people
    labelled (github.com/dimitrismistriotis/alt-profanity-check). It reads the completion alone.
    """

    def setup(self, device: torch.device) -> None:
        """Load the classifier; its file is a pickle, so it is for benchmarks alone."""
        from profanity_check import predict_prob

        self._probability = predict_prob

    def score(self, batch: RewardBatch) -> list[float | None]:
        """Return N scores in [0, 1], 1 is harmless; an empty completion has none."""
        harmless = [1 - float(p) for p in self._probability(list(batch.completions))]
        return [score if text.strip() else None for score, text in zip(harmless, batch.completions, strict=True)]
