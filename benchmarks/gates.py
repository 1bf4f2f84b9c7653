"""What must hold before anything is timed: a fast step that computes something else is not fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.adapters import flat_gradient
from lit_debias.grpo.loss import UpdateSize
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.training.grpo import GRPO
from lit_debias.types import Experience, Rollout

# Largest mean and largest single |sampled - recomputed| log-prob, in nats; least cosine of two gradients.
# docs/benchmarks.md says what the bounds rest on.
LOGPROB_BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.12, 1.5)}
MIN_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.98}
ADAPTER_STD = 0.05


@torch.no_grad()
def move_adapter(policy: QLoRAPolicy) -> None:
    """Move a fresh adapter off zero, so that merging it matters and all of its gradients are there."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:
            parameter.copy_(ADAPTER_STD * torch.randn(parameter.shape, generator=generator))
    policy.weights_changed()


def logprob_gate(module: GRPO, rollout: Rollout) -> dict[str, Any]:
    """Compare the log-probs that sampling recorded with those of the packed forward pass of the update."""
    recomputed = module.policy.logprobs(rollout, module.engine.temperature)
    difference = (rollout.logprobs - recomputed)[rollout.completion_mask].abs()
    mean, largest = float(difference.mean()), float(difference.max())
    mean_bound, max_bound = LOGPROB_BOUNDS[module.policy.dtype]
    return {
        "mean_difference": mean,
        "max_difference": largest,
        "mean_bound": mean_bound,
        "max_bound": max_bound,
        "passed": mean <= mean_bound and largest <= max_bound,
    }


def gradient_gate(module: GRPO, experience: Experience) -> dict[str, Any]:
    """Compare the LoRA gradient of ``GRPO.update`` with that of every sequence alone through the plain model.

    Makes one optimiser step. The update clips its gradient, which leaves the cosine as it is.
    """
    unpacked = unpacked_gradient(module, experience)
    module.update(experience)
    packed = flat_gradient(module.policy.lm)
    cosine = float(cosine_similarity(packed.double(), unpacked.double(), dim=0))
    bound = MIN_COSINE[module.policy.dtype]
    return {"cosine": cosine, "min_cosine": bound, "passed": cosine >= bound}


def unpacked_gradient(module: GRPO, experience: Experience) -> Tensor:
    """Return the LoRA gradient, flat, of the same on-policy loss without packing: one backward per completion."""
    rollout, mask = experience.rollout, experience.loss_mask
    size = UpdateSize.of(mask, module.engine.max_new_tokens)
    module.policy.zero_grad()
    for prompt in range(len(rollout.prompts)):
        for member in range(rollout.group_size):
            row = (slice(prompt, prompt + 1), member)
            logprobs = sequence_logprobs(module, rollout, prompt, member)
            reference = experience.reference_logprobs
            loss, _ = module.loss(
                logprobs,
                logprobs.detach(),
                experience.advantages[row],
                mask[row],
                size,
                reference_logprobs=None if reference is None else reference[row],
            )
            loss.backward()  # type: ignore[no-untyped-call]
    return flat_gradient(module.policy.lm)


def sequence_logprobs(module: GRPO, rollout: Rollout, prompt: int, member: int) -> Tensor:
    """Return log-probs [1, T] with gradient of one completion, from all logits of its own sequence."""
    policy, completion = module.policy, rollout.completion_ids[prompt, member]
    ids = torch.cat([rollout.prompt_ids[prompt][rollout.prompt_mask[prompt]], completion])
    with policy.autocast():
        output = policy.causal_lm(input_ids=ids[None], use_cache=False, logits_to_keep=len(completion) + 1)
    logprobs = (output.logits[:, :-1].float() / module.engine.temperature).log_softmax(-1)
    chosen: Tensor = logprobs.gather(-1, completion[None, :, None])[..., 0]
    return chosen
