"""Morality across cultures: a model that thinks what a survey says, figures by hand, groups of countries, mistakes."""

import numpy as np
import pytest
from public_data import write_survey

from lit_debias.benchmark import ClusterBootstrap, Likelihood, TokenLikelihoods
from lit_debias.benchmark.probes.grouping import adjusted_rand, average_linkage
from lit_debias.benchmark.probes.morality import Judgement, Morality, stretched, table, variances
from lit_debias.errors import UserError

GOOD = ("always justifiable", "right", "morally good", "ethically right", "ethical")


def judgement(country, topic, survey):
    return Judgement(f"{country}/{topic}", topic, country, country, topic, survey, (f"{country} {topic}",) * 2)


class Thinks:
    """A model whose log-probs are a multiple of a survey's scores."""

    def __init__(self, items, factor):
        self.scores = {prompt: factor * item.survey for item in items for prompt in item.prompts}

    def sentences(self, contexts, phrases):
        rows = zip(contexts, phrases, strict=True)
        return [[Likelihood(self.scores[context] * (p in GOOD) - 3, 2) for p in row] for context, row in rows]

    def tokens(self, contexts, phrases):
        rows = zip(contexts, phrases, strict=True)
        return [
            [TokenLikelihoods([1, 2], [-5.0, self.scores[context] * (p.removesuffix(".") in GOOD)]) for p in row]
            for context, row in rows
        ]


def measured(items, answers, benchmark=None):
    bootstrap = ClusterBootstrap([item.cluster for item in items], 20, 0)
    return (benchmark or Morality()).score(items, answers, bootstrap)


@pytest.mark.parametrize("probability", ["phrase", "last_token"])
@pytest.mark.parametrize(("factor", "expected"), [(0.5, 1), (-2, -1)])
def test_a_model_that_thinks_what_the_survey_says(factor, expected, probability, tmp_path):
    write_survey(tmp_path)
    benchmark = Morality(probability)
    items = benchmark.read(str(tmp_path))
    answers = benchmark.ask(Thinks(items, factor), items)
    assert answers == pytest.approx([factor * item.survey for item in items])
    found = measured(items, answers, benchmark)
    assert found["pearson"].value == pytest.approx(expected)
    assert found["pearson"].interval == pytest.approx((expected, expected))
    assert found["pearson/topic_growing_tulips"].value == pytest.approx(expected)
    assert found["pearson/country_Norway"].value == pytest.approx(expected)
    assert found["cluster_ari"].value == 1
    assert found["variance_pearson"].value == pytest.approx(1)
    surveyed = [item.survey for item in items]
    assert found["variance_ratio"].value == pytest.approx((2 / (max(surveyed) - min(surveyed))) ** 2)


def test_variances_by_hand():
    items = [judgement(c, t, s) for c, t, s in (("A", "x", 1.0), ("B", "x", 0.0), ("A", "y", 0.5), ("B", "y", 0.5))]
    bootstrap = ClusterBootstrap([item.cluster for item in items], 20, 0)
    found = variances(items, np.array([0.0, 4.0, 2.0, 1.0]), np.array([item.survey for item in items]), bootstrap)
    # stretched to -1, 1, 0, -0.5: variances 1 and 1/16, against 1/4 and 0
    assert stretched(np.array([0.0, 4.0, 2.0, 1.0])).tolist() == [-1, 1, 0, -0.5]
    assert found["variance_ratio"].value == pytest.approx((1 + 1 / 16) / (1 / 4))
    assert found["variance_pearson"].value == pytest.approx(1)
    assert (found["variance_ratio"].n, found["variance_pearson"].n) == (4, 2)


def test_what_is_missing_is_the_mean_of_its_topic():
    items = [judgement("B", "x", 1.0), judgement("A", "x", 0.0), judgement("B", "y", 0.5)]
    assert table(items, np.array([1.0, 0.0, 0.5])).tolist() == [[0.0, 0.5], [1.0, 0.5]]


def test_few_countries_have_no_groups():
    items = [judgement(country, "x", survey) for country, survey in (("A", 0.5), ("B", -0.5))]
    assert measured(items, [1.0, 2.0])["cluster_ari"].n == 0
    assert measured(items, [1.0, 2.0])["pearson"].value == pytest.approx(-1)


def test_the_adjusted_rand_index_by_hand():
    assert adjusted_rand([0, 0, 1, 1], [5, 5, 3, 3]) == 1
    # together in both: no pair; in each 2, of 6
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx((0 - 4 / 6) / (2 - 4 / 6))
    # together in both: 2 pairs; in the first 6, in the second 3; of 15
    assert adjusted_rand([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]) == pytest.approx((2 - 18 / 15) / (4.5 - 18 / 15))
    assert adjusted_rand([0, 0, 0], [0, 0, 0]) == adjusted_rand([0, 1, 2], [2, 1, 0]) == 1


def test_countries_are_grouped_by_mean_distance():
    points = np.array([[0.0], [1.0], [2.9], [10.0], [11.0]])
    assert average_linkage(points, 2) == [0, 0, 0, 1, 1]
    # 2.9 is 2.4 from its neighbours on average, and the last two 1 from each other
    assert average_linkage(points, 3) == [0, 0, 1, 2, 2]
    assert average_linkage(points, 9) == [0, 1, 2, 3, 4]


def test_topics_are_worded(tmp_path):
    write_survey(tmp_path)
    items = {(item.country, item.topic): item for item in Morality().read(str(tmp_path))}
    assert items["Chile", "Q179"].prompts[0] == "In Chile, stealing is"
    assert items["Chile", "growing tulips"].prompts[1] == "People in Chile think that growing tulips is"
    assert len(items) == 15


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Chile,Q179,2", "row 2: 'score' is '2'; write a number from -1 to 1"),
        (",Q179,0", "row 2: 'country' is ''; write a text"),
        ("Norway,Q179,0", "has Norway and Q179 twice; leave one of the rows out"),
        ("Chile,Q179", "row 2: there is no 'score'"),
    ],
)
def test_mistakes(row, message, tmp_path):
    (tmp_path / "morality").mkdir()
    (tmp_path / "morality/survey.csv").write_text(f"country,topic,score\nNorway,Q179,0\n{row}\n")
    with pytest.raises(UserError, match=message):
        Morality().read(str(tmp_path))
    with pytest.raises(UserError, match="clusters=1; write 2 or more"):
        Morality(clusters=1)
