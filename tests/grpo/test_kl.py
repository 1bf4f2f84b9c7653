from __future__ import annotations

import math

import pytest
import torch

from lit_debias.grpo.kl import MAX_K3, Estimator, kl_estimate, kl_penalty, log_ratio


def test_estimators_by_hand() -> None:
    # policy probability 1/2, reference probability 1: d = log 2
    policy, reference = torch.tensor([[math.log(0.5)]]), torch.zeros(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert float(kl_estimate(policy, reference, mask, "k1")) == pytest.approx(-math.log(2))
    assert float(kl_estimate(policy, reference, mask, "k2")) == pytest.approx(math.log(2) ** 2 / 2)
    assert float(kl_estimate(policy, reference, mask, "k3")) == pytest.approx(2 - 1 - math.log(2))


def test_expectation_under_the_policy_is_the_divergence() -> None:
    policy = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    reference = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    true = float((policy * (policy / reference).log()).sum())
    for estimator in ("k1", "k3"):
        assert float((policy * kl_estimate(policy.log(), reference.log(), mask, estimator)).sum()) == pytest.approx(
            true
        )


def test_gradient_of_k2_and_not_of_k1_is_that_of_the_divergence() -> None:
    """On-policy, the mean gradient of the estimate: 0 for k1, grad KL for k2."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()[None]
    mask = torch.ones(1, 3, dtype=torch.bool)

    def mean_gradient(estimator: Estimator) -> torch.Tensor:
        logprobs = logits.log_softmax(0)[None]
        estimate = (logprobs.detach().exp() * kl_estimate(logprobs, reference, mask, estimator)).sum()
        return torch.autograd.grad(estimate, logits)[0]

    logprobs = logits.log_softmax(0)[None]
    true = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)[0]
    torch.testing.assert_close(mean_gradient("k1"), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(mean_gradient("k2"), true)
    assert (mean_gradient("k3") - true).abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_penalty_has_the_gradient_of_the_divergence_off_policy(estimator: Estimator) -> None:
    """The mean over what an older policy sampled, for every estimator."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64)
    reference = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    logprobs = logits.log_softmax(0)[None]
    penalty = kl_penalty(logprobs, reference, log_ratio(logprobs, old.log(), mask), mask, estimator)
    true = (logprobs.exp() * (logprobs - reference)).sum()
    if estimator != "k2":
        torch.testing.assert_close((old * penalty).sum(), true)
    found = torch.autograd.grad((old * penalty).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(true, logits)[0])


def test_penalty_is_k3_times_the_ratio_token_by_token() -> None:
    policy = (-torch.rand(2, 5, dtype=torch.float64) * 2).requires_grad_()
    old, reference = policy.detach() + torch.randn(2, 2, 5, dtype=torch.float64) / 3
    mask = torch.ones(2, 5, dtype=torch.bool)
    d = reference - policy
    expected = (policy - old).exp() * (d.exp() - 1 - d)
    found = kl_penalty(policy, reference, log_ratio(policy, old, mask), mask, "k3")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.sum(), policy)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_penalty_still_pulls_back_where_k3_is_capped() -> None:
    policy = torch.tensor([[-9.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    penalty = kl_penalty(policy, torch.zeros(1, 1), log_ratio(policy, policy.detach(), mask), mask, "k3")
    assert penalty.item() == MAX_K3
    assert torch.autograd.grad(penalty.sum(), policy)[0].item() == -9  # descent raises the policy's probability


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_masked_garbage_and_extreme_ratios_stay_finite(estimator: Estimator) -> None:
    policy = torch.tensor([[-1.0, float("nan"), -500.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, float("inf"), 0.0, -500.0]])
    mask = torch.tensor([[True, False, True, True]])
    found = kl_estimate(policy, reference, mask, estimator)
    found.sum().backward()
    assert found.isfinite().all()
    assert found[0, :2].eq(0).all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_clamps() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    far = torch.tensor([[100.0, -100.0]])
    assert log_ratio(far, torch.zeros(1, 2), mask).tolist() == [[20.0, -20.0]]
    # d = 20 would be e^20; d = -20 gives e^-20 - 1 + 20 = 19: both beyond the cap
    assert kl_estimate(far, torch.zeros(1, 2), mask, "k3").tolist() == [[MAX_K3, MAX_K3]]
