from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lit_debias.aggregators import GDPO
from lit_debias.grpo import advantages
from lit_debias.grpo.advantages import batch_statistics, group_advantages, zero_std_fraction
from lit_debias.types import Scores

NAN = float("nan")


def every(rewards: Tensor) -> Tensor:
    return torch.ones_like(rewards, dtype=torch.bool)


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], Tensor]) -> list[Tensor]:
    """Run ``work(rank)`` in two threads whose ``all_sum`` adds up over both."""
    barrier = threading.Barrier(2, timeout=20)
    local, parts = threading.local(), {}

    def all_sum(values: Tensor) -> Tensor:
        parts[local.rank] = values.clone()
        barrier.wait()
        total = parts[0] + parts[1]
        barrier.wait()
        return total

    def on_rank(rank: int) -> Tensor:
        local.rank = rank
        return work(rank)

    monkeypatch.setattr(advantages, "all_sum", all_sum)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on_rank, range(2)))


def test_group_scale_by_hand() -> None:
    # mean 2, sum of squares 12, variance 12 / (4 - 1) = 4
    rewards = torch.tensor([[1.0, 1.0, 1.0, 5.0]])
    expected = torch.tensor([[-1.0, -1.0, -1.0, 3.0]])
    found = group_advantages(rewards, every(rewards), "group", min_std=0.0, eps=0.0)
    torch.testing.assert_close(found, expected / 2)
    found = group_advantages(rewards, every(rewards), "group", min_std=0.0)
    torch.testing.assert_close(found, expected / 2.0001)
    found = group_advantages(rewards, every(rewards), "none", min_std=0.0)
    torch.testing.assert_close(found, expected)


def test_batch_scale_by_hand() -> None:
    # all four: mean 2, sum of squares 12, variance 4; the baseline stays that of the group
    rewards = torch.tensor([[1.0, 1.0], [1.0, 5.0]])
    found = group_advantages(rewards, every(rewards), "batch", min_std=0.0, eps=0.0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_invalid_rewards_count_nowhere() -> None:
    rewards = torch.tensor([[1.0, NAN, 1.0, 1.0, 5.0], [NAN, 1.0, 3.0, NAN, NAN]])
    found = group_advantages(rewards, ~rewards.isnan(), "group", min_std=0.0, eps=0.0)
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0, -0.5, -0.5, 1.5], [0, -half, half, 0, 0]]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_without_signal_get_exactly_zero(scale: advantages.Scale) -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.7, 0.7 + 1e-7, 0.7], [9.0, NAN, NAN], [NAN, NAN, NAN], [0.0, 1.0, 0.5]])
    found = group_advantages(rewards, ~rewards.isnan(), scale, min_std=1e-4)
    assert found[:4].eq(0).all()
    assert found[4, 1] > 0
    single = torch.tensor([[3.0], [4.0]])
    assert group_advantages(single, every(single), scale, min_std=0.0).eq(0).all()


def test_min_std_is_a_floor_per_group() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0, 5.0]])  # std 2
    assert group_advantages(rewards, every(rewards), "group", min_std=2.0).ne(0).all()
    assert group_advantages(rewards, every(rewards), "group", min_std=2.001).eq(0).all()


def test_order_within_and_of_groups_does_not_matter() -> None:
    rewards = torch.rand(4, 6, dtype=torch.float64)
    valid = torch.rand(4, 6) > 0.2
    rows, columns = torch.randperm(4), torch.randperm(6)
    for scale in ("group", "batch", "none"):
        found = group_advantages(rewards, valid, scale, 0.0)
        moved = group_advantages(rewards[rows][:, columns], valid[rows][:, columns], scale, 0.0)
        torch.testing.assert_close(moved, found[rows][:, columns])


def test_batch_scale_spans_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = torch.rand(4, 3, dtype=torch.float64)
    valid = torch.tensor([[True, True, True], [True, False, True], [True, True, True], [True, True, True]])
    whole = group_advantages(rewards, valid, "batch", 0.0)
    ranks = [slice(0, 1), slice(1, 4)]  # ranks need not be of one size
    parts = on_two_ranks(
        monkeypatch, lambda rank: group_advantages(rewards[ranks[rank]], valid[ranks[rank]], "batch", 0.0)
    )
    torch.testing.assert_close(torch.cat(parts), whole)


def test_gdpo_spans_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: torch.rand(4, 6, dtype=torch.float64) for name in "ab"}
    valid = {name: torch.rand(4, 6) > 0.2 for name in "ab"}
    aggregator = GDPO({"a": 1.0, "b": 0.5})
    whole = aggregator(Scores(values, valid), 0)
    ranks = [slice(0, 1), slice(1, 4)]

    def own(rank: int) -> Scores:
        return Scores(*({name: rows[ranks[rank]] for name, rows in of.items()} for of in (values, valid)))

    parts = on_two_ranks(monkeypatch, lambda rank: aggregator(own(rank), 0))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_batch_statistics_of_nothing_and_of_one() -> None:
    values = torch.tensor([[4.0, NAN]])
    assert [float(x) for x in batch_statistics(values, ~values.isnan())] == [4.0, 0.0]
    assert [float(x) for x in batch_statistics(values, torch.zeros(1, 2, dtype=torch.bool))] == [0.0, 0.0]


def test_zero_std_fraction_by_hand() -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 2.0], [5.0, NAN], [0.0, 0.001]])
    assert zero_std_fraction(rewards, ~rewards.isnan()) == 0.5
    assert zero_std_fraction(rewards, ~rewards.isnan(), min_std=0.01) == 0.75
