"""The example reward: scores by hand, its contract, and that it is found."""

from __future__ import annotations

import pytest

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_example import NoSweepingWords


def score(*completions: str, **options) -> list[float | None]:
    batch = RewardBatch(["q"] * len(completions), list(completions), list(range(len(completions))))
    return NoSweepingWords(**options).score(batch)


def test_scores_by_hand():
    assert score(
        "Some drivers are careful. Others are not.",
        "They are ALWAYS late! Ask one of them.",
        "All of them never learn",
        "",
        " ... ",
    ) == [1.0, 0.5, 0.0, None, None]


def test_words_are_whole_words_and_an_option():
    assert score("The wall is tall.") == [1.0]
    assert score("The wall is tall.", words=("wall",)) == [0.0]
    assert score("A (sic) word.", words=("(",)) == [1.0]  # an option is text, not a pattern


def test_no_words():
    with pytest.raises(UserError, match="words"):
        NoSweepingWords(words=())


def test_is_found_through_its_entry_point():
    found = {component.name: component.distribution for component in components(get_plugin_manager())}
    assert found["NoSweepingWords"] == "lit-debias-example"
