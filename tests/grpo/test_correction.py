"""Importance weights by hand, and what they are for: the right gradient from a sampler that is not the policy."""

import math

import pytest
import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.grpo.correction import ImportanceCorrection
from lit_debias.grpo.loss import BNPOLoss, UpdateSize

NAN = float("nan")
TWICE, HALF, SAME = math.log(2), -math.log(2), 0.0


def weigh(
    correction: ImportanceCorrection, log_ratios: list[list[float]]
) -> tuple[list[list[float]], dict[str, float]]:
    """Two completions of three tokens; the last token of the second is masked and holds NaN."""
    ratios = torch.tensor(log_ratios)
    sampled = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weights, metrics = correction(sampled + ratios, sampled, mask)
    return weights.tolist(), {name.removeprefix("importance/"): float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"most": 1.5}, [[1.5, 0.5, 1.0], [1.5, 1.0, 0.0]]),
        ({"most": 1.5, "beyond": "mask"}, [[0.0, 0.5, 1.0], [0.0, 1.0, 0.0]]),
        ({"most": 1.5, "least": 0.8}, [[1.5, 0.8, 1.0], [1.5, 1.0, 0.0]]),
        ({"most": 1.5, "least": 0.8, "beyond": "mask"}, [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        ({"most": 1.5, "level": "sequence"}, [[1.0] * 3, [1.5, 1.5, 0.0]]),  # 2 * 1/2 * 1, and 2 * 1
        ({"most": 1.5, "level": "sequence", "beyond": "mask"}, [[1.0] * 3, [0.0, 0.0, 0.0]]),
        ({"most": 3.0}, [[2.0, 0.5, 1.0], [2.0, 1.0, 0.0]]),
    ],
)
def test_weights_by_hand(options, expected):
    weights, _ = weigh(ImportanceCorrection(**options), [[TWICE, HALF, SAME], [TWICE, SAME, TWICE]])
    assert weights == [pytest.approx(row, abs=1e-6) for row in expected]


def test_metrics_by_hand():
    _, sums = weigh(ImportanceCorrection(most=1.5), [[TWICE, HALF, SAME], [TWICE, SAME, TWICE]])
    assert sums["ratio"] == pytest.approx(2 + 0.5 + 1 + 2 + 1)  # before it is bounded
    assert sums["clipped"] == 2
    assert sums["kl_sampler"] == pytest.approx(2 * (1 - math.log(2)) + (-0.5 + math.log(2)))
    assert sums["kl_policy"] == pytest.approx(2 * (2 * math.log(2) - 1) + (0.5 * -math.log(2) + 0.5))


def test_divergences_are_those_of_the_distributions():
    policy, sampler = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.25, 0.25]).log()
    tokens = torch.tensor([0] * 50 + [1] * 25 + [2] * 25)  # as the sampler draws them, exactly
    mask = torch.ones(100, 1, dtype=torch.bool)
    _, sums = ImportanceCorrection()(policy[tokens, None], sampler[tokens, None], mask)
    assert float(sums["importance/ratio"]) / 100 == pytest.approx(1.0, abs=1e-6)
    assert float(sums["importance/kl_sampler"]) / 100 == pytest.approx(
        float((sampler.exp() * (sampler - policy)).sum())
    )
    assert float(sums["importance/kl_policy"]) / 100 == pytest.approx(float((policy.exp() * (policy - sampler)).sum()))


def test_equal_distributions_weigh_exactly_one():
    logprobs = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6, dtype=torch.bool)
    for level in ("token", "sequence"):
        weights, metrics = ImportanceCorrection(level=level)(logprobs, logprobs.clone(), mask)
        assert torch.equal(weights, torch.ones(4, 6))
        assert float(metrics["importance/clipped"]) == float(metrics["importance/kl_sampler"]) == 0.0


def gradient(logits: Tensor, tokens: Tensor, rewards: Tensor, weights: Tensor | None) -> Tensor:
    """Return the gradient of the loss of one-token completions with the rewards as advantages."""
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)[tokens][:, None]
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    size = UpdateSize.of(mask, 1)
    loss, _ = BNPOLoss()(logprobs, logprobs.detach(), rewards[tokens], mask, size, weights=weights)
    loss.backward()
    assert logits.grad is not None
    return logits.grad


def test_a_biased_sampler_gives_the_right_gradient_with_weights_and_a_wrong_one_without():
    policy = torch.tensor([0.4, 0.35, 0.25]).log()
    sampler = torch.tensor([0.2, 0.5, 0.3]).log()
    rewards = torch.tensor([1.0, -0.5, 0.3])
    drawn = torch.tensor([0] * 20 + [1] * 50 + [2] * 30)  # the sampler's expectation
    right = gradient(policy, torch.tensor([0] * 40 + [1] * 35 + [2] * 25), rewards, None)  # the policy's own
    mask = torch.ones(100, 1, dtype=torch.bool)
    weights, _ = ImportanceCorrection(most=10.0)(policy[drawn, None], sampler[drawn, None], mask)
    assert gradient(policy, drawn, rewards, weights) == pytest.approx(right, abs=1e-6)
    assert (gradient(policy, drawn, rewards, None) - right).norm() > 0.3 * right.norm()


def test_the_kl_penalty_is_weighted_too():
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    arguments = (logprobs, logprobs.detach(), torch.zeros(1), mask, UpdateSize.of(mask, 1))
    loss = BNPOLoss(beta=0.5)
    plain, _ = loss(*arguments, reference_logprobs=torch.tensor([[-2.0]]))
    halved, _ = loss(*arguments, reference_logprobs=torch.tensor([[-2.0]]), weights=torch.tensor([[0.5]]))
    assert float(halved.detach()) == pytest.approx(float(plain.detach()) / 2)
    assert float(plain.detach()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 1.0}, "write 1 < most"),
        ({"most": math.inf}, "write 1 < most"),
        ({"least": 1.0}, "0 <= least < 1"),
        ({"least": -0.1}, "0 <= least < 1"),
        ({"level": "word"}, "level is 'word'; write token or sequence"),
        ({"beyond": "drop"}, "beyond is 'drop'; write truncate or mask"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        ImportanceCorrection(**options)
