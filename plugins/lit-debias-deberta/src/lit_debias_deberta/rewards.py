"""The heads of a trained reward model as rewards."""

from __future__ import annotations

from typing import ClassVar

import torch

from lit_debias import Reward, RewardBatch
from lit_debias.errors import UserError, did_you_mean
from lit_debias_deberta.checkpoint import find, read_manifest
from lit_debias_deberta.scorer import RewardScorer, shared_scorer


class DebertaReward(Reward):
    """One head of a trained reward model, in [0, 1].

    A subclass names the head; rewards of one checkpoint share the encoder and its forward pass.

    Args:
        checkpoint: Folder that ``RewardModel`` wrote (its ``out``).
        batch_size: Completions in one forward pass.
        max_length: Tokens of prompt and completion together; by default as in training.

    Raises:
        UserError: the folder is missing or incomplete, the model has no such head, or a number is below 1.
    """

    dimension: ClassVar[str]
    """Name of the head."""

    def __init__(self, checkpoint: str, batch_size: int = 64, max_length: int | None = None) -> None:
        name = type(self).__name__
        if min(batch_size, max_length or 1) < 1 or max_length == 0:
            raise UserError(f"{name}: batch_size={batch_size}, max_length={max_length}; write at least 1")
        self.folder = find(checkpoint)
        manifest = read_manifest(self.folder)
        if self.dimension not in manifest.dimensions:
            raise UserError(
                f"{name}: checkpoint '{checkpoint}' has no head '{self.dimension}'"
                f"{did_you_mean(self.dimension, manifest.dimensions)}"
            )
        self.batch_size, self.max_length = batch_size, max_length
        self.scorer: RewardScorer | None = None

    def setup(self, device: torch.device) -> None:
        """Load the network onto ``device``, unless another reward has."""
        self.scorer = shared_scorer(self.folder, device)

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N scores in [0, 1]."""
        assert self.scorer is not None, "call setup() first"
        scores = self.scorer.score(batch.prompts, batch.completions, self.batch_size, self.max_length)
        return [float(score) for score in scores[:, self.scorer.dimensions.index(self.dimension)]]


class DebertaFairness(DebertaReward):
    """Fairness by a trained reward model: 1 speaks of the person or the evidence, 0 is hostile to the group."""

    dimension = "fairness"


class DebertaNeutrality(DebertaReward):
    """Neutrality by a trained reward model: balanced, and no more than the evidence says."""

    dimension = "neutrality"


class DebertaRelevance(DebertaReward):
    """Relevance by a trained reward model: the response does what the prompt asks."""

    dimension = "relevance"


class DebertaQuality(DebertaReward):
    """Quality by a trained reward model: fluent, specific, not repetitive."""

    dimension = "quality"
