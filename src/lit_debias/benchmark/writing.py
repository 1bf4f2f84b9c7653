"""What a policy writes for a benchmark, with random numbers that belong to each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_debias.policy.policy import Policy
from lit_debias.rollout.local import LocalEngine
from lit_debias.support.hashing import stable_hash
from lit_debias.types import PromptBatch, Rollout

ROWS = 16
"""Answers that are sampled at once; changes memory and speed, not the texts."""


class Writer:
    """Samples texts; keeps its engines, each of which checks its decoder against the policy at its first use."""

    def __init__(self) -> None:
        self._engines: dict[tuple[int, float], LocalEngine] = {}

    def write(
        self,
        policy: Policy,
        prompts: PromptBatch,
        keys: Sequence[str],
        k: int,
        temperature: float,
        max_new_tokens: int,
    ) -> list[list[str]]:
        """Return k texts for each of P prompts; those of a prompt depend on its key [P], not on the other prompts."""
        if temperature == 0:
            return [[text] * k for [text] in self.most_probable(policy, prompts, max_new_tokens).texts]
        found: list[list[str]] = [[] for _ in keys]
        for start in range(0, k, ROWS):
            some = range(start, min(k, start + ROWS))
            uniforms = uniforms_of([f"{key}\0{number}" for key in keys for number in some], max_new_tokens)
            rollout = self._engine(max_new_tokens, temperature).sample(policy, prompts, len(some), uniforms)
            for texts, more in zip(found, rollout.texts, strict=True):
                texts += more
        return found

    def most_probable(self, policy: Policy, prompts: PromptBatch, max_new_tokens: int) -> Rollout:
        """Return the greedy answers to P prompts."""
        return self._engine(max_new_tokens, 1.0).generate(policy, prompts, group_size=1, seed=0, greedy=True)

    def _engine(self, max_new_tokens: int, temperature: float) -> LocalEngine:
        key = (max_new_tokens, temperature)
        if key not in self._engines:
            self._engines[key] = LocalEngine(max_new_tokens, temperature)
        return self._engines[key]


def uniforms_of(keys: Sequence[str], length: int) -> Tensor:
    """Return numbers [N, length] in [0, 1), each row a function of its key alone."""
    generators = [torch.Generator().manual_seed(stable_hash(key)) for key in keys]
    return torch.stack([torch.rand(length, generator=generator) for generator in generators])
