"""Weighted rewards: summed and then normalised, or each normalised and then summed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_debias.aggregators.aggregator import Aggregator, checked_min_std, normalised, scored, spreads, weighted_mean
from lit_debias.errors import UserError
from lit_debias.grpo.advantages import Scale, batch_statistics, group_advantages, narrow
from lit_debias.types import Scores


@dataclass(frozen=True)
class LinearSchedule:
    """A weight that moves in a straight line, in YAML ``{start: 0.0, end: 1.0, steps: 100}``.

    Raises:
        UserError: ``steps`` is below 1, or ``begin`` is negative.
    """

    start: float
    """Value until the step ``begin``."""
    end: float
    """Value from the step ``begin + steps`` on."""
    steps: int
    """Length of the way, in rollout steps."""
    begin: int = 0
    """Rollout step at which the way begins."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.begin < 0:
            raise UserError(f"schedule {self}: steps must be at least 1, and begin at least 0")

    def __call__(self, step: int) -> float:
        """Return the value at a rollout step."""
        way = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        return self.start + way * (self.end - self.start)


class Weighing(Aggregator):
    """An aggregator with one weight for each reward, whatever they come from."""

    @abstractmethod
    def weights(self, step: int) -> dict[str, float]:
        """Return reward name -> weight at a rollout step, in the order of names."""

    def total(self, scores: Scores, step: int) -> Tensor:
        """Return the weighted mean of the rewards that scored each completion, [P, G]; NaN where there is none."""
        return weighted_mean(scores, self.weights(step))

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return :func:`influence`, and ``rewards/<name>/weight``."""
        weights = {f"rewards/{name}/weight": weight for name, weight in self.weights(step).items()}
        return super().metrics(scores, advantages, step) | weights


class Scheduled(Weighing):
    """An aggregator whose weights are given, or move along a schedule."""

    def __init__(self, weights: Mapping[str, float | LinearSchedule], option: str = "weights") -> None:
        # sorted: a sum of floats must not depend on the order in which the rewards were written down
        self.schedules = {name: checked_schedule(name, weights[name]) for name in sorted(weights)}
        if not any(schedule.start or schedule.end for schedule in self.schedules.values()):
            raise UserError(f"aggregator: no weight is positive; write {option}: {{REWARD: 1.0}}")

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return tuple(self.schedules)

    def weights(self, step: int) -> dict[str, float]:
        """Return reward name -> weight at a rollout step, in the order of names."""
        return {name: schedule(step) for name, schedule in self.schedules.items()}


class WeightedSum(Scheduled):
    """Sums the weighted rewards, then normalises in each group: GRPO's order.

    A completion that lacks a score gets the weighted sum that it would have if the missing rewards had agreed
    with the others: ``sum_present(w r) * sum(w) / sum_present(w)``.

    Args:
        weights: Reward name -> weight, or a linear schedule of weights; none negative.
        scale: Divide by the standard deviation of the group, of the whole batch (over all ranks), or not at all.
        min_std: Groups whose combined rewards spread less than this get advantage 0.

    Raises:
        UserError: a weight is negative, NaN or infinite, or all are 0.
    """

    def __init__(
        self, weights: Mapping[str, float | LinearSchedule], scale: Scale = "group", min_std: float = 1e-4
    ) -> None:
        super().__init__(weights)
        self.scale = scale
        self.min_std = checked_min_std(min_std)

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] advantages."""
        weights = self.weights(step)
        return normalised(weighted_mean(scores, weights), self.scale, self.min_std, sum(weights.values()))

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool, whether the weighted sums of a group spread by ``min_std``."""
        weights = self.weights(step)
        return spreads(weighted_mean(scores, weights).double() * sum(weights.values()), self.min_std)


class GDPO(Scheduled):
    """Normalises each reward in its group, sums with weights, then normalises over the batch: arXiv 2601.05242.

    Rewards of any range get the influence that their weight says. Missing scores renormalise the weights of their
    completion, as in :class:`WeightedSum`; a group in which no reward shows a spread gets advantage 0.

    Args:
        weights: Reward name -> weight, or a linear schedule of weights; none negative.
        min_std: A reward that spreads less than this within a group says nothing about that group: brought to unit
            variance, its noise would count as much as a signal. One number, or reward name -> number.

    Raises:
        UserError: a weight is negative, NaN or infinite, all are 0, or ``min_std`` names an unknown reward.
    """

    def __init__(
        self, weights: Mapping[str, float | LinearSchedule], min_std: float | Mapping[str, float] = 0.01
    ) -> None:
        super().__init__(weights)
        floors = min_std if isinstance(min_std, Mapping) else dict.fromkeys(weights, min_std)
        if floors.keys() != weights.keys():
            raise UserError(f"GDPO: min_std names {sorted(floors)}; name exactly the rewards {sorted(weights)}")
        self.min_std = {name: checked_min_std(floor) for name, floor in floors.items()}

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] advantages."""
        weights, units = self.weights(step), self._units(scores)
        signal = self._signal(units, weights)[:, None]
        combined = weighted_mean(Scores(units, scores.valid), weights)
        scale = sum(weights.values())
        valid = scored(combined)
        mean, std = batch_statistics(combined, valid)
        advantages = (combined - mean) * scale / (std * scale + 1e-4)
        return narrow(advantages.masked_fill(~(valid & signal), 0.0), combined.dtype)

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool, whether a reward spreads within a group by its ``min_std``, and others do not undo it."""
        weights, units = self.weights(step), self._units(scores)
        return self._signal(units, weights) & spreads(weighted_mean(Scores(units, scores.valid), weights), 1e-6)

    def _units(self, scores: Scores) -> dict[str, Tensor]:
        """Return each reward at unit variance within its group, [P, G]."""
        return {
            name: group_advantages(scores.values[name], scores.valid[name], "group", self.min_std[name])
            for name in self.names
        }

    def _signal(self, units: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        return torch.stack([units[name] * weight for name, weight in weights.items()]).any(0).any(1)


def checked_schedule(name: str, weight: float | LinearSchedule) -> LinearSchedule:
    """Return a weight as a schedule.

    Raises:
        UserError: a value of it is negative, NaN or infinite.
    """
    schedule = weight if isinstance(weight, LinearSchedule) else LinearSchedule(weight, weight, 1)
    for value in (schedule.start, schedule.end):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(
                f"aggregator: the weight of '{name}' is {value}; write a finite number that is not negative"
            )
    return schedule
