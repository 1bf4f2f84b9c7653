"""What a policy loss is. A loss is a class that YAML names; a new one needs no change here.

A loss is ``sum over tokens of (surrogate + beta * KL) / normaliser``, minus an entropy bonus. The normaliser refers
to the whole update, so the parts of an update add up to the same gradient however it was cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.grpo.kl import Estimator, kl_estimate, kl_penalty, log_ratio
from lit_debias.support.distributed import all_sum, world_size


@dataclass(frozen=True)
class UpdateSize:
    """Totals of one whole optimiser step, over all its micro-batches and ranks."""

    tokens: int
    """Tokens that count in the loss."""
    sequences: int
    """Completions, those without a counting token included."""
    rank_tokens: int
    """Tokens of this rank that count in the loss."""
    world_size: int
    max_completion_tokens: int
    """The length limit of sampling, Dr. GRPO's constant."""

    @classmethod
    def of(cls, loss_mask: Tensor, max_completion_tokens: int) -> UpdateSize:
        """Measure this rank's [..., T] bool mask of the whole update and add up over ranks (collective)."""
        own = torch.stack([loss_mask.sum(), torch.ones_like(loss_mask[..., 0]).sum()])
        tokens, sequences = all_sum(own).tolist()
        return cls(tokens, sequences, int(own[0]), world_size(), max_completion_tokens)


@dataclass(frozen=True)
class Surrogate:
    """What a loss says of each token, not yet normalised: [N, T], or [N, 1] for whole completions."""

    loss: Tensor
    ratio: Tensor
    """Importance ratio, policy over old policy."""
    clipped_low: Tensor
    """bool, the ratio lies below its bounds where that matters."""
    clipped_high: Tensor
    """bool, the ratio lies above its bounds where that matters."""

    def metrics(self, mask: Tensor) -> dict[str, Tensor]:
        """Return detached sums over the tokens of the [N, T] mask."""
        values = {
            "ratio": self.ratio,
            "clip_ratio/low": self.clipped_low,
            "clip_ratio/high": self.clipped_high,
            "clip_ratio/region": self.clipped_low | self.clipped_high,
        }
        return {name: (value.detach().float() * mask).sum() for name, value in values.items()}


class PolicyLoss(ABC):
    """Turns log-probs and advantages into a scalar to minimise, and into metrics.

    Args:
        beta: Weight of the KL divergence from the reference; 0 needs no reference.
        kl: Estimator of that divergence, k1, k2 or k3.
        unbiased_kl: Weight the estimate with the importance ratio and take the true gradient of the divergence,
            whatever the estimator (TRL's ``use_bias_correction_kl``). False is the GRPO of the first papers.
        entropy_bonus: Weight of the mean token entropy, which is subtracted from the loss.

    Raises:
        UserError: an option makes no sense.
    """

    def __init__(
        self, beta: float = 0.0, kl: Estimator = "k3", unbiased_kl: bool = True, entropy_bonus: float = 0.0
    ) -> None:
        require(beta >= 0, f"beta is {beta}; write 0, or a small number such as 0.04")
        require(entropy_bonus >= 0, f"entropy_bonus is {entropy_bonus}; write 0, or a small number such as 0.001")
        require(kl in get_args(Estimator), f"kl is '{kl}'; write one of {', '.join(get_args(Estimator))}")
        require(
            kl != "k1" or unbiased_kl or not beta,
            "kl is 'k1', whose own gradient has mean zero; write k2 or k3, or unbiased_kl: true",
        )
        self.beta = beta
        self.kl: Estimator = kl
        self.unbiased_kl = unbiased_kl
        self.entropy_bonus = entropy_bonus

    @abstractmethod
    def surrogate(self, logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
        """Return the loss of each token, not yet normalised; masked or not, but finite everywhere.

        Args:
            logprobs: [N, T] with gradient; 0 where masked.
            log_ratio: [N, T] ``logprobs - old_logprobs`` within +-20; 0 where masked.
            advantages: [N, 1].
            mask: [N, T] bool.
        """

    @abstractmethod
    def normaliser(self, mask: Tensor, size: UpdateSize) -> Tensor | int:
        """Return what the loss of each token is divided by: [N, T], [N, 1] or one number, never 0.

        Args:
            mask: [N, T] bool of this part of the update.
            size: Totals of the whole update.
        """

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        size: UpdateSize,
        reference_logprobs: Tensor | None = None,
        entropy: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this part's contribution to the loss of the update, and its metrics.

        The contributions of all micro-batches and ranks add up to the loss. (DDP averages gradients over ranks:
        multiply by the world size there.)

        Args:
            logprobs: [N, T] log-probs of the sampled tokens under the policy.
            old_logprobs: [N, T] the same before the first inner epoch; on-policy ``logprobs.detach()``.
            advantages: [N].
            mask: [N, T] bool, True on tokens that count; elsewhere the other tensors may hold anything.
            size: Totals of the whole update.
            reference_logprobs: [N, T], needed where ``beta`` is positive.
            entropy: [N, T] in nats, with gradient where there is an entropy bonus.
            weights: [N, T] by which each token's surrogate and KL count, see
                :class:`~lit_debias.grpo.correction.ImportanceCorrection`; all 1 by default.

        Returns:
            A scalar, and detached scalars by name, each a sum over the counting tokens (divide by their number):
            ``ratio``, ``clip_ratio/low|high|region``, and ``kl`` and ``entropy`` where their input is given.

        Raises:
            ValueError: ``beta`` or ``entropy_bonus`` is positive and its input is missing.
        """
        logprobs = logprobs.masked_fill(~mask, 0.0)
        ratio = log_ratio(logprobs, old_logprobs, mask)
        tokens = self.surrogate(logprobs, ratio, advantages[:, None], mask)
        normaliser = self.normaliser(mask, size)
        counts = mask if weights is None else weights * mask
        loss = (tokens.loss * counts / normaliser).sum()
        metrics = tokens.metrics(mask)
        if self.beta and reference_logprobs is None:
            raise ValueError(f"{type(self).__name__}: beta is {self.beta}, but there are no reference log-probs")
        if reference_logprobs is not None:
            kl = (
                kl_penalty(logprobs, reference_logprobs, ratio, mask, self.kl)
                if self.unbiased_kl
                else kl_estimate(logprobs, reference_logprobs, mask, self.kl)
            )
            metrics["kl"] = kl.detach().sum()
            loss = loss + self.beta * (kl * counts / normaliser).sum()
        if self.entropy_bonus and entropy is None:
            raise ValueError(f"{type(self).__name__}: entropy_bonus is {self.entropy_bonus}, but there is no entropy")
        if entropy is not None:
            total = entropy.masked_fill(~mask, 0.0).sum()
            metrics["entropy"] = total.detach()
            loss = loss - self.entropy_bonus * total / max(size.tokens, 1)
        return loss, metrics


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with a message about the loss unless the condition holds."""
    if not condition:
        raise UserError(f"loss: {message}")
