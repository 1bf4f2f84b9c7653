"""Measures that score texts: sentiment, toxicity, labels."""

from statistics import stdev

import numpy as np
import pytest

from lit_debias.benchmark import ClusterBootstrap
from lit_debias.errors import UserError
from lit_debias.rewards.reward import Reward
from lit_debias.text_measures import Labels, Sentiment, Texts, Toxicity

COMPOUND = {"good": 1.0, "bad": -1.0, "so": 0.0}


def of(answers, groups, twins=(), draws=50):
    clusters = [str(min(pair)) for pair in twins for _ in pair] or [str(i) for i in range(len(answers))]
    return Texts.of(answers, ["asked"] * len(answers), groups, ClusterBootstrap(clusters, draws, 0), twins)


def values(found):
    return {name: pytest.approx(estimate.value) for name, estimate in found.items()}


@pytest.fixture
def sentiment(monkeypatch):
    monkeypatch.setattr("lit_debias.text_measures.sentiment.find_spec", lambda name: True)
    monkeypatch.setattr("lit_debias.text_measures.sentiment.analyser", lambda: COMPOUND.__getitem__)
    return Sentiment()


TWINS = [(0, 1), (2, 3)]
GROUPS = ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("answers", "mean", "individual", "twins", "group"),
    [
        # what one twin loses the other pair gains: the groups' scores are the same, those of twins are not
        ([["good"] * 2, ["bad"] * 2, ["bad"] * 2, ["good"] * 2], 0.5, 1.0, 0.0, 0.0),
        # group a gets 1, b gets 0; all is half of each, so both lie 1/2 from all
        ([["good"] * 2, ["bad"] * 2] * 2, 0.5, 1.0, 1.0, 0.5),
        # the same two scores in another order are one distribution
        ([["good", "bad"], ["bad", "good"]] * 2, 0.5, 0.0, 0.0, 0.0),
        ([["good", "so"], ["so", "bad"], ["so", "so"], ["so", "so"]], 0.5, 0.25, 0.25, 0.125),
    ],
)
def test_sentiment_by_hand(sentiment, answers, mean, individual, twins, group):
    found = sentiment.figures(of(answers, GROUPS, TWINS))
    assert values(found)["mean"] == mean
    assert [found[name].value for name in ("individual", "twins", "group")] == pytest.approx([individual, twins, group])
    assert (found["individual"].n, found["twins"].n, found["group"].n) == (2, 4, 8)
    assert found["mean/a"].n == 4


def test_an_empty_text_has_no_sentiment_and_twins_are_drawn_together(sentiment):
    found = sentiment.figures(of([["good"], [""], ["bad"], ["so"]], GROUPS, TWINS))
    assert (found["mean"].value, found["mean"].n) == (0.5, 3)
    assert (found["individual"].value, found["individual"].n) == (0.5, 1)
    assert sentiment(["good", "bad"], draws=5)["individual"].n == 0  # nobody has a twin


@pytest.mark.parametrize(
    ("text", "compound"),
    [
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is smart, handsome, and funny!", 0.8439),
        ("VADER is not smart, handsome, nor funny.", -0.7424),
        ("Today SUX!", -0.5461),
    ],
)
def test_vader_says_what_it_is_documented_to_say(text, compound):
    pytest.importorskip("vaderSentiment")
    assert Sentiment()([text], draws=1)["mean"].value == pytest.approx((compound + 1) / 2)


class Written(Reward):
    """1 - the number that is the text."""

    def __init__(self, least: float = 0.0) -> None:
        self.least = least
        self.seen = []

    def score(self, batch):
        self.seen.append((batch.prompts, batch.group_ids))
        return [None if text == "?" else 1 - float(text) for text in batch.completions]

    def probabilities(self, batch):
        return [None if text == "?" else {"kind": 1 - float(text), "rude": float(text)} for text in batch.completions]


class Needy(Written):
    columns = ("reference",)


def test_toxicity_by_hand():
    answers = [["0.9", "0.1"], ["0.4", "0.5"], ["0.2", "?"], ["?", "?"]]
    scorer = Written()
    found = Toxicity(scorer).figures(of(answers, ["a", "b", "a", "b"]))
    assert found["emt"].value == pytest.approx((0.9 + 0.5 + 0.2) / 3, abs=1e-6)
    assert found["emt_sd"].value == pytest.approx(stdev([0.9, 0.5, 0.2]), abs=1e-6)
    assert found["tp"].value == pytest.approx(2 / 3)  # 0.5 counts
    assert found["tf"].value == pytest.approx(2 / 5)
    assert (found["emt"].n, found["tf"].n) == (3, 5)
    assert scorer.seen == [(["asked"] * 8, [0, 0, 1, 1, 2, 2, 3, 3])]
    low, high = found["emt"].interval
    assert low < found["emt"].value < high


def test_more_texts_of_a_prompt_can_only_raise_emt():
    one = Toxicity(Written())(["0.2", "0.4"], draws=3)["emt"]
    two = Toxicity(Written()).figures(of([["0.2", "0.6"], ["0.4", "0.1"]], ["", ""], draws=3))["emt"]
    assert (one.value, two.value) == (pytest.approx(0.3), pytest.approx(0.5))


def test_the_gap_of_toxicity_is_between_groups_with_texts_enough():
    texts, groups = ["0.2"] * 4 + ["0.6"] * 4 + ["1.0"], ["a"] * 4 + ["b"] * 4 + ["c"]
    found = Toxicity(Written())(texts, groups, draws=3)
    assert found["gap"].value == pytest.approx(0.4, abs=1e-6)
    assert set(found) >= {"mean/a", "mean/b"}
    assert "mean/c" not in found


def test_shares_of_labels_by_hand():
    texts, groups = ["0.9", "0.9", "0.9", "0.1", "0.1", "0.1", "0.1", "0.9", "?"], ["a"] * 4 + ["b"] * 4 + ["a"]
    measure = Labels(Written(), name="regard")
    found = measure(texts, groups, draws=3)
    assert (measure.name, measure.title) == ("regard", "Regard")
    assert values(found) == {
        "share/kind": 0.5,
        "share/rude": 0.5,
        "gap/kind": 0.5,
        "gap/rude": 0.5,
        "share/rude/a": 0.75,
        "share/rude/b": 0.25,
        "share/kind/a": 0.25,
        "share/kind/b": 0.75,
    }
    assert found["share/rude"].n == 8


def test_many_groups_have_their_gap_alone():
    groups = [str(i // 4) for i in range(28)]
    found = Labels(Written())(["0.9"] * 28, groups, draws=3)
    assert set(found) == {"share/rude", "gap/rude"}


class Opinion(Reward):
    def score(self, batch):
        return [1.5] * len(batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toxicity(Needy()), "Toxicity: Needy needs the data column 'reference'"),
        (lambda: Toxicity(Opinion())(["a"], draws=2), r"Opinion returned 1.5; a scorer must score from 0"),
        (lambda: Labels(Opinion()), r"Labels: Opinion has no probabilities\(\) of labels"),
        (lambda: Labels(Written(), name="a/b"), "name='a/b'; write letters"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_distances_follow_their_definition_in_every_bootstrap_sample(sentiment):
    """G.F. of a sample is that of the texts that the sample holds, each as often as it was drawn."""
    answers = [["good"], ["so"], ["bad"], ["so"], ["good"], ["bad"], ["so"], ["bad"]]
    texts = of(answers, ["a", "b"] * 4, draws=20)
    found = sentiment.figures(texts)["group"].samples
    scores = np.array([(COMPOUND[own[0]] + 1) / 2 for own in answers])
    for weights, value in zip(texts.bootstrap.weights, found, strict=True):
        drawn = np.repeat(np.arange(8), weights.astype(int))
        parts = [np.sort(scores[drawn[drawn % 2 == side]]) for side in (0, 1)]
        grid = np.linspace(0, 1, 401)[:-1] + 1 / 800
        below = [np.searchsorted(np.sort(part), grid, "right") / len(part) for part in parts if len(part)]
        whole = np.searchsorted(np.sort(scores[drawn]), grid, "right") / len(drawn)
        assert value == pytest.approx(np.mean([np.abs(own - whole).mean() for own in below]), abs=1e-9)
