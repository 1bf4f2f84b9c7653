"""Losses and figures against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lit_debias_deberta.losses import pairs_within, ranking_loss, regression_loss
from lit_debias_deberta.metrics import (
    GradedResponses,
    agreement,
    expected_calibration_error,
    hard_negative_figures,
    pairwise_accuracy,
    rank_correlations,
    spearman,
)

NAN = math.nan


def test_pairs_stay_within_a_group():
    pairs = pairs_within(torch.tensor([7, 3, 7, 3, 7, 5]))
    assert {frozenset(pair) for pair in pairs.T.tolist()} == {
        frozenset(pair) for pair in [(0, 2), (0, 4), (2, 4), (1, 3)]
    }
    assert pairs_within(torch.tensor([1, 2, 3])).shape == (2, 0)


def test_bce_by_hand_leaves_missing_labels_out():
    # logit 0 against any label costs log 2; logit log 3 (score 3/4) against 1 costs log(4/3)
    logits = torch.tensor([[0.0, 5.0], [math.log(3), -5.0]], requires_grad=True)
    loss = regression_loss(logits, torch.tensor([[0.25, NAN], [1.0, NAN]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    loss.backward()
    assert logits.grad[:, 1].tolist() == [0, 0]
    assert logits.grad[0, 0].item() == pytest.approx((0.5 - 0.25) / 2)


def test_mse_by_hand():
    logits = torch.tensor([[0.0], [math.log(3)]])  # scores 1/2 and 3/4
    loss = regression_loss(logits, torch.tensor([[0.25], [0.5]]), "mse")
    assert loss.item() == pytest.approx((0.25**2 + 0.25**2) / 2)


def test_ranking_by_hand():
    logits = torch.tensor([[1.0, 9.0], [0.0, 7.0], [3.0, 8.0]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN], [0.0, 0.5], [0.95, 0.5]])
    pairs = torch.tensor([[0, 1, 0], [1, 2, 2]])
    # first dimension: (0 over 1) by 1 and (2 over 1) by 3; (0, 2) lies within the margin; second: nothing counts
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2
    loss = ranking_loss(logits, labels, pairs, margin=0.1)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, 1].tolist() == [0, 0, 0]


def test_a_batch_without_labels_or_pairs_costs_nothing_and_has_a_gradient():
    logits = torch.ones(2, 1, requires_grad=True)
    labels = torch.full((2, 1), NAN)
    loss = regression_loss(logits, labels) + ranking_loss(logits, labels, pairs_within(torch.tensor([1, 2])), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [[0], [0]]


def test_pairwise_accuracy_by_hand():
    labels = torch.tensor([1.0, 0.5, 0.0, 0.45])
    scores = torch.tensor([0.9, 0.2, 0.2, 0.7])
    pairs = pairs_within(torch.tensor([4, 4, 4, 4]))
    # (0,1) right, (0,2) right, (0,3) right, (1,2) tie, (2,3) wrong labels 0.45 apart: right; (1,3) within the margin
    assert pairwise_accuracy(scores, labels, pairs, margin=0.1) == pytest.approx((3 + 0.5 + 1) / 5)
    assert pairwise_accuracy(1 - scores, labels, pairs, margin=0.1) == pytest.approx(0.5 / 5)
    assert math.isnan(pairwise_accuracy(scores, labels, pairs, margin=1.0))


def test_calibration_error_by_hand():
    scores = torch.tensor([0.05, 0.15, 0.95, 1.0])
    labels = torch.tensor([0.25, 0.15, 0.75, 0.75])
    # two bins: [0, .5) means 0.10 and 0.20; [.5, 1] means 0.975 and 0.75
    assert expected_calibration_error(scores, labels, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.225)
    # ten bins: 0.05 against 0.25; 0.15 against 0.15; the last bin takes 1.0 in
    assert expected_calibration_error(scores, labels, bins=10) == pytest.approx(0.25 * 0.2 + 0.5 * 0.225)
    assert expected_calibration_error(labels, labels) == 0


def test_spearman_gives_ties_their_mean_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    value = spearman(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 0.5, 0.5, 1.0]))
    assert value == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-5)
    assert math.isnan(spearman(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.5])))


def test_what_is_collected_over_batches_is_what_came_in():
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 2), torch.rand(12, 2)
    groups = torch.tensor([1, 2, 3] * 4)  # the responses to one prompt lie in different batches
    graded = GradedResponses()
    for rows in (slice(0, 5), slice(5, 12)):
        graded.update(logits[rows], labels[rows], groups[rows])
    assert all(torch.equal(a, b) for a, b in zip(graded.compute(), (logits, labels, groups), strict=True))


def test_agreement_takes_each_dimension_by_itself():
    torch.manual_seed(0)
    scores, labels = torch.rand(12, 2), torch.rand(12, 2)
    labels[3, 0] = labels[8, 1] = NAN
    groups = torch.tensor([1, 2, 3] * 4)
    figures = agreement(scores, labels, groups, ["a", "b"], 0.1)
    known = ~labels[:, 1].isnan()
    assert figures["b"]["ece"] == expected_calibration_error(scores[known, 1], labels[known, 1])
    assert figures["b"]["spearman"] == spearman(scores[known, 1], labels[known, 1])
    assert figures["a"]["pairwise_accuracy"] == pairwise_accuracy(scores[:, 0], labels[:, 0], pairs_within(groups), 0.1)


def test_rank_correlations_by_hand():
    # ranks: first 1 2 3 4, second 4 3 2 1, third 1 2 4 3: 1 - 6 * sum d^2 / (4 * 15)
    values = torch.tensor([[0.1, 0.9, 1.0], [0.2, 0.7, 2.0], [0.3, 0.6, 8.0], [0.9, 0.5, 5.0], [0.4, NAN, NAN]])
    found = rank_correlations(values)
    assert found[0] == pytest.approx([1, -1, 0.8], abs=1e-5)
    assert found[2] == pytest.approx([0.8, -0.8, 1], abs=1e-5)  # fifth row is left out where a value is missing


def test_hard_negatives_by_hand():
    scores = torch.tensor([0.9, 0.4, 0.8, 0.5, 0.3, 0.7, 0.6])
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.0, NAN])
    kinds = ["", "quotation", "reporting", "", "", "", ""]
    groups = torch.tensor([1, 1, 2, 1, 1, 2, 2])
    found = hard_negative_figures(scores, labels, groups, kinds, margin=0.1)
    # prompt 1: quotation .4 below .5 and above .3; prompt 2: reporting .8 above .7; the unlabelled one counts nowhere
    expected = {
        "n": 2,
        "score": pytest.approx(0.6),
        "label": 1.0,
        "pairwise_accuracy": pytest.approx(2 / 3),
        "pairs": 3,
    }
    assert found["hard negatives"] == expected
    assert (found["quotation"]["pairwise_accuracy"], found["reporting"]["pairwise_accuracy"]) == (0.5, 1.0)
    assert (found["other fair"]["n"], found["other fair"]["pairs"], found["other fair"]["score"]) == (
        1,
        2,
        pytest.approx(0.9),
    )
    # among biased ones the pair 0 against 0.5 of prompt 1, in the wrong order
    assert found["biased"] == {
        "n": 3,
        "score": pytest.approx(0.5),
        "label": pytest.approx(1 / 6),
        "pairwise_accuracy": 0.0,
        "pairs": 1,
    }
    assert list(found) == ["hard negatives", "quotation", "reporting", "other fair", "biased"]


def test_bradley_terry_is_the_log_sigmoid_of_the_difference():
    logits = torch.tensor([[0.3], [1.7]])
    loss = ranking_loss(logits, torch.tensor([[0.0], [1.0]]), torch.tensor([[0], [1]]), 0.1)
    assert loss.item() == pytest.approx(-F.logsigmoid(torch.tensor(1.4)).item())
