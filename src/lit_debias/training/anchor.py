"""Holds a policy to ordinary language while it learns something else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.packing.tokens import pack_rollout
from lit_debias.policy.policy import Policy
from lit_debias.support import distributed
from lit_debias.support.passages import read_passages
from lit_debias.types import PromptBatch, Rollout

OWN = Path(__file__).with_name("anchor.txt")
LONGEST = 256
"""Tokens of a passage; the rest is left out."""


class ProseAnchor:
    """Adds to the loss how far the policy has moved from the untouched base on plain prose.

    The term is ``weight`` times the mean over tokens of ``(log p - log p_base)^2 / 2``, the estimate k2 of the KL
    divergence (Schulman 2020, "Approximating KL Divergence"), on texts that neither model wrote. A KL penalty on a
    policy's own samples says nothing of prose, which training on short answers makes more surprising; mixing in texts
    is the idea of PPO-ptx (Ouyang et al. 2022, arXiv 2203.02155).

    Args:
        weight: Of the term, positive.
        texts: A text file of passages separated by blank lines; null takes 120 passages of lit-debias's own. Measure
            with others: ``lit-debias evaluate`` has passages that are not among them.
        passages: Passages in each optimiser step, over all ranks; they take turns.

    Raises:
        UserError: a number is not positive, or the file cannot be read or holds no passage.
    """

    def __init__(self, weight: float = 0.1, texts: str | None = None, passages: int = 4) -> None:
        if not 0 < weight < math.inf or passages < 1:
            raise UserError(f"ProseAnchor: weight={weight}, passages={passages}; write positive numbers")
        self.weight, self.passages = weight, passages
        self.texts = read_passages(OWN if texts is None else Path(texts), "texts")

    def terms(self, policy: Policy, step: int, micro_batch_tokens: int) -> Iterator[Tensor]:
        """Yield what this rank's passages of an optimiser step add to the loss over all ranks, with gradient.

        Args:
            policy: Loaded.
            step: Number of the optimiser step.
            micro_batch_tokens: Tokens that share a forward pass.
        """
        chosen = [self.texts[(step * self.passages + number) % len(self.texts)] for number in range(self.passages)]
        rows = [policy.encoder.text(text)[:LONGEST] for text in chosen]
        mine = slice(distributed.rank(), None, distributed.world_size())
        parts: list[slice] = []
        if rows[mine]:
            rollout = _rollout(policy, chosen[mine], rows[mine])
            parts = policy.parts(rollout.prompt_mask, rollout.completion_mask, micro_batch_tokens)
        for groups in policy.in_step(parts):  # of the base, and then of the policy
            packed = pack_rollout(rollout, groups)
            with torch.no_grad(), policy.as_base():
                base = policy(packed).logprobs
            yield self.weight * (policy(packed).logprobs - base).square().sum() / (2 * sum(map(len, rows)))


def _rollout(policy: Policy, texts: list[str], rows: list[list[int]]) -> Rollout:
    """Return passages as completions of a prompt that is the token before every text."""
    first = torch.full((len(rows), 1), policy.encoder.first(), device=policy.device)
    return policy.rollout_of(PromptBatch(texts, {}), (first, torch.ones_like(first).bool()), rows, [[t] for t in texts])
