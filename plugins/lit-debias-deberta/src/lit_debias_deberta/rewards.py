"""The heads of a trained reward model as rewards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from lit_debias.plugins import Precision, Reward, RewardBatch, UserError, did_you_mean, dtype_of
from lit_debias_deberta.checkpoint import find, read_manifest
from lit_debias_deberta.scorer import BATCH_TOKENS, CACHE_SIZE, RewardScorer, shared_scorer


@dataclass(frozen=True)
class Economy:
    """What decides how fast a reward is, and changes its scores by rounding at most."""

    batch_size: int | None
    batch_tokens: int
    cache_size: int
    cache_dir: str | None


class DebertaReward(Reward):
    """One head of a trained reward model, in [0, 1].

    A subclass names the head; rewards of one checkpoint share the encoder and its forward pass.

    Args:
        checkpoint: Folder that ``RewardModel`` wrote (its ``out``).
        batch_size: Completions in one forward pass; by default as many as ``batch_tokens`` allows.
        max_length: Tokens of prompt and completion together; by default as in training.
        batch_tokens: Tokens in one forward pass, padding included.
        cache_size: Pairs of prompt and completion whose scores are kept in memory, at least 0; those used last.
        cache_dir: Folder that keeps all scores for further runs, in ``scores.sqlite``; by default none.
        dtype: Type of the products; ``auto`` is bfloat16 where the device has instructions for it, and float32
            elsewhere. bfloat16 is several times faster, and moves scores by less than 0.01; heads are float32.

    Raises:
        UserError: the folder is missing or incomplete, the model has no such head, a number is too small, or
            ``cache_dir`` is a file or within the checkpoint.
    """

    dimension: ClassVar[str]
    """Name of the head."""
    speed_options = ("batch_size", "batch_tokens", "cache_size", "cache_dir")

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        cache_size: int = CACHE_SIZE,
        cache_dir: str | None = None,
        dtype: Precision = "auto",
    ) -> None:
        name = type(self).__name__
        if min(batch_size or 1, max_length or 1, batch_tokens) < 1 or 0 in (batch_size, max_length):
            numbers = f"batch_size={batch_size}, max_length={max_length}, batch_tokens={batch_tokens}"
            raise UserError(f"{name}: {numbers}; write at least 1")
        if cache_size < 0:
            raise UserError(f"{name}: cache_size={cache_size}; write at least 0, which keeps only the last call")
        self.folder = find(checkpoint)
        manifest = read_manifest(self.folder)
        if self.dimension not in manifest.dimensions:
            raise UserError(
                f"{name}: checkpoint '{checkpoint}' has no head '{self.dimension}'"
                f"{did_you_mean(self.dimension, manifest.dimensions)}"
            )
        _check_cache_dir(name, cache_dir, self.folder)
        self.max_length, self.dtype = max_length, dtype
        self._economy = Economy(batch_size, batch_tokens, cache_size, cache_dir)
        self.scorer: RewardScorer | None = None

    def setup(self, device: torch.device) -> None:
        """Load the network onto ``device``, unless another reward has.

        Raises:
            UserError: ``cache_dir`` cannot be made.
        """
        bf16 = dtype_of(self.dtype, device) == torch.bfloat16
        self.scorer = shared_scorer(self.folder, device, self._economy.cache_size, self._economy.cache_dir, bf16)

    def score(self, batch: RewardBatch) -> list[float]:
        """Return N scores in [0, 1]."""
        assert self.scorer is not None, "call setup() first"
        how = (self._economy.batch_size, self.max_length, self._economy.batch_tokens)
        scores = self.scorer.score(batch.prompts, batch.completions, *how)
        return [float(score) for score in scores[:, self.scorer.dimensions.index(self.dimension)]]


def _check_cache_dir(name: str, cache_dir: str | None, checkpoint: Path) -> None:
    if cache_dir is None:
        return
    folder = Path(cache_dir).expanduser().resolve()
    if not cache_dir or folder.is_file():
        raise UserError(f"{name}: cache_dir '{cache_dir}' is no folder; write one, or null to keep scores in memory")
    if folder.is_relative_to(checkpoint.resolve()):  # the checkpoint is identified by its files, and replaced whole
        raise UserError(f"{name}: cache_dir '{cache_dir}' is within the checkpoint; write a folder elsewhere")


class DebertaFairness(DebertaReward):
    """Fairness by a trained reward model: 1 speaks of the person or the evidence, 0 is hostile to the group."""

    dimension = "fairness"


class DebertaNeutrality(DebertaReward):
    """Neutrality by a trained reward model: balanced, and no more than the evidence says."""

    dimension = "neutrality"


class DebertaRelevance(DebertaReward):
    """Relevance by a trained reward model: the response does what the prompt asks."""

    dimension = "relevance"


class DebertaPreference(DebertaReward):
    """What a group of people prefers, by the reward that ``PreferenceMixture`` trained for it; 0.5 is its mean."""

    dimension = "preference"


class DebertaQuality(DebertaReward):
    """Quality by a trained reward model: fluent, specific, not repetitive."""

    dimension = "quality"
