"""The losses that come with the core: GRPO, BNPO, Dr. GRPO, DAPO, GSPO and CISPO."""

from __future__ import annotations

from typing import Any

from torch import Tensor, zeros_like

from lit_debias.grpo.objective import PolicyLoss, Surrogate, UpdateSize, require

__all__ = [
    "BNPOLoss",
    "CISPOLoss",
    "DAPOLoss",
    "DrGRPOLoss",
    "GRPOLoss",
    "GSPOLoss",
    "PolicyLoss",
    "UpdateSize",
]


class ClippedLoss(PolicyLoss):
    """PPO's clipped surrogate: ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)``, arXiv 1707.06347, eq. 7.

    Args:
        clip_low: How far below 1 the ratio r may fall and still be trained, in (0, 1).
        clip_high: How far above 1 the ratio may rise and still be trained.
        dual_clip: Upper bound of the ratio where the advantage is negative (arXiv 1912.09729; TRL's ``delta``).
        common: The arguments of :class:`PolicyLoss`.

    Raises:
        UserError: an option makes no sense.
    """

    def __init__(
        self, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        require(0 < clip_low < 1, f"clip_low is {clip_low}; write a number between 0 and 1, such as 0.2")
        require(clip_high > 0, f"clip_high is {clip_high}; write a positive number, such as 0.2")
        require(
            dual_clip is None or dual_clip > 1 + clip_high,
            f"dual_clip is {dual_clip}; write more than 1 + clip_high = {1 + clip_high:g}, such as 3, or null",
        )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def surrogate(self, logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
        """Return PPO's clipped loss of each token."""
        ratio = log_ratio.exp()
        low, high = 1 - self.clip_low, 1 + self.clip_high
        bounded = ratio if self.dual_clip is None else ratio.clamp(max=self.dual_clip)
        loss = -(bounded * advantages).min(ratio.clamp(low, high) * advantages)
        return Surrogate(loss, ratio, (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0))


class GRPOLoss(ClippedLoss):
    """Mean over the tokens of each completion, then over completions: GRPO, arXiv 2402.03300, eq. 3."""

    def normaliser(self, mask: Tensor, size: UpdateSize) -> Tensor:
        """Return [N, 1]: tokens of the completion x completions of the update."""
        return mask.sum(1, keepdim=True).clamp(min=1) * size.sequences


class BNPOLoss(ClippedLoss):
    """Mean over all tokens of a rank, then over ranks: TRL's ``bnpo``."""

    def normaliser(self, mask: Tensor, size: UpdateSize) -> int:
        """Return tokens of this rank x ranks."""
        return max(size.rank_tokens, 1) * size.world_size


class DrGRPOLoss(ClippedLoss):
    """Sum over tokens divided by a constant, free of length bias: Dr. GRPO, arXiv 2503.20783, section 3.2."""

    def normaliser(self, mask: Tensor, size: UpdateSize) -> int:
        """Return the tokens that the update's completions would have at full length."""
        return size.sequences * size.max_completion_tokens


class DAPOLoss(ClippedLoss):
    """Mean over all tokens of the update, with a higher upper bound: DAPO, arXiv 2503.14476, eq. 8 and 12.

    Args:
        clip_high: How far above 1 the ratio may rise and still be trained.
        common: The other arguments of :class:`ClippedLoss`.
    """

    def __init__(self, clip_high: float = 0.28, **common: Any) -> None:
        super().__init__(clip_high=clip_high, **common)

    def normaliser(self, mask: Tensor, size: UpdateSize) -> int:
        """Return the tokens of the update."""
        return max(size.tokens, 1)


class GSPOLoss(GRPOLoss):
    """One ratio for a whole completion, the geometric mean over its tokens: GSPO, arXiv 2507.18071, eq. 5 and 7.

    Such ratios stay much closer to 1 than those of tokens; the bounds are the paper's.

    Args:
        clip_low: How far below 1 the ratio may fall and still be trained, in (0, 1).
        clip_high: How far above 1 the ratio may rise and still be trained.
        common: The other arguments of :class:`ClippedLoss`.
    """

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4, **common: Any) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **common)
        require(
            max(clip_low, clip_high) < 0.1,
            f"GSPO with clip_low {clip_low} and clip_high {clip_high} never clips; write less than 0.1, such as 4e-4",
        )

    def surrogate(self, logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
        """Return PPO's clipped loss of each completion, [N, 1]."""
        mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return super().surrogate(logprobs, mean, advantages, mask)


class CISPOLoss(PolicyLoss):
    """REINFORCE with a bounded importance weight, which no token's gradient escapes: CISPO, arXiv 2506.13585, eq. 4.

    ``-stop_gradient(min(r, max_ratio)) A log pi``, mean over all tokens of the update.

    Args:
        max_ratio: Upper bound of the ratio r itself, not of its distance from 1 (TRL's ``epsilon_high``).
        common: The arguments of :class:`PolicyLoss`.

    Raises:
        UserError: an option makes no sense.
    """

    def __init__(self, max_ratio: float = 5.0, **common: Any) -> None:
        super().__init__(**common)
        require(max_ratio > 1, f"max_ratio is {max_ratio}; it bounds the ratio itself: write more than 1, such as 5")
        self.max_ratio = max_ratio

    def surrogate(self, logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
        """Return the weighted negative log-likelihood of each token."""
        ratio = log_ratio.detach().exp()
        loss = -ratio.clamp(max=self.max_ratio) * advantages * logprobs
        above = (ratio > self.max_ratio) & (advantages > 0)
        return Surrogate(loss, ratio, zeros_like(above), above)

    def normaliser(self, mask: Tensor, size: UpdateSize) -> int:
        """Return the tokens of the update."""
        return max(size.tokens, 1)
