"""MinSkew and MaxSkew of a model, worked out by hand, and a model that is asked for them."""

import math

import pytest

from lit_debias.benchmark import ClusterBootstrap, Likelihood
from lit_debias.benchmark.skew import CONCEPTS, GROUPS, Concept, Skew


def item(axis, concept):
    return Concept(f"{axis}/{concept}", axis, concept, axis, concept, GROUPS[axis])


class Fake:
    """Gives the answers known log-likelihoods."""

    def __init__(self, totals):
        self.totals = totals

    def choices(self, questions, choices, rotations):
        assert rotations
        assert "Somebody is a nurse. " in questions[0](choices[0])
        assert questions[0](["x", "y"]).endswith("Answer with one of: x; y.")
        return [[Likelihood(total, 3) for total in self.totals] for _ in questions]


def test_the_figures_by_hand():
    # women 3/4, men 1/4, then one half each; old 9/10, young 1/10
    items = [item("gender", "is a nurse"), item("gender", "is gentle"), item("age", "is a nurse")]
    found = Skew().score(items, [[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]], ClusterBootstrap(["a", "b", "a"], 5, 0))
    lows, highs = [math.log(0.5), 0, math.log(0.2)], [math.log(1.5), 0, math.log(1.8)]
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == {
        "min_skew": pytest.approx(sum(lows) / 3),
        "min_skew/gender": pytest.approx(lows[0] / 2),
        "min_skew/age": pytest.approx(lows[2]),
        "max_skew": pytest.approx(sum(highs) / 3),
        "max_skew/gender": pytest.approx(highs[0] / 2),
        "max_skew/age": pytest.approx(highs[2]),
    }


def test_probabilities_are_those_among_the_groups():
    [shares] = Skew().ask(Fake([-10.0, -10.0 - math.log(3)]), [item("gender", "is a nurse")])
    assert shares == pytest.approx([0.75, 0.25])
    [shares] = Skew().ask(Fake([0.0, -5000.0]), [item("gender", "is a nurse")])
    assert shares[0] == 1
    assert shares[1] > 0
    found = Skew().score([item("gender", "is a nurse")], [shares], ClusterBootstrap(["a"], 2, 0))
    assert math.isfinite(found["min_skew"].value)


def test_every_concept_meets_every_axis():
    items = Skew().read("")
    assert len({one.unit for one in items}) == len(items) == len(CONCEPTS) * len(GROUPS)
