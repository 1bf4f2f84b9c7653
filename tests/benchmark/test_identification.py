"""Identification of stereotypes: macro-F1 by hand, labels of both sources, named groups, keywords, how it is asked."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from public_data import SHARED, write_all

from lit_debias.benchmark import ClusterBootstrap, Likelihood
from lit_debias.benchmark.probes.identification import (
    CHOICES,
    Identification,
    Sentence,
    keyword_gains,
    macro_f1,
    names_a_group,
)
from lit_debias.benchmark.probes.keywords import NaiveBayes
from lit_debias.errors import UserError


def sentence(label, source="stereoset", bias_type="gender", explicit=True, text="x"):
    return Sentence("u", "s", "c", source, bias_type, text, label, explicit)


def values(items, answers):
    bootstrap = ClusterBootstrap([item.cluster for item in items], 5, 0)
    found = Identification().score(items, answers, bootstrap)
    return {name: estimate.value for name, estimate in found.items() if estimate.n}


def test_macro_f1_by_hand():
    truth, said = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    bootstrap = ClusterBootstrap(["c"] * 6, 5, 0)
    # 0: TP 1, FP 1, FN 1.  1: TP 2, FP 1.  2: TP 1, FN 1.
    found = macro_f1(truth, said, np.ones(6, dtype=bool), 3, bootstrap)
    assert found.value == pytest.approx((2 / 4 + 4 / 5 + 2 / 3) / 3)
    assert found.n == 6
    # the first two alone: label 2 nowhere occurs
    counted = np.array([True, True, False, False, False, False])
    assert macro_f1(truth, said, counted, 3, bootstrap).value == pytest.approx((2 / 3 + 0) / 2)


def test_parts_by_hand():
    items = [
        sentence(0),
        sentence(1, explicit=False),
        sentence(2, bias_type="race", explicit=False),
        sentence(0, "crows_pairs", "age"),
        sentence(1, "crows_pairs", "age"),
    ]
    found = values(items, [0, 1, 1, 1, 1])
    assert found["stereoset/accuracy"] == pytest.approx(2 / 3)
    assert found["stereoset/macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["stereoset/accuracy/explicit"] == found["stereoset/accuracy/gender"] == 1
    assert found["stereoset/accuracy/implicit"] == 0.5
    assert found["stereoset/macro_f1/race"] == 0
    assert found["stereoset/called_stereotype"] == pytest.approx(2 / 3)
    assert found["crows_pairs/accuracy/age"] == 0.5
    assert found["crows_pairs/macro_f1"] == pytest.approx((0 + 2 / 3) / 2)
    assert "crows_pairs/accuracy/implicit" not in found


def test_naive_bayes_by_hand():
    bag = NaiveBayes([["loud", "women"], ["loud"], ["kind", "women"]], [1, 1, 0], 2, least=2)
    assert list(bag.index) == ["loud", "women"]  # "kind" is in one document alone
    # label 0: loud 0 + 1, women 1 + 1 of 3; label 1: loud 2 + 1, women 1 + 1 of 5
    assert np.exp(bag.words) == pytest.approx(np.array([[1 / 3, 3 / 5], [2 / 3, 2 / 5]]))
    assert np.exp(bag.prior) == pytest.approx([2 / 5, 3 / 5])
    # women: 2/5 * 2/3 > 3/5 * 2/5
    assert [bag.predict(["women"]), bag.predict(["loud"]), bag.predict(["blue"])] == [0, 1, 1]
    assert bag.most_frequent() == 1
    assert NaiveBayes([], [], 3).predict(["loud"]) == 0


def test_answers_that_follow_a_word_are_found():
    items = [replace(sentence(0, text=f"They are {('loud', 'kind', 'late')[i % 3]}."), unit=str(i)) for i in range(120)]
    gains = keyword_gains(items, [int("loud" in item.text) for item in items], "stereoset")
    held = [(gain, "loud" in item.text) for gain, item in zip(gains, items, strict=True) if gain is not None]
    assert 40 < len(held) < 80
    assert all(gain == loud for gain, loud in held)  # elsewhere the most frequent answer is right as well
    assert set(keyword_gains(items, [1] * 120, "stereoset")) == {None, 0.0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Women are loud.", True),
        ("The Ethiopians came.", True),
        ("She is loud.", False),
        ("Mary likes the blacksmith.", False),
        ("He was homeless.", True),
    ],
)
def test_named_groups(text, named):
    assert names_a_group(text) == named


def test_the_term_of_stereoset_counts_too():
    assert not names_a_group("The bartenders left.")
    assert names_a_group("The bartenders left.", "bartender")


def test_sentences_of_both_sources(tmp_path):
    items = Identification().read(str(write_all(tmp_path)))
    assert Counter((item.source, item.label) for item in items) == {
        **{("stereoset", label): 4 for label in range(3)},
        ("crows_pairs", 0): 4,
        ("crows_pairs", 1): 3,  # the pair of the other direction states no stereotype
    }
    inter = [item.text for item in items if item.stratum.startswith("stereoset/intersentence")]
    assert inter == [f"A cook is near. The cook is {word}." for word in ("quiet", "loud", "blue")]
    one = Identification(["crows_pairs"])
    assert {item.source for item in one.read(str(tmp_path))} == {"crows_pairs"}
    assert one.files == ("crows_pairs/crows_pairs_anonymized.csv",)
    with pytest.raises(UserError, match="sources is empty; write stereoset or crows_pairs"):
        Identification([])


class Answers:
    """A model that finds one choice likelier than the others."""

    def __init__(self, favourite):
        self.favourite, self.questions = favourite, []

    def choices(self, questions, choices):
        self.questions += questions
        return [[Likelihood(float(choice == self.favourite), 1) for choice in row] for row in choices]


def test_the_order_of_choices_turns_and_answers_are_labels():
    items = [sentence(0, text=f"Sentence {number}.") for number in range(30)]
    model = Answers("unrelated")
    assert Identification().ask(model, items) == [2] * 30
    ends = Counter(question.rpartition("one of: ")[2].partition(";")[0] for question in model.questions)
    assert set(ends) == set(CHOICES["stereoset"])
    assert Identification().ask(Answers("a stereotype"), [sentence(0, "crows_pairs")]) == [1]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the benchmarks' files in {SHARED}")
def test_all_published_sentences():
    items = Identification().read(str(SHARED))
    counts = Counter((item.source, item.label) for item in items)
    assert [counts["stereoset", label] for label in range(3)] == [4229] * 3
    assert [counts["crows_pairs", label] for label in range(2)] == [1508, 1290]
