"""Does a server serve this version of the policy? Log-probs of tokens that it sampled say so.

A server with older weights than the trainer believes looks like any other: rewards do not move, and nothing fails. So
its log-probs are compared with the trainer's own, and with those of the frozen reference: where they are nearer to the
reference, the adapter has not arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_debias.plugins import Policy, PromptBatch, Rollout
from lit_debias_vllm.sampling import Completion

PROMPTS = PromptBatch(["People are", "Why"])
"""What is asked for the comparison: short, so that it fits wherever the run's own prompts do."""
COMPLETIONS, TOKENS = 4, 16
NOISE = 0.02
"""Nats a token: where log-probs are nearer than that, no two versions can be told apart."""


@dataclass(frozen=True)
class Gap:
    """Mean absolute difference of a server's log-probs, in nats a token."""

    policy: float
    """From the policy's, at the temperature of sampling."""
    reference: float
    """From the frozen reference's."""
    plain: float
    """From the policy's at temperature 1."""

    def wrong(self, limit: float) -> str | None:
        """Say what is wrong, or return None.

        Args:
            limit: Largest difference from the policy that rounding and 4-bit weights explain.
        """
        told = f"its log-probs are {self.policy:.2g} nats a token from the policy's"
        if self.policy > NOISE and self.plain < self.policy / 2:
            return f"{told}, and {self.plain:.2g} at temperature 1; start it with --logprobs-mode processed_logprobs"
        if self.policy > NOISE and self.reference < self.policy / 2:
            return f"{told}, and {self.reference:.2g} from the untouched reference's: the adapter does not arrive there"
        if not self.policy <= limit:  # NaN is wrong too
            return (
                f"{told}, and max_gap is {limit:g}: it has another model or other weights; start it anew with the "
                "policy's base, or raise max_gap where its weights are rounded otherwise"
            )
        return None


def rollout_of(
    policy: Policy, prompts: PromptBatch, encoded: tuple[Tensor, Tensor], completions: Sequence[Sequence[Completion]]
) -> Rollout:
    """Return completions as a rollout, with NaN where log-probs are missing.

    Args:
        policy: Decodes them.
        prompts: P prompts.
        encoded: Their ids and mask [P, S].
        completions: [P][G].

    Raises:
        UserError: they need more positions than the model has.
    """
    rows = [completion.ids for group in completions for completion in group]
    texts = [[policy.text_of(torch.tensor(completion.ids)) for completion in group] for group in completions]
    rollout = policy.rollout_of(prompts, encoded, rows, texts)
    logprobs = torch.zeros(rollout.completion_ids.shape)
    for place, completion in enumerate(completion for group in completions for completion in group):
        logprobs.view(len(rows), -1)[place, : len(completion.logprobs)] = torch.tensor(completion.logprobs)
    truncated = torch.tensor([[completion.truncated for completion in group] for group in completions])
    return replace(rollout, logprobs=logprobs.to(policy.device), truncated=truncated.to(policy.device))


def gap_of(policy: Policy, rollout: Rollout, temperature: float) -> Gap:
    """Return how far a rollout's log-probs are from those of the policy as it is now."""
    own, plain = policy.logprobs_at(rollout, (temperature, 1.0))
    reference = policy.logprobs(rollout, temperature, reference=True)
    known = rollout.completion_mask & ~rollout.logprobs.isnan()

    def mean(other: Tensor) -> float:
        return float((rollout.logprobs - other)[known].abs().mean())

    # At temperature 1 both are the same, and say nothing about the mode.
    return Gap(mean(own), mean(reference), mean(plain) if temperature != 1 else float("inf"))
