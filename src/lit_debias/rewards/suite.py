"""Runs the named rewards over a rollout: guards what they return, and times them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.rewards.base import Reward, RewardBatch, check_columns
from lit_debias.types import Rollout, Scores

LARGEST = torch.finfo(torch.float32).max


class RewardError(UserError):
    """A reward broke its contract; the message names the reward, the row and the value."""


class RewardSuite:
    """Named rewards that are scored together."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.rewards = dict(rewards)

    @property
    def needs_reference_logprobs(self) -> bool:
        """Whether some reward asks for log-probs under the reference."""
        return any(reward.needs_reference_logprobs for reward in self.rewards.values())

    def setup(self, device: torch.device) -> None:
        """Let every reward load what it needs onto ``device``."""
        for reward in self.rewards.values():
            reward.setup(device)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise :class:`UserError` where a reward needs a column that the data does not have."""
        for name, reward in self.rewards.items():
            check_columns(f"reward '{name}'", reward.columns, available)

    def score(self, rollout: Rollout) -> Scores:
        """Score every completion with every reward.

        Raises:
            RewardError: a reward failed, returned the wrong number of scores, or one that is not a finite number.
        """
        flat = flatten(rollout)
        shape = (len(rollout.prompts), rollout.group_size)
        values, valid, seconds = {}, {}, {}
        for name, reward in self.rewards.items():
            start = time.perf_counter()
            answer = ask(name, reward, flat)
            seconds[name] = time.perf_counter() - start
            numbers, present = check_scores(name, answer, flat)
            values[name] = numbers.view(shape).to(rollout.completion_ids.device)
            valid[name] = present.view(shape).to(rollout.completion_ids.device)
        return Scores(values, valid, seconds, rollout.prompts.columns)


def ask(name: str, reward: Reward, batch: RewardBatch) -> Sequence[float | None]:
    """Return what the reward says of a batch.

    Raises:
        RewardError: it raised something; the message says where, and the cause is chained.
    """
    try:
        return reward.score(batch)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            f"reward '{name}' failed in {place.filename}, line {place.lineno}: {type(error).__name__}: {error}"
        ) from error


def flatten(rollout: Rollout) -> RewardBatch:
    """Return the rollout's P x G completions as one flat batch, group by group."""
    group_size = rollout.group_size

    def repeat(rows: Sequence[Any]) -> list[Any]:
        return [row for row in rows for _ in range(group_size)]

    lengths = rollout.lengths.flatten().tolist()
    ids = rollout.completion_ids.flatten(0, 1).tolist()
    reference = None
    if rollout.reference_logprobs is not None:
        rows = rollout.reference_logprobs.flatten(0, 1).cpu()
        reference = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return RewardBatch(
        prompts=repeat(rollout.prompts.texts),
        completions=[text for group in rollout.texts for text in group],
        group_ids=repeat(range(len(rollout.prompts))),
        columns={name: repeat(rows) for name, rows in rollout.prompts.columns.items()},
        completion_ids=[row[:length] for row, length in zip(ids, lengths, strict=True)],
        reference_logprobs=reference,
    )


def check_scores(name: str, answer: Sequence[float | None], batch: RewardBatch) -> tuple[Tensor, Tensor]:
    """Return [N] float32 scores and the [N] mask of those that are there, or say what is wrong with them.

    Raises:
        RewardError: wrong container, wrong length, or an entry that is neither None nor a finite number.
    """
    scores = answer.tolist() if hasattr(answer, "tolist") else answer  # tensors and arrays
    if isinstance(scores, (str, bytes)) or not isinstance(scores, Sequence):
        raise RewardError(
            f"reward '{name}' returned {type(answer).__name__}; return a list with one float or None per completion"
        )
    if len(scores) != len(batch):
        raise RewardError(f"reward '{name}' returned {len(scores)} scores for {len(batch)} completions")
    for row, score in enumerate(scores):
        if score is not None and not _is_finite_number(score):
            raise RewardError(
                f"reward '{name}' returned {score!r} for prompt {batch.prompts[row]!r:.80} and completion "
                f"{batch.completions[row]!r:.80}; return a finite float, or None for no opinion"
            )
    valid = torch.tensor([score is not None for score in scores], dtype=torch.bool)
    values = torch.tensor([0.0 if score is None else float(score) for score in scores], dtype=torch.float32)
    return values, valid


def _is_finite_number(score: Any) -> bool:
    try:
        return not isinstance(score, (str, bytes)) and abs(float(score)) <= LARGEST  # False for NaN
    except (TypeError, ValueError, OverflowError):
        return False
