"""Importance weights for tokens that another distribution than the policy's was sampled from.

An engine with kernels or weights of its own, such as a server, samples from a distribution near the policy's. The
update's gradient is right in expectation where each token counts by policy / sampler, which varies without bound; so
it is bounded, and metrics say how often.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.grpo.kl import log_ratio


class ImportanceCorrection:
    """Weighs tokens by how much likelier the policy finds them than what sampled them did.

    Sources: truncated importance sampling, as in IMPALA (arXiv 1802.01561) and, for engines that round otherwise, in
    https://fengyao.notion.site/off-policy-rl (2025); masked: IcePop, arXiv 2510.18855.

    Args:
        level: ``token`` takes each token's own ratio. ``sequence`` takes the product over a completion, which alone is
            unbiased, and which grows with length: a mean log-ratio of 0.01 is a ratio of 2.7 after 100 tokens.
        beyond: What becomes of a ratio beyond the bounds: ``truncate`` sets it to the bound, ``mask`` to 0.
        most: Upper bound of a ratio, above 1.
        least: Lower bound, from 0 to below 1; 0 leaves small ratios as they are.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        level: Literal["token", "sequence"] = "token",
        beyond: Literal["truncate", "mask"] = "truncate",
        most: float = 2.0,
        least: float = 0.0,
    ) -> None:
        if not 1 < most < math.inf or not 0 <= least < 1:
            raise UserError(f"correction: most={most}, least={least}; write 1 < most, such as 2, and 0 <= least < 1")
        for name, value, known in (("level", level, ("token", "sequence")), ("beyond", beyond, ("truncate", "mask"))):
            if value not in known:
                raise UserError(f"correction: {name} is '{value}'; write {' or '.join(known)}")
        self.level, self.beyond, self.most, self.least = level, beyond, most, least

    @torch.no_grad()
    def __call__(self, logprobs: Tensor, sampled: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weights, and sums over the counting tokens for metrics.

        Args:
            logprobs: [N, T] log-probs of the tokens under the policy, before the first inner epoch.
            sampled: [N, T] the same under what sampled them.
            mask: [N, T] bool, True on tokens that count; elsewhere the other tensors may hold anything.

        Returns:
            [N, T] float32 weights without gradient, 0 where ``mask`` is False; and scalars by name (divide by the
            number of tokens): ``importance/ratio``, the mean ratio within the clamp of +-20 nats, near 1 where both
            distributions are known exactly; ``importance/clipped``, the share beyond the bounds;
            ``importance/kl_sampler``, KL(sampler || policy), and ``importance/kl_policy``, KL(policy || sampler), both
            in nats a token by the estimator k3 or its mirror, which are never negative.
        """
        of_token = log_ratio(logprobs, sampled, mask)
        taken = of_token if self.level == "token" else log_ratio(of_token.sum(1, keepdim=True), of_token * 0, mask)
        ratio = taken.exp()
        beyond = (ratio > self.most) | (ratio < self.least)
        bounded = ratio.clamp(self.least, self.most) if self.beyond == "truncate" else ratio.masked_fill(beyond, 0.0)
        metrics = {
            "importance/ratio": ratio,
            "importance/clipped": beyond,
            "importance/kl_sampler": of_token.expm1() - of_token,
            "importance/kl_policy": of_token.exp() * of_token - of_token.expm1(),
        }
        return bounded * mask, {name: (value.float() * mask).sum() for name, value in metrics.items()}
