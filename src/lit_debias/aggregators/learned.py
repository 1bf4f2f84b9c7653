"""Weights that are learned while the policy is: multipliers of constraints, and the weights of the worst reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lit_debias.aggregators.aggregator import batch_means, checked_min_std, checked_names, normalised, require
from lit_debias.aggregators.weighted import LinearSchedule, Scheduled, Weighing
from lit_debias.grpo.advantages import Scale
from lit_debias.types import Scores


class Lagrangian(Scheduled):
    """Maximises an objective subject to ``mean of a reward >= least``, with learned multipliers.

    A constraint's reward is weighted with its multiplier, which is at least 0 and rises while the constraint is
    violated: ``multiplier += rate * (least - mean over the rollout)``, the projected dual ascent of constrained
    policy optimisation (Tessler et al., arXiv 1805.11074); for reward models of text Moskovitz et al., arXiv
    2310.04373. The sum of all is divided by 1 + multipliers (for objective weights that add up to 1), so that the
    step keeps its size (Stooke et al., arXiv 2007.03964). Multipliers move before they are used.

    Missing scores renormalise the weights of their completion, as in :class:`WeightedSum`, and do not count in the
    mean; a multiplier keeps its value in a rollout in which nothing was scored.

    Args:
        objective: Reward name -> weight, or a linear schedule of weights; none negative.
        constraints: Reward name -> least mean. A reward may be in both.
        rate: What a multiplier gains in one rollout where the mean is 1 too low.
        maximum: Upper bound of each multiplier, for constraints that cannot be met.
        scale: Divide by the standard deviation of the group, of the whole batch (over all ranks), or not at all.
        min_std: Groups whose combined rewards spread less than this get advantage 0.

    Raises:
        UserError: a weight is negative, NaN or infinite, or all are 0; there is no constraint, or one is not finite;
            or ``rate`` or ``maximum`` is not positive.
    """

    def __init__(
        self,
        objective: Mapping[str, float | LinearSchedule],
        constraints: Mapping[str, float],
        rate: float = 0.2,
        maximum: float = 10.0,
        scale: Scale = "group",
        min_std: float = 1e-4,
    ) -> None:
        super().__init__(objective, "objective")
        require(bool(constraints), "Lagrangian: constraints is empty; write {REWARD: LEAST MEAN}, or use WeightedSum")
        for name, least in constraints.items():
            require(math.isfinite(least), f"Lagrangian: the constraint of '{name}' is {least}; write a finite number")
        for option, value in (("rate", rate), ("maximum", maximum)):
            require(0 < value < math.inf, f"Lagrangian: {option} is {value}; write a positive number")
        self.constraints = {name: constraints[name] for name in sorted(constraints)}
        self.multipliers = dict.fromkeys(self.constraints, 0.0)
        self._means: dict[str, float] = {}  # of the rollout that moved the multipliers, over all ranks
        self.rate = rate
        self.maximum = maximum
        self.scale = scale
        self.min_std = checked_min_std(min_std)

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return tuple(sorted({*super().names, *self.constraints}))

    def weights(self, step: int) -> dict[str, float]:
        """Return reward name -> weight in the objective plus multiplier, over 1 + multipliers."""
        objective = super().weights(step)
        size = sum(objective.values())
        raised = {name: objective.get(name, 0.0) + self.multipliers.get(name, 0.0) for name in self.names}
        shrink = size / (size + sum(self.multipliers.values())) if size else 1.0
        return {name: weight * shrink for name, weight in raised.items()}

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Move the multipliers and return [P, G] advantages."""
        self._means = batch_means(scores, tuple(self.constraints))
        for name, mean in self._means.items():
            raised = self.multipliers[name] + self.rate * (self.constraints[name] - mean)
            self.multipliers[name] = min(max(raised, 0.0), self.maximum)
        size = sum(super().weights(step).values())
        return normalised(self.total(scores, step), self.scale, self.min_std, size)

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return the weights and their influence, ``rewards/<name>/multiplier``, and ``rewards/<name>/violation``.

        The violation is how far the mean over this rollout, of all ranks, lies below the constraint; at least 0. It is
        of the rollout that :meth:`__call__` saw last.
        """
        found = super().metrics(scores, advantages, step)
        found |= {f"rewards/{name}/multiplier": value for name, value in self.multipliers.items()}
        violations = {name: max(self.constraints[name] - mean, 0.0) for name, mean in self._means.items()}
        return found | {f"rewards/{name}/violation": value for name, value in violations.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the multipliers."""
        return {"multipliers": dict(self.multipliers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the multipliers of a checkpoint.

        Raises:
            UserError: they are of other constraints.
        """
        known = dict(state.get("multipliers", {}))
        require(
            known.keys() == self.constraints.keys(),
            f"Lagrangian: the checkpoint holds multipliers of {sorted(known)}, and constraints names "
            f"{sorted(self.constraints)}; resume with the same constraints",
        )
        self.multipliers = known


class MaxMin(Weighing):
    """Raises the reward whose mean is the lowest: ``max over policies of min over rewards of the mean``.

    MaxMin-RLHF (Chakraborty et al., arXiv 2402.08925), where each reward speaks for one group of people. The
    weights are ``softmax(-mean / temperature)`` over running means; temperature 0 is the paper's minimum, a positive
    one the tilted loss of Li et al. (arXiv 2007.01162), which does not jump between rewards that are nearly equal.
    Rewards must be comparable as they are, e.g. all in [0, 1].

    Missing scores renormalise the weights of their completion, as in :class:`WeightedSum`, and do not count in the
    means; a reward that has never scored has weight 0.

    Args:
        rewards: Names of the rewards.
        temperature: Difference of means that changes a ratio of weights by a factor of e; 0 trains the worst alone.
        smoothing: Share of the old running mean that is kept in each rollout, in [0, 1). Evens out the noise of small
            rollouts; much of it lags behind the policy, and makes the weights swing.
        scale: Divide by the standard deviation of the group, of the whole batch (over all ranks), or not at all.
        min_std: Groups whose combined rewards spread less than this get advantage 0.

    Raises:
        UserError: there are no rewards, one is named twice, or ``temperature`` or ``smoothing`` is out of its range.
    """

    def __init__(
        self,
        rewards: Sequence[str],
        temperature: float = 0.05,
        smoothing: float = 0.0,
        scale: Scale = "group",
        min_std: float = 1e-4,
    ) -> None:
        self._names = checked_names("MaxMin: rewards", rewards)
        self.worst = WorstMean("MaxMin", temperature, smoothing)
        self.scale = scale
        self.min_std = checked_min_std(min_std)

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return self._names

    def weights(self, step: int) -> dict[str, float]:
        """Return reward name -> weight; they add up to 1, and are equal before the first rollout."""
        if not self.worst.means:
            return dict.fromkeys(self.names, 1.0 / len(self.names))
        return dict.fromkeys(self.names, 0.0) | self.worst.weights()

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Update the means and return [P, G] advantages."""
        self.worst.update(batch_means(scores, self.names))
        return normalised(self.total(scores, step), self.scale, self.min_std)

    def state_dict(self) -> dict[str, Any]:
        """Return the running means."""
        return {"means": dict(self.worst.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the running means of a checkpoint.

        Raises:
            UserError: they are of other rewards.
        """
        unknown = sorted(state.get("means", {}).keys() - set(self.names))
        require("means" in state and not unknown, f"MaxMin: the checkpoint holds {unknown or 'no means'}; {RESUME}")
        self.worst.means = dict(state["means"])


RESUME = "resume with the aggregator that it was saved with"


class WorstMean:
    """Weights that lean towards the lowest of several running means; options as in :class:`MaxMin`."""

    def __init__(self, owner: str, temperature: float, smoothing: float) -> None:
        require(0 <= temperature < math.inf, f"{owner}: temperature is {temperature}; write 0 or more, such as 0.05")
        require(0 <= smoothing < 1, f"{owner}: smoothing is {smoothing}; write at least 0 and below 1, such as 0.9")
        self.temperature = temperature
        self.smoothing = smoothing
        self.means: dict[str, float] = {}

    def update(self, now: Mapping[str, float]) -> None:
        """Move the running means towards those of a rollout; the first one is taken as it is."""
        for name, mean in now.items():
            self.means[name] = self.smoothing * self.means.get(name, mean) + (1 - self.smoothing) * mean
        self.means = dict(sorted(self.means.items()))

    def weights(self, names: Sequence[str] | None = None) -> dict[str, float]:
        """Return name -> weight, for all names that have a mean or some of them; the weights add up to 1."""
        means = {name: mean for name, mean in self.means.items() if names is None or name in names}
        lowest = min(means.values(), default=0.0)
        raw = {name: math.exp((lowest - mean) / max(self.temperature, 1e-9)) for name, mean in means.items()}
        return {name: weight / sum(raw.values()) for name, weight in raw.items()}
