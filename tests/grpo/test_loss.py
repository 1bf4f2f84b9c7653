from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_debias.errors import UserError
from lit_debias.grpo.loss import BNPOLoss, CISPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss, PolicyLoss, UpdateSize

ALL = [GRPOLoss, BNPOLoss, DrGRPOLoss, DAPOLoss, GSPOLoss, CISPOLoss]
PER_TOKEN = [GRPOLoss, BNPOLoss, DrGRPOLoss, DAPOLoss]
NAN = float("nan")


def single(mask: Tensor, longest: int = 5) -> UpdateSize:
    """The size of an update that is one micro-batch on one rank."""
    return UpdateSize.of(mask, longest)


def by_hand() -> dict[str, Any]:
    """Three tokens: ratio 2 and 1 with advantage 3, ratio 1/2 with advantage -4; the fourth is masked."""
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, NAN]], requires_grad=True)
    log_ratios = torch.tensor([[math.log(2), 0.0], [-math.log(2), 5.0]])
    mask = torch.tensor([[True, True], [True, False]])
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs.detach() - log_ratios,
        "advantages": torch.tensor([3.0, -4.0]),
        "mask": mask,
        "size": single(mask),
    }


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # tokens: -min(2 * 3, 1.2 * 3) = -3.6; -3; -min(0.5 * -4, 0.8 * -4) = 3.2
        (GRPOLoss(), ((-3.6 - 3) / 2 + 3.2) / 2),
        (BNPOLoss(), (-3.6 - 3 + 3.2) / 3),
        (DrGRPOLoss(), (-3.6 - 3 + 3.2) / (2 * 5)),
        (DAPOLoss(), (-1.28 * 3 - 3 + 3.2) / 3),
        # completions: ratio sqrt(2) cut to 1.0004, ratio 1/2 cut to 0.9997
        (GSPOLoss(), (-1.0004 * 3 + 0.9997 * 4) / 2),
        # -ratio * advantage * logprob: 6 and 6 and -6
        (CISPOLoss(), (6 + 6 - 6) / 3),
        # the first ratio is cut to 1.5: 4.5
        (CISPOLoss(max_ratio=1.5), (4.5 + 6 - 6) / 3),
    ],
)
def test_by_hand(loss: PolicyLoss, expected: float) -> None:
    assert float(loss(**by_hand())[0].detach()) == pytest.approx(expected, rel=1e-5)


def test_metrics_by_hand() -> None:
    _, metrics = GRPOLoss()(**by_hand(), reference_logprobs=torch.zeros(2, 2), entropy=torch.full((2, 2), 0.5))
    k3 = [math.exp(1) - 2, math.exp(2) - 3, 10]  # d = 1, 2, 3; the last is capped
    kl = 2 * k3[0] + 1 * k3[1] + 0.5 * k3[2]
    expected = {
        "ratio": 3.5,
        "clip_ratio/low": 1,
        "clip_ratio/high": 1,
        "clip_ratio/region": 2,
        "entropy": 1.5,
        "kl": kl,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_ratio_counts_as_clipped_only_where_the_bound_binds() -> None:
    data = by_hand() | {"advantages": torch.tensor([-3.0, 4.0])}
    for loss in (GRPOLoss(), CISPOLoss(max_ratio=1.5)):
        assert loss(**data)[1]["clip_ratio/region"] == 0
    metrics = CISPOLoss(max_ratio=1.5)(**by_hand())[1]
    assert [float(metrics[f"clip_ratio/{side}"]) for side in ("low", "high", "region")] == [0, 1, 1]


@pytest.mark.parametrize(("unbiased", "kl"), [(False, (1 + 4 + 9) / 2), (True, (2 * 1 + 1 * 4 + 0.5 * 9) / 2)])
def test_kl_and_entropy_enter_the_loss_by_hand(unbiased: bool, kl: float) -> None:
    plain, _ = DAPOLoss()(**by_hand())
    more = {"reference_logprobs": torch.zeros(2, 2), "entropy": torch.tensor([[1.0, 2.0], [3.0, NAN]])}
    found, _ = DAPOLoss(beta=0.5, kl="k2", unbiased_kl=unbiased, entropy_bonus=0.1)(**by_hand(), **more)
    assert float((found - plain).detach()) == pytest.approx(0.5 * kl / 3 - 0.1 * 6 / 3)


def test_dual_clip_by_hand() -> None:
    data = by_hand() | {"advantages": torch.tensor([-4.0, -4.0])}
    data["old_logprobs"] = data["logprobs"].detach() - math.log(10)
    assert float(BNPOLoss()(**data)[0].detach()) == pytest.approx(40)
    loss, _ = BNPOLoss(dual_clip=3.0)(**data)
    assert float(loss.detach()) == pytest.approx(12)
    loss.backward()
    assert data["logprobs"].grad.eq(0).all()


@pytest.mark.parametrize("name", ALL)
def test_on_policy_gradient_is_reinforce(name: type[PolicyLoss]) -> None:
    data = by_hand()
    loss, metrics = name()(**data | {"old_logprobs": data["logprobs"].detach()})
    loss.backward()
    divisor = {GRPOLoss: [[4, 4], [2, 2]], GSPOLoss: [[4, 4], [2, 2]], DrGRPOLoss: 10}.get(name, 3)
    expected = torch.tensor([[-3.0, -3.0], [4.0, 0.0]]) / torch.tensor(divisor)
    torch.testing.assert_close(data["logprobs"].grad, expected)
    assert float(metrics["ratio"]) == 3
    assert float(metrics["clip_ratio/region"]) == 0


def random_update(sequences: int = 6, length: int = 5) -> dict[str, Tensor]:
    lengths = torch.tensor([5, 1, 3, 0, 4, 2])[:sequences]
    old = -torch.rand(sequences, length, dtype=torch.float64) * 3
    return {
        "logprobs": (old + torch.randn_like(old) / 3).requires_grad_(),
        "old_logprobs": old,
        "advantages": torch.randn(sequences, dtype=torch.float64),
        "mask": torch.arange(length) < lengths[:, None],
        "reference_logprobs": old + torch.randn_like(old) / 5,
        "entropy": torch.rand_like(old).requires_grad_(),
    }


def rows(data: dict[str, Tensor], part: slice | Tensor) -> dict[str, Tensor]:
    return {name: value[part] for name, value in data.items()}


def gradients(loss: Tensor, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (data["logprobs"], data["entropy"]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cuts", [[1, 1, 1, 1, 1, 1], [2, 4], [5, 1]])
def test_cutting_into_micro_batches_changes_nothing(name: type[PolicyLoss], cuts: list[int]) -> None:
    data, loss = random_update(), name(beta=0.1, entropy_bonus=0.01)
    size = single(data["mask"])
    whole, metrics = loss(**data, size=size)
    ends = torch.tensor(cuts).cumsum(0).tolist()
    parts = [loss(**rows(data, slice(end - cut, end)), size=size) for cut, end in zip(cuts, ends, strict=True)]
    total = torch.stack([part for part, _ in parts]).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradients(total, data), gradients(whole, data))
    for key, value in metrics.items():
        torch.testing.assert_close(torch.stack([part[key] for _, part in parts]).sum(), value)


@pytest.mark.parametrize("name", ALL)
def test_cutting_over_ranks_changes_nothing(name: type[PolicyLoss]) -> None:
    data, loss = random_update(), name(beta=0.1, entropy_bonus=0.01)
    ranks = [rows(data, slice(0, 2)), rows(data, slice(2, 6))]
    tokens = [int(rank["mask"].sum()) for rank in ranks]
    total = torch.stack(
        [loss(**rank, size=UpdateSize(15, 6, own, 2, 5))[0] for rank, own in zip(ranks, tokens, strict=True)]
    ).sum()
    if name is BNPOLoss:  # by definition the mean over ranks of their means
        no_entropy = BNPOLoss(beta=0.1)
        means = [no_entropy(**rank, size=single(rank["mask"]))[0] for rank in ranks]
        expected = (means[0] + means[1]) / 2 - 0.01 * data["entropy"][data["mask"]].mean()
    else:
        expected = loss(**data, size=single(data["mask"]))[0]
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradients(total, data), gradients(expected, data))


@pytest.mark.parametrize("name", ALL)
def test_order_of_sequences_does_not_matter(name: type[PolicyLoss]) -> None:
    data, loss, order = random_update(), name(beta=0.1), torch.tensor([3, 5, 0, 2, 4, 1])
    size = single(data["mask"])
    torch.testing.assert_close(loss(**rows(data, order), size=size)[0], loss(**data, size=size)[0])


@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("name", [*PER_TOKEN, GSPOLoss])
def test_finite_differences(name: type[PolicyLoss], kl: Any) -> None:
    data = random_update()
    loss = name(beta=0.1, kl=kl, unbiased_kl=False, entropy_bonus=0.01)
    inputs = (data.pop("logprobs"), data.pop("entropy"))

    def of(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return loss(**data, logprobs=logprobs, entropy=entropy, size=single(data["mask"]))[0]

    assert torch.autograd.gradcheck(of, inputs)


@pytest.mark.parametrize("name", ALL)
def test_masked_positions_may_hold_anything(name: type[PolicyLoss]) -> None:
    data, loss = random_update(), name(beta=0.1, entropy_bonus=0.01)
    whole, _ = loss(**data, size=single(data["mask"]))
    expected = gradients(whole, data)
    for garbage in (NAN, float("inf"), -1e30):
        dirty = dict(data)
        for field in ("logprobs", "old_logprobs", "reference_logprobs", "entropy"):
            dirty[field] = data[field].detach().masked_fill(~data["mask"], garbage).requires_grad_()
        found, _ = loss(**dirty, size=single(data["mask"]))
        torch.testing.assert_close(found, whole)
        torch.testing.assert_close(gradients(found, dirty), expected)


@pytest.mark.parametrize("name", ALL)
def test_an_update_without_tokens_or_signal_is_zero_with_a_graph(name: type[PolicyLoss]) -> None:
    data = random_update()
    nothing = data | {"mask": torch.zeros_like(data["mask"])}
    silent = data | {"advantages": torch.zeros_like(data["advantages"])}
    for case in (nothing, silent):
        loss, _ = name()(**case, size=single(case["mask"]))
        assert loss == 0
        assert torch.autograd.grad(loss, data["logprobs"])[0].eq(0).all()


@pytest.mark.parametrize("name", ALL)
def test_far_policies_stay_finite(name: type[PolicyLoss]) -> None:
    data = random_update()
    for distance in (1000.0, -1000.0):
        far = data | {
            "old_logprobs": data["old_logprobs"] + distance,
            "reference_logprobs": data["logprobs"] - distance,
        }
        loss, metrics = name(beta=0.1)(**far, size=single(data["mask"]))
        assert loss.isfinite()
        assert torch.autograd.grad(loss, data["logprobs"])[0].isfinite().all()
        assert all(value.isfinite() for value in metrics.values())


def test_size_counts_empty_completions() -> None:
    assert single(random_update()["mask"].view(2, 3, 5)) == UpdateSize(15, 6, 15, 1, 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (GRPOLoss, {"beta": -0.1}, "beta is -0.1"),
        (GRPOLoss, {"beta": NAN}, "beta is nan"),
        (GRPOLoss, {"entropy_bonus": -1.0}, "entropy_bonus is -1.0"),
        (GRPOLoss, {"kl": "k4"}, "kl is 'k4'; write one of k1, k2, k3"),
        (GRPOLoss, {"kl": "k1", "unbiased_kl": False, "beta": 0.1}, "own gradient has mean zero"),
        (GRPOLoss, {"clip_low": 1.0}, "clip_low is 1.0"),
        (DAPOLoss, {"clip_high": 0.0}, "clip_high is 0.0"),
        (DAPOLoss, {"dual_clip": 1.2}, "more than 1 \\+ clip_high = 1.28"),
        (GSPOLoss, {"clip_high": 0.2}, "never clips"),
        (CISPOLoss, {"max_ratio": 0.2}, "bounds the ratio itself"),
    ],
)
def test_senseless_options_are_refused(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        name(**options)


def test_missing_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="no reference log-probs"):
        DAPOLoss(beta=0.1)(**by_hand())
    with pytest.raises(ValueError, match="no entropy"):
        DAPOLoss(entropy_bonus=0.1)(**by_hand())


def test_k1_may_be_measured() -> None:
    _, metrics = DAPOLoss(kl="k1", unbiased_kl=False)(**by_hand(), reference_logprobs=torch.zeros(2, 2))
    assert float(metrics["kl"]) == -6
