"""Direct preference optimisation: the neutral response over the biased one."""

from __future__ import annotations

import math

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_debias.errors import UserError
from lit_debias.grpo.loss import UpdateSize
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.training.adapter_module import Metrics
from lit_debias.training.baseline import Baseline


class DPO(Baseline):
    """Direct preference optimisation (arXiv 2305.18290): the neutral response over the biased one.

    The reference is the base with the adapter off, or a frozen copy of the adapter that the policy continues. DPO alone
    may make both responses less likely, and teaches no answer to end; ``sft_weight`` holds on to the neutral ones.

    Args:
        policy: The model that is trained.
        beta: Strength of the tie to the reference, positive.
        sft_weight: Weight of the neutral responses' negative log-likelihood per token, which is added to the loss of
            each pair: the alpha of RPO, arXiv 2404.19733, eq. 1; 0 is DPO.
        micro_batch_tokens: Pairs share a forward and backward pass up to so many packed tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout; null takes the seed of ``seed_everything``.

    Raises:
        UserError: an option makes no sense; and in ``setup``, a prompt without ``reference`` or ``biased``.
    """

    columns = ("reference", "biased")
    needs_reference = True

    def __init__(
        self,
        policy: QLoRAPolicy,
        beta: float = 0.1,
        sft_weight: float = 0.0,
        micro_batch_tokens: int = 2048,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(policy, micro_batch_tokens, optimizer, lr_scheduler, max_grad_norm, seed)
        if not beta > 0:
            raise UserError(f"DPO: beta is {beta}; write a positive number, such as 0.1")
        if not 0 <= sft_weight < math.inf:
            raise UserError(f"DPO: sft_weight is {sft_weight}; write a number from 0 up, such as 0.5")
        self.beta, self.sft_weight = beta, sft_weight

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's pairs, and TRL's metrics."""
        assert reference is not None
        losses, measured = dpo_loss(logprobs.sum(-1), reference.sum(-1), self.beta)
        if self.sft_weight:
            losses = losses - self.sft_weight * logprobs[:, 0].sum(-1) / mask[:, 0].sum(-1)
        pairs = size.sequences / 2
        return losses.sum() / pairs, {name: value.float().sum() / pairs for name, value in measured.items()}


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Return the loss of each of B pairs, arXiv 2305.18290, eq. 7, and metrics [B] without gradient.

    Args:
        logprobs: [B, 2] log-probs of the chosen and of the rejected response under the policy.
        reference: [B, 2] the same under the reference.
        beta: Scale of the implicit reward ``beta * (log pi - log pi_ref)``.

    Returns:
        ``-log sigmoid(reward of the chosen - reward of the rejected)``; and TRL's ``rewards/chosen|rejected|margins|
        accuracies`` and ``logps/chosen|rejected``.
    """
    rewards = beta * (logprobs - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    fixed, plain = rewards.detach(), logprobs.detach()
    return -logsigmoid(margins), {
        "rewards/chosen": fixed[:, 0],
        "rewards/rejected": fixed[:, 1],
        "rewards/margins": margins.detach(),
        "rewards/accuracies": margins.detach() > 0,
        "logps/chosen": plain[:, 0],
        "logps/rejected": plain[:, 1],
    }
