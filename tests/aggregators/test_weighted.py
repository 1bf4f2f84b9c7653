from __future__ import annotations

import math
from typing import Any

import jsonargparse
import pytest
import torch
from torch import Tensor

from lit_debias.aggregators import GDPO, Aggregator, LinearSchedule, WeightedSum
from lit_debias.aggregators.aggregator import batch_means, batch_moments, scored
from lit_debias.errors import UserError
from lit_debias.rewards.overlong import SoftOverlong
from lit_debias.rewards.reward import RewardBatch
from lit_debias.types import Scores

NAN = float("nan")


def scores(**rewards: list[list[float]]) -> Scores:
    """Scores from [P][G] numbers; NaN is a missing one."""
    tensors = {name: torch.tensor(rows) for name, rows in rewards.items()}
    values = {name: rows.nan_to_num(0.0) for name, rows in tensors.items()}
    return Scores(values, {name: ~rows.isnan() for name, rows in tensors.items()})


def random_scores() -> Scores:
    rows = {name: torch.rand(4, 6).where(torch.rand(4, 6) > 0.1, NAN).tolist() for name in ("a", "b", "c")}
    return scores(**rows)


# -------------------------------------------------------------------- means and deviations


def test_moments_by_hand() -> None:
    given = scores(a=[[1.0, NAN], [2.0, 6.0]], once=[[NAN, 5.0], [NAN, NAN]], never=[[NAN] * 2] * 2)
    found = batch_moments(given, ["a", "once", "never"])
    assert found == {"a": (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2))), "once": (5.0, 0.0)}
    assert batch_means(given, ["once", "never"]) == {"once": 5.0}
    assert batch_moments(given, []) == {}


def test_what_stands_in_the_place_of_a_missing_score_does_not_matter() -> None:
    odd = Scores({"a": torch.tensor([[1.0, NAN]])}, {"a": torch.tensor([[True, False]])})
    assert odd.filled("a").tolist() == [[1.0, 0.0]]
    assert odd.filled("a", math.inf).tolist() == [[1.0, math.inf]]
    assert scored(torch.tensor([[0.0, NAN]])).tolist() == [[True, False]]
    assert batch_means(odd, ["a"]) == {"a": 1.0}
    assert [odd.of(0, member) for member in (0, 1)] == [{"a": 1.0}, {"a": None}]


def test_equal_scores_have_no_deviation() -> None:
    assert batch_moments(scores(a=[[0.1] * 7]), ["a"])["a"][1] == pytest.approx(0.0, abs=1e-8)


# -------------------------------------------------------------------- schedules


def test_linear_schedule_by_hand() -> None:
    schedule = LinearSchedule(start=1.0, end=3.0, steps=4, begin=2)
    assert [schedule(step) for step in (0, 2, 3, 4, 6, 100)] == [1.0, 1.0, 1.5, 2.0, 3.0, 3.0]
    falling = LinearSchedule(start=1.0, end=0.0, steps=2)
    assert [falling(step) for step in (0, 1, 2)] == [1.0, 0.5, 0.0]


def test_senseless_schedules_are_refused() -> None:
    with pytest.raises(UserError, match="steps must be at least 1"):
        LinearSchedule(0.0, 1.0, steps=0)
    with pytest.raises(UserError, match="begin at least 0"):
        LinearSchedule(0.0, 1.0, steps=1, begin=-1)


# ---------------------------------------------------------------- weighted sum


def test_weighted_sum_by_hand() -> None:
    # sums: 2 * (0, 0, 0, 2) + (1, 1, 1, 1) = (1, 1, 1, 5): mean 2, std 2
    found = WeightedSum({"a": 2.0, "b": 1.0}, scale="none")(scores(a=[[0.0, 0, 0, 2]], b=[[1.0, 1, 1, 1]]), 0)
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.0, -1.0, 3.0]]))
    found = WeightedSum({"a": 2.0, "b": 1.0})(scores(a=[[0.0, 0, 0, 2]], b=[[1.0, 1, 1, 1]]), 0)
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.0, -1.0, 3.0]]) / 2.0001)


def test_a_missing_score_renormalises_its_row() -> None:
    # second row of a is missing: 1 * 2 from b, times (3 + 1) / 1, is 8; the third has 3 * 4 times 4 / 3, is 16
    known = scores(a=[[1.0, NAN, 4.0, NAN]], b=[[1.0, 2.0, NAN, NAN]])
    aggregator = WeightedSum({"a": 3.0, "b": 1.0}, scale="none")
    mean = (4 + 8 + 16) / 3
    torch.testing.assert_close(aggregator(known, 0), torch.tensor([[4 - mean, 8 - mean, 16 - mean, 0.0]]))
    torch.testing.assert_close(aggregator.total(known, 0), torch.tensor([[1.0, 2.0, 4.0, NAN]]), equal_nan=True)


def test_a_schedule_moves_the_weight() -> None:
    aggregator = WeightedSum({"a": 1.0, "b": LinearSchedule(0.0, 1.0, steps=10)}, scale="none")
    known = scores(a=[[0.0, 2.0]], b=[[8.0, 0.0]])
    assert aggregator(known, 0).tolist() == [[-1.0, 1.0]]
    assert aggregator(known, 10).tolist() == [[3.0, -3.0]]


def test_only_a_reward_of_weight_zero_scored() -> None:
    aggregator = WeightedSum({"a": LinearSchedule(0.0, 1.0, steps=10), "b": 1.0})
    found = aggregator(scores(a=[[5.0, 1.0, 3.0]], b=[[NAN, 1.0, 2.0]]), 0)
    assert found[0, 0] == 0
    assert found[0, 1] == -found[0, 2] < 0


# ------------------------------------------------------------------------ GDPO


def test_gdpo_by_hand() -> None:
    # each reward becomes (-1, 1) / sqrt 2 in its group whatever its range; summed (-3, 3, -1, 1) / sqrt 2;
    # the batch: mean 0, variance (9 + 9 + 1 + 1) / 2 / 3 = 10 / 3
    known = scores(a=[[0.0, 100.0], [50.0, 0.0]], b=[[0.0, 1.0], [0.5, 1.0]])
    found = GDPO({"a": 1.0, "b": 2.0})(known, 0)
    expected = torch.tensor([[-3.0, 3.0], [-1.0, 1.0]]) / math.sqrt(2) / math.sqrt(10 / 3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


def test_gdpo_adds_its_epsilon_to_the_deviation_of_the_weighted_sum() -> None:
    # four sums of size 3 z: variance 4 (3 z)^2 / 3; both divisors have 1e-4 added, as in TRL
    z = 0.5 / (math.sqrt(0.5) + 1e-4)
    found = GDPO({"a": 3.0})(scores(a=[[0.0, 1.0], [1.0, 0.0]]), 0)
    expected = 3 * z / (3 * z * math.sqrt(4 / 3) + 1e-4)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) * expected, rtol=1e-6, atol=0.0)


def test_gdpo_sees_no_signal_in_a_tiny_spread() -> None:
    tiny = {"a": [[0.500, 0.501, 0.500], [0.0, 1.0, 0.5]]}
    found = GDPO({"a": 1.0})(scores(**tiny), 0)
    assert found[0].eq(0).all()
    assert found[1, 1] > 0
    assert GDPO({"a": 1.0}, min_std=1e-5)(scores(**tiny), 0)[0].ne(0).all()
    assert GDPO({"a": 1.0}, min_std={"a": 1e-5})(scores(**tiny), 0)[0].ne(0).all()


def test_gdpo_leaves_missing_scores_out() -> None:
    # a speaks of the first three, b of the last three; nobody speaks of the fifth
    known = scores(a=[[0.0, 1.0, 2.0, NAN, NAN]], b=[[NAN, 4.0, 0.0, 2.0, NAN]])
    found = GDPO({"a": 1.0, "b": 1.0})(known, 0)
    # in the group: a (-1, 0, 1), b (1, -1, 0); row sums renormalised to weight 2: -2, 0 + 1, 1 - 1, 2 * 0
    sums = torch.tensor([-2.0, 1.0, 0.0, 0.0])
    expected = (sums - sums.mean()) / sums.std()
    torch.testing.assert_close(found[0, :4], expected, rtol=1e-3, atol=1e-4)
    assert found[0, 4] == 0


def test_gdpo_gives_a_silent_group_exactly_zero() -> None:
    # the missing score shifts the mean of the batch away from 0, which must not leak into the silent group
    known = scores(a=[[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], b=[[3.0, 3.0, 3.0], [NAN, 0.0, 1.0]])
    found = GDPO({"a": 1.0, "b": 1.0})(known, 0)
    assert found[0].eq(0).all()
    assert found[1].ne(0).any()


# ------------------------------------------------------------------------ both


@pytest.mark.parametrize("kind", [WeightedSum, GDPO])
def test_order_of_names_groups_and_members_does_not_matter(kind: type[WeightedSum] | type[GDPO]) -> None:
    known = random_scores()
    found = kind({"a": 0.1, "b": 0.2, "c": 0.7})(known, 0)
    backwards = Scores(*({name: of[name] for name in "cba"} for of in (known.values, known.valid)))
    assert kind({"c": 0.7, "b": 0.2, "a": 0.1})(backwards, 0).equal(found)
    rows, columns = torch.randperm(4), torch.randperm(6)
    moved = Scores(*({name: x[rows][:, columns] for name, x in of.items()} for of in (known.values, known.valid)))
    torch.testing.assert_close(kind({"a": 0.1, "b": 0.2, "c": 0.7})(moved, 0), found[rows][:, columns])


@pytest.mark.parametrize("kind", [WeightedSum, GDPO])
def test_nothing_scored_at_all(kind: type[WeightedSum] | type[GDPO]) -> None:
    aggregator = kind({"a": 1.0})
    nothing = scores(a=[[NAN, NAN], [NAN, NAN]])
    assert aggregator(nothing, 0).eq(0).all()
    assert aggregator.total(nothing, 0).isnan().all()


@pytest.mark.parametrize("kind", [WeightedSum, GDPO])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, "no weight is positive"),
        ({"weights": {"a": 0.0}}, "no weight is positive"),
        ({"weights": {"a": -1.0}}, "weight of 'a' is -1.0"),
        ({"weights": {"a": 1.0, "b": NAN}}, "weight of 'b' is nan"),
        ({"weights": {"a": LinearSchedule(1.0, -1.0, 5)}}, "weight of 'a' is -1.0"),
        ({"weights": {"a": 1.0}, "min_std": -1.0}, "min_std is -1.0"),
    ],
)
def test_senseless_options_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**options)


def test_gdpo_names_rewards_without_a_floor() -> None:
    with pytest.raises(UserError, match=r"name exactly the rewards \['a', 'b'\]"):
        GDPO({"a": 1.0, "b": 1.0}, min_std={"a": 0.1})


def test_an_aggregator_of_ones_own() -> None:
    class Best(Aggregator):
        @property
        def names(self) -> tuple[str, ...]:
            return ("a", "b")

        def __call__(self, scores: Scores, step: int) -> Tensor:
            return torch.maximum(scores.values["a"], scores.values["b"])

    best, known = Best(), scores(a=[[1.0, NAN]], b=[[3.0, 5.0]])
    assert best(known, 0).tolist() == [[3.0, 5.0]]
    assert best.total(known, 0).tolist() == [[2.0, 5.0]]
    best.load_state_dict(best.state_dict())
    with pytest.raises(ValueError, match="Best keeps no state"):
        best.load_state_dict({"mean": 1.0})


def test_yaml_reaches_the_constructor() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--aggregator", type=Aggregator)
    weights = {"a": 1.0, "b": {"start": 0.0, "end": 1.0, "steps": 10}}
    config = parser.parse_object({"aggregator": {"class_path": "GDPO", "init_args": {"weights": weights}}})
    aggregator = parser.instantiate(config).aggregator
    assert aggregator.weights(5) == {"a": 1.0, "b": 0.5}


# -------------------------------------------------------------------- overlong


def test_soft_overlong_by_hand() -> None:
    reward = SoftOverlong(max_new_tokens=10, buffer=4)
    lengths = [0, 6, 7, 8, 10, 12]
    batch = RewardBatch([""] * 6, [""] * 6, [0] * 6, completion_ids=[[1] * length for length in lengths])
    assert reward.score(batch) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_soft_overlong_without_tokens_has_no_opinion() -> None:
    assert SoftOverlong(10, 4).score(RewardBatch(["p"] * 2, ["c"] * 2, [0, 0])) == [None, None]


@pytest.mark.parametrize("buffer", [0, 11])
def test_soft_overlong_refuses_a_senseless_buffer(buffer: int) -> None:
    with pytest.raises(UserError, match="write 1 to max_new_tokens = 10"):
        SoftOverlong(10, buffer)
