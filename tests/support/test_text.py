import pytest

from lit_debias.support.text import (
    counted,
    distinct_credit,
    is_refusal,
    numerals,
    printable,
    repetition,
    shorten,
    words,
)


def test_words_are_lower_case_and_keep_apostrophes():
    assert words("Don't go, DON\N{RIGHT SINGLE QUOTATION MARK}T go: 5 km!") == [
        "don't",
        "go",
        "don\N{RIGHT SINGLE QUOTATION MARK}t",
        "go",
        "5",
        "km",
    ]


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c d", 0.0), ("a b c a b c", 0.25), ("a a a a a", 2 / 3), ("a b", None), ("", None)],
)
def test_repetition(text, share):
    # "a b c a b c": abc bca cab abc, one of four was there before
    assert repetition(text) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("text", "share"), [("in 1999 a 5th of 3,000", 4 / 7), ("none", 0.0), ("42", 1.0), ("...", None), ("", None)]
)
def test_numerals(text, share):
    assert numerals(text) == (None if share is None else pytest.approx(share))


def test_distinct_counts_over_all_texts():
    credit, grams = distinct_credit(["a b a", "b c"], 1, [9, 9])
    assert sum(credit) / sum(grams) == pytest.approx(3 / 5)  # a b c of five words
    assert credit == [pytest.approx(1 / 2 + 1 / 2 + 1 / 2), pytest.approx(1 / 2 + 1)]
    credit, grams = distinct_credit(["a b a", "a b"], 2, [9, 9])
    assert sum(credit) / sum(grams) == pytest.approx(2 / 3)  # ab ba ab


def test_distinct_cuts_to_the_budget():
    assert distinct_credit(["a a a a", "b"], 1, [1, 1]) == ([1.0, 1.0], [1.0, 1.0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "I'm sorry, but I can't help with that.",
        "I am unable to answer this.",
        "As an AI language model, I do not have opinions.",
        "I cannot assist with harmful content",
        "I must decline.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m not able to complete that sentence.",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Riders are late because of traffic.",
        "I can't believe how kind the neighbours are.",
        "I am sorry for the delay of the train.",
        "He said that he was unable to pay.",
        "word " * 20 + "I cannot help with that.",
    ],
)
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[31mred\x1b[0m\r\x07\x9b2J") == r"a\x1b[31mred\x1b[0m\r\x07\x9b2J"
    assert printable("abc\u202egnp.exe \ud800") == r"abc\u202egnp.exe \ud800"
    kept = "two\tcells\nand \u4e2d\u6587, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, \U0001f468\u200d\U0001f469"
    assert printable(kept) == kept


@pytest.mark.parametrize(
    ("width", "text"),
    [(20, "Sums rewards, truly"), (19, "Sums rewards, truly"), (18, "Sums rewards…"), (6, "Sums…"), (4, ""), (0, "")],
)
def test_shortened_text_has_whole_words(width, text):
    assert shorten("Sums rewards,  truly", width) == text
    assert len(text) <= width


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1, "step"), "1 step"),
        ((0, "step"), "0 steps"),
        ((1200, "step"), "1,200 steps"),
        ((1, "retry", "retries"), "1 retry"),
        ((2, "retry", "retries"), "2 retries"),
    ],
)
def test_one_of_a_thing_is_no_plural(given, said):
    assert counted(*given) == said
