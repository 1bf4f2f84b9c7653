"""Runs the named rewards over a rollout: checks what they return, times them, and guards them if asked to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_debias.rewards.asking import Answer, answer_of, prepare, refuse_problems
from lit_debias.rewards.reward import Reward, RewardBatch, check_columns
from lit_debias.rewards.settings import kept_settings
from lit_debias.support import distributed
from lit_debias.types import Rollout, Scores

if TYPE_CHECKING:
    from lit_debias.rewards.guard import Guard


class RewardSuite:
    """Named rewards that are scored together.

    Args:
        rewards: The rewards by name.
        guard: Stands around every reward; without one, a reward that fails stops the run.
        guards: Guards of single rewards, by name, instead of ``guard``; null leaves a reward without one.

    Raises:
        UserError: a reward that is to be isolated cannot be sent to another process.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        guard: Guard | None = None,
        guards: Mapping[str, Guard | None] | None = None,
    ) -> None:
        self.rewards = dict(rewards)
        chosen = {name: (guards or {}).get(name, guard) for name in self.rewards}
        self.guarded = {name: own.around(name, self.rewards[name]) for name, own in chosen.items() if own is not None}

    def only(self, names: Sequence[str]) -> RewardSuite:
        """Return some of the rewards, with the guards that they have here."""
        some = RewardSuite({name: self.rewards[name] for name in names})
        some.guarded = {name: self.guarded[name] for name in names if name in self.guarded}
        return some

    @property
    def needs_reference_logprobs(self) -> bool:
        """Whether some reward asks for log-probs under the reference."""
        return any(reward.needs_reference_logprobs for reward in self.rewards.values())

    def setup(self, device: torch.device) -> None:
        """Let every reward load what it needs onto ``device``.

        Raises:
            RewardError: one failed.
        """
        for name, reward in self.rewards.items():
            with kept_settings():
                self.guarded[name].setup(device) if name in self.guarded else prepare(name, reward, device)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise :class:`UserError` where a reward needs a column that the data does not have."""
        for name, reward in self.rewards.items():
            check_columns(f"reward '{name}'", reward.columns, available)

    def score(self, rollout: Rollout, names: Sequence[str] | None = None) -> Scores:
        """Score every completion with every reward. Where there are guards, :meth:`settle` must follow.

        Args:
            rollout: P x G completions.
            names: Some of the rewards, instead of all.

        Raises:
            RewardError: a reward without a guard failed, returned the wrong number of scores, or one that is not a
                finite number.
        """
        flat = flatten(rollout)
        shape, device = (len(rollout.prompts), rollout.group_size), rollout.completion_ids.device
        scores = Scores({}, {}, columns=rollout.prompts.columns)
        for name in self.rewards if names is None else names:
            start = time.perf_counter()
            answer = self._answer(name, flat)
            scores.seconds[name] = time.perf_counter() - start
            scores.values[name] = answer.values.view(shape).to(device)
            scores.valid[name] = answer.valid.view(shape).to(device)
            if name in self.guarded:
                scores.failed[name] = answer.failed.view(shape).to(device)
        return scores

    def _answer(self, name: str, batch: RewardBatch) -> Answer:
        with kept_settings():
            if name in self.guarded:
                return self.guarded[name].score(batch)
            answer = answer_of(name, self.rewards[name], batch)
        refuse_problems(answer)
        return answer

    def settle(self, scores: Scores) -> None:
        """Tell the guards of all ranks how the rollout went, so that they decide alike; nothing without guards.

        Collective: every rank calls it once after each rollout is scored, and outside
        :func:`lit_debias.support.distributed.fail_together`.

        Args:
            scores: What was found of the whole rollout on this rank.

        Raises:
            UnreliableRewardError: a reward has lost more of its scores than its guard allows; on every rank.
        """
        if not self.guarded:
            return
        counts = [
            [int(scores.failed[name].sum()), scores.failed[name].numel(), guarded.failed, guarded.hangs]
            for name, guarded in self.guarded.items()
        ]
        device = next(iter(scores.failed.values())).device
        totals = distributed.all_sum(torch.tensor(counts, dtype=torch.float32, device=device)).tolist()
        for guarded, (lost, asked, failed, hangs) in zip(self.guarded.values(), totals, strict=True):
            guarded.settle(lost / asked, failed=failed > 0, hangs=hangs > 0)

    def forget_failures(self) -> None:
        """Take back what failed since the last :meth:`settle`: of scores beside the run, which open no breaker."""
        for guarded in self.guarded.values():
            guarded.failed = guarded.hangs = False


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
