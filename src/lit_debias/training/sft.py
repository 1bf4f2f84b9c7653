"""Supervised fine-tuning on the neutral responses."""

from __future__ import annotations

from torch import Tensor

from lit_debias.grpo.loss import UpdateSize
from lit_debias.training.adapter_module import Metrics
from lit_debias.training.baseline import Baseline


class SFT(Baseline):
    """Supervised fine-tuning: the mean negative log-likelihood of a token of the neutral responses.

    Args:
        policy: The model that is trained.
        micro_batch_tokens: Prompts share a forward and backward pass up to so many tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout; null takes the seed of ``seed_everything``.

    Raises:
        UserError: an option makes no sense; and in ``setup``, a prompt without ``reference``.
    """

    columns = ("reference",)

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's tokens."""
        return -logprobs.sum() / size.tokens, {}
