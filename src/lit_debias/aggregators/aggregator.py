"""What an aggregator is, and what all of them measure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.grpo.advantages import Scale, group_advantages, group_statistics, narrow
from lit_debias.rewards.reward import check_columns
from lit_debias.support.distributed import all_sum
from lit_debias.types import Scores


class Aggregator(ABC):
    """Turns the scores of a rollout into advantages. The ``__init__`` signature is its YAML schema.

    What it learns (multipliers, running means) must be equal on every rank, and in :meth:`state_dict`.
    """

    columns: tuple[str, ...] = ()
    """Data columns that must be there; they come as :attr:`Scores.columns`."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""

    @abstractmethod
    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] float32 advantages, exactly 0 for a completion that no reward has scored.

        Collective: every rank calls it at the same time, each with its own whole groups. Called once for each
        training rollout, so this is where an aggregator learns.

        Args:
            scores: Scores of this rank's rollout; rewards outside :attr:`names` are ignored.
            step: Rollout step, from 0, for schedules.
        """

    def total(self, scores: Scores, step: int) -> Tensor:
        """Return the combined reward for the logs, [P, G]; NaN for a completion that no reward has scored.

        By default the plain mean over the rewards that scored the completion. Not collective, and learns nothing:
        validation calls it too.
        """
        return weighted_mean(scores, dict.fromkeys(self.names, 1.0))

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool: whether the completions of a group differ, so that there is something to learn from them.

        By default, whether :meth:`total` spreads within the group. A class that takes a small spread for none, or that
        looks at each reward, says so itself. Not collective, and learns nothing.
        """
        return spreads(self.total(scores, step))

    @property
    def learns(self) -> bool:
        """Whether it learns from the rollouts that it sees: whether the class has a :meth:`state_dict` of its own."""
        return type(self).state_dict is not Aggregator.state_dict

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return what to log of a training rollout, equal on every rank.

        By default :func:`influence`. Collective, as :meth:`__call__`, and called after it.

        Args:
            scores: Scores of this rank's rollout.
            advantages: [P, G] what :meth:`__call__` made of them.
            step: Rollout step.
        """
        return influence(scores, self.names, advantages)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise :class:`UserError` where the data lacks one of :attr:`columns`."""
        check_columns("the aggregator", self.columns, available)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, in plain dicts, numbers and texts; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")


def weighted_mean(scores: Scores, weights: Mapping[str, float]) -> Tensor:
    """Return the mean of the rewards that scored each completion, [P, G]; NaN where none with a weight did."""
    total = torch.stack([scores.filled(name).double() * weight for name, weight in weights.items()])
    present = torch.stack([scores.valid[name].double() * weight for name, weight in weights.items()])
    return narrow(total.sum(0) / present.sum(0), next(iter(scores.values.values())).dtype)


def scored(total: Tensor) -> Tensor:
    """Return where a [P, G] combined reward is there: bool, False for a completion that no reward has scored."""
    return total.isfinite()


def spreads(total: Tensor, min_std: float = 0.0) -> Tensor:
    """Return [P] bool: whether a [P, G] combined reward differs within each group, by ``min_std`` at least."""
    return group_statistics(total, scored(total)).has_signal(min_std)[:, 0]


def normalised(total: Tensor, scale: Scale, min_std: float, weight: float = 1.0) -> Tensor:
    """Return the [P, G] advantages of ``weight`` times combined rewards that are NaN where a completion is left out."""
    return narrow(group_advantages(total.double() * weight, scored(total), scale, min_std), total.dtype)


def influence(scores: Scores, names: Sequence[str], advantages: Tensor) -> dict[str, float]:
    """Return how much each reward varies, and how much of the advantages follows it, over all ranks (collective).

    ``rewards/<name>/group_std`` is the mean standard deviation within a group, over groups with two scores or more.
    ``rewards/<name>/share``, in [-1, 1], is the covariance of the advantages with the scores, brought to unit
    variance in each group, over the sum of its absolute values: the absolute shares add up to 1 (all are 0 where no
    advantage follows any reward), and a reward that the advantages push against has a negative one. Rewards that
    go together share their credit, also where one of them has weight 0.
    """
    rows = []
    for name in names:
        values, valid = scores.values[name], scores.valid[name]
        unit = group_advantages(values, valid, "group", min_std=1e-6, eps=1e-9)
        spread = group_statistics(values, valid).std.sum()
        rows.append(torch.stack([spread, (valid.sum(1) > 1).sum().to(spread), (unit.double() * advantages).sum()]))
    spreads, counts, covariances = all_sum(torch.stack(rows)).unbind(1)
    stds = spreads / counts.clamp(min=1)
    shares = covariances / covariances.abs().sum().clamp(min=1e-12)
    return {f"rewards/{name}/group_std": std for name, std in zip(names, stds.tolist(), strict=True)} | {
        f"rewards/{name}/share": share for name, share in zip(names, shares.tolist(), strict=True)
    }


def batch_means(scores: Scores, names: Sequence[str]) -> dict[str, float]:
    """Return the mean score of each reward over all ranks (collective); without those that scored nothing."""
    return {name: mean for name, (mean, _) in batch_moments(scores, names).items()}


def batch_moments(scores: Scores, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation (with N - 1; 0 of one score) of each reward over all ranks (collective).

    A reward that scored nothing is left out.
    """
    if not names:
        return {}
    rows = []
    for name in names:
        values = scores.filled(name).double()
        rows.append(torch.stack([values.sum(), values.square().sum(), scores.valid[name].sum().to(values)]))
    moments = {}
    for name, (total, squares, count) in zip(names, all_sum(torch.stack(rows)).tolist(), strict=True):
        if count:
            mean = total / count
            moments[name] = mean, math.sqrt(max(squares - count * mean * mean, 0.0) / max(count - 1, 1))
    return moments


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def checked_min_std(floor: float) -> float:
    """Return the floor if it is finite and not negative.

    Raises:
        UserError: it is not.
    """
    require(
        math.isfinite(floor) and floor >= 0,
        f"aggregator: min_std is {floor}; write a finite number that is not negative, such as 0.01",
    )
    return floor


def checked_names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of rewards, sorted: a sum of floats must not depend on the order in which they were written.

    Raises:
        UserError: there are none, or one appears twice.
    """
    require(len(names) > 0, f"{what} is empty; name the rewards")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    require(not twice, f"{what} names '{''.join(twice[:1])}' twice; name each reward once")
    return tuple(sorted(names))
