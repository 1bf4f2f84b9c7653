"""Who has which pairs, and what margins say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_debias_deberta.mixture import FLOOR, likelihoods, log_likelihood, purity, shares


@dataclass(frozen=True)
class Pairs:
    """The N pairs of a stage, and their U users."""

    users: list[str]
    """[U] in the order of their first pair."""
    groups: list[str | None]
    """[U] the group that a user is known to be of."""
    user_of: Tensor
    """[N] int64, whose pair it is."""

    @classmethod
    def of(cls, users: Sequence[str], groups: Sequence[str | None] | None) -> Pairs:
        """Return the pairs of N rows with their users and known groups."""
        names = list(dict.fromkeys(users))
        number = {name: index for index, name in enumerate(names)}
        known = dict(zip(users, groups, strict=True)) if groups else {}
        return cls(names, [known.get(name) for name in names], torch.tensor([number[name] for name in users]))

    @property
    def counts(self) -> Tensor:
        """[U] pairs of each user."""
        return torch.bincount(self.user_of, minlength=len(self.users))

    def likelihood(self, margins: Tensor) -> Tensor:
        """Return each user's log-likelihood [U, K] from the margins [N, K] of all pairs."""
        return likelihoods(margins, self.user_of, len(self.users))

    def purity(self, clusters: Tensor) -> float | None:
        """Return the purity of clusters [U] among users whose group is known, None where nobody's is."""
        of_known = [(cluster, name) for cluster, name in zip(clusters, self.groups, strict=True) if name is not None]
        if not of_known:
            return None
        found, names = zip(*of_known, strict=True)
        return purity(torch.stack(found), names)

    def known(self) -> dict[str, Tensor]:
        """Return known group -> [N] bool, which pairs are of its users; empty where nobody's group is known."""
        names = sorted({name for name in self.groups if name is not None})
        return {name: torch.tensor([found == name for found in self.groups])[self.user_of] for name in names}


def prior_of(pairs: Pairs, users: Sequence[str], weights: Tensor, eta: Tensor) -> Tensor:
    """Return what is known of each of the pairs' users beforehand, [U, K]: their weights, or eta [K] of a new user.

    Each is at least :data:`~lit_debias_deberta.mixture.FLOOR`, since a user may be in the wrong group.

    Args:
        pairs: Of U users.
        users: [V] whose weights are known.
        weights: [V, K].
        eta: [K] the groups' shares.
    """
    known = dict(zip(users, weights, strict=True))
    prior = torch.stack([known.get(user, eta) for user in pairs.users]).clamp(min=FLOOR)
    return prior / prior.sum(1, keepdim=True)


def round_figures(
    pairs: Pairs, likelihood: Tensor, before: Tensor, after: Tensor, tolerance: float
) -> dict[str, float]:
    """Return what is logged of a round.

    ``em/log_likelihood`` is per training pair, before users change groups; ``em/changed`` the share of users who do;
    ``em/share_K`` the share of all users in a group, ``em/groups`` how many groups there are, and ``em/purity`` where
    groups are known.

    Args:
        pairs: N training pairs of U users.
        likelihood: [U, K].
        before: [U, K] weights in the round.
        after: [U, K] weights of the next one.
        tolerance: A weight that moves by no more has not changed.
    """
    found = {
        "em/groups": float(after.shape[1]),
        "em/log_likelihood": log_likelihood(likelihood, shares(before)) / len(pairs.user_of),
        "em/changed": float(((after - before).abs().amax(1) > tolerance).double().mean()),
    }
    found |= {f"em/share_{group}": float(share) for group, share in enumerate(after.mean(0))}
    known = pairs.purity(after.argmax(1))
    return found if known is None else found | {"em/purity": known}


def held_out_figures(pairs: Pairs, margins: Tensor, seen: Tensor, prior: Tensor) -> dict[str, float]:
    """Return how well rewards say what their users prefer; an equal score counts half.

    ``log_likelihood`` is per pair; ``accuracy`` by the reward of each user's group, of all pairs and as
    ``accuracy/GROUP`` of those of a known group; ``reward_K/GROUP`` by each reward.

    Args:
        pairs: N pairs of U users.
        margins: [N, K].
        seen: [N] bool, which pairs count.
        prior: [U, K], of which a user's group is the largest.
    """
    likelihood = likelihoods(margins[seen], pairs.user_of[seen], len(pairs.users))
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    own = right.gather(1, prior.argmax(1)[pairs.user_of, None])[:, 0]
    figures = {
        "log_likelihood": log_likelihood(likelihood, prior) / int(seen.sum()),
        "accuracy": float(own[seen].mean()),
    }
    for name, members in pairs.known().items():
        if bool((members & seen).any()):
            figures[f"accuracy/{name}"] = float(own[members & seen].mean())
            figures |= {f"reward_{k}/{name}": float(column[members & seen].mean()) for k, column in enumerate(right.T)}
    return figures
