"""Prompts with answers, and their log-probs and gradients."""

import torch

from lit_debias.packing.tokens import pack_rollout
from lit_debias.types import PromptBatch

PROMPTS = PromptBatch(["people from the north are", "the rider was late"])


ANSWERS = [["kind because", "late"], ["each person", "judged on evidence and work"]]


def log_probs_and_gradients(policy):
    rollout = policy.encode(PROMPTS, ANSWERS)
    policy.zero_grad()
    logprobs = policy(pack_rollout(rollout)).logprobs
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in policy.trainable_parameters().items()}
