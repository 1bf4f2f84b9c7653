"""Estimators of KL(policy || reference) from tokens that the policy sampled.

Source: J. Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html (2020).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +- this, before any exponential."""
MAX_K3 = 10.0
"""k3 is clamped to +- this: one token must not outweigh a batch. (It is never negative.)"""


def log_ratio(logprobs: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return ``logprobs - other`` within +-20; 0, with gradient 0, where ``mask`` is False."""
    return (logprobs - other).masked_fill(~mask, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, estimator: Estimator) -> Tensor:
    """Return a KL estimate in nats per token, of the shape of ``logprobs``; 0 where ``mask`` is False.

    With ``d = log(reference / policy)``:

    - ``k1 = -d``: unbiased, high variance. As a loss it pulls nowhere: its gradient has mean zero.
    - ``k2 = d^2 / 2``: biased, low variance. As a loss, on-policy, its gradient is that of the KL.
    - ``k3 = exp(d) - 1 - d``: unbiased, low variance, never negative. As a loss, as in GRPO, its gradient is
      that of the opposite divergence, KL(reference || policy); :func:`kl_penalty` mends that.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy.
        reference_logprobs: The same under the reference.
        mask: bool, True on tokens that count.
        estimator: ``k1``, ``k2`` or ``k3``.
    """
    difference = log_ratio(reference_logprobs, logprobs, mask)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return (difference.expm1() - difference).clamp(-MAX_K3, MAX_K3)


def kl_penalty(
    logprobs: Tensor, reference_logprobs: Tensor, log_ratio_to_old: Tensor, mask: Tensor, estimator: Estimator
) -> Tensor:
    """Return the estimate times the importance ratio r, with the unbiased gradient of KL(policy || reference).

    For tokens that an older policy sampled. The gradient of ``r k3`` is ``r k1 grad log policy``, and so is, in the
    mean, that of ``r k1``: DeepSeek-V3.2, arXiv 2512.02556, and TRL's ``use_bias_correction_kl``. It is taken in
    this form for every estimator, since in that of k3 exponentials cancel, and clamping would turn its sign.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy.
        reference_logprobs: The same under the reference.
        log_ratio_to_old: ``logprobs`` minus those of the policy that sampled, as :func:`log_ratio` returns it.
        mask: bool, True on tokens that count.
        estimator: ``k1``, ``k2`` or ``k3``; gives the value, not the gradient.
    """
    ratio = log_ratio_to_old.detach().exp()
    pull = ratio * log_ratio(logprobs, reference_logprobs, mask).square() / 2
    value = ratio * kl_estimate(logprobs, reference_logprobs, mask, estimator)
    return pull + (value - pull).detach()
