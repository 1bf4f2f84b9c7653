"""What holds for advantages of any scores."""

from __future__ import annotations

import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from lit_debias.grpo.advantages import batch_statistics, group_advantages, group_statistics

SCALES = st.sampled_from(["group", "batch", "none"])
LARGEST = torch.finfo(torch.float32).max
TAME = st.integers(-640, 640).map(lambda number: number / 64)  # shifts and products of these are exact
WILD = st.floats(-LARGEST, LARGEST, width=32)
MEMBERS = st.integers(1, 5)


@st.composite
def rewards(draw, values=TAME, members=MEMBERS) -> tuple[Tensor, Tensor]:
    """Rewards [P, G] float64 and which of them are known."""
    shape = (draw(st.integers(1, 4)), draw(members))
    count = shape[0] * shape[1]
    numbers = draw(st.lists(values, min_size=count, max_size=count))
    known = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=count, max_size=count))
    return torch.tensor(numbers, dtype=torch.float64).view(shape), torch.tensor(known).view(shape)


def same(found: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


@given(rewards(), SCALES, TAME)
def test_a_constant_added_to_a_group_changes_nothing(known, scale, shift):
    values, valid = known
    moved = values.clone()
    moved[0] += shift
    if scale == "batch":  # its divisor is the spread of all
        moved = values + shift
    same(group_advantages(moved, valid, scale, 1e-4), group_advantages(values, valid, scale, 1e-4))


@given(rewards(), st.sampled_from(["group", "batch"]), st.sampled_from([0.25, 2.0, 64.0]))
def test_a_factor_changes_nothing_above_the_floor(known, scale, factor):
    values, valid = known
    expected = group_advantages(values, valid, scale, min_std=1e-4, eps=0.0).nan_to_num(0.0)
    same(group_advantages(values * factor, valid, scale, min_std=1e-4, eps=0.0).nan_to_num(0.0), expected)


@given(rewards(), st.integers(1, 100).map(lambda number: number / 50))
def test_the_floor_is_on_the_deviation_of_a_group(known, floor):
    values, valid = known
    std = group_statistics(values, valid).std
    assume((std - floor).abs().min() > 1e-9)
    nonzero = group_advantages(values, valid, "group", floor).ne(0).any(1)
    assert nonzero.equal((std > floor)[:, 0])


@given(rewards(), SCALES, st.randoms(use_true_random=False))
def test_order_of_groups_and_members_does_not_matter(known, scale, random):
    values, valid = known
    rows, columns = (random.sample(range(size), size) for size in values.shape)
    moved = group_advantages(values[rows][:, columns], valid[rows][:, columns], scale, 1e-4)
    same(moved, group_advantages(values, valid, scale, 1e-4)[rows][:, columns])


@given(rewards(), SCALES, st.sampled_from([float("nan"), float("inf"), 1e300, -5.0]))
def test_what_stands_in_place_of_a_missing_score_does_not_matter(known, scale, filler):
    values, valid = known
    found = group_advantages(values.where(valid, filler), valid, scale, 1e-4)
    assert found.equal(group_advantages(values, valid, scale, 1e-4))
    assert found[~valid].eq(0).all()


@given(rewards(), SCALES)
def test_the_advantages_of_a_group_add_up_to_nothing(known, scale):
    same(group_advantages(*known, scale, 1e-4).sum(1), torch.zeros(len(known[0]), dtype=torch.float64), atol=1e-6)


@given(rewards(), st.sampled_from(["none", "group"]))
def test_groups_do_not_know_of_each_other(known, scale):
    values, valid = known
    apart = [group_advantages(values[i : i + 1], valid[i : i + 1], scale, 1e-4) for i in range(len(values))]
    same(group_advantages(values, valid, scale, 1e-4), torch.cat(apart))


CONSTANT = st.builds(lambda value, size: torch.full((1, size), value), WILD, st.integers(1, 7))


@given(rewards(members=st.just(1)) | CONSTANT.map(lambda values: (values, values.isfinite())), SCALES)
@example((torch.full((1, 3), 123456.7), torch.ones(1, 3) > 0), "group")  # their mean, rounded, is another number
@example((torch.full((1, 3), 0.1, dtype=torch.float64), torch.ones(1, 3) > 0), "group")
def test_a_group_of_one_and_a_constant_group_have_no_advantage(known, scale):
    values, valid = known
    assert group_advantages(values, valid, scale, min_std=0.0).eq(0).all()


@given(rewards(values=WILD), SCALES)
@example((torch.tensor([[LARGEST, -LARGEST, -LARGEST]]), torch.ones(1, 3) > 0), "none")
def test_any_finite_scores_have_finite_advantages(known, scale):
    values, valid = known[0].float(), known[1]
    found = group_advantages(values, valid, scale, min_std=1e-4)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert all(statistic.isfinite() for statistic in batch_statistics(values, valid))


@given(rewards(members=st.integers(2, 5)))
def test_a_higher_reward_has_a_higher_advantage(known):
    values, valid = known
    found = group_advantages(values, valid, "group", min_std=1e-4)
    for reward, advantage, there in zip(values, found, valid, strict=True):
        higher = reward[:, None] > reward[None]
        compared = higher & there[:, None] & there[None]
        assert (advantage[:, None] > advantage[None])[compared].all()
