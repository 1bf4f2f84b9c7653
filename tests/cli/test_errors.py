"""What a user's mistake says."""

from __future__ import annotations

from lit_debias.errors import did_you_mean


def test_a_close_word_is_proposed():
    assert did_you_mean("fairnes", ["neutrality", "fairness"]) == "; did you mean 'fairness'?"


def test_far_words_are_listed_in_order():
    assert did_you_mean("xyz", {"neutrality": 1, "fairness": 2}) == "; known: fairness, neutrality"


def test_nothing_is_known():
    assert did_you_mean("xyz", []) == ""


def test_any_iterable_is_read_once():
    assert did_you_mean("xyz", (word for word in ["b", "a"])) == "; known: a, b"
