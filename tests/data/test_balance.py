"""Counterfactual balance: Skew, resampling and weights worked out by hand, and the rows that are trained on."""

import math
from collections import Counter

import pytest
from prompt_files import ready, write

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.support.skew import extremes, resample, shares_of, skews, weights

# Of four nurses three are women, of two pilots one is; ideally one half of each.
PAIRS = [("nurse", "women")] * 3 + [("nurse", "men")] + [("pilot", "women"), ("pilot", "men")]


def test_skew_by_hand():
    found = skews(shares_of(PAIRS))
    assert found == {
        ("nurse", "women"): pytest.approx(math.log(0.75 / 0.5)),
        ("nurse", "men"): pytest.approx(math.log(0.25 / 0.5)),
        ("pilot", "women"): 0.0,
        ("pilot", "men"): 0.0,
    }
    low, high = extremes(shares_of(PAIRS))
    assert (low, high) == (pytest.approx(-math.log(2) / 2), pytest.approx(math.log(1.5) / 2))
    assert extremes({"nurse": {"a": 0.5, "b": 0.5}}) == (0.0, 0.0)
    assert extremes(shares_of([("nurse", "women"), ("pilot", "men")])) == (-math.inf, pytest.approx(math.log(2)))


def test_weights_by_hand_and_their_mean():
    found = weights([*PAIRS, None])
    assert found == pytest.approx([2 / 3] * 3 + [2.0] + [1.0, 1.0] + [1.0])
    assert sum(found) == pytest.approx(len(found))


def test_what_is_rare_comes_twice_when_its_account_is_full():
    # 1 of 4: |Skew| = log 2 = 0.693 a row, so the account is 0.69, 1.39 -> 0.39, 1.08 -> 0.08, 0.77, 1.47 -> 0.47, 1.16
    pairs = [("c", "a"), ("c", "a"), ("c", "a"), ("c", "b")] * 6
    kept = Counter(resample(pairs, seed=0, drop=1e9))
    rare = [kept[row] for row in range(3, 24, 4)]
    assert rare == [1, 2, 2, 1, 2, 2]
    assert all(kept[row] == 1 for row in range(24) if row % 4 != 3)  # with a large tau nothing is dropped


def test_what_is_frequent_is_dropped_as_often_as_its_skew_says():
    pairs = [("c", "a"), ("c", "a"), ("c", "a"), ("c", "b")] * 2000
    kept = Counter(pairs[row] for row in resample(pairs, seed=3, duplicate=math.inf))
    skew = math.log(1.5)
    assert kept["c", "b"] == 2000
    assert kept["c", "a"] / 6000 == pytest.approx(1 - skew / (skew + 1), abs=0.02)


def test_rows_without_a_pair_stay_and_seeds_decide():
    pairs = [*PAIRS, None] * 20
    assert resample(pairs, 1) == resample(pairs, 1) != resample(pairs, 2)
    assert {row for row, pair in enumerate(pairs) if pair is None} <= set(resample(pairs, 1))
    assert resample(pairs, 1) == sorted(resample(pairs, 1))


def rows_of(pairs):
    return [
        {"prompt": f"p{n}", "reference": "r", "job": pair and pair[0], "who": pair and pair[1]}
        for n, pair in enumerate(pairs)
    ]


def test_training_rows_are_balanced_and_weighed(tmp_path):
    pairs = ([("nurse", "women")] * 9 + [("nurse", "men")] * 3) * 40
    file = write(tmp_path / "set/train.jsonl", rows_of([*pairs, None]))
    write(tmp_path / "set/validation.jsonl", rows_of(pairs[:12]))
    columns = {"concept": "job", "group": "who"}
    data = ready(PromptDataModule(str(file.parent), columns=columns, balance="skew", seed=1))
    rows = data.rows["train"]
    counts = Counter(zip(rows["concept"], rows["group"], strict=True))
    women, men = counts["nurse", "women"], counts["nurse", "men"]
    assert (women < 360, men > 120, counts[None, None]) == (True, True, 1)
    weight = dict(zip(rows["group"], rows["skew_weight"], strict=True))
    assert weight == {  # of what is left, so that the weights make up for the rest
        "women": pytest.approx((women + men) / (2 * women)),
        "men": pytest.approx((women + men) / (2 * men)),
        None: 1.0,
    }
    assert set(data.rows["validation"]["skew_weight"]) == {1.0}
    assert len(data.rows["validation"]) == 12
    assert data.changes[0].startswith(f"balance: {len(rows)} rows of 481, MinSkew -0.69 to ")
    again = ready(PromptDataModule(str(file.parent), columns=columns, balance="skew", seed=1))
    assert list(again.rows["train"]["prompt"]) == list(rows["prompt"])
    mild = ready(PromptDataModule(str(file.parent), columns=columns, balance="skew", balance_tau=1e9, seed=1))
    assert list(mild.rows["train"]["prompt"]) == [f"p{n}" for n in range(481)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column 'concept'"),
        ({"concept": "job"}, "no column 'group'"),
        ({"concept": "job", "group": "job"}, "have 1 'group'; name other columns"),
        ({"concept": "job", "group": "who", "skew_weight": "who"}, "has a column 'skew_weight', which balance writes"),
    ],
)
def test_columns_that_cannot_be_balanced(tmp_path, columns, message):
    file = write(tmp_path / "rows.jsonl", rows_of(PAIRS[:4]))
    with pytest.raises(UserError, match=message):
        ready(PromptDataModule(str(file), columns=columns, balance="skew", val_splits=None))
