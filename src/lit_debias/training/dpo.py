"""Direct preference optimisation: the neutral response over the biased one."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_debias.errors import UserError
from lit_debias.grpo.loss import UpdateSize
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.training.adapter_module import Metrics
from lit_debias.training.anchor import ProseAnchor
from lit_debias.training.baseline import Baseline

LOSSES = ("sigmoid", "ipo")
"""Of a pair."""


class DPO(Baseline):
    """Direct preference optimisation (arXiv 2305.18290): the neutral response over the biased one.

    The reference is the base with the adapter off, or a frozen copy of the adapter that the policy continues. DPO alone
    may make both responses less likely, and teaches no answer to end; ``sft_weight`` holds on to the neutral ones.
    Pairs of two equal responses teach nothing: the data module leaves them out, and says how many they are.

    Args:
        policy: The model that is trained.
        beta: Strength of the tie to the reference, positive.
        sft_weight: Weight of the neutral responses' negative log-likelihood per token, which is added to the loss of
            each pair: the alpha of RPO, arXiv 2404.19733, eq. 1; 0 is DPO.
        loss: ``sigmoid`` is DPO's. ``ipo`` is that of IPO (arXiv 2310.12036, eq. 17) on log-ratios per token, as TRL
            has it: it wants a margin of ``1 / (2 beta)``, where DPO's wants ever more.
        label_smoothing: Share of the pairs whose preference is taken to be the wrong way round, from 0 to below 0.5:
            conservative DPO. For ``sigmoid`` alone.
        micro_batch_tokens: Pairs share a forward and backward pass up to so many packed tokens; changes memory only.
        optimizer: Builds the optimiser from the adapter's parameters; by default AdamW as PyTorch sets it.
        lr_scheduler: Builds the schedule, stepped after each optimiser step.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seeds LoRA dropout; null takes the seed of ``seed_everything``.
        anchor: Holds the policy to ordinary prose, which training on short answers makes more surprising.

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
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        label_smoothing: float = 0.0,
        micro_batch_tokens: int = 2048,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        seed: int | None = None,
        anchor: ProseAnchor | None = None,
    ) -> None:
        super().__init__(policy, micro_batch_tokens, optimizer, lr_scheduler, max_grad_norm, seed, anchor)
        if not beta > 0:
            raise UserError(f"DPO: beta is {beta}; write a positive number, such as 0.1")
        if not 0 <= sft_weight < math.inf:
            raise UserError(f"DPO: sft_weight is {sft_weight}; write a number from 0 up, such as 0.5")
        check_preference(loss, label_smoothing)
        self.beta, self.sft_weight = beta, sft_weight
        self.preference, self.label_smoothing = loss, label_smoothing

    def loss(
        self, logprobs: Tensor, mask: Tensor, reference: Tensor | None, weights: Tensor | None, size: UpdateSize
    ) -> tuple[Tensor, Metrics]:
        """Return the share of the mean over the update's pairs, and TRL's metrics."""
        assert reference is not None
        mine, theirs = logprobs.sum(-1), reference.sum(-1)
        if self.preference == "ipo":
            losses, measured = ipo_loss(mine, theirs, mask.sum(-1), self.beta)
        else:
            losses, measured = dpo_loss(mine, theirs, self.beta, self.label_smoothing)
        if self.sft_weight:
            losses = losses - self.sft_weight * logprobs[:, 0].sum(-1) / mask[:, 0].sum(-1)
        pairs = size.sequences / 2
        return losses.sum() / pairs, {name: value.float().sum() / pairs for name, value in measured.items()}

    def training_record(self) -> dict[str, Any]:
        """Return how the adapter was trained, the loss of a pair among it."""
        record = super().training_record()
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        sft = f", SFT weight {self.sft_weight:g}" if self.sft_weight else ""
        loss = {"loss": f"{self.preference} with beta {self.beta:g}{smoothing}{sft}"}
        return record | {"settings": record["settings"] | loss}


def check_preference(loss: str, label_smoothing: float) -> None:
    """Raise :class:`UserError` where there is no such loss, or it does not go with the smoothing."""
    if loss not in LOSSES:
        raise UserError(f"DPO: loss is '{loss}'; write {' or '.join(LOSSES)}")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"DPO: label_smoothing is {label_smoothing}; write a number from 0 to below 0.5, such as 0.1")
    if label_smoothing and loss == "ipo":
        raise UserError(
            f"DPO: label_smoothing {label_smoothing} is for loss: sigmoid, and the loss is ipo; write one of the two"
        )


def dpo_loss(logprobs: Tensor, reference: Tensor, beta: float, label_smoothing: float = 0.0) -> tuple[Tensor, Metrics]:
    """Return the loss of each of B pairs, arXiv 2305.18290, eq. 7, and metrics [B] without gradient.

    Args:
        logprobs: [B, 2] log-probs of the chosen and of the rejected response under the policy.
        reference: [B, 2] the same under the reference.
        beta: Scale of the implicit reward ``beta * (log pi - log pi_ref)``.
        label_smoothing: Share e of pairs that are the wrong way round.

    Returns:
        ``-(1 - e) log sigmoid(m) - e log sigmoid(-m)`` of the margin m, the reward of the chosen less that of the
        rejected; and TRL's ``rewards/chosen|rejected|margins|accuracies`` and ``logps/chosen|rejected``.
    """
    measured = _measured(logprobs, reference, beta)
    rewards = beta * (logprobs - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    losses = -(1 - label_smoothing) * logsigmoid(margins)
    return (losses - label_smoothing * logsigmoid(-margins) if label_smoothing else losses), measured


def ipo_loss(logprobs: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """Return the loss of each of B pairs, arXiv 2310.12036, eq. 17, and the metrics of :func:`dpo_loss`.

    Args:
        logprobs: [B, 2] log-probs of the chosen and of the rejected response under the policy.
        reference: [B, 2] the same under the reference.
        lengths: [B, 2] tokens of the responses. The paper has sums in place of means over them; TRL's authors asked
            those of the paper, whose experiments have means.
        beta: The paper's tau.

    Returns:
        ``(h - 1 / (2 beta))^2`` of h, the log-ratio per token of the chosen less that of the rejected.
    """
    ratios = (logprobs - reference) / lengths
    return (ratios[:, 0] - ratios[:, 1] - 1 / (2 * beta)) ** 2, _measured(logprobs, reference, beta)


def _measured(logprobs: Tensor, reference: Tensor, beta: float) -> Metrics:
    plain = logprobs.detach()
    rewards = beta * (plain - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": margins > 0,
        "logps/chosen": plain[:, 0],
        "logps/rejected": plain[:, 1],
    }
