"""The reward Variety: by hand, and against distinct-n."""

from __future__ import annotations

import pytest

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.support.text import distinct_credit, words
from lit_debias_fluency import Variety


def batch(*completions: str) -> RewardBatch:
    return RewardBatch(["?"] * len(completions), list(completions), [0] * len(completions))


def test_by_hand():
    # pairs: (a b) three times, (b c) once, (b d) once, (x y) once
    assert Variety().score(batch("a b c", "A b, d!", "a b", "x y")) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1.0])


def test_repeats_inside_a_completion_count():
    assert Variety().score(batch("a b a b")) == pytest.approx([(1 / 2 + 1 + 1 / 2) / 3])


def test_one_answer_for_every_prompt_scores_one_nth():
    assert Variety().score(batch(*["the very same answer"] * 8)) == pytest.approx([1 / 8] * 8)


def test_weighted_by_ngrams_it_is_distinct_n():
    texts = ["he said that it rains", "she said that it snows", "it rains and it rains", "he said nothing"]
    counts = [len(words(text)) - 1 for text in texts]
    scores = Variety().score(batch(*texts))
    grams = [pair for text in texts for pair in zip(words(text), words(text)[1:], strict=False)]
    weighted = sum(score * count for score, count in zip(scores, counts, strict=True)) / sum(counts)
    assert weighted == pytest.approx(len(set(grams)) / len(grams))
    assert weighted < 1
    assert sum(distinct_credit(texts, 2, [99] * 4)[0]) == pytest.approx(len(set(grams)))


def test_too_short_for_an_ngram_is_no_opinion():
    assert Variety().score(batch("yes", "", "yes indeed")) == [None, None, 1.0]
    assert Variety(n=1).score(batch("yes", "no no")) == pytest.approx([1.0, 0.5])


def test_order_does_not_matter():
    texts = ["a b c", "a b", "c d e a b"]
    assert Variety().score(batch(*texts))[::-1] == Variety().score(batch(*texts[::-1]))


def test_wrong_n_is_refused():
    with pytest.raises(UserError, match="n=0; write 1 or more"):
        Variety(n=0)
