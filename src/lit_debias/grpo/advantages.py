"""Advantages of completions within their group, and over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_debias.support.distributed import all_sum

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class GroupStatistics:
    """How the valid rewards of each group lie, in float64: squares and sums of what float32 holds do not overflow."""

    centered: Tensor
    """[P, G] reward minus the mean of its group; 0 where invalid."""
    std: Tensor
    """[P, 1] standard deviation with ddof = 1; 0 for a group with fewer than two valid rewards."""

    def has_signal(self, min_std: float) -> Tensor:
        """Return [P, 1] bool: the group's rewards differ, and by at least ``min_std``."""
        return (self.std > 0) & (self.std >= min_std)


def group_statistics(rewards: Tensor, valid: Tensor) -> GroupStatistics:
    """Return mean-free rewards and the spread of each group.

    Args:
        rewards: [P, G]; what stands where ``valid`` is False does not matter, NaN included.
        valid: [P, G] bool.
    """
    count = valid.sum(1, keepdim=True)
    wide = rewards.double()
    lowest = wide.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    # above the lowest: the mean of equal rewards, rounded, may differ from each of them, and noise would be signal
    above = (wide - lowest).masked_fill(~valid, 0.0)
    centered = (above - above.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0.0)
    variance = centered.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return GroupStatistics(centered, variance.sqrt())


def group_advantages(rewards: Tensor, valid: Tensor, scale: Scale, min_std: float, eps: float = 1e-4) -> Tensor:
    """Return [P, G] advantages: rewards minus the mean of their group, divided by a standard deviation.

    GRPO (arXiv 2402.03300, section 4.1.2) divides by the group's own (``"group"``), Dr. GRPO (arXiv
    2503.20783) by nothing (``"none"``); ``"batch"`` takes one over all valid rewards of all ranks.
    All are ddof = 1, and ``eps`` is added to them, as TRL does.

    Args:
        rewards: [P, G]; what stands where ``valid`` is False does not matter.
        valid: [P, G] bool.
        scale: What to divide by.
        min_std: A group whose standard deviation is below this, or with fewer than two valid rewards, gets
            advantage 0: dividing by a rounding error makes noise look like signal.
        eps: Added to the divisor.
    """
    groups = group_statistics(rewards, valid)
    signal = groups.centered * groups.has_signal(min_std)
    if scale != "none":
        signal = signal / ((groups.std if scale == "group" else batch_statistics(rewards, valid)[1]) + eps)
    return narrow(signal, rewards.dtype)


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in a narrower type; what is beyond its range becomes its largest number, not infinite."""
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def batch_statistics(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (ddof = 1) of the valid values of all ranks, two float64 scalars.

    Collective: every rank must call it. Both are 0 where nothing is valid, the second also for one value.
    """
    known = values.double().masked_fill(~valid, 0.0)
    count, total = all_sum(torch.stack([valid.sum().to(known.dtype), known.sum()]))
    mean = total / count.clamp(min=1)
    deviation = (known - mean).masked_fill(~valid, 0.0)
    return mean, (all_sum(deviation.square().sum()) / (count - 1).clamp(min=1)).sqrt()


def zero_std_fraction(rewards: Tensor, valid: Tensor, min_std: float = 0.0) -> Tensor:
    """Return the share, in [0, 1], of this rank's groups whose [P, G] rewards carry no signal.

    The metric ``frac_reward_zero_std``; asked of each reward, since a sum hides a reward that went silent.
    """
    return (~group_statistics(rewards, valid).has_signal(min_std)).float().mean()
