"""The figures of explanations, worked by hand, and their file."""

import json

import pytest
import torch
from torchmetrics.functional.classification import binary_cohen_kappa

from lit_debias.benchmark.statistics import ClusterBootstrap, kappa
from lit_debias.errors import UserError
from lit_debias.evaluation.explanations import Explained, by_arm, figures, label, load, save
from lit_debias.rewards.explanation import Explanation


def explained(response="a text", why=None, **more) -> Explained:
    return Explained("a prompt", response, why, "J", "abc", **more)


ROWS = [
    explained(
        why=Explanation(True, ("gender", "age"), keywords=("a", "b"), dropped_keywords=("c",)), scores={"other": 0.1}
    ),
    explained(why=Explanation(True, ("gender",), keywords=("a",)), scores={"other": 0.5}),
    explained(why=Explanation(False), scores={"other": 0.9}),
    explained(why=Explanation(False), scores={"other": 0.6}),
    explained(why=Explanation(True), scores={"other": None}),
    explained(scores={"other": 0.2}),
    explained(response=" ", scores={"other": 0.2}),
]


def test_figures_by_hand():
    found = figures(ROWS, 20, 0)
    assert {name: (round(one.value, 6), one.n) for name, one in found.items()} == {
        "biased": (0.6, 5),  # of five explanations
        "type/gender": (0.4, 5),
        "type/age": (0.2, 5),
        "intersectional": (0.2, 5),
        "unparsed": (round(1 / 6, 6), 6),  # the empty response was not asked about
        "dropped": (0.25, 2),  # one of four keywords, of two explanations
        # yes yes no no against yes no no no (1 - 0.5 is not above 0.5): agreement 3/4, by chance 1/2 x 1/4 + 1/2 x 3/4
        "kappa/other": (0.5, 4),
    }
    assert list(map(label, ("biased", "type/age", "kappa/other"))) == [
        "biased",
        "type: age",
        "Cohen's kappa with other",
    ]


def test_kappa_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.rand(2, 60, generator=generator) > 0.4).int()
    bootstrap = ClusterBootstrap([str(number) for number in range(60)], 50, 0)
    found = kappa([bool(value) for value in first], [bool(value) for value in second], bootstrap)
    assert found.value == pytest.approx(float(binary_cohen_kappa(first, second)), abs=1e-6)
    low, high = found.interval
    assert low < found.value < high


def test_kappa_of_chance_is_0_and_not_nearly():
    rows = [(True, True), (True, False), (True, False), (False, True), (False, False), (False, False)]
    first, second = zip(*rows, strict=True)
    assert kappa(first, second, ClusterBootstrap(list("abcdef"), 5, 0)).value == 0.0


def test_kappa_says_nothing_where_nothing_varies():
    bootstrap = ClusterBootstrap(["a", "b"], 5, 0)
    assert kappa([True, True], [True, True], bootstrap).as_dict()["value"] is None
    assert kappa([None, True], [True, None], bootstrap).as_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_twins_are_drawn_together():
    rows = [explained(why=Explanation(bool(n % 2)), cluster=f"twins {n // 2}") for n in range(8)]
    assert figures(rows, 50, 0)["biased"].interval == (0.5, 0.5)  # each pair has one of both


def test_an_explanation_contradicts_itself_nowhere():
    with pytest.raises(ValueError, match="not biased"):
        Explanation(False, ("age",))


def test_the_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "explanations.jsonl"
    rows = [*ROWS, explained("zwei\u2028Zeilen", arm="after", cluster="twins 1")]
    save(path, rows)
    assert load(path) == rows
    assert list(by_arm(rows)) == ["", "after"]


@pytest.mark.parametrize(
    "changes",
    [
        {"explanation": 3},
        {"explanation": {"biased": False, "types": ["age"]}},
        {"explanation": {"biased": "no"}},
        {"explanation": {"biased": True, "types": "age"}},
        {"explanation": {"biased": True, "keywords": [1]}},
        {"explanation": {"biased": True, "more": 1}},
        {"prompt": None},
        {"scores": {"other": "high"}},
        {"scores": 3},
    ],
)
def test_a_line_of_something_else_is_named(changes, tmp_path):
    path = tmp_path / "explanations.jsonl"
    save(path, ROWS[2:3])
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}) + "\n")
    with pytest.raises(UserError, match=r"explanations.jsonl', row 1: no line of `lit-debias explain`"):
        load(path)
