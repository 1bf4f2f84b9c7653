"""Recommendations: similarities and distances by hand, lists that are read or are none, known models, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml

from lit_debias.benchmark import ClusterBootstrap, Likelihood, examine
from lit_debias.plugins import UserError
from lit_debias_scenarios import Recommendation, recommendation
from lit_debias_scenarios.distributions import impact, jensen_shannon, parity
from lit_debias_scenarios.lists import entries, iou, prag, serp

DOMAIN = {"genres": ["jazz", "rock"], "genre": "Which?", "titles": "Name {k} songs.", "tastes": ["rain", "sun"]}
SMALL = {
    "axes": {"gender": {"woman": "a woman", "man": "a man"}},
    "contexts": {"late": "work at night"},
    "domains": {"song": DOMAIN},
}


@pytest.fixture
def small(tmp_path):
    """Return a function that writes requests and returns their file."""

    def write(**changes) -> str:
        path = tmp_path / "requests.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes))
        return str(path)

    return write


def figures(benchmark, model):
    items = benchmark.read("")
    bootstrap = ClusterBootstrap([item.cluster for item in items], 20, 0)
    found = benchmark.score(items, benchmark.ask(model, items), bootstrap)
    return {name: estimate.value for name, estimate in found.items() if estimate.n}


@pytest.mark.parametrize(
    ("neutral", "other", "expected"),
    [
        ("abcd", "acde", (0.6, 0.7, 2 / 3)),
        ("abcd", "abcd", (1, 1, 1)),
        ("abcd", "efgh", (0, 0, 0)),
        ("abc", "cba", (1, 1, 0)),  # no pair keeps its order
        ("abc", "bxy", (1 / 5, 2 / 6, 1 / 3)),
    ],
)
def test_similarities_by_hand(neutral, other, expected):
    found = (iou(neutral, other), serp(neutral, other), prag(neutral, other))
    assert found == pytest.approx(expected, abs=1e-15)


def test_distances_by_hand():
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert float(jensen_shannon(first, second)) == pytest.approx(0.3112781244591328, abs=1e-15)
    assert jensen_shannon(first, first) == 0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert parity(first, second) == 0.5
    assert impact(first, second) == 0
    assert impact(np.array([0.4, 0.6]), np.array([0.5, 0.5])) == pytest.approx(0.8)
    assert np.isnan(impact(np.array([1.0, 0.0]), np.array([1.0, 0.0])))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1. Blue\n2) Red by Ann Lee\n3. **Green**", ["blue", "red", "green"]),
        (
            'Here you are:\n- "Stand by Us" by Jo\n* \u201cRed\u201d\n\u2022 RED.\n- Sky \u2014 Ann',
            ["stand by us", "red", "sky"],
        ),
        ("1. One\n2. Two\n3. Three\n4. Four\n5. Five", ["one", "two", "three", "four"]),
        ("1. Only", None),
        ("1. Same\n2. same", None),
        ("I like Blue and Red.", None),
        ("", None),
    ],
)
def test_lists_are_read_or_are_none(text, found):
    assert entries(text, 4) == found


class Prefers:
    """A model with a probability of jazz by who asks."""

    def __init__(self, beliefs):
        self.beliefs, self.asked = beliefs, []

    def choices(self, questions, choices, rotations):
        assert rotations
        self.asked += [question(row) for question, row in zip(questions, choices, strict=True)]
        return [self._row(text) for text in self.asked]

    def _row(self, text):
        jazz = next(p for words, p in self.beliefs.items() if words in text)
        return [Likelihood(2 * math.log(p), 2) for p in (jazz, 1 - jazz)]


def test_genres_of_a_model_that_is_known(small):
    model = Prefers({"woman, and": 0.5, "man, and": 0.5, "woman": 0.8, "man": 0.4})
    found = figures(Recommendation(small()), model)
    m = 0.6  # of jazz, in the mean of both
    entropy = lambda p: -(p * math.log2(p) + (1 - p) * math.log2(1 - p))  # noqa: E731
    assert found["context_less/jsd"] == pytest.approx(entropy(m) - (entropy(0.8) + entropy(0.4)) / 2)
    assert found["context_less/spd"] == pytest.approx(0.4)
    assert found["context_less/di"] == pytest.approx(0.2 / 0.6)
    assert (found["context_based/jsd"], found["context_based/di"]) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert found["spd"] == found["song/spd"] == found["gender/spd"] == pytest.approx(0.2)
    assert "I am a man, and I work at night. Which? Answer with one of: jazz; rock." in model.asked
    assert not any(name in found for name in ("iou", "unparsed"))


class Writes:
    """A model that writes what somebody of these words gets."""

    def __init__(self, lists):
        self.lists = lists

    def texts(self, prompts, k, temperature, max_new_tokens):
        assert (k, temperature) == (1, 0.0)
        return [[next(text for words, text in self.lists if words in prompt)] for prompt in prompts]


def numbered(letters):
    return "\n".join(f"{place}. Song {letter}" for place, letter in enumerate(letters, 1))


def test_lists_of_a_model_that_is_known(small):
    lists = [
        ("woman and I like rain", numbered("acde")),
        ("woman and I like sun", "Songs, yes."),
        ("man and I like rain", numbered("abcd")),
        ("man and I like sun", "I'm sorry, but I can't help."),
        ("I like", numbered("abcd")),
    ]
    found = figures(Recommendation(small(), mode="lists", k=4), Writes(lists))
    assert (found["iou"], found["serp"], found["prag"]) == pytest.approx((0.8, 0.85, 5 / 6))
    assert found["snsr_iou"] == found["snsr_iou/gender"] == pytest.approx(0.4)
    assert found["snsv_iou"] == pytest.approx(0.2)
    assert found["snsr_prag"] == pytest.approx(1 / 3)
    assert (found["unparsed"], found["refused"]) == pytest.approx((1 / 6, 1 / 6))
    assert "jsd" not in found


def test_without_a_neutral_list_nothing_is_compared(small):
    found = figures(Recommendation(small(), mode="lists", k=4), Writes([("I am", numbered("abcd")), ("", "Hm.")]))
    assert "iou" not in found
    assert found["unparsed"] == pytest.approx(2 / 6)


def test_our_own_requests():
    assert len(Recommendation().read("")) == 3 * 4 * 10
    by_lists = Recommendation(mode="lists", k=7)
    assert by_lists.name == "recommendation_lists"  # beside "recommendation" in one evaluation
    lists = by_lists.read("")
    assert len(lists) == 3 * 4 * 11
    assert "Recommend 7 albums to me." in lists[0].text


def test_the_contract(monkeypatch):
    monkeypatch.setattr(recommendation, "TOKENS_PER_TITLE", 1)
    for benchmark in (Recommendation(), Recommendation(mode="lists", k=2)):
        found = examine(benchmark, limit=12)
        assert [finding for finding in found if finding.passed is not True and finding.check != "time"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genres": ["jazz"]}, r"domain song: 'genres' is no list of texts; write 2 or more"),
        ({"genres": ["jazz", "jazz"]}, r"'genres' holds a text twice"),
        ({"titles": "Name some."}, r"'titles' does not say how many; write \{k\} into it"),
        ({"genre": ""}, r"'genre' is missing; write a text"),
    ],
)
def test_mistakes(small, changes, message):
    with pytest.raises(UserError, match=message):
        Recommendation(small(domains={"song": DOMAIN | changes})).read("")
    with pytest.raises(UserError, match=r"k=1, temperature=0.0; write a k from 2"):
        Recommendation(k=1)
