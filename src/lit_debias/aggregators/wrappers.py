"""Aggregators around another one: they change the scores that it sees, or the advantages that it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_debias.aggregators.aggregator import Aggregator, batch_means, checked_names, require, scored
from lit_debias.aggregators.learned import RESUME, WorstMean
from lit_debias.errors import UserError, did_you_mean
from lit_debias.grpo.advantages import group_statistics, narrow
from lit_debias.support.distributed import gather_objects
from lit_debias.types import Scores


class Wrapper(Aggregator):
    """An aggregator that hands transformed scores to another one."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        self.columns = aggregator.columns

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return self.aggregator.names

    def transform(self, scores: Scores) -> Scores:
        """Return the scores that the inner aggregator sees; by default those that were given."""
        return scores

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Return [P, G] advantages."""
        return self.aggregator(self.transform(scores), step)

    def total(self, scores: Scores, step: int) -> Tensor:
        """Return the inner aggregator's combined reward, [P, G]; NaN for a completion that it leaves out."""
        return self.aggregator.total(self.transform(scores), step)

    def has_signal(self, scores: Scores, step: int) -> Tensor:
        """Return [P] bool, whether the inner aggregator finds a difference within a group."""
        return self.aggregator.has_signal(self.transform(scores), step)

    @property
    def learns(self) -> bool:
        """Whether it, or the inner aggregator, learns from the rollouts that it sees."""
        return type(self).state_dict is not Wrapper.state_dict or self.aggregator.learns

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return the inner aggregator's metrics, of the scores that it sees."""
        return self.aggregator.metrics(self.transform(scores), advantages, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner aggregator's state."""
        return {"aggregator": self.aggregator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            UserError: the checkpoint is of another aggregator.
        """
        require("aggregator" in state, f"{type(self).__name__}: the checkpoint holds no inner aggregator; {RESUME}")
        self.aggregator.load_state_dict(state["aggregator"])


@dataclass(frozen=True)
class Gate:
    """When a reward counts, in YAML ``{reward: fluency, least: 0.5}``.

    Raises:
        UserError: ``least`` or ``closed`` is NaN or infinite.
    """

    reward: str
    """Reward that opens the gate."""
    least: float
    """Score of that reward from which on the gate is open."""
    closed: float = 0.0
    """Score that counts behind a closed gate; 0 is the least of the usual range."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.least) and math.isfinite(self.closed), f"gate {self}: write finite numbers")


class Gated(Wrapper):
    """Lets a reward count only where another one is high enough, and aggregates the result.

    The conditioned rewards of GDPO (Liu et al., arXiv 2601.05242): ``r`` where the gate's reward is at least
    ``least``, else ``closed``. So an easy reward cannot be collected at the cost of a more important one. Gates read
    the scores as they were given. Where a gate's reward has no opinion, the gated one has none either.

    Args:
        aggregator: What aggregates the gated scores, e.g. WeightedSum or GDPO. A reward that only opens gates needs
            no weight there.
        gates: Gated reward -> what opens its gate.

    Raises:
        UserError: there are no gates, or one is before a reward that the aggregator does not use.
    """

    def __init__(self, aggregator: Aggregator, gates: Mapping[str, Gate]) -> None:
        super().__init__(aggregator)
        require(bool(gates), "Gated: gates is empty; write {REWARD: {reward: OTHER, least: 0.5}}")
        _check_used("Gated: gates", gates, aggregator)
        self.gates = {name: gates[name] for name in sorted(gates)}

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        return tuple(sorted({*self.aggregator.names, *(gate.reward for gate in self.gates.values())}))

    def transform(self, scores: Scores) -> Scores:
        """Return the scores with those behind closed gates replaced."""
        values, valid = dict(scores.values), dict(scores.valid)
        for name, (is_open, known) in self._gates(scores).items():
            values[name] = scores.values[name].where(is_open, self.gates[name].closed)
            valid[name] = scores.valid[name] & known
        return replace(scores, values=values, valid=valid)

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return the inner metrics of the gated scores, and ``rewards/<name>/gate_open``, a share in [0, 1]."""
        gates = self._gates(scores)
        opened = Scores(
            {name: is_open.float() for name, (is_open, _) in gates.items()},
            {name: known for name, (_, known) in gates.items()},
        )
        shares = {f"rewards/{name}/gate_open": share for name, share in batch_means(opened, tuple(gates)).items()}
        return super().metrics(scores, advantages, step) | shares

    def _gates(self, scores: Scores) -> dict[str, tuple[Tensor, Tensor]]:
        """Return gated reward -> whether its gate is open, and whether that is known, [P, G] bool each."""
        return {
            name: (scores.values[gate.reward] >= gate.least, scores.valid[gate.reward])
            for name, gate in self.gates.items()
        }


class LowerConfidenceBound(Wrapper):
    """Makes one cautious reward of several that judge the same: mean less ``kappa`` standard deviations.

    Where the members of an ensemble disagree, none of them should be trusted: the uncertainty-weighted optimisation
    (UWO) of Coste et al. (arXiv 2310.02743), with the standard deviation (ddof = 1) in the place of the variance,
    so that ``kappa`` has no unit. An ensemble has no opinion where fewer than two of its members have one: the
    uncertainty is unknown there, and must not be taken for 0.

    Args:
        aggregator: What aggregates the ensembles and all other rewards; ensembles go by their own names there.
        ensembles: Name of an ensemble -> names of its members, at least two.
        kappa: Standard deviations below the mean; 0 is the plain mean.

    Raises:
        UserError: there is no ensemble, one has fewer than two members or the name of a member, the aggregator does
            not use it, or ``kappa`` is negative.
    """

    def __init__(self, aggregator: Aggregator, ensembles: Mapping[str, Sequence[str]], kappa: float = 1.0) -> None:
        super().__init__(aggregator)
        require(bool(ensembles), "LowerConfidenceBound: ensembles is empty; write {NAME: [REWARD, REWARD]}")
        require(0 <= kappa < math.inf, f"LowerConfidenceBound: kappa is {kappa}; write 0 or more, such as 1")
        _check_used("LowerConfidenceBound: ensembles", ensembles, aggregator)
        self.ensembles = {
            name: checked_names(f"LowerConfidenceBound: ensemble '{name}'", ensembles[name])
            for name in sorted(ensembles)
        }
        members = {member for group in self.ensembles.values() for member in group}
        for name, group in self.ensembles.items():
            require(len(group) > 1, f"LowerConfidenceBound: ensemble '{name}' has one member; name two or more")
            require(name not in members, f"LowerConfidenceBound: '{name}' is an ensemble and a member; rename one")
        self.kappa = kappa

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards that it needs scores of."""
        members = {member for group in self.ensembles.values() for member in group}
        return tuple(sorted(members | (set(self.aggregator.names) - self.ensembles.keys())))

    def transform(self, scores: Scores) -> Scores:
        """Return the scores with one more reward for each ensemble."""
        values, valid = dict(scores.values), dict(scores.valid)
        for name in self.ensembles:
            mean, std, known = self._opinion(scores, name)
            dtype = scores.values[self.ensembles[name][0]].dtype
            values[name], valid[name] = narrow(mean - self.kappa * std, dtype), known
        return replace(scores, values=values, valid=valid)

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return the inner metrics, and ``rewards/<ensemble>/uncertainty``, the mean standard deviation of members."""
        opinions = {name: self._opinion(scores, name) for name in self.ensembles}
        spread = Scores(
            {name: std for name, (_, std, _) in opinions.items()},
            {name: known for name, (*_, known) in opinions.items()},
        )
        means = batch_means(spread, tuple(opinions))
        found = {f"rewards/{name}/uncertainty": value for name, value in means.items()}
        return super().metrics(scores, advantages, step) | found

    def _opinion(self, scores: Scores, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation of an ensemble's members, and where there are two or more, [P, G] each."""
        members = self.ensembles[name]
        valid = torch.stack([scores.valid[member] for member in members], -1)
        values = torch.stack([scores.filled(member).double() for member in members], -1)
        count = valid.sum(-1)
        std = group_statistics(values.flatten(0, 1), valid.flatten(0, 1)).std.view(count.shape)
        return values.sum(-1) / count.clamp(min=1), std, count > 1


class GroupMaxMin(Wrapper):
    """Raises the protected group whose mean reward is the lowest, by the weight of its prompts.

    ``max over policies of min over groups of the mean``: the objective of MaxMin-RLHF (Chakraborty et al., arXiv
    2402.08925) with groups of prompts, those about one group of people, in the place of groups of annotators; for
    such groups the objective is that of group DRO (Sagawa et al., arXiv 1911.08731). Weights of groups are those of
    :class:`MaxMin`, over running means of the inner aggregator's combined reward. The advantages of a group's
    prompts are multiplied by its weight over its share of the prompts, both among the groups that the rollout
    holds: frequent groups do not count more, and the step keeps its size. Prompts without a group (null or empty)
    keep their advantages. How missing scores count is up to the inner aggregator.

    A rollout of few prompts holds few groups, and only their order matters in it: use many prompts in a step.

    Args:
        aggregator: What turns scores into advantages, e.g. WeightedSum or GDPO.
        column: Data column with the group of each prompt, compared as text.
        temperature: Difference of means that changes a ratio of weights by a factor of e; 0 trains the worst alone.
        smoothing: Share of the old running mean that is kept in each rollout, in [0, 1).

    Raises:
        UserError: ``temperature`` or ``smoothing`` is out of its range; and when called, there is no such column.
    """

    def __init__(
        self, aggregator: Aggregator, column: str = "group", temperature: float = 0.05, smoothing: float = 0.9
    ) -> None:
        super().__init__(aggregator)
        self.column = column
        self.columns = (*aggregator.columns, column)
        self.worst = WorstMean("GroupMaxMin", temperature, smoothing)

    def __call__(self, scores: Scores, step: int) -> Tensor:
        """Update the means and return [P, G] advantages."""
        advantages = super().__call__(scores, step)
        groups = self._groups(scores)
        prompts, means = self._counted(groups, self.total(scores, step))
        self.worst.update(means)
        weights = self.worst.weights(tuple(prompts))
        grouped = sum(prompts[group] for group in weights)
        factors = {group: weight * grouped / prompts[group] for group, weight in weights.items()}
        of_prompt = advantages.double().new_tensor([factors.get(group, 1.0) for group in groups])
        return narrow(advantages * of_prompt[:, None], advantages.dtype)

    def metrics(self, scores: Scores, advantages: Tensor, step: int) -> dict[str, float]:
        """Return the inner metrics, and ``groups/<group>/mean|weight`` of all groups so far: the running means."""
        found = super().metrics(scores, advantages, step)
        found |= {f"groups/{group}/mean": mean for group, mean in self.worst.means.items()}
        return found | {f"groups/{group}/weight": weight for group, weight in self.worst.weights().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the running means and the inner aggregator's state."""
        return super().state_dict() | {"means": dict(self.worst.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            UserError: the checkpoint is of another aggregator.
        """
        super().load_state_dict(state)
        require("means" in state, f"GroupMaxMin: the checkpoint holds no means; {RESUME}")
        self.worst.means = dict(state["means"])

    def _groups(self, scores: Scores) -> list[str]:
        """Return the group of each prompt, [P]; empty for none."""
        if self.column not in scores.columns:
            raise UserError(
                f"GroupMaxMin: there is no data column '{self.column}'{did_you_mean(self.column, scores.columns)}; "
                "map it with data.init_args.columns, or name another with column"
            )
        return ["" if value is None else str(value) for value in scores.columns[self.column]]

    def _counted(self, groups: Sequence[str], total: Tensor) -> tuple[dict[str, int], dict[str, float]]:
        """Return group -> prompts, and group -> mean of the combined reward, both over all ranks (collective)."""
        sums = total.double().where(scored(total), 0.0).sum(1).tolist()
        counts = scored(total).sum(1).tolist()
        prompts: dict[str, int] = {}
        sum_of: dict[str, float] = {}
        count_of: dict[str, int] = {}
        for rank in gather_objects(list(zip(groups, sums, counts, strict=True))):
            for group, value, count in rank:
                prompts[group] = prompts.get(group, 0) + 1
                sum_of[group] = sum_of.get(group, 0.0) + value
                count_of[group] = count_of.get(group, 0) + count
        named = {group: number for group, number in prompts.items() if group}
        return named, {group: sum_of[group] / count_of[group] for group in named if count_of[group]}


def _check_used(what: str, names: Mapping[str, Any], aggregator: Aggregator) -> None:
    for name in sorted(names.keys() - set(aggregator.names)):
        hint = did_you_mean(name, aggregator.names)
        raise UserError(f"{what} names '{name}', which the aggregator does not use{hint}")
