"""Expectation-maximisation over users who prefer alike: the first half of MaxMin-RLHF (arXiv 2402.08925).

Each of K groups of users has a reward r_k. A pair's margin under it is delta = r_k(chosen) - r_k(rejected), and
Bradley-Terry says that such a user prefers the chosen response with the probability sigmoid(delta).

Shapes: U users, K groups, N pairs. Sums over users and pairs are float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Assignment = Literal["hard", "soft"]
Start = Literal["shuffled", "in_turn"]
FLOOR = 1e-3
"""Least share of a group before normalisation: a group that has lost its users can win some back."""


def start_weights(users: int, groups: int, how: Start, seed: int) -> Tensor:
    """Return one-hot weights [U, K] that deal users to groups in equal parts, in their order or in a seeded one."""
    order = torch.arange(users)
    if how == "shuffled":
        order = torch.randperm(users, generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(users, groups, dtype=torch.float64)
    weights[order, torch.arange(users) % groups] = 1
    return weights


def likelihoods(margins: Tensor, user_of: Tensor, users: int) -> Tensor:
    """Return the log-likelihood [U, K] of each user's pairs under each reward: the sum of log sigmoid(delta).

    Args:
        margins: [N, K].
        user_of: [N] int64, whose pair it is.
        users: U; one without pairs has 0.
    """
    sums = torch.zeros(users, margins.shape[1], dtype=torch.float64)
    return sums.index_add_(0, user_of, F.logsigmoid(margins.double()))


def shares(weights: Tensor) -> Tensor:
    """Return the groups' shares eta [K] of all users: the mean of weights [U, K], at least :data:`FLOOR`; sum 1."""
    eta = weights.mean(0).clamp(min=FLOOR)
    return eta / eta.sum()


def responsibilities(likelihood: Tensor, eta: Tensor, assignment: Assignment) -> Tensor:
    """Return how much each user belongs to each group, [U, K] with rows that add up to 1: the E step.

    ``soft`` is the posterior softmax(log eta + likelihood), ``hard`` gives a user wholly to the likeliest reward.
    """
    if assignment == "soft":
        return (eta.log() + likelihood).softmax(-1)
    return F.one_hot(likelihood.argmax(-1), likelihood.shape[1]).double()


def fill_empty(weights: Tensor, likelihood: Tensor, pairs: Tensor) -> Tensor:
    """Return weights [U, K] in which each group that has nobody gets the user whom the rewards fit worst.

    A group has nobody where its mean weight is below :data:`FLOOR` and no user belongs to it most. Who is alone in a
    group stays there.

    Args:
        weights: [U, K].
        likelihood: [U, K].
        pairs: [U] how many pairs each user has.
    """
    weights = weights.clone()
    fit = (weights * likelihood).sum(1) / pairs.clamp(min=1)
    for group in range(weights.shape[1]):
        home = weights.argmax(1)
        if weights[:, group].mean() >= FLOOR or bool((home == group).any()):
            continue
        alone = torch.bincount(home, minlength=weights.shape[1])[home] == 1
        worst = int(fit.masked_fill(alone, torch.inf).argmin())
        weights[worst] = F.one_hot(torch.tensor(group), weights.shape[1]).double()
        fit[worst] = torch.inf
    return weights


def log_likelihood(likelihood: Tensor, prior: Tensor) -> float:
    """Return the log-likelihood of all users' pairs, the sum over users of log sum_k prior_k exp(likelihood_k).

    Args:
        likelihood: [U, K].
        prior: Share of each group [K], or what is known of each user [U, K].
    """
    return float((prior.log() + likelihood).logsumexp(-1).sum())


def purity(clusters: Tensor, groups: Sequence[str]) -> float:
    """Return the share of users who are of the most frequent known group of their cluster.

    Args:
        clusters: [U] int64, the group that was found.
        groups: [U] the group that is known.
    """
    found: dict[int, Counter[str]] = {}
    for cluster, group in zip(clusters.tolist(), groups, strict=True):
        found.setdefault(cluster, Counter())[group] += 1
    return sum(max(counts.values()) for counts in found.values()) / len(groups)
