"""What vLLM has sampled, as rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_debias.plugins import Policy, PromptBatch, ResumableError, Rollout
from lit_debias_vllm import check
from lit_debias_vllm.sampling import Completion

SURE = math.log(0.9)
"""Log-probability from which on a token without one counts as certain."""


def group_of(
    policy: Policy, prompt: PromptBatch, encoded: tuple[Tensor, Tensor], group: Sequence[Completion], temperature: float
) -> Rollout:
    """Return the completions of one prompt as a rollout, all of whose log-probs are known; see :func:`completed`.

    Args:
        policy: Decodes them.
        prompt: One prompt.
        encoded: Its ids and mask [1, S].
        group: G completions.
        temperature: Of sampling.
    """
    return completed(policy, check.rollout_of(policy, prompt, encoded, [group]), temperature)


def completed(policy: Policy, rollout: Rollout, temperature: float) -> Rollout:
    """Return a rollout with log-probs of 0 where they are missing, if the policy is sure of these tokens.

    Raises:
        ResumableError: a log-prob is missing for a token that the policy is not sure of.
    """
    missing = rollout.logprobs.isnan()
    if not policy.most(int(missing.any())):  # where processes share the base out, all compute or none
        return rollout
    own = policy.logprobs(rollout, temperature)
    lowest = float(own[missing].min()) if bool(missing.any()) else 0.0
    if lowest < SURE:
        raise ResumableError(
            "VLLMEngine: a server gives no log-probability for a token that the policy gives "
            f"{math.exp(lowest):.2g}; its weights or its version of vLLM are broken"
        )
    return replace(rollout, logprobs=rollout.logprobs.nan_to_num(0.0))


def unseen(group_size: int, token: int) -> list[Completion]:
    """Return what stands for a group that was not sampled to its end, because nobody will look at it.

    Args:
        group_size: G.
        token: What each completion has as its only token.
    """
    return [Completion([token], [0.0], truncated=True)] * group_size


def joined(prompts: PromptBatch, encoded: tuple[Tensor, Tensor], groups: Sequence[Rollout], pad_id: int) -> Rollout:
    """Return the rollouts of single prompts as one, padded to the longest completion."""
    length = max(group.completion_ids.shape[-1] for group in groups)

    def all_of(tensors: Iterable[Tensor], value: float = 0) -> Tensor:
        return torch.cat([pad(tensor, (0, length - tensor.shape[-1]), value=value) for tensor in tensors])

    return Rollout(
        prompts=prompts,
        prompt_ids=encoded[0],
        prompt_mask=encoded[1],
        completion_ids=all_of((group.completion_ids for group in groups), pad_id),
        completion_mask=all_of(group.completion_mask for group in groups),
        logprobs=all_of(group.logprobs for group in groups),
        truncated=torch.cat([group.truncated for group in groups]),
        texts=[group.texts[0] for group in groups],
    )
