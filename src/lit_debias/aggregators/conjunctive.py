"""Rewards joined by "and": no reward of a completion can be bought with another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_debias.aggregators.aggregator import Aggregator, checked_min_std, checked_names, normalised, require, spreads
from lit_debias.aggregators.weighted import LinearSchedule, Scheduled
from lit_debias.errors import UserError
from lit_debias.grpo.advantages import Scale, narrow
from lit_debias.support.distributed import fail_together
from lit_debias.types import Scores


class GeometricMean(Scheduled):
    """Multiplies the rewards, each to the power of its weight, then normalises in each group.

    ``prod(r^w)^(1 / sum(w))``, the weighted Nash social welfare (Nash 1950, "The Bargaining Problem"). Where scores
    are probabilities that a completion is good in one respect, it ranks as the probability that it is good in all
    (Wang et al., arXiv 2402.00742). Missing scores renormalise the weights of their completion, as if they had
    agreed with the others.

    Args:
        weights: Reward name -> weight, or a linear schedule of weights; none negative.
        floor: A score below it counts as it. At 0, one score of 0 silences all other rewards of a completion.
        scale: Divide by the standard deviation of the group, of the whole batch (over all ranks), or not at all.
        min_std: Groups whose combined rewards spread less than this get advantage 0.

    Raises:
        UserError: a weight is negative, NaN or infinite, all are 0, or ``floor`` is not in [0, 1); and when called,
            a score is negative.
    """

    def __init__(
        self,
        weights: Mapping[str, float | LinearSchedule],
        floor: float = 0.01,
        scale: Scale = "group",
        min_std: float = 1e-4,
    ) -> None:
        super().__init__(weights)
        require(0 <= floor < 1, f"GeometricMean: floor is {floor}; write at least 0 and below 1, such as 0.01")
        self.floor = floor
        self.scale = scale
        self.min_std = checked_min_std(min_std)

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] advantages."""
        with fail_together():
            total = self.total(scores, step)
        return normalised(total, self.scale, self.min_std)

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool, whether the means of a group spread by ``min_std``."""
        return spreads(self.total(scores, step), self.min_std)

    def total(self, scores: Scores, step: int) -> Tensor:
        """Return the weighted geometric mean of the rewards that scored each completion, [P, G]; NaN where none did.

        Raises:
            UserError: a score is negative.
        """
        weights = self.weights(step)
        present = torch.stack([scores.valid[name].double() * weight for name, weight in weights.items()])
        values = torch.stack([self._positive(name, scores) for name in weights])
        known = present.sum(0)
        mean = (values ** (present / known)).prod(0).where(known > 0, math.nan)  # 1 ** NaN is 1
        return narrow(mean, values.dtype)

    def _positive(self, name: str, scores: Scores) -> Tensor:
        known = scores.filled(name)
        if known.lt(0).any():
            raise UserError(
                f"GeometricMean: reward '{name}' gave {float(known.min()):g}, and a product needs scores "
                "of at least 0; bring it to [0, 1], or use WeightedSum"
            )
        return known.clamp(min=self.floor)


class WorstCase(Aggregator):
    """Takes the lowest reward of each completion, then normalises in each group.

    The worst-case optimisation (WCO) of Coste et al. (arXiv 2310.02743), there over the members of one ensemble.
    Rewards must be comparable as they are, e.g. all in [0, 1].

    A minimum over fewer rewards is higher, and would pay for silencing one. So a completion that lacks a score
    that others of its group have is left out (advantage 0). A reward that is silent on a whole group does not
    count there.

    Args:
        rewards: Names of the rewards.
        scale: Divide by the standard deviation of the group, of the whole batch (over all ranks), or not at all.
        min_std: Groups whose lowest rewards spread less than this get advantage 0.

    Raises:
        UserError: there are no rewards, or one is named twice.
    """

    def __init__(self, rewards: Sequence[str], scale: Scale = "group", min_std: float = 1e-4) -> None:
        self._names = checked_names("WorstCase: rewards", rewards)
        self.scale = scale
        self.min_std = checked_min_std(min_std)

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return self._names

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] advantages."""
        return normalised(self.total(scores, step), self.scale, self.min_std)

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool, whether the lowest rewards of a group spread by ``min_std``."""
        return spreads(self.total(scores, step), self.min_std)

    def total(self, scores: Scores, step: int) -> Tensor:
        """Return the lowest reward of each completion, [P, G]; NaN for one that is left out."""
        valid = torch.stack([scores.valid[name] for name in self.names])
        values = torch.stack([scores.filled(name, math.inf) for name in self.names])
        asked = valid.any(2, keepdim=True)
        complete = (valid | ~asked).all(0) & valid.any(0)
        return values.amin(0).masked_fill(~complete, math.nan)
