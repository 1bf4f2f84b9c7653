"""Measures that count words, on cases worked out by hand."""

import math

import numpy as np
import pytest

from lit_debias.benchmark import ClusterBootstrap
from lit_debias.errors import UserError
from lit_debias.text_measures import (
    Associations,
    Cooccurrence,
    Honest,
    LogOdds,
    Polarity,
    Representation,
    Texts,
    measures_of,
)
from lit_debias.text_measures.counting import CHUNK
from lit_debias.text_measures.log_odds import z_scores

TWO = {"first": ["x"], "second": ["y"]}


def values(found):
    return {name: estimate.value for name, estimate in found.items()}


@pytest.mark.parametrize(
    ("words", "text"),
    [(TWO, "x x x y"), ({"first": ["x", "z"], "second": ["y"]}, "x z x z X. Z! y")],
    ids=["counts (3, 1), sizes (1, 1)", "counts (6, 1), sizes (2, 1)"],
)
def test_representation_by_hand(words, text):
    found = Representation(words)([text, "nobody is named"], draws=5)
    assert values(found) == {"tvd": 0.25, "share/first": 0.75, "share/second": 0.25}
    assert found["tvd"].n == 1
    assert Representation(words)(["nobody"], draws=5)["tvd"].n == 0


def test_representation_counts_words_of_the_lists_alone():
    found = Representation()(["She\N{RIGHT SINGLE QUOTATION MARK}s here, the woman.", "Shepherds history"], draws=5)
    assert values(found) == {"tvd": 0.5, "share/female": 1.0, "share/male": 0.0}


def test_associations_by_hand():
    # nurse: 2 x 1 with the first, 1 x 2 with the second, so 0; pilot: 1 with the first, none with the second, so 1/2
    texts = ["x x nurse", "y nurse nurse", "x pilot", "cook", "y"]
    measure = Associations(["nurse", "pilot", "cook"], TWO)
    found = measure(texts, draws=5)["tvd"]
    assert (found.value, found.n) == (0.25, 2)
    several = Texts.of([[text] for text in texts], [""] * 5, [""] * 5, ClusterBootstrap(list("abcde"), 5, 0))
    assert measure.words(several) == {"with first": [("pilot", 1.0)], "with second": []}
    # a list of two words halves its counts: nurse is then 1 to 2, so |1/3 - 1/2|
    longer = Associations(["nurse"], {"first": ["x", "z"], "second": ["y"]})(texts, draws=5)["tvd"]
    assert longer.value == pytest.approx(1 / 6)


def test_polarity_by_hand():
    texts = ["She said he knew her", "He is", "she and he", "the dog", ""]
    assert values(Polarity()(texts, draws=5)) == {"female": 0.2, "male": 0.2, "neutral": 0.6, "lean": 0.0}


def test_cooccurrence_by_hand():
    measure = Cooccurrence({"first": ["she"], "second": ["he"]}, window=1)
    # near she: cooks 1 of 1; near he: drives 1, cooks 1 of 2; she once, he twice; 1 is added to each of two words
    found = measure(["She cooks", "he drives and", "he cooks slowly"], draws=5)["bias"]
    assert found.value == pytest.approx((math.log(8 / 3) + math.log(4 / 3)) / 2)
    assert found.n == 2
    assert measure(["she cooks"], draws=5)["bias"].n == 0  # nobody is compared with anybody


def test_weights_fall_with_the_distance():
    measure = Cooccurrence({"first": ["she"], "second": ["he"]}, window=None, decay=0.5)
    assert list(measure.neighbours(["old", "she", "the", "big", "red", "car"])) == [
        (0, "old", 0.5),
        (0, "big", 0.25),
        (0, "red", 0.125),
        (0, "car", 0.0625),
    ]


def test_many_words_are_counted_in_parts(monkeypatch):
    texts = [f"she w{i} w{i + 1}" if i % 3 else f"he w{i} w{2 * i}" for i in range(CHUNK)]
    whole = Cooccurrence()(texts, draws=3)["bias"]
    monkeypatch.setattr("lit_debias.text_measures.counting.CHUNK", 7)
    np.testing.assert_allclose(Cooccurrence()(texts, draws=3)["bias"].samples, whole.samples)


def test_z_of_a_word_by_hand():
    # delta = log(7 / 5) - log(5 / 7), variance 1/7 + 1/5
    x, y = z_scores(np.array([3.0, 1.0]), np.array([1.0, 3.0]), np.array([4.0, 4.0]))
    assert x == pytest.approx(2 * math.log(1.4) / math.sqrt(12 / 35))
    assert y == pytest.approx(-x)


def test_words_that_mark_a_group_are_listed():
    texts = ["loud " * 5 + "often"] * 4 + ["kind " * 5 + "often"] * 4
    groups = ["a"] * 4 + ["b"] * 4
    found = LogOdds()(texts, groups, draws=5)
    assert values(found) == {"words": 2, "words/a": 1, "words/b": 1}
    assert np.isnan(found["words"].samples[1:]).all()  # duplicates in a sample would make more words
    several = Texts.of([[text] for text in texts], texts, groups, ClusterBootstrap(texts, 5, 0))
    [(word, z)] = LogOdds().words(several)["about a"]
    # counts 20 and 0 of 24 words each, prior 20 of 48
    delta = math.log(40 / (24 + 48 - 40)) - math.log(20 / (24 + 48 - 20))
    assert (word, z) == ("loud", pytest.approx(delta / math.sqrt(1 / 40 + 1 / 20)))
    assert LogOdds()(texts, ["a"] * 8, draws=5)["words"].n == 0


def test_clusters_are_drawn_together():
    texts = ["he", "she", "he", "she"]
    assert Polarity()(texts, clusters=list("aabb"), draws=200)["male"].interval == (0.5, 0.5)
    low, high = Polarity()(texts, clusters=list("abcd"), draws=200)["male"].interval
    assert low < 0.5 < high


@pytest.fixture
def lexicon(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("Nasty\ngood for nothing\n\n")
    return str(file)


@pytest.mark.parametrize(
    ("female", "score", "of_female"),
    [
        (("nasty",), 1 / 6, 1 / 3),  # one completion of six: the shape of the example of `evaluate`, .167
        (("nasty nasty",), 1 / 6, 1 / 3),  # a completion counts once
        (("nothing",), 0, 0),
        (("was good for nothing",), 1 / 6, 1 / 3),
        (("good", "nasty"), 1 / 6, 1 / 3),
    ],
)
def test_honest_by_hand(lexicon, female, score, of_female):
    answers = [["kind", "quick", "tall"], [*female, "kind", "quick"][:3]]
    texts = Texts.of(answers, ["he is", "she is"], ["male", "female"], ClusterBootstrap(["1", "2"], 5, 0))
    found = Honest(lexicon).figures(texts)
    assert found["score"].value == pytest.approx(score)
    assert "score/male" not in found  # three texts are too few for a group's figure
    four = Texts.of(
        [[*own, "tall"] for own in answers], ["", ""], ["male", "female"], ClusterBootstrap(["1", "2"], 5, 0)
    )
    found = Honest(lexicon).figures(four)
    assert found["score/male"].value == 0
    assert found["gap"].value == found["score/female"].value == pytest.approx(of_female * 3 / 4)


def test_honest_reads_the_table_of_hurtlex_and_first_words(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("id\tpos\tlemma\tlevel\n1\tn\tnasty\tinclusive\n2\tn\tmean\tconservative\n")
    texts = ["so mean", "so nasty", "mean"]
    assert Honest(str(table))(texts, draws=5)["score"].value == 1
    assert Honest(str(table), level="conservative")(texts, draws=5)["score"].value == pytest.approx(2 / 3)
    assert Honest(str(table), first=1)(texts, draws=5)["score"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Representation({"a": ["x"]}), "needs two groups of words"),
        (lambda: Representation({"a": ["x"], "b": []}), "the list of 'b' is empty"),
        (lambda: Representation({"a": ["x"], "b": ["X"]}), "'x' is a word of 'a' and of 'b'"),
        (lambda: Representation({"a": ["x y"], "b": ["z"]}), "'x y' is no single word"),
        (lambda: Associations(["she"]), "'she' is a target and a word of a group"),
        (lambda: Cooccurrence({"a": ["x"], "b": ["y"], "c": ["z"]}), "compares two groups, and 'words' has 3"),
        (lambda: Cooccurrence(decay=0), "decay above 0"),
        (lambda: LogOdds(prior=0), "prior=0; write a number above 0"),
        (lambda: Honest("nowhere.txt"), "lexicon 'nowhere.txt' cannot be read"),
        (lambda: Honest("nowhere.txt", first=0), "first=0; write 1 or more"),
        (lambda: measures_of("polarty"), "there is no 'polarty'; did you mean 'polarity'"),
        (lambda: measures_of("toxicity"), r"needs options; write {class_path: Toxicity, init_args: {scorer: ...}}"),
        (lambda: measures_of(["polarity", Polarity()]), "'polarity' is there twice"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_lexicon_without_entries_or_levels_is_a_mistake(tmp_path, lexicon):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(UserError, match="has no entries; write one word or phrase a line"):
        Honest(str(empty))
    with pytest.raises(UserError, match="has no column 'lemma', so no levels"):
        Honest(lexicon, level="inclusive")


def test_names_and_all_that_need_nothing(monkeypatch):
    monkeypatch.setattr("lit_debias.text_measures.sentiment.find_spec", lambda name: None)
    names = ["representation", "associations", "cooccurrence", "polarity", "log_odds"]
    assert [one.name for one in measures_of("all-offline")] == names
    assert [one.name for one in measures_of("polarity, all-offline,polarity")] == ["polarity", *names[:3], "log_odds"]
    assert measures_of("") == []
    with pytest.raises(UserError, match=r"pip install 'lit-debias\[sentiment\]'"):
        measures_of("sentiment")
