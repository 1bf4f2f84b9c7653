"""Aggregators beyond the weighted ones: each by hand, and what all of them owe to ranks, checkpoints and logs."""

from __future__ import annotations

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import jsonargparse
import pytest
import torch
from aggregator_kinds import ABC, KINDS

from lit_debias.aggregators import (
    GDPO,
    Aggregator,
    Gate,
    Gated,
    GeometricMean,
    GroupMaxMin,
    Lagrangian,
    LowerConfidenceBound,
    MaxMin,
    WeightedSum,
    WorstCase,
    wrappers,
)
from lit_debias.aggregators import aggregator as base
from lit_debias.errors import UserError
from lit_debias.grpo import advantages as advantages_module
from lit_debias.support import distributed
from lit_debias.types import Scores

NAN = float("nan")


def scores(columns=None, **rewards) -> Scores:
    """Scores from [P][G] numbers; NaN is a missing one."""
    tensors = {name: torch.tensor(rows) for name, rows in rewards.items()}
    values = {name: rows.nan_to_num(0.0) for name, rows in tensors.items()}
    return Scores(values, {name: ~rows.isnan() for name, rows in tensors.items()}, columns=columns or {})


def random_scores(groups=("x", "y", "x", None)) -> Scores:
    rows = {name: torch.rand(4, 6).where(torch.rand(4, 6) > 0.1, NAN).tolist() for name in ("a", "b", "c")}
    return scores({"group": list(groups)}, **rows)


def part(whole: Scores, rows) -> Scores:
    """Return the scores of some prompts."""
    values, valid = ({name: of[name][rows] for name in of} for of in (whole.values, whole.valid))
    groups = whole.columns["group"]
    kept = groups[rows] if isinstance(rows, slice) else [groups[row] for row in rows]
    return Scores(values, valid, columns={"group": kept})


def near(found, expected) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True, rtol=1e-4, atol=1e-6)


LEARNING = ("max_min", "lagrangian", "groups", "nested")
every_kind = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)


# -------------------------------------------------------------------- conjunctive


def test_geometric_mean_by_hand() -> None:
    # (1/16)^(1/4) 1^(3/4) = 1/2; 1^(1/4) (1/16)^(3/4) = 1/8; b alone keeps its value
    known = scores(a=[[1 / 16, 1.0, NAN, NAN]], b=[[1.0, 1 / 16, 0.7, NAN]])
    aggregator = GeometricMean({"a": 1.0, "b": 3.0}, scale="none")
    near(aggregator.total(known, 0), [[0.5, 0.125, 0.7, NAN]])
    mean = (0.5 + 0.125 + 0.7) / 3
    near(aggregator(known, 0), [[0.5 - mean, 0.125 - mean, 0.7 - mean, 0.0]])


def test_a_score_of_zero_counts_as_the_floor() -> None:
    known = scores(a=[[0.0, 0.0]], b=[[1.0, 0.25]])
    near(GeometricMean({"a": 1.0, "b": 1.0}).total(known, 0), [[0.1, 0.05]])  # (0.01 b)^(1/2)
    near(GeometricMean({"a": 1.0, "b": 1.0}, floor=0.0).total(known, 0), [[0.0, 0.0]])


def test_a_product_refuses_negative_scores() -> None:
    with pytest.raises(UserError, match=r"reward 'a' gave -0\.5"):
        GeometricMean({"a": 1.0})(scores(a=[[0.3, -0.5]]), 0)


def test_worst_case_by_hand() -> None:
    # the last completion lacks a, which others of its group have; in the second group nobody has it
    known = scores(a=[[0.2, 0.9, 0.5, NAN], [NAN] * 4], b=[[0.6, 0.4, 0.6, 0.8], [0.1, 0.2, NAN, 0.3]])
    aggregator = WorstCase(["a", "b"], scale="none")
    near(aggregator.total(known, 0), [[0.2, 0.4, 0.5, NAN], [0.1, 0.2, NAN, 0.3]])
    mean = 1.1 / 3
    near(aggregator(known, 0), [[0.2 - mean, 0.4 - mean, 0.5 - mean, 0.0], [-0.1, 0.0, 0.0, 0.1]])


# ------------------------------------------------------------------------ learned


def test_max_min_by_hand() -> None:
    # means 0.25 and 0.5: one temperature x ln 2 apart, so the lower one weighs twice as much
    aggregator = MaxMin(["b", "a"], temperature=0.25 / math.log(2), smoothing=0.5, scale="none")
    assert aggregator.weights(0) == {"a": 0.5, "b": 0.5}
    found = aggregator(scores(a=[[0.0, 0.5]], b=[[0.6, 0.4]]), 0)
    near(found, [[-2 / 15, 2 / 15]])  # totals 2/3 a + 1/3 b: 0.2 and 7/15
    assert aggregator.weights(1) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    aggregator(scores(a=[[0.75, 0.75]], b=[[NAN, NAN]]), 1)  # a: (0.25 + 0.75) / 2; b keeps its mean
    assert aggregator.weights(2) == pytest.approx({"a": 0.5, "b": 0.5})


def test_at_temperature_zero_only_the_worst_reward_counts() -> None:
    aggregator = MaxMin(["a", "b", "silent"], temperature=0.0)
    found = aggregator(scores(a=[[0.1, 0.3]], b=[[0.4, 0.3]], silent=[[NAN, NAN]]), 0)
    assert aggregator.weights(0) == {"a": 1.0, "b": 0.0, "silent": 0.0}
    assert found[0, 0] < 0 < found[0, 1]


def test_lagrangian_by_hand() -> None:
    # b has mean 0.25, 0.25 too low: multiplier 2 x 0.25; (a + 0.5 b) / 1.5 = 2/3 and 1/6
    aggregator = Lagrangian({"a": 1.0}, {"b": 0.5}, rate=2.0, scale="none")
    known = scores(a=[[1.0, 0.0]], b=[[0.0, 0.5]])
    found = aggregator(known, 0)
    near(found, [[0.25, -0.25]])
    assert aggregator.weights(0) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("lit_debias.aggregators.learned.batch_means")  # ranks have talked already
        metrics = aggregator.metrics(known, found, 0)
    assert metrics["rewards/b/multiplier"] == pytest.approx(0.5)
    assert metrics["rewards/b/violation"] == pytest.approx(0.25)
    assert metrics["rewards/b/weight"] == pytest.approx(1 / 3)
    aggregator(scores(a=[[1.0, 0.0]], b=[[NAN, NAN]]), 1)  # nothing is known of the constraint
    assert aggregator.multipliers == pytest.approx({"b": 0.5})
    aggregator(scores(a=[[1.0, 0.0]], b=[[0.7, NAN]]), 2)  # 0.5 - 2 x 0.2
    assert aggregator.multipliers == pytest.approx({"b": 0.1})
    aggregator(scores(a=[[1.0, 0.0]], b=[[1.0, 1.0]]), 3)
    assert aggregator.multipliers == {"b": 0.0}


def test_multipliers_are_bounded_and_add_to_the_objective() -> None:
    aggregator = Lagrangian({"a": 2.0}, {"a": 0.9}, rate=100.0, maximum=3.0)
    aggregator(scores(a=[[0.0, 0.2]]), 0)
    assert aggregator.multipliers == {"a": 3.0}
    assert aggregator.weights(0) == pytest.approx({"a": 2.0})  # (2 + 3) x 2 / (2 + 3)


# ----------------------------------------------------------------------- wrappers


def test_gate_by_hand() -> None:
    # the first gate is just open, the second closed, the third unknown
    known = scores(fair=[[1.0, 0.8, 0.6, 0.9]], fluent=[[0.5, 0.4, NAN, 0.9]])
    aggregator = Gated(WeightedSum({"fair": 1.0}, scale="none"), {"fair": Gate("fluent", 0.5)})
    assert aggregator.names == ("fair", "fluent")
    near(aggregator.total(known, 0), [[1.0, 0.0, NAN, 0.9]])
    found = aggregator(known, 0)
    near(found, [[1.0 - 1.9 / 3, -1.9 / 3, 0.0, 0.9 - 1.9 / 3]])
    assert aggregator.metrics(known, found, 0)["rewards/fair/gate_open"] == pytest.approx(2 / 3)
    other = Gated(WeightedSum({"fair": 1.0}), {"fair": Gate("fluent", 0.5, closed=-1.0)})
    near(other.total(known, 0), [[1.0, -1.0, NAN, 0.9]])


def test_lower_confidence_bound_by_hand() -> None:
    # 0.4 and 0.8: mean 0.6, deviation sqrt(0.08); two that agree; one opinion is none
    known = scores(a=[[0.4, 0.5, NAN]], b=[[0.8, 0.5, 0.9]], other=[[0.0, 0.1, 0.2]])
    aggregator = LowerConfidenceBound(WeightedSum({"ab": 1.0, "other": 1.0}), {"ab": ["a", "b"]}, kappa=0.5)
    assert aggregator.names == ("a", "b", "other")
    bound = 0.6 - 0.5 * math.sqrt(0.08)
    near(aggregator.transform(known).values["ab"][:, :2], [[bound, 0.5]])
    near(aggregator.total(known, 0), [[bound / 2, 0.3, 0.2]])
    metrics = aggregator.metrics(known, aggregator(known, 0), 0)
    assert metrics["rewards/ab/uncertainty"] == pytest.approx(math.sqrt(0.08) / 2)
    assert metrics["rewards/ab/weight"] == 1.0


def test_group_max_min_by_hand() -> None:
    # means: x 0.5, y 0.25, so y weighs twice as much: 1/3 and 2/3, over shares 2/3 and 1/3: factors 1/2 and 2
    known = scores({"group": ["x", "y", "x", None]}, a=[[0.0, 1.0], [0.0, 0.5], [0.0, 1.0], [0.0, 0.2]])
    inner = WeightedSum({"a": 1.0}, scale="none")
    aggregator = GroupMaxMin(inner, temperature=0.25 / math.log(2), smoothing=0.5)
    assert aggregator.columns == ("group",)
    found = aggregator(known, 0)
    near(found, [[-0.25, 0.25], [-0.5, 0.5], [-0.25, 0.25], [-0.1, 0.1]])
    metrics = aggregator.metrics(known, found, 0)
    assert (metrics["groups/x/mean"], metrics["groups/y/mean"]) == (0.5, 0.25)
    assert metrics["groups/y/weight"] == pytest.approx(2 / 3)
    # only x is here, y's weight does not shrink it; its mean moves to (0.5 + 0) / 2
    near(aggregator(scores({"group": ["x"]}, a=[[-1.0, 1.0]]), 1), [[-1.0, 1.0]])
    assert aggregator.worst.means == {"x": 0.25, "y": 0.25}


def test_a_missing_column_is_named() -> None:
    aggregator = GroupMaxMin(GDPO(ABC), column="gruop")
    with pytest.raises(UserError, match=r"no data column 'gruop'; did you mean 'group'"):
        aggregator(random_scores(), 0)
    with pytest.raises(UserError, match=r"the aggregator needs the data column 'gruop', and the data has: group"):
        Gated(aggregator, {"a": Gate("b", 0.5)}).check_columns(["group"])
    WeightedSum(ABC).check_columns([])


# ---------------------------------------------------------------------- influence


def test_influence_by_hand() -> None:
    # a and b vary alike (std sqrt(4/3)) and independently; A follows b twice as much: 4 u and 8 u, c is constant
    known = scores(a=[[0.0, 0.0, 2.0, 2.0]], b=[[0.0, 2.0, 0.0, 2.0]], c=[[0.1] * 4])
    metrics = WeightedSum(ABC).metrics(known, torch.tensor([[-3.0, 1.0, -1.0, 3.0]]), 0)
    assert metrics["rewards/a/share"] == pytest.approx(1 / 3)
    assert metrics["rewards/b/share"] == pytest.approx(2 / 3)
    assert metrics["rewards/c/share"] == metrics["rewards/c/group_std"] == 0.0
    assert metrics["rewards/a/group_std"] == pytest.approx(math.sqrt(4 / 3))
    assert metrics["rewards/b/weight"] == 0.5


def test_a_sacrificed_reward_has_a_negative_share() -> None:
    known = scores(a=[[0.0, 1.0], [NAN, 0.5]], b=[[1.0, 0.0], [0.2, 0.2]])
    metrics = base.influence(known, ("a", "b"), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    assert (metrics["rewards/a/share"], metrics["rewards/b/share"]) == pytest.approx((0.5, -0.5))
    assert metrics["rewards/a/group_std"] == pytest.approx(math.sqrt(0.5))  # one score has no spread
    assert metrics["rewards/b/group_std"] == pytest.approx(math.sqrt(0.5) / 2)


# -------------------------------------------------------------------- every kind


@every_kind
def test_order_of_groups_and_members_does_not_matter(build) -> None:
    known = random_scores()
    rows, members = torch.randperm(4).tolist(), torch.randperm(6)
    moved = part(known, rows)
    moved = Scores(
        *({n: x[:, members] for n, x in of.items()} for of in (moved.values, moved.valid)), columns=moved.columns
    )
    torch.testing.assert_close(build()(moved, 0), build()(known, 0)[rows][:, members])


@every_kind
def test_nothing_scored_at_all(build) -> None:
    aggregator = build()
    nothing = scores({"group": ["x", "y"]}, **{name: [[NAN, NAN], [NAN, NAN]] for name in "abc"})
    found = aggregator(nothing, 0)
    assert found.eq(0).all()
    assert aggregator.total(nothing, 0).isnan().all()
    metrics = aggregator.metrics(nothing, found, 0)
    assert all(math.isfinite(value) for value in metrics.values())


@every_kind
def test_metrics_and_total_learn_nothing(build) -> None:
    aggregator = build()
    known = random_scores()
    found = aggregator(known, 0)
    before = copy.deepcopy(aggregator.state_dict())
    metrics = aggregator.metrics(known, found, 0)
    assert sum(abs(value) for name, value in metrics.items() if name.endswith("/share")) == pytest.approx(1.0)
    assert all(type(value) is float for value in metrics.values())
    assert aggregator.total(known, 0).shape == (4, 6)
    assert aggregator.state_dict() == before


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_holds_what_was_learned(name, tmp_path) -> None:
    first, resumed, fresh = (KINDS[name]() for _ in range(3))
    for step in range(3):
        first(random_scores(), step)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    known = random_scores()
    expected = first(known, 3)
    assert resumed(known, 3).equal(expected)
    assert resumed.state_dict() == first.state_dict()
    assert fresh(known, 3).equal(expected) is (name not in LEARNING)


@every_kind
def test_two_ranks_do_what_one_does_and_learn_the_same(build, monkeypatch) -> None:
    barrier, local, given = threading.Barrier(2, timeout=60), threading.local(), {}

    def gather(value):
        given[local.rank] = copy.deepcopy(value)
        barrier.wait()
        found = [given[0], given[1]]
        barrier.wait()
        return found

    for module in (advantages_module, base):
        monkeypatch.setattr(module, "all_sum", lambda values: sum(gather(values)))
    for module in (distributed, wrappers):
        monkeypatch.setattr(module, "gather_objects", gather)

    whole = [random_scores(), random_scores(("y", "y", "x", "z"))]

    def run(rank, rows):
        local.rank = rank
        aggregator = build()
        found = [aggregator(part(known, rows), step) for step, known in enumerate(whole)]
        return found, aggregator.state_dict(), aggregator.metrics(part(whole[-1], rows), found[-1], 1)

    with ThreadPoolExecutor(2) as pool:
        (left, state, metrics), (right, other_state, other_metrics) = pool.map(run, (0, 1), (slice(0, 1), slice(1, 4)))
    monkeypatch.undo()
    alone = build()
    found = [alone(known, step) for step, known in enumerate(whole)]
    for step in range(2):
        torch.testing.assert_close(torch.cat([left[step], right[step]]), found[step])
    assert state == other_state
    assert metrics == other_metrics
    assert metrics == pytest.approx(alone.metrics(whole[-1], found[-1], 1), rel=1e-4, abs=1e-5)


# ------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GeometricMean({"a": 0.0}), "no weight is positive"),
        (lambda: GeometricMean({"a": 1.0}, floor=1.0), r"floor is 1\.0"),
        (lambda: WorstCase([]), "WorstCase: rewards is empty"),
        (lambda: WorstCase(["a", "a"]), "names 'a' twice"),
        (lambda: WorstCase(["a"], min_std=-1.0), r"min_std is -1\.0"),
        (lambda: MaxMin(["a"], temperature=-1.0), r"temperature is -1\.0"),
        (lambda: MaxMin(["a"], smoothing=1.0), r"smoothing is 1\.0"),
        (lambda: Lagrangian({"a": 0.0}, {"b": 1.0}), "no weight is positive; write objective"),
        (lambda: Lagrangian({"a": 1.0}, {}), "constraints is empty"),
        (lambda: Lagrangian({"a": 1.0}, {"b": NAN}), "constraint of 'b' is nan"),
        (lambda: Lagrangian({"a": 1.0}, {"b": 0.5}, rate=0.0), r"rate is 0\.0"),
        (lambda: Lagrangian({"a": 1.0}, {"b": 0.5}, maximum=math.inf), "maximum is inf"),
        (lambda: Gate("a", NAN), "write finite numbers"),
        (lambda: Gated(WeightedSum(ABC), {}), "gates is empty"),
        (lambda: Gated(WeightedSum(ABC), {"aa": Gate("b", 0.5)}), "names 'aa', which the aggregator does not use"),
        (lambda: GroupMaxMin(WeightedSum(ABC), smoothing=-0.1), r"GroupMaxMin: smoothing is -0\.1"),
        (lambda: LowerConfidenceBound(WeightedSum(ABC), {}), "ensembles is empty"),
        (lambda: LowerConfidenceBound(WeightedSum(ABC), {"e": ["x", "y"]}), "names 'e', which the aggregator"),
        (lambda: LowerConfidenceBound(WeightedSum(ABC), {"a": ["x"]}), "ensemble 'a' has one member"),
        (lambda: LowerConfidenceBound(WeightedSum(ABC), {"a": ["a", "b"]}), "'a' is an ensemble and a member"),
        (lambda: LowerConfidenceBound(WeightedSum(ABC), {"a": ["x", "y"]}, kappa=-1.0), r"kappa is -1\.0"),
    ],
)
def test_senseless_options_are_refused(build, message) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("name", LEARNING)
def test_a_checkpoint_of_another_aggregator_is_refused(name) -> None:
    for state in ({}, {"multipliers": {"elsewhere": 1.0}}, {"means": {"elsewhere": 1.0}}):
        with pytest.raises(UserError, match="resume with the"):
            KINDS[name]().load_state_dict(state)


def test_yaml_nests_aggregators() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--aggregator", type=Aggregator)
    inner = {"class_path": "Lagrangian", "init_args": {"objective": {"fair": 1.0}, "constraints": {"fluent": 0.6}}}
    gated = {"aggregator": inner, "gates": {"fair": {"reward": "relevant", "least": 0.5}}}
    outer = {"aggregator": {"class_path": "Gated", "init_args": gated}, "column": "category"}
    config = parser.parse_object({"aggregator": {"class_path": "GroupMaxMin", "init_args": outer}})
    aggregator = parser.instantiate(config).aggregator
    assert aggregator.columns == ("category",)
    assert aggregator.names == ("fair", "fluent", "relevant")
    assert aggregator.aggregator.gates == {"fair": Gate("relevant", 0.5)}
