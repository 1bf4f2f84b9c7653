"""Expectation-maximisation over users, by hand and on a linear model whose M step is exact."""

from __future__ import annotations

import math

import pytest
import torch

from lit_debias_deberta.losses import pairs_within, preference_loss, ranking_loss
from lit_debias_deberta.mixture import (
    fill_empty,
    likelihoods,
    log_likelihood,
    purity,
    responsibilities,
    shares,
    start_weights,
)
from lit_debias_deberta.mixture_folder import alike
from lit_debias_deberta.pairs import Pairs, held_out_figures, prior_of, round_figures
from lit_debias_deberta.search import Search, Trial


def tensor(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def margin(probability: float) -> float:
    return math.log(probability / (1 - probability))


# ---------------------------------------------------------------- by hand


def test_responsibilities_by_hand():
    margins = tensor([[margin(0.8), margin(0.2)], [margin(0.5), margin(0.5)], [margin(0.25), margin(0.75)]])
    likelihood = likelihoods(margins, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(likelihood.exp(), tensor([[0.4, 0.1], [0.25, 0.75]]))
    eta = tensor([0.25, 0.75])
    soft = responsibilities(likelihood, eta, "soft")
    torch.testing.assert_close(soft, tensor([[4 / 7, 3 / 7], [0.1, 0.9]]))
    assert responsibilities(likelihood, eta, "hard").tolist() == [[1, 0], [0, 1]]
    assert log_likelihood(likelihood, eta) == pytest.approx(math.log(0.175) + math.log(0.625))
    torch.testing.assert_close(shares(soft), soft.mean(0))
    assert shares(tensor([[1.0, 0.0]])).tolist() == pytest.approx([1 / 1.001, 0.001 / 1.001])


def test_the_loss_by_hand_and_with_one_group():
    margins = tensor([[margin(0.8), margin(0.2)], [margin(0.5), margin(0.25)]])
    weights = tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = -(math.log(0.8) + 0.5 * math.log(0.5) + 0.5 * math.log(0.25)) / 2
    assert float(preference_loss(margins, weights)) == pytest.approx(expected)

    logits = torch.randn(12, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # chosen, rejected
    pairs = pairs_within(torch.arange(6).repeat_interleave(2))
    plain = ranking_loss(logits, tensor([[1.0], [0.0]]).repeat(6, 1), pairs, margin=0.0)
    ours = preference_loss(logits[::2] - logits[1::2], torch.ones(6, 1, dtype=torch.float64))
    assert float(ours) == pytest.approx(float(plain), rel=1e-12)


def test_an_empty_group_gets_the_user_whom_the_rewards_fit_worst():
    likelihood = tensor([[-1, -9, -9], [-6, -9, -9], [-4, -9, -9], [-9, -8, -9]])
    weights = responsibilities(likelihood, tensor([1, 1, 1]) / 3, "hard")
    pairs = torch.tensor([1, 6, 2, 1])  # per pair: -1, -1, -2, and the last user is alone in its group
    assert fill_empty(weights, likelihood, pairs).argmax(1).tolist() == [0, 0, 2, 1]
    shared = tensor([[0.9, 0.1], [0.8, 0.2]])  # nobody's first choice, and not empty
    assert torch.equal(fill_empty(shared, likelihood[:2, :2], pairs[:2]), shared)


def test_users_start_in_equal_parts():
    parts = [start_weights(7, 3, "shuffled", seed) for seed in (0, 0, 1)]
    assert sorted(parts[0].sum(0).tolist()) == [2, 2, 3]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])
    assert start_weights(4, 2, "in_turn", 5).argmax(1).tolist() == [0, 1, 0, 1]


def test_purity_by_hand():
    assert purity(torch.tensor([0, 0, 0, 1, 1]), ["a", "a", "b", "b", "b"]) == 0.8
    pairs = Pairs.of(["u", "v", "u", "w"], ["a", None, "a", "b"])
    assert (pairs.users, pairs.counts.tolist()) == (["u", "v", "w"], [2, 1, 1])
    assert pairs.purity(torch.tensor([0, 1, 0])) == 0.5
    assert Pairs.of(["u"], None).purity(torch.tensor([0])) is None
    figures = round_figures(pairs, torch.zeros(3, 2), torch.eye(3)[:, :2], tensor([[1, 0], [1, 0], [0, 1]]), 1e-3)
    assert (figures["em/changed"], figures["em/share_0"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_held_out_figures_by_hand():
    pairs = Pairs.of(["u", "u", "new", "v"], ["a", "a", "a", "b"])
    margins = tensor([[margin(0.8), margin(0.2)], [0.0, 1.0], [margin(0.6), margin(0.3)], [9.0, -9.0]])
    prior = prior_of(pairs, ["v", "u"], tensor([[0.0, 1.0], [1.0, 0.0]]), tensor([0.75, 0.25]))
    floor = 0.001 / 1.001
    torch.testing.assert_close(prior, tensor([[1 - floor, floor], [0.75, 0.25], [floor, 1 - floor]]))
    figures = held_out_figures(pairs, margins, torch.tensor([True, True, True, False]), prior)
    assert figures["accuracy"] == figures["accuracy/a"] == pytest.approx(2.5 / 3)
    assert (figures["reward_0/a"], figures["reward_1/a"]) == (pytest.approx(2.5 / 3), pytest.approx(1 / 3))
    assert "accuracy/b" not in figures
    known = (1 - floor) * 0.8 * 0.5 + floor * 0.2 / (1 + math.exp(-1))
    assert figures["log_likelihood"] == pytest.approx((math.log(known) + math.log(0.75 * 0.6 + 0.25 * 0.3)) / 3)


def test_rewards_of_different_scales_become_alike():
    logits = tensor([[5.0, -1.0], [9.0, -1.0]])  # [responses, K]
    first, second = alike(torch.stack([logits.mean(0), logits.std(0, correction=0)]))
    assert first(logits[:, 0]).tolist() == pytest.approx([1 / (1 + math.e), 1 / (1 + math.exp(-1))])
    assert second(logits[:, 1]).tolist() == [0.5, 0.5]  # one score for all: as good as its mean


def test_the_search_keeps_the_likeliest_start_and_the_number_of_groups_that_predicts_best():
    def trial(groups, restart, fit, held_out):
        return Trial(groups, restart, 2, fit, {"log_likelihood": held_out}, torch.ones(3, groups), {}, torch.ones(2))

    search = Search.over([1, 2, 3], restarts=2)
    assert search.plan == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    for made in (trial(1, 0, -9, -0.9), trial(2, 0, -2, -0.5), trial(2, 1, -3, -0.4), trial(3, 0, -1, -0.6)):
        assert search.current == (made.groups, made.restart)
        search.finish(made)
    assert not search.is_done
    again = Search.over([1], restarts=1)
    again.load_state_dict(search.state_dict())
    again.finish(trial(3, 1, -0.5, -0.7))
    assert again.is_done
    assert (again.chosen().groups, again.chosen().restart) == (2, 0)
    assert [made["held_out_log_likelihood"] for made in again.finished] == [-0.9, -0.5, -0.4, -0.6, -0.7]


# ---------------------------------------------------------------- a linear model


def exact_m_step(differences, weights) -> torch.Tensor:
    """Return the weights [F] that minimise sum_i w_i (-log sigmoid(x_i . theta)), by Newton's method."""
    theta = torch.zeros(differences.shape[1], dtype=torch.float64)
    for _ in range(50):
        wrong = torch.sigmoid(-(differences @ theta))
        gradient = (weights * wrong) @ differences
        curvature = (differences * (weights * wrong * (1 - wrong))[:, None]).T @ differences
        theta = theta + torch.linalg.solve(curvature + 1e-12 * torch.eye(len(theta), dtype=torch.float64), gradient)
    assert gradient.abs().max() < 1e-8
    return theta


def two_populations(users=24, each=12):
    """Users of whom every fourth prefers what the others reject, with noise; features of the differences [N, F]."""
    draw = torch.Generator().manual_seed(3)
    truth = tensor([1.5, -1.0])
    user_of = torch.arange(users).repeat_interleave(each)
    sign = torch.where(user_of % 4 == 0, -1.0, 1.0).double()
    features = torch.randn(users * each, 2, generator=draw, dtype=torch.float64)
    prefers = torch.rand(len(features), generator=draw, dtype=torch.float64) < torch.sigmoid(sign * (features @ truth))
    return torch.where(prefers[:, None], features, -features), user_of


@pytest.mark.parametrize("groups", [2, 3])
def test_the_likelihood_never_falls_with_an_exact_m_step(groups):
    differences, user_of = two_populations()
    weights = start_weights(24, groups, "shuffled", seed=1)
    seen = []
    for _ in range(30):
        thetas = torch.stack([exact_m_step(differences, column[user_of]) for column in weights.T], dim=1)
        likelihood = likelihoods(differences @ thetas, user_of, 24)
        eta = shares(weights)
        seen.append(log_likelihood(likelihood, eta))
        weights = responsibilities(likelihood, eta, "soft")
    rises = torch.tensor(seen).diff()
    assert rises.min() > -1e-9
    assert rises.sum() > 20
    if groups == 2:
        clusters = weights.argmax(1)
        assert purity(clusters, ["other" if user % 4 == 0 else "most" for user in range(24)]) == 1.0
        assert sorted(torch.bincount(clusters).tolist()) == [6, 18]
