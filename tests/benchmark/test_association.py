"""Association bias by hand and on the published cases; our own lists; who ties words to groups is found."""

import pytest

from lit_debias.benchmark import ClusterBootstrap, Likelihood
from lit_debias.benchmark.probes.association import Association, Word, association_bias
from lit_debias.errors import UserError


@pytest.mark.parametrize(
    ("counts", "smoothing", "expected"),
    [
        (((7, 0), (0, 7)), 0, 1),
        (((0, 7), (7, 0)), 0, -1),
        (((4, 4), (2, 2)), 0, 0),
        (((16, 0), (0, 16)), 0.01, 0.9987507807620236),
        (((14, 0), (0, 0)), 0, None),
        (((7, 7), (0, 0)), 0.01, 7 / 14.01 - 1),
    ],
)
def test_the_formula(counts, smoothing, expected):
    found = association_bias(counts, smoothing)
    assert found is expected if expected is None else found == pytest.approx(expected, abs=1e-15)


def test_the_example_of_the_paper():
    assert round(association_bias(((3, 4), (1, 6))), 2) == 0.29


def word(test, side, category="gender"):
    return Word(test, category, test, category, ("men", "women"), "office", side)


def values(items, answers, **options):
    bootstrap = ClusterBootstrap([item.cluster for item in items], 5, 0)
    found = Association(**options).score(items, answers, bootstrap)
    return {name: estimate.value for name, estimate in found.items() if estimate.n}


def test_the_figures_by_hand():
    items = [word("a", 0), word("a", 0), word("a", 1), word("a", 1), word("b", 0, "age"), word("b", 1, "age")]
    # test a: men get one of their words, and one is a tie; test b: women get both
    found = values(items, [0.2, 0.5, 0.9, 0.6, 0.75, 1.0])
    first = 1.5 / 1.5 + 2 / 2.5 - 1
    assert found["bias"] == found["bias/gender"] == pytest.approx(first)
    assert "bias/age" not in found  # men got nothing
    assert found["one_sided"] == 0.5
    soft = [1.3 / 1.8 + 1.5 / 2.2 - 1, 0.25 / 0.25 + 1 / 1.75 - 1]
    assert found["bias_soft"] == pytest.approx(sum(soft) / 2)
    assert found["bias_soft/age"] == pytest.approx(soft[1])
    assert values(items, [0.2, 0.5, 0.9, 0.6, 0.75, 1.0], smoothing=0.01)["bias/age"] == pytest.approx(1 / 2.01 - 1)
    with pytest.raises(UserError, match=r"smoothing=-1; write 0 or more"):
        Association(-1)


class Thinks:
    """A model that finds the group of the stereotype likelier, or less likely."""

    def __init__(self, items, stereotyped):
        self.sides = {item.word: item.stereotype for item in items}
        self.stereotyped = stereotyped

    def choices(self, questions, choices, rotations):
        assert rotations
        asked = [question(groups) for question, groups in zip(questions, choices, strict=True)]
        return [[self.likelihood(question, number) for number in (0, 1)] for question in asked]

    def likelihood(self, question, number):
        side = self.sides[question.split('"')[1]]
        return Likelihood(-1.0 + self.stereotyped * (side == number), 1)


def test_our_own_lists():
    items = Association().read("")
    assert len({item.unit for item in items}) == 11
    for unit in {item.unit for item in items}:
        sides = [item.stereotype for item in items if item.unit == unit]
        assert (sides.count(0), sides.count(1)) == (7, 7)
    one = [item for item in items if item.unit == "gender/career_home"]
    assert values(one, Association().ask(Thinks(one, 2.0), one))["bias"] == 1
    assert values(one, Association().ask(Thinks(one, -2.0), one))["bias"] == -1
    assert values(one, Association().ask(Thinks(one, 0.0), one))["bias"] == 0
