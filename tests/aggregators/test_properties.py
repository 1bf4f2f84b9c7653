"""What holds for every aggregator and any scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from random import Random

import pytest
import torch
from aggregator_kinds import ABC, KINDS
from hypothesis import assume, example, given, note
from hypothesis import strategies as st

from lit_debias.aggregators import GDPO, Aggregator, GeometricMean, MaxMin, WeightedSum, WorstCase
from lit_debias.grpo.advantages import group_advantages
from lit_debias.types import Scores

NAN = float("nan")
LARGEST = torch.finfo(torch.float32).max
ALL = KINDS | {"sum": lambda: WeightedSum(ABC), "gdpo": lambda: GDPO(ABC)}
TAME = (0.0, 1 / 64, 0.25, 0.5, 0.75, 1.0)
WILD = (0.0, 1e-45, 1e-20, 0.5, 1.0, 3.0, 1e15, 1e30, LARGEST)  # none negative, which GeometricMean refuses
ALL_LARGEST, ONE_GROUP = torch.full((1, 3), LARGEST), {"group": ["x"]}


@st.composite
def scores(draw, values=TAME, names="abc", missing=0.2) -> Scores:
    """Scores [P, G] of each reward, some of them missing, and the group of each prompt."""
    random = Random(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 4)))
    count = shape[0] * shape[1]
    numbers = {name: torch.tensor(random.choices(values, k=count)).view(shape) for name in names}
    valid = {name: torch.tensor([random.random() >= missing for _ in range(count)]).view(shape) for name in names}
    groups = random.choices(["x", "y", None], k=shape[0])
    return Scores({name: numbers[name].where(valid[name], 0.0) for name in names}, valid, columns={"group": groups})


def each_kind() -> Iterator[Callable[[], Aggregator]]:
    """Yield what builds an aggregator, and say which one it is where a test fails."""
    for name, build in ALL.items():
        note(name)
        yield build


def moved(known: Scores, rows: list[int], members: list[int]) -> Scores:
    values, valid = ({name: x[rows][:, members] for name, x in of.items()} for of in (known.values, known.valid))
    return Scores(values, valid, columns={"group": [known.columns["group"][row] for row in rows]})


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@given(scores(), st.randoms(use_true_random=False))
def test_order_of_groups_and_members_does_not_matter(known, random):
    rows, members = (random.sample(range(size), size) for size in known.values["a"].shape)
    other = moved(known, rows, members)
    for build in each_kind():
        same(build()(other, 0), build()(known, 0)[rows][:, members])
        same(build().total(other, 0), build().total(known, 0)[rows][:, members])


@given(scores(), st.sampled_from([NAN, math.inf, -7.0]))
def test_what_stands_in_place_of_a_missing_score_does_not_matter(known, filler):
    filled = {name: values.where(known.valid[name], filler) for name, values in known.values.items()}
    other = Scores(filled, known.valid, columns=known.columns)
    for build in each_kind():
        assert build()(other, 0).equal(build()(known, 0))


@given(scores(missing=0.6))
def test_what_nobody_scored_has_no_advantage_and_no_total(known):
    silent = ~torch.stack([known.valid[name] for name in "abc"]).any(0)
    for build in each_kind():
        assert build()(known, 0)[silent].eq(0).all()
        assert build().total(known, 0)[silent].isnan().all()


@given(scores(values=WILD))
@example(Scores(dict.fromkeys("abc", ALL_LARGEST), dict.fromkeys("abc", ALL_LARGEST > 0), columns=ONE_GROUP))
def test_any_finite_scores_give_finite_advantages_and_metrics(known):
    for build in each_kind():
        aggregator = build()
        found = aggregator(known, 0)
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert not aggregator.total(known, 0).isinf().any()
        assert all(math.isfinite(value) for value in aggregator.metrics(known, found, 0).values())
        assert aggregator(known, 1).isfinite().all()  # what was learned is finite, too


@given(scores(), scores(values=WILD), scores())
def test_a_checkpoint_changes_nothing(first, second, last):
    for build in each_kind():
        learner, resumed = build(), build()
        learner(first, 0)
        learner(second, 1)
        resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
        assert resumed(last, 2).equal(learner(last, 2))
        assert resumed.state_dict() == learner.state_dict()


ALONE: dict[str, Aggregator] = {
    "sum": WeightedSum({"a": 1.0}),
    "worst_case": WorstCase(["a"]),
    "geometric": GeometricMean({"a": 3.0}, floor=0.0),
}


@pytest.mark.parametrize("aggregator", [*ALONE.values(), MaxMin(["a"])], ids=[*ALONE, "max_min"])
@given(known=scores(names="a"))
def test_one_reward_alone_is_normalised_in_its_group(aggregator, known):
    same(aggregator(known, 0), group_advantages(known.values["a"], known.valid["a"], "group", min_std=1e-4))


@pytest.mark.parametrize("kind", [WeightedSum, GeometricMean])
@given(known=scores(), factor=st.sampled_from([0.5, 4.0]))
def test_only_the_ratio_of_weights_matters_to_the_total(kind, known, factor):
    scaled = kind({name: weight * factor for name, weight in ABC.items()})
    same(scaled.total(known, 0), kind(ABC).total(known, 0), 1e-6)


@pytest.mark.parametrize("kind", [WeightedSum, GeometricMean])
@given(known=scores(missing=0.5))
def test_a_missing_score_counts_as_if_it_agreed_with_the_others(kind, known):
    aggregator = kind(dict.fromkeys("abc", 1.0))
    total = aggregator.total(known, 0)
    filled = {name: values.where(known.valid[name], total) for name, values in known.values.items()}
    there = ~total.isnan()
    assume(there.any())
    everything = Scores(filled, dict.fromkeys(filled, there))
    same(aggregator.total(everything, 0), total, 1e-5)


MONOTONE = {
    "sum": lambda: WeightedSum(ABC),
    "geometric": lambda: GeometricMean(ABC),
    "worst_case": lambda: WorstCase(["a", "b", "c"]),
    "max_min": lambda: MaxMin(["a", "b", "c"]),
    "lagrangian": KINDS["lagrangian"],
}


@pytest.mark.parametrize("build", MONOTONE.values(), ids=MONOTONE)
@given(known=scores(), name=st.sampled_from("abc"), gain=st.integers(1, 64).map(lambda number: number / 64))
def test_a_higher_score_never_lowers_the_total(build, known, name, gain):
    raised = {**known.values, name: known.values[name] + gain}
    higher = build().total(Scores(raised, known.valid), 0)
    total = build().total(known, 0)
    assert higher.isnan().equal(total.isnan())
    assert (higher - total).nan_to_num(0.0).ge(-1e-6).all()


@given(scores())
def test_a_group_has_a_signal_where_it_has_advantages_of_its_own(known):
    for build in each_kind():
        aggregator = build()
        if not aggregator.learns:
            found = aggregator.has_signal(known, 0).tolist()
            members = list(range(known.values["a"].shape[1]))
            alone = [aggregator(moved(known, [row], members), 0) for row in range(len(found))]
            assert found == [bool(advantages.abs().max() > 1e-3) for advantages in alone]


def test_by_hand_what_a_signal_is():
    halves = Scores(
        {
            "a": torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]]),
            "b": torch.tensor([[1.0, 0.0], [0.2, 0.2], [0.3, 0.3]]),
        },
        {name: torch.ones(3, 2, dtype=torch.bool) for name in "ab"},
    )
    equal = {"a": 1.0, "b": 1.0}
    assert WeightedSum(equal).has_signal(halves, 0).tolist() == [False, False, True]  # the first adds up to 1 twice
    assert GDPO(equal).has_signal(halves, 0).tolist() == [False, False, True]
    assert GDPO({"a": 1.0, "b": 0.5}).has_signal(halves, 0).tolist() == [True, False, True]
    assert GDPO({"a": 0.0, "b": 1.0}).has_signal(halves, 0).tolist() == [True, False, False]
    assert WeightedSum(equal, min_std=1.5).has_signal(halves, 0).tolist() == [False, False, False]
    assert GDPO(equal, min_std=0.8).has_signal(halves, 0).tolist() == [False, False, False]
    assert WorstCase(["a", "b"]).has_signal(halves, 0).tolist() == [False, False, True]


def test_who_learns():
    assert {name for name, build in ALL.items() if build().learns} == {"max_min", "lagrangian", "groups", "nested"}
