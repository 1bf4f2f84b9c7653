"""The trials of a preference mixture: each number of groups, from several starts; and which of them is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

TRIALS = ("of_size", "best")


@dataclass(frozen=True)
class Trial:
    """A number of groups, fitted from one start."""

    groups: int
    """K."""
    restart: int
    """Which start, from 0."""
    rounds: int
    """M steps that it took."""
    log_likelihood: float
    """Of the training pairs, per pair."""
    held_out: dict[str, float]
    """Figures of the validation pairs; empty without any."""
    weights: Tensor
    """[U, K] float64, how much each user belongs to each group."""
    parameters: dict[str, Tensor]
    """The trained parameters, on the CPU."""
    spread: Tensor
    """[2, K] mean and standard deviation of each reward over the training responses."""

    def summary(self) -> dict[str, Any]:
        """Return the trial's figures."""
        names = ("groups", "restart", "rounds", "log_likelihood")
        held_out = self.held_out.get("log_likelihood")
        return {name: getattr(self, name) for name in names} | {"held_out_log_likelihood": held_out}


@dataclass
class Search:
    """Trials in order; of one K the likeliest on the training pairs is kept, of several K that on held-out ones."""

    plan: list[tuple[int, int]]
    """(K, restart) of every trial."""
    finished: list[dict[str, Any]] = field(default_factory=list)
    """Figures of the trials that are done."""
    of_size: Trial | None = None
    """The best trial with the last K."""
    best: Trial | None = None
    """The best trial with one of the earlier K."""
    weights: Tensor | None = None
    """[U, K] float64 of the trial that runs; None before the first."""
    rounds: int = 0
    """Rounds of the trial that runs."""
    rounds_before: int = 0
    """Rounds of the trials before it."""

    @classmethod
    def over(cls, groups: Sequence[int], restarts: int) -> Search:
        """Return a search over numbers of groups."""
        return cls([(size, restart) for size in groups for restart in range(restarts if size > 1 else 1)])

    @property
    def is_done(self) -> bool:
        """Whether every trial is."""
        return len(self.finished) == len(self.plan)

    @property
    def current(self) -> tuple[int, int]:
        """(K, restart) of the trial that runs; of the last where all are done."""
        return self.plan[min(len(self.finished), len(self.plan) - 1)]

    def begin(self, weights: Tensor) -> None:
        """Start a trial from weights [U, K]."""
        self.rounds_before, self.rounds = self.rounds_before + self.rounds, 0
        self.weights = weights

    def finish(self, trial: Trial) -> None:
        """Take in the trial that ran."""
        self.finished.append(trial.summary())
        if self.of_size is not None and self.of_size.groups != trial.groups:
            self.best, self.of_size = self.chosen(), None
        if self.of_size is None or trial.log_likelihood > self.of_size.log_likelihood:
            self.of_size = trial

    def chosen(self) -> Trial | None:
        """Return the trial to keep so far; of equal ones that with fewer groups."""
        if self.best is None or self.of_size is None:
            return self.of_size or self.best
        figure = "log_likelihood"
        return self.of_size if self.of_size.held_out[figure] > self.best.held_out[figure] else self.best

    def state_dict(self) -> dict[str, Any]:
        """Return all as plain values and tensors."""
        state = {name: getattr(self, name) for name in Search.__dataclass_fields__}
        return state | {name: state[name] and _fields(state[name]) for name in TRIALS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, Trial(**value) if name in TRIALS and value is not None else value)
        self.plan = [(groups, restart) for groups, restart in self.plan]


def _fields(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in Trial.__dataclass_fields__}
